"""Steps that are run until their recording has proven that it does the same, with the training's own networks and data.

The first ``cycle + 2`` steps of a training are run, and that is what counts. They are then run once more and recorded,
from the same start each time, both with a higher rate in the last two. Losses, Adam's averages and what moves with the
forward (u and v of the spectral norm) must agree. Weights need not: Adam turns gradients that are zero but for
rounding into full steps. Whatever comes out, the training goes on from its own first result.
"""

import gc
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import ranks
from ..graphs import CannotRecord, Recorder, Recording
from ..speed import Speed, set_rate
from .averaging import Average
from .runtime import rng_state, set_rng_state

NOISE = 10  # times the difference between two runs, that a recording may differ
FLOOR = {"fp32": 1e-5}  # and so much besides, relative
ROUNDED = 1e-3  # the same for the other precisions
SMALL = 1e-2  # losses below count as that large: they are differences of larger numbers
GAIN = 1.1  # times faster at least, or the recordings' memory is not worth it

Work = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]
Values = dict[str, Tensor]


def steps(
    work: Work,
    speed: Speed,
    cycle: int,
    nets: Iterable[nn.Module],
    optimizers: Mapping[str, Optimizer],
    average: Average | None = None,
) -> Work:
    """The work as it is, or where steps are to be recorded ``Steps``.

    Args:
        work: (kind, *tensors) -> losses and pictures. What Python does in it depends on the kind alone.
        cycle: steps in which every kind comes.
        nets: all whose tensors the work changes, but for those of the average.
        optimizers: all that it steps.
    """
    nets = list(nets)
    recorder = speed.recorder(next(nets[0].parameters()).device)
    return Steps(work, recorder, speed, cycle, nets, optimizers, average) if recorder else work


