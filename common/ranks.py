"""Several processes that do one job together under torchrun: one a GPU, on one machine or many.

Each is a rank of PyTorch's process group. Without torchrun there is one process, and what is here leaves all as it is.
Tensors on a GPU go over NCCL, everything else over gloo. A process that ends early is noticed within half a minute,
however it ended; the first to leave says why, the others follow it without a word.
"""

import contextlib
import datetime
import io
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from .errors import TrainingStopped, UserError, is_dead_worker

T = TypeVar("T")
# What others wait for may take long: the check of a large set, the last image of a rank. A process that is gone is
# noticed by its pulse instead.
PATIENCE = datetime.timedelta(days=7)
START, SILENCE = 120, 20  # seconds in which a process must have come, and for which it may then be silent
ASK = 5  # seconds in which the store must say who left first
FOLLOW = 15  # seconds in which a process must have followed one that left; it may be saving
STUCK = 600  # seconds between two steps, where nothing is known to take long
PREFIX = "VRGNET_STORE"  # before all names in the store, of a job within a job
LEFT = "left"  # in the store: "RANK EXITCODE" of the first to leave


class ProcessLost(TrainingStopped):
    """Another process of the job is gone."""


class _Job:
    """What this process knows of the job.

    Attributes:
        watch: None where there is only this process.
        leaving: whether it is on its way out; signals then change nothing.
        advice: what to do when a process was lost.
    """

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.leaving = False
        self.advice: Callable[[], str] = lambda: "Start again."


_job = _Job()


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def _grouped() -> bool:
    return _job.watch is not None and dist.is_initialized()  # a group of somebody else's program is not ours


def count() -> int:
    """Processes of the job."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if _grouped() else 0


def first() -> bool:
    """Whether this process is the one that prints, logs and saves."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, from 0 on."""
    return int(os.environ["LOCAL_RANK"]) if _grouped() else 0


def local_count() -> int:
    """Processes of the job on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _grouped() else 1


def own(start: int = 0) -> slice:
    """Which of the things that are numbered over all processes from ``start`` on are this one's: every n-th."""
    return slice((rank() - start) % count(), None, count())


def torchrun(processes: int) -> str:
    """How a command begins that runs in so many processes on this machine."""
    start = f"{shlex.quote(sys.executable)} -m torch.distributed.run --standalone --nproc_per_node {processes}"
    return f"{start} --"  # or torchrun would take --num for a flag of its own


# --- what passes between processes ---------------------------------------------------------------------------------


def _together(collective: Callable[[], T]) -> T:
    try:
        return collective()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if recording or is_dead_worker(error):
            raise
        _job.leaving = True
        raise ProcessLost(
            f"another process of this job is gone, or can't be reached ({_line(error)}); the report of torchrun names "
            f"it. {_job.advice()}"
        ) from None


def _line(error: Exception) -> str:
    """What an error of PyTorch's groups says in short."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).strip()).partition("\n")[0].partition(". ")[0]


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks, in each of them. Waits for all."""
    if not _grouped():
        return [value]
    values: list[Any] = [None] * count()
    _together(lambda: dist.all_gather_object(values, value))
    return values


def from_first(value: T) -> T:
    """The value of rank 0, on all ranks."""
    if not _grouped():
        return value
    values: list[Any] = [value if first() else None]
    _together(lambda: dist.broadcast_object_list(values, src=0))
    return values[0]


