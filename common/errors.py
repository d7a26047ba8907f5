"""Errors that a user can mend, shown as one message without a traceback; how to recognize two of PyTorch's."""


class UserError(Exception):
    """A mistake in the input: names the flag or file, the value met and the remedy. Ends a script with exit code 2."""

    exit_code = 2


class Stopped(UserError):
    """The work can't go on (a full disk, losses that are not finite). Exit code 1."""

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or a GPU lacks memory; PyTorch says so in several ways."""
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    says_so = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return says_so or isinstance(error, MemoryError)


def is_dead_worker(error: BaseException) -> bool:
    """Whether a worker of a DataLoader died; PyTorch raises that anywhere in the main process."""
    return isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)


def explain(error: BaseException) -> str | None:
    """What went wrong and the remedy, for trouble that a user can end; None for any other error, a bug of ours."""
    line = (str(error) or type(error).__name__).partition("\n")[0]
    if isinstance(error, UserError):
        text = str(error)  # that of a worker ends with the message, after a traceback
        return text.strip().splitlines()[-1].rpartition("Error: ")[2] if text.startswith("Caught ") else text
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or line}; check the path, its permissions and the disk"
    if is_dead_worker(error):
        return f"a worker that reads the images died ({line}); try fewer --workers"
    if is_out_of_memory(error):
        return (
            f"out of memory ({line}). For training use a smaller --batchSize, --patchSize or network, or several GPUs; "
            "for deraining a smaller --tile"
        )
    return None
