"""--cuda_graphs: steps run until their recording has proven that it computes the same, on the training's own data.

The first ``cycle + 1`` steps of a training are run, and these results count. From the same start they are run again,
which shows the noise, and then recorded and replayed. They are recorded at another rate than they are replayed at: the
step after shows whether a recording takes the new one. Losses, Adam's averages and what moves with the forward (u and v
of the spectral norm) must agree. Weights need not: Adam turns gradients that are zero but for rounding into full steps.
"""

import argparse
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import derainer, distributed
from .graphs import CannotRecord, CudaRecorder, Recording, recorder
from .optimizer import set_rate
from .seeds import rng_state, set_rng_state

NOISE = 10  # times the difference between two runs, that a recording may differ,
FLOOR, ROUNDED = 1e-5, 1e-3  # and so much besides, relative: in fp32, in other precisions
SMALL = 1e-2  # losses below count as that large: they are differences of larger numbers
OTHER = 1e-2  # added to the rates while a step is recorded

Step = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]
Values = list[dict[str, Tensor]]  # losses of each step; at the end what the steps have moved
State = tuple[dict[tuple, Tensor], list[float], dict]  # all that a step changes, rates, random numbers


def record(
    step: Step, args: argparse.Namespace, cycle: int, nets: list[nn.Module], optimizers: Mapping[str, Optimizer]
) -> Step:
    """The step for ``fit``, recorded on a GPU where --cuda_graphs allows it; else the step itself.

    Args:
        step: (kind, *tensors) -> losses and images. Python's part of it depends on the kind alone.
        cycle: steps in which every kind comes.
        nets: all whose tensors the step changes.
        optimizers: all that it steps.
    """
    device = next(nets[0].parameters()).device
    records = recorder(device)
    if records is None:
        if args.cuda_graphs == "on":
            print("--cuda_graphs on: no GPU is used, so nothing is recorded")
        return step
    # By itself not another's network, whose Python may matter; never with sums of several processes, which can hang.
    wanted = args.cuda_graphs == "on" or (args.cuda_graphs == "auto" and not derainer.is_custom(args))
    if not wanted or distributed.world_size() > 1:
        return step
    return RecordedStep(step, records, args.precision, cycle, nets, optimizers)


