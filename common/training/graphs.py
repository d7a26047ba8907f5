"""CUDA graphs: a step is recorded once and replayed, so that a thousand launches of kernels become one.

On a GPU a training step spends more time in launching kernels than in running them. A recorded step must depend on
tensors alone: Python's own part of it (numbers, branches, random draws) runs only once.
"""

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

SYNCHRONISES = "synchronizing CUDA operation"  # in PyTorch's warning of one


class CannotRecord(Exception):
    """A recording broke off; the text says why, in a line."""


class Recording:
    """Work on tensors, recorded; called like the work, with tensors of the same sizes.

    The results of a call lie where those of the one before lay: they are to be used before the next call.

    Raises:
        CannotRecord: nothing was run. On a GPU nothing should be any more: start again.
    """

    def __init__(self, work: Callable, inputs: Sequence[Tensor], recorder: "CudaRecorder") -> None:
        self._own = tuple(x.clone() for x in inputs)
        torch.clear_autocast_cache()  # casts of the weights belong into the recording
        try:
            self._results, self._replay = recorder.record(lambda: work(*self._own))
        finally:
            torch.clear_autocast_cache()  # and those in the recording belong to it alone

    def __call__(self, *inputs: Tensor) -> Any:
        for own, given in zip(self._own, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self._replay()
        return self._results


def recorder(device: torch.device) -> "CudaRecorder | None":
    """What records on a device; None on a CPU."""
    return CudaRecorder(device) if device.type == "cuda" else None


class CudaRecorder:
    """CUDA graphs of a GPU, all on one stream of their own, as PyTorch's notes on CUDA graphs advise.

    After a recording that broke off the state of PyTorch's memory and random numbers is not known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def run(self, work: Callable[[], Any]) -> Any:
        """Run the work as it is, in such a way that a recording can follow."""
        now = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(now)
        try:
            with torch.cuda.stream(self.stream):
                return work()
        finally:
            now.wait_stream(self.stream)

    def rehearse(self, work: Callable[[], Any]) -> tuple[Any, str]:
        """Like ``run``; also says whether the work waits for the GPU, which a recording would break at."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                results = self.run(work)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = any(SYNCHRONISES in str(warning.message) for warning in caught)
        return results, "the step waits for results of the GPU" if waits else ""

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Record the work without running it: where its results will be, and what runs it. May raise CannotRecord."""
        pool, graph = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        with _no_collection():
            try:
                # thread_local: a thread that pins the memory of batches meanwhile does no harm.
                with torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local"):
                    results = work()
            except Exception as error:
                first = error.__context__ if isinstance(error.__context__, torch.OutOfMemoryError) else error
                raise CannotRecord(f"{type(first).__name__} {first}".splitlines()[0][:200]) from None
        return results, graph.replay


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Within it no other recording is freed by the garbage collector, which a GPU does not allow while it records."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