def require_same(flag: str, value: str) -> None:
    """Refuse processes that see different things, on different machines, say.

    Raises:
        UserError: names the first rank that differs from rank 0, and both values.
    """
    values = gather(value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise UserError(f"{flag}: rank {number} has {other}, rank 0 has {values[0]}; they must be the same")


def stopped(asked: KeyboardInterrupt, done: int, number: int, rest: str) -> KeyboardInterrupt:
    """What to raise where work on files was stopped: why, and how many of them are done, of this process's share."""
    whose = "" if count() == 1 else " this process's"
    return KeyboardInterrupt(f"{str(asked) or 'stopped by Ctrl-C'}; {done} of{whose} {number} {rest}")


def require_shared(flag: str, folder: Path) -> None:
    """Refuse a folder for results, made if missing, that is not the same one for all processes.

    Raises:
        UserError: names the first rank that does not see what rank 0 writes.
    """
    if count() == 1:
        return
    mark = folder / from_first(f".shared-{uuid.uuid4().hex}")
    if first():
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    gather(None)
    seen = gather(mark.exists())
    if first():
        mark.unlink()
    if not all(seen):
        raise UserError(
            f"{flag}: rank {seen.index(False)} does not see the {folder} of rank 0; name one that all machines share"
        )


def any_reason(reason: str) -> str:
    """The first reason that a process has; empty if none has any."""
    return next(filter(None, gather(reason)), "")


def any_wish(*wishes: bool) -> list[bool]:
    """For each wish, whether any process has it."""
    if not _grouped():
        return list(wishes)
    found = torch.tensor(wishes, dtype=torch.int32)
    _together(lambda: dist.all_reduce(found, dist.ReduceOp.MAX))
    return [bool(wish) for wish in found]


def average(*optimizers: Optimizer, **values: Tensor) -> dict[str, Tensor]:
    """Make the gradients of the optimizers' weights, and further values, means over all processes, in one call.

    With batches of equal size, the means of a loss's gradients are the gradient of the loss of all batches as one.

    Args:
        optimizers: their gradients change in place.
        values: of no dimension.

    Returns:
        The values, detached.
    """
    values = {name: value.detach() for name, value in values.items()}
    if not _grouped():
        return values
    weights = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    without = [i for i, weight in enumerate(weights) if weight.grad is None]  # another process may have a gradient
    for i in without:
        weights[i].grad = torch.zeros_like(weights[i])
    with_one = torch.ones(len(weights), device=weights[0].device)
    if without:
        with_one[without] = 0
    gradients = [weight.grad for weight in weights]
    parts = [part.flatten() for part in (*gradients, with_one, *values.values())]
    flat = torch.cat(parts)
    _together(lambda: dist.all_reduce(flat))
    means = (flat / count()).split([len(part) for part in parts])
    for gradient, mean in zip(gradients, means[: len(gradients)], strict=True):
        gradient.copy_(mean.view_as(gradient))
    for i in without:
        if means[len(gradients)][i] == 0:  # nobody has one: Adam leaves the weight alone
            weights[i].grad = None
    return dict(zip(values, (mean[0] for mean in means[len(gradients) + 1 :]), strict=True))


def spread(nets: Iterable[nn.Module], weights: bool = True) -> None:
    """Give all processes what the networks of rank 0 hold, in place.

    Args:
        weights: also those that learn, not just what moves with the forward (the vectors of the spectral norm, the
            averages of a batch norm).
    """
    if not _grouped():
        return
    for net in nets:
        learning = {name for name, p in net.named_parameters() if p.requires_grad}
        values = {name: value for name, value in net.state_dict().items() if weights or name not in learning}
        for name, value in from_first({name: value.cpu() for name, value in values.items()}).items():
            values[name].copy_(value)


# --- coming and going ----------------------------------------------------------------------------------------------


class Watch:
    """The pulse of every process, in the store of torchrun: who stops beating is gone. Each looks after the next one.

    One thread beats and listens, another judges; the first gets stuck where the store's machine is gone.

    The pulse says nothing about the main thread, which counts its steps instead.

    Args:
        store: of this object alone.
        lost: called with the reason and the exit code, or with an empty reason where another process has told its own.
        tick: seconds between beats.

    Attributes:
        steps: how often the main thread said that it goes on.
        patient: whether it is in a phase that may take long.
    """

    def __init__(
        self, store: "dist.Store", rank: int, count: int, lost: Callable[[str, int], None], tick: float = 1.0
    ) -> None:
        self.store, self.rank, self.lost, self.tick = store, rank, lost, tick
        self.after = (rank + 1) % count
        self.beats = {rank: 0, self.after: 0}
        self.left: int | None = None  # the exit code of the first to leave
        self.steps, self.patient = 0, True
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._judge)]

    def start(self) -> None:
        """Begin to beat."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Say and hear nothing any more."""
        self._ended.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2)  # a process that ends with one of them in the store aborts

    def claim(self, code: int) -> tuple[bool, int]:
        """Leave: whether this process is the first, and the exit code of the first."""
        found: list[tuple[bool, int]] = []
        asking = threading.Thread(target=lambda: found.append(self._ask(code)), daemon=True)
        asking.start()
        asking.join(ASK)
        return found[0] if found else (True, code)  # nobody can be asked

    def _ask(self, code: int) -> tuple[bool, int]:
        with contextlib.suppress(RuntimeError):
            until = time.monotonic() + (1.0 if self.rank else 0.0)  # rank 0 goes first, where all have the same to tell
            while time.monotonic() < until and not self.store.check([LEFT]):
                time.sleep(0.05)
            found = self.store.compare_set(LEFT, "", f"{self.rank} {code}").decode()
            number, code = map(int, found.split())
            return number == self.rank, code
        return True, code

    def _listen(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone, and every pulse with it
            while True:
                self.store.add(f"pulse/{self.rank}", 1)
                self.beats = {number: self.store.add(f"pulse/{number}", 0) for number in self.beats}
                if self.left is None and self.store.check([LEFT]):
                    self.left = int(self.store.get(LEFT).split()[1])
                if self._ended.wait(self.tick):
                    break

    def _judge(self) -> None:
        last, silent, told = self.beats, dict.fromkeys(self.beats, 0), 0
        done, still = self.steps, 0
        while not self._ended.wait(self.tick):  # in ticks, not in seconds: a job that is halted and goes on is well
            beats = self.beats
            silent = {number: 0 if beats[number] != last[number] else silent[number] + 1 for number in beats}
            last = beats
            told += self.left is not None
            if told * self.tick > FOLLOW:  # the main thread is stuck
                return self.lost("", self.left)
            still = 0 if self.patient or self.steps != done else still + 1
            done = self.steps
            if still * self.tick > STUCK:
                text = f"rank {self.rank} made no step for {STUCK // 60} minutes: its GPU, the network or a disk hangs"
                return self.lost(text, 1)
            gone = [n for n, ticks in silent.items() if ticks * self.tick > (SILENCE if beats[n] else START)]
            if gone and silent[self.rank] * self.tick > SILENCE / 2:  # not even its own pulse arrives
                return self.lost("torchrun, or the machine of rank 0, does not answer any more", 1)
            if gone:
                return self.lost(f"no answer any more from rank {gone[0]} (killed, or its machine is gone)", 1)


class _Aside(io.TextIOBase):
    """stderr of a rank that is not the first: its number before every line, and no terminal, so no progress bars."""

    def __init__(self, number: int) -> None:
        self._head, self._new = f"[rank {number}] ", True

    def write(self, text: str) -> int:
        marked = "".join((self._head if new else "") + line for new, line in self._lines(text))
        os.write(2, marked.encode(errors="backslashreplace"))
        return len(text)

    def _lines(self, text: str) -> Iterator[tuple[bool, str]]:
        for line in text.splitlines(keepends=True):
            yield self._new, line
            self._new = line.endswith("\n")


def goes_on(patient: bool = False) -> None:
    """Say that the main thread makes steps; a job of several processes ends where none follows for ``STUCK`` seconds.

    Args:
        patient: what comes now may take long; until the next call nobody waits for a step.
    """
    if _job.watch:
        _job.watch.steps, _job.watch.patient = _job.watch.steps + 1, patient


def advise(advice: Callable[[], str]) -> None:
    """What a message about a lost process ends with."""
    _job.advice = advice


def leave(code: int, text: str) -> NoReturn:
    """End this process early; says the text if no other process has left before, whose exit code counts otherwise."""
    _job.leaving, tells = True, True
    if _job.watch:
        _job.watch.stop()
        tells, code = _job.watch.claim(code)
    with contextlib.suppress(OSError):
        if tells and text:
            print(text if first() else text.lstrip(), file=sys.stderr)
            if code and (report := os.environ.get("TORCHELASTIC_ERROR_FILE")):  # what torchrun reports in the end
                told = {"message": text.strip(), "extraInfo": {"timestamp": str(int(time.time()))}}
                Path(report).write_text(json.dumps({"message": told}))
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # not sys.exit: what waits for lost processes would wait for ever


def _lost(reason: str, code: int) -> None:
    if _job.leaving:  # by itself
        return
    if reason:
        leave(code, f"error: {reason}. {_job.advice()}")
    os._exit(code)


def _asked(number: int, frame: Any) -> None:
    """Ctrl-C and SIGTERM, which torchrun passes on; SIGTERM also comes from torchrun itself, when another one died."""
    if not _job.leaving:
        _job.leaving = True
        ended = "stopped by SIGTERM: another process of the job died, or somebody ended it"
        raise KeyboardInterrupt("" if number == signal.SIGINT else ended)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within it the processes that torchrun started are one job; waits at the end for all of them.

    Where there is an error, the caller ends the process by ``leave``.

    Raises:
        UserError: the processes can't find each other.
    """
    if not launched():
        yield
        return
    try:
        store, number, size = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=START)))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"torchrun: the processes can't find each other ({_line(error)})") from None
    if os.environ.get(PREFIX):
        store = dist.PrefixStore(os.environ[PREFIX], store)
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, _asked)
    _job.watch = Watch(store.clone(), number, size, _lost)
    _job.watch.start()
    if number:
        sys.stdout, sys.stderr = open(os.devnull, "w"), _Aside(number)  # noqa: SIM115 (as long as the process)
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")  # buffers of recorded steps, at which some versions hang
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    group = dist.PrefixStore("group", store)
    _together(lambda: dist.init_process_group(backend, store=group, rank=number, world_size=size, timeout=PATIENCE))
    yield
    gather(None)
    _job.watch.stop()
    dist.destroy_process_group()