class RecordedStep:
    """Called like the step; once the recordings are proven, replays them. Says in a line what became of that.

    Args:
        step, cycle, nets, optimizers: see ``record``.
        recorder: records on the GPU of the networks.
        precision: of the networks; it decides which difference is always allowed.

    Raises:
        CannotRecord: a recording broke off, after which nothing can be said about the GPU: start again without.
    """

    def __init__(
        self,
        step: Step,
        recorder: CudaRecorder,
        precision: str,
        cycle: int,
        nets: list[nn.Module],
        optimizers: Mapping[str, Optimizer],
    ) -> None:
        self.step, self.nets, self.optimizers, self.length = step, nets, optimizers, cycle + 1
        self.floor = FLOOR if precision == "fp32" else ROUNDED
        self._recorder: CudaRecorder | None = recorder
        self._recordings: dict[Hashable, Recording] = {}
        self._start: State = {}, [], {}
        self._noted: list[tuple] = []  # kind, tensors, rates and random numbers of the steps to compare
        self._first: Values = []  # their losses

    def __call__(self, kind: Hashable, *inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self._recorder is None:
            return self.step(kind, *inputs)
        if self._recordings:
            return self._recordings[kind](*inputs)
        if not self._noted:
            self._start = self._state()
        self._noted.append((kind, [x.clone() for x in inputs], self._rates(), rng_state()))
        results = self._recorder.run(lambda: self.step(kind, *inputs))
        self._first.append({name: value.clone() for name, value in results[0].items()})
        if len(self._noted) == self.length:
            self._compare(self._recorder)
        return results

    def _compare(self, recorder: CudaRecorder) -> None:
        """Run the noted steps once more and recorded, decide, and leave all as it was after the first run."""
        after, reasons = self._state(), [""]

        def run(kind: Hashable, inputs: list[Tensor]) -> Any:
            results, reason = recorder.rehearse(lambda: self.step(kind, *inputs))
            reasons.append(reason)
            return results

        first = [*self._first, self._moved()]
        second, slow = self._pass(run)
        noise = differences(second, first)
        problem = max(reasons)
        if not problem:
            self._record(recorder)
            try:
                third, quick = self._pass(lambda kind, inputs: self._recordings[kind](*inputs))
            except RuntimeError as error:
                raise CannotRecord(str(error).partition("\n")[0]) from None
            far = differences(third, first)
            allowed = {name: NOISE * noise[name] + self.floor for name in far}
            name, steps = max(far, key=lambda name: far[name] / allowed[name]), f"{self.length} steps"
            if far[name] > allowed[name]:
                problem = f"{steps} recorded and run differ ({name} by {far[name]:.1g})"
        self._put(after)
        self._start, self._noted, self._first = ({}, [], {}), [], []
        if problem:
            print(f"--cuda_graphs: {problem}; going on without", flush=True)
            self._recorder, self._recordings = None, {}
        else:
            text = f"{steps} recorded and run agree ({max(far.values()):.0e}), {slow / max(quick, 1e-9):.1f}x faster"
            print(f"--cuda_graphs: {text}", flush=True)

    def _record(self, recorder: CudaRecorder) -> None:
        for optimizer, rate in zip(self.optimizers.values(), self._rates(), strict=True):
            set_rate(optimizer, rate + OTHER)
        for kind, inputs, *_ in self._noted:
            if kind not in self._recordings:
                self._recordings[kind] = Recording(lambda *x, k=kind: self.step(k, *x), inputs, recorder)

    def _pass(self, step: Callable[[Hashable, list[Tensor]], Any]) -> tuple[Values, float]:
        """The noted steps from their start on: their values, and the seconds."""
        self._put(self._start)
        values, began = [], time.perf_counter()
        for kind, inputs, rates, numbers in self._noted:
            self._set(rates, numbers)
            values.append({name: value.clone() for name, value in step(kind, inputs)[0].items()})
        values = [{name: value.cpu() for name, value in losses.items()} for losses in values]  # waits for the GPU
        seconds = time.perf_counter() - began
        return [*values, self._moved()], seconds

    def _moved(self) -> dict[str, Tensor]:
        """Adam's averages, and what of the networks moves though it does not learn."""
        values = {}
        for name, optimizer in self.optimizers.items():
            values[f"Adam of {name}"] = [state["exp_avg"] for state in optimizer.state.values()]
        for net in self.nets:
            still = [*(p for p in net.parameters() if not p.requires_grad), *net.buffers()]
            values[f"state of {type(net).__name__}"] = [x.detach() for x in still if x.is_floating_point()]
        return {name: torch.cat([x.flatten().cpu() for x in parts]) for name, parts in values.items() if parts}

    def _rates(self) -> list[float]:
        return [float(optimizer.param_groups[0]["lr"]) for optimizer in self.optimizers.values()]

    def _set(self, rates: list[float], numbers: dict) -> None:
        for optimizer, rate in zip(self.optimizers.values(), rates, strict=True):
            set_rate(optimizer, rate)
        set_rng_state(numbers)

    def _tensors(self) -> dict[tuple, Tensor]:
        """All that a step changes."""
        tensors: dict[tuple, Tensor] = {}
        for i, net in enumerate(self.nets):
            tensors |= {(i, key): value for key, value in net.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for i, state in enumerate(optimizer.state.get(p, {}) for g in optimizer.param_groups for p in g["params"]):
                tensors |= {(name, i, key): value for key, value in state.items()}
        return tensors

    def _state(self) -> State:
        return {key: value.clone() for key, value in self._tensors().items()}, self._rates(), rng_state()

    @torch.no_grad()
    def _put(self, state: State) -> None:
        for key, value in self._tensors().items():
            value.copy_(state[0].get(key, torch.zeros(())))  # Adam's are zero before its first step
        self._set(*state[1:])


def differences(values: Values, wanted: Values) -> dict[str, float]:
    """How far values are at most from those wanted, by name, relative to these; what is no number is infinitely far."""
    most: dict[str, float] = {}
    for own, others in zip(values, wanted, strict=True):
        for name, other in others.items():
            a, b = own[name].double().cpu(), other.double().cpu()
            far = ((a - b).norm() / b.norm().clamp(min=SMALL if b.dim() == 0 else 1e-30)).item()
            most[name] = max(most.get(name, 0.0), far if far == far else float("inf"))
    return most
