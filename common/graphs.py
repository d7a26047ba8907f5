"""Work that is recorded once and replayed: a thousand launches of kernels become one (CUDA graphs).

On a GPU a training step spends more time in launching kernels than in running them. What is recorded must depend on
tensors alone: what Python does between them (numbers, branches, random draws of its own) is done once.
"""

import contextlib
import functools
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP = 3  # runs before the recording: libraries choose their algorithms and make room, Adam makes its averages
SYNCHRONISES = "synchronizing CUDA operation"  # how torch warns of one,
PROTOTYPE = "Synchronization debug mode"  # and of its warning


class Recorder(Protocol):
    """What records: a GPU, or the fake of a test."""

    def run(self, work: Callable[[], Any]) -> Any:
        """Run the work as it is, in such a way that a recording can follow."""

    def rehearse(self, work: Callable[[], Any]) -> tuple[Any, str]:
        """The same, and why it can't be recorded; an empty text if nothing was found."""

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Record the work without running it: where its results will be, and what runs it.

        Raises:
            CannotRecord: nothing was run, and it can still be run as it is.
        """


class CannotRecord(Exception):
    """Why, in a line."""


class Replayed:
    """A function of tensors that is recorded for inputs of the same sizes, once it has run a few times as it is.

    The results of a replay lie where those of the one before lay: they are to be used before the next call.

    Args:
        function: tensors -> anything with tensors in it.
        recorder: records and replays.
        most: so many recordings at most, one for each set of sizes; each keeps its memory. Others run as they are.
        agree: from the reason why this process can't record, empty if it can, to that of all which do the same: what
            they send each other is recorded in all of them, or in none.
    """

    def __init__(
        self, function: Callable, recorder: Recorder, most: int = 1, agree: Callable[[str], str] = str
    ) -> None:
        self.function, self.most, self.agree = function, most, agree
        self._recorder: Recorder | None = recorder
        self._runs: dict[tuple, int] = {}
        self._recorded: dict[tuple, tuple[tuple[Tensor, ...], Any, Callable[[], None]]] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        key = (torch.is_grad_enabled(), torch.is_autocast_enabled(inputs[0].device.type))
        key += tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        if key in self._recorded:
            own, results, replay = self._recorded[key]
            for mine, given in zip(own, inputs, strict=True):
                mine.copy_(given, non_blocking=True)
            replay()
            return results
        if self._recorder is None or len(self._recorded) == self.most:
            return self.function(*inputs)
        runs = self._runs[key] = self._runs.get(key, 0) + 1
        if runs < WARM_UP:
            return self._recorder.run(lambda: self.function(*inputs))
        if runs == WARM_UP:
            results, reason = self._recorder.rehearse(lambda: self.function(*inputs))
            if reason := self.agree(reason):
                self._give_up(reason)
            return results
        own = tuple(x.clone() for x in inputs)
        torch.clear_autocast_cache()  # casts of the weights belong into the recording
        reason = ""
        try:
            results, replay = self._recorder.record(lambda: self.function(*own))
        except CannotRecord as error:
            reason = str(error)
        finally:
            torch.clear_autocast_cache()  # and those in the recording belong to it alone
        # Not above: there the error still holds on to all that the broken recording had made.
        if reason := self.agree(reason):
            self._give_up(reason)
            return self.function(*inputs)
        self._recorded[key] = own, results, replay
        replay()
        return results

    def _give_up(self, reason: str) -> None:
        print(f"--cuda_graphs: not possible here, going on without ({reason})", flush=True)
        self._recorder = None


@functools.cache
def recorder(device: torch.device) -> Recorder | None:
    """What records on a device; None where nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None


class CudaRecorder:
    """CUDA graphs of a GPU, all on one stream of their own, as PyTorch's notes on CUDA graphs advise.

    Attributes:
        kept: bytes that the recordings keep for themselves, free or not.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream, self.kept = device, torch.cuda.Stream(device), 0
        self._broken: list[torch.cuda.CUDAGraph] = []

    def run(self, work: Callable[[], Any]) -> Any:
        """See ``Recorder``."""
        now = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(now)
        try:
            with torch.cuda.stream(self.stream):
                return work()
        finally:
            now.wait_stream(self.stream)

    def rehearse(self, work: Callable[[], Any]) -> tuple[Any, str]:
        """See ``Recorder``; finds work that waits for the GPU, which a recording would break at."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                results = self.run(work)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = False
        for warning in caught:
            if SYNCHRONISES in str(warning.message):
                waits = True
            elif PROTOTYPE not in str(warning.message):  # not ours
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return results, "the step waits for results of the GPU" if waits else ""

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """See ``Recorder``."""
        now, pool = torch.cuda.current_stream(self.device), torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()  # as torch does when it begins to record
        before, graph = torch.cuda.memory_reserved(self.device), torch.cuda.CUDAGraph()
        reason = ""
        with _no_collection():
            try:
                # thread_local: a thread that pins the memory of batches meanwhile does no harm.
                with torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local"):
                    results = work()
            except Exception as error:
                first = error.__context__ if isinstance(error.__context__, torch.OutOfMemoryError) else error
                lines = str(first).strip().splitlines()
                reason = (lines or [type(first).__name__])[0][:200]
                del first
        if reason:  # here, where the error and what it held on to are gone
            torch.cuda.set_stream(now)
            self._recover(graph, pool)
            raise CannotRecord(reason)
        self.kept += torch.cuda.memory_reserved(self.device) - before
        return results, graph.replay

    def _recover(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        """Mend what a recording that broke off leaves behind, which PyTorch does by itself in newer versions alone."""
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        with contextlib.suppress(Exception):
            graph.reset()
        try:
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)
            generator = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())  # the old one believes that it is still recorded
        except RuntimeError:  # it was ended, and so it was released
            pass
        except AttributeError:  # not there any more: keep what the allocator of memory may go on asking
            self._broken.append(graph)
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Within it no other recording is freed by the garbage collector, which a GPU does not allow while it records."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
