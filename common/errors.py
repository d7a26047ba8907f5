"""Errors that a user can mend, shown as one message without a traceback; how to recognize two of PyTorch's."""

import torch


class UserError(Exception):
    """A mistake in the input: names the flag or file, the value met and the remedy. Ends a script with exit code 2."""

    exit_code = 2


class Unwritable(UserError):
    """A result can't be written (a full disk, say). Exit code 1."""

    exit_code = 1


class TrainingStopped(UserError):
    """Training can't go on (losses that are not finite, a state that can't be saved). Exit code 1."""

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or a GPU lacks memory; PyTorch says so in several ways."""
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    says_so = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return says_so or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def is_dead_worker(error: BaseException) -> bool:
    """Whether a worker of a DataLoader died; PyTorch raises that anywhere in the main process."""
    return isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)
