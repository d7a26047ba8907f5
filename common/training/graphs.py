"""--cuda_graphs: a step is recorded once as a CUDA graph and replayed: a thousand launches of kernels become one.

On a GPU a training step spends more time in launching kernels than in running them. A recorded step must depend on
tensors alone: Python's own part of it (numbers, branches, random draws) runs only once, when the step is recorded.
``make gpu`` (common/benchmark.py) compares recorded steps with steps that run, bit for bit.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import distributed
from ..errors import Stopped, UserError

WARM_UP = 3  # steps of a kind that run before it is recorded, as PyTorch's notes on CUDA graphs advise

Step = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]


class CudaRecorder:
    """Runs and records work on tensors, on one stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def run(self, work: Callable[[], Any]) -> Any:
        """Run the work as it is, in such a way that it can be recorded afterwards."""
        now = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream):
            results = work()
        now.wait_stream(self.stream)
        return results

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Record the work without running it: where its results will be, and what runs it.

        Stopped: it can't be recorded. The state of the GPU is not known then: end the process.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: another thread may pin the memory of batches meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                results = work()
        except RuntimeError as error:
            reason = str(error.__context__ or error).strip().partition("\n")[0]  # the first of two errors says more
            raise Stopped(
                f"--cuda_graphs: a step can't be recorded ({reason}); run the same command without --cuda_graphs"
            ) from None
        return results, graph.replay


def recorder(device: torch.device) -> CudaRecorder:
    """What records on a device. UserError: on a CPU, or in several processes, whose sums a recording may hang in."""
    if device.type != "cuda" or distributed.world_size() > 1:
        raise UserError("--cuda_graphs: steps are recorded on a GPU and in one process; leave --cuda_graphs out")
    return CudaRecorder(device)


class RecordedStep:
    """Called like the step. Each kind of it runs ``WARM_UP`` times, is recorded, and is replayed from then on.

    The results of a call lie where those of the call before lay: use them before the next call.

    Args:
        step: (kind, *tensors) -> losses and images; Python's part of it depends on the kind alone.
        optimizers: all that it steps, Adam with fused=True; their rates become tensors, which a recording reads.
        recorder: see ``recorder``; raises as its ``record``.
    """

    def __init__(self, step: Step, optimizers: Mapping[str, Optimizer], recorder: CudaRecorder) -> None:
        self.step, self.recorder = step, recorder
        self._runs: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, tuple] = {}  # inputs, results, what runs the recording
        self._groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
        for group in self._groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)

    def __call__(self, kind: Hashable, *inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self._runs[kind] < WARM_UP:
            self._runs[kind] += 1
            return self.recorder.run(lambda: self.step(kind, *inputs))
        if kind not in self._recorded:
            self._recorded[kind] = self._record(kind, [x.clone() for x in inputs])
        own, results, replay = self._recorded[kind]
        for x, given in zip(own, inputs, strict=True):
            x.copy_(given)
        replay()
        return results

    def _record(self, kind: Hashable, own: list[Tensor]) -> tuple:
        for group in self._groups:
            group["capturable"] = True  # Adam wants it for a recording, and warns of it in a step that runs
        results, replay = self.recorder.record(lambda: self.step(kind, *own))
        for group in self._groups:
            group["capturable"] = False
        return own, results, replay
