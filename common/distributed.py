"""Several processes that do one job under torchrun, one a GPU, on one machine or many (torch.distributed).

Without torchrun there is one process, and these functions change nothing. Tensors on a GPU go over NCCL, everything
else over gloo. When a process dies, torchrun ends the others; when one hangs, they end after ``TIMEOUT``.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from .errors import Stopped, UserError, is_dead_worker, is_out_of_memory

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=30)  # the longest that a process waits for another one


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def world_size() -> int:
    """Processes of the job."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def rank() -> int:
    """The number of this process, from 0 on."""
    return int(os.environ["RANK"]) if is_launched() else 0


def is_first() -> bool:
    """Whether this process is the one that prints, logs and saves."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, from 0 on."""
    return int(os.environ["LOCAL_RANK"]) if is_launched() else 0


def local_size() -> int:
    """Processes of the job on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_launched() else 1


def share(start: int = 0) -> slice:
    """This process's share of items that all processes number from ``start`` on: every n-th."""
    return slice((rank() - start) % world_size(), None, world_size())


# --- communication -------------------------------------------------------------------------------------------------


def _together(collective: Callable[[], T]) -> T:
    try:
        return collective()
    except RuntimeError as error:
        if is_dead_worker(error) or is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise Stopped(f"another process of this job is gone or can't be reached ({reason})") from None


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks, in each of them. Waits for all."""
    if not is_launched():
        return [value]
    values: list[Any] = [None] * world_size()
    _together(lambda: dist.all_gather_object(values, value))
    return values


def broadcast(value: T) -> T:
    """The value of rank 0, on all ranks."""
    if not is_launched():
        return value
    values: list[Any] = [value if is_first() else None]
    _together(lambda: dist.broadcast_object_list(values, src=0))
    return values[0]


def require_same(flag: str, value: str) -> None:
    """Refuse processes that see different data. UserError: names the first rank that differs from rank 0, and both."""
    values = gather(value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise UserError(f"{flag}: rank {number} has {other}, rank 0 has {values[0]}; they must be the same")


def any_true(*flags: bool) -> list[bool]:
    """For each flag, whether it is true in any process."""
    if not is_launched():
        return list(flags)
    values = torch.tensor(flags, dtype=torch.int32)
    _together(lambda: dist.all_reduce(values, dist.ReduceOp.MAX))
    return [bool(value) for value in values]


def average_gradients(optimizer: Optimizer, weight: float) -> None:
    """From now on, before each step, make the gradients the sums over all processes of gradient times weight.

    Args:
        weight: this process's share of the batch. A loss is a mean over samples, so the sum is the gradient of the
            whole batch, whatever the shares.
    """
    if world_size() == 1:
        return

    def reduce(optimizer: Optimizer, *_: Any) -> None:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) * weight
        _together(lambda: dist.all_reduce(flat))
        for p, part in zip(weights, flat.split([p.numel() for p in weights]), strict=True):
            p.grad = torch.empty_like(p).copy_(part.view_as(p))  # in its memory layout, which fused Adam asks for

    optimizer.register_step_pre_hook(reduce)


def average(values: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Sums over all processes of value times weight; values of no dimension."""
    if world_size() == 1:
        return values
    flat = torch.stack(list(values.values())) * weight
    _together(lambda: dist.all_reduce(flat))
    return dict(zip(values, flat, strict=True))


def broadcast_weights(nets: Iterable[nn.Module], trainable: bool = True) -> None:
    """Copy the networks of rank 0 to all processes, in place.

    Args:
        trainable: also the weights that learn, not just buffers and what moves with the forward (u and v of the
            spectral norm, the averages of a batch norm).
    """
    if not is_launched():
        return
    for net in nets:
        learning = {name for name, p in net.named_parameters() if p.requires_grad}
        values = {name: value for name, value in net.state_dict().items() if trainable or name not in learning}
        for name, value in broadcast({name: value.cpu() for name, value in values.items()}).items():
            values[name].copy_(value)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Within it torchrun's processes are one job, of which rank 0 prints. UserError: they can't find each other."""
    if not is_launched():
        yield
        return
    if rank():
        sys.stdout = sys.stderr = open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115 (as long as the process)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"torchrun: the processes can't find each other ({reason})") from None
    yield
    gather(None)
    dist.destroy_process_group()