class Steps:
    """See ``steps``; called like the work. Says in a line what became of the recording.

    Raises:
        CannotRecord: a recording broke off, after which nothing can be said about the GPU: start again without.
    """

    def __init__(
        self,
        work: Work,
        recorder: Recorder,
        speed: Speed,
        cycle: int,
        nets: list[nn.Module],
        optimizers: Mapping[str, Optimizer],
        average: Average | None,
    ) -> None:
        self.work, self.nets, self.optimizers, self.average = work, nets, optimizers, average
        self.length, self.every, self.calls = cycle + 2, speed.again, 0
        self.floor = FLOOR.get(speed.precision, ROUNDED)
        self.noise: dict[str, float] = {}
        self._recorder: Recorder | None = recorder
        self._recordings: dict[Hashable, Recording] = {}
        self._seen: list[tuple] = []  # kind, tensors, rates and states of the generators of random numbers
        self._first: list[Values] = []

    def __call__(self, kind: Hashable, *inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self._recorder is None:
            return self.work(kind, *inputs)
        self.calls += 1
        if self._recordings:
            return self._again(kind, inputs) if self.calls % self.every == 0 else self._recordings[kind](*inputs)
        if not self._seen:
            self._start = self._copy()
        self._seen.append((kind, tuple(x.clone() for x in inputs), self._rates(), rng_state()))
        found = self._recorder.run(lambda: self.work(kind, *inputs))
        self._first.append(self._values(found[0], len(self._seen) - 1))
        if len(self._seen) == self.length:
            self._prove()
        return found

    def _prove(self) -> None:
        """Run and record what was seen, from the same start, and decide."""
        recorder, after = self._recorder, (self._copy(), self._rates(), rng_state())
        reasons: list[str] = []

        def run(kind: Hashable, inputs: tuple) -> Any:
            found, reason = recorder.rehearse(lambda: self.work(kind, *inputs))
            reasons.append(reason)
            return found

        second, slow = self._pass(run)
        alike = range(self.length - 2)  # before the rates differ
        for name in second[-1].keys() | {name for number in alike for name in second[number]}:
            pairs = [(self._first[i].get(name), second[i].get(name)) for i in alike]
            self.noise[name] = max((difference(a, b) for a, b in pairs if a is not None), default=-1.0)
        most = max(self.noise.values())
        self.noise = {name: most if noise < 0 else noise for name, noise in self.noise.items()}
        said = ranks.any_reason(next(filter(None, reasons), ""))
        if not said:
            third, quick = self._record()
            name, worst = self._worst(third, second)
            text = f"{self.length} steps recorded and run"
            said = self._verdict(name, worst, f"{text} differ", after="")
            gain = slow / max(quick, 1e-9)
            if not said and gain < GAIN:
                said = f"{text} agree ({worst:.0e}), but {gain:.2f}x faster is not worth the memory"
            said = ranks.any_reason(said)
        self._put(*after)
        self._seen, self._first, self._start = [], [], {}
        if said:
            self._give_up(said)
        else:
            print(f"--cuda_graphs: {text} agree ({worst:.0e}), {gain:.1f}x faster", flush=True)

    def _record(self) -> tuple[list[Values], float]:
        reason = ""
        try:
            for kind, inputs, *_ in self._seen:
                if kind not in self._recordings:
                    self._recordings[kind] = Recording(lambda *x, k=kind: self.work(k, *x), inputs, self._recorder)
        except (CannotRecord, RuntimeError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
        if reason := ranks.any_reason(reason):
            self._recordings = {}
            raise CannotRecord(reason)
        try:
            return self._pass(lambda kind, inputs: self._recordings[kind](*inputs))
        except RuntimeError as error:
            raise CannotRecord(str(error).partition("\n")[0]) from None

    def _pass(self, step: Callable[[Hashable, tuple], Any]) -> tuple[list[Values], float]:
        """All that was seen from the start on: values of each step, and the seconds."""
        self._put(self._start, self._seen[0][2], self._seen[0][3])
        found, seconds = [], 0.0
        for number, (kind, inputs, rates, generators) in enumerate(self._seen):
            set_rng_state(generators)
            for optimizer, rate in zip(self.optimizers.values(), rates, strict=True):
                set_rate(optimizer, max(10 * rate, 1e-3) if number >= self.length - 2 else rate)
            began = time.perf_counter()
            losses, _ = step(kind, inputs)
            losses = {name: value.cpu() for name, value in losses.items()}  # waits for the GPU
            seconds += time.perf_counter() - began
            found.append(self._values(losses, number))
        return found, seconds

    def _again(self, kind: Hashable, inputs: tuple[Tensor, ...]) -> Any:
        """A step that is run, and recorded for comparison alone."""
        self._seen = [(kind, tuple(x.clone() for x in inputs), self._rates(), rng_state())]
        start = self._copy()
        found = self._recorder.run(lambda: self.work(kind, *inputs)) if self._recorder else None
        run, after = self._values(found[0]), (self._copy(), self._rates(), rng_state())
        self._put(start, *self._seen[0][2:])
        recorded = self._values(self._recordings[kind](*inputs)[0])
        self._put(*after)
        self._seen = []
        name, worst = self._worst([recorded], [run])
        late = f"; the last {self.every} steps may be wrong as well"
        if said := ranks.any_reason(self._verdict(name, worst, f"step {self.calls} recorded and run differs", late)):
            self._give_up(said)
        return found

    # --- what is compared ------------------------------------------------------------------------------------------

    def _values(self, losses: dict[str, Tensor], number: int | None = None) -> Values:
        """Copies of the losses; and where rates change next, or at the end, what the steps have moved."""
        values = {name: value.detach().clone() for name, value in losses.items()}
        if number in (None, self.length - 3, self.length - 1):
            for name, optimizer in self.optimizers.items():
                parts = [state["exp_avg"].flatten() for state in optimizer.state.values()]
                values[f"Adam of {name}"] = torch.cat(parts) if parts else torch.zeros(1)
            learning = {id(p) for net in self.nets for p in net.parameters() if p.requires_grad}
            moved = [x for net in self.nets for x in [*net.parameters(), *net.buffers()] if id(x) not in learning]
            moved = [x.detach().flatten() for x in moved if x.is_floating_point()]
            values |= {"u and v": torch.cat(moved)} if moved else {}
        return values

    def _worst(self, found: list[Values], run: list[Values]) -> tuple[str, float]:
        """Of all values the one that is farthest beyond what it may differ, and by how much it differs."""
        pairs = [(name, difference(a[name], b[name])) for a, b in zip(found, run, strict=True) for name in b]
        return max(pairs, key=lambda pair: pair[1] / self._allowed(pair[0]) if pair[1] == pair[1] else float("inf"))

    def _allowed(self, name: str) -> float:
        return NOISE * self.noise.get(name, 0.0) + self.floor

    def _verdict(self, name: str, worst: float, text: str, after: str) -> str:
        return "" if worst <= self._allowed(name) else f"{text} ({name} by {worst:.1g}){after}"

    def _give_up(self, reason: str) -> None:
        print(f"--cuda_graphs: {reason}; going on without", flush=True)
        self._recorder, self._recordings = None, {}
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    # --- from where ------------------------------------------------------------------------------------------------

    def _rates(self) -> list[float]:
        return [float(optimizer.param_groups[0]["lr"]) for optimizer in self.optimizers.values()]

    def _tensors(self) -> dict[tuple, Tensor]:
        """All that a step changes."""
        nets = [*self.nets, *([self.average.net] if self.average else [])]
        found: dict[tuple, Tensor] = {(i, k): v for i, net in enumerate(nets) for k, v in net.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for i, state in enumerate(optimizer.state.get(p, {}) for g in optimizer.param_groups for p in g["params"]):
                found |= {(name, i, key): value for key, value in state.items()}
        return found

    def _copy(self) -> dict[tuple, Tensor]:
        return {key: value.clone() for key, value in self._tensors().items()}

    @torch.no_grad()
    def _put(self, tensors: dict[tuple, Tensor], rates: list[float], generators: dict) -> None:
        for key, value in self._tensors().items():
            if key in tensors:
                value.copy_(tensors[key])
            else:  # Adam's, before its first step
                value.zero_()
        for optimizer, rate in zip(self.optimizers.values(), rates, strict=True):
            set_rate(optimizer, rate)
        set_rng_state(generators)


def difference(a: Tensor, b: Tensor) -> float:
    """How far values are from others, relative to these."""
    a, b = a.double().cpu(), b.double().cpu()
    least = SMALL if b.dim() == 0 else 1e-30
    return ((a - b).norm() / b.norm().clamp(min=least)).item()
