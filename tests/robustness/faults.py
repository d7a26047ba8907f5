"""Kill trainings at moments of every kind, go on with --resume -1, and compare with what nobody has disturbed.

    python -m tests.robustness.faults --kills 60

Each kind of moment but the last is met exactly: the training starts in a process forked from one that has imported all
(a second where a fresh start takes five), with the kill wired in; the product knows nothing of it. Kills 'by the clock'
hit the real script, in a process of its own, and so do the undisturbed training and the last leg of each other one.

After every kill each .pt must load and none of the work saved before may be gone. In the end networks, Adam, random
numbers, best score, options and log.csv must be those of the undisturbed training, bit for bit (but the seconds).
"""

import argparse
import contextlib
import csv
import importlib
import io
import itertools
import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import skimage.metrics  # noqa: F401 (validation takes a second to import it)
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import get_worker_info
from tqdm import tqdm

from common import cli
from common.data.pairs import Pair
from common.models import EDNet
from common.training.run import STATES
from for_syn import train_syn_aug, train_syn_joint
from tests.conftest import begin, folders, write_pairs
from tests.golden import ROOT, fill

CLOCK = "by the clock"
KINDS = {  # how many moments of the kind a start may see before the one that kills
    "within a step": 8,  # when one of its networks has learned
    "within a write": 4,  # of a checkpoint, somewhere in its bytes
    "between two renames": 3,  # the last state is called the one before, and nothing is called the last one
    "after a save": 4,  # before the next step
    "after the log": 1,  # of an epoch, before the state that belongs to it
    "a worker": 14,  # while it reads
    "while a worker reads": 14,  # the main process; the worker is left alone
    CLOCK: 0,  # whenever
}
READING = ("a worker", "while a worker reads")
TRAININGS = {"joint": train_syn_joint, "augmented": train_syn_aug}
TINY = ["--patchSize", "16", "--batchSize", "2", "--iters_per_epoch", "4", "--niter", "3", "--val_every", "2"]
TINY += ["--save_every", "2", "--save_minutes", "1e-9", "--log_every", "2", "--use_gpu", "false", "--manualSeed", "5"]
SIZES = {
    "joint": ["--stage", "1", "--nz", "4", "--nef", "2", "--ndf", "4", "--n_dis", "2", "--ema", "0.9"],
    "augmented": ["--recurrent_iter", "1", "--fake_ratio", "1"],
}
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
ORPHANS = 20  # seconds in which workers must have noticed that they are alone


# --- in the process that is killed ---------------------------------------------------------------------------------


def arm(kind: str, number: int) -> None:
    """Wire the kill at the ``number``-th moment of a kind, from 1 on, into this process."""
    calls = itertools.count(1)

    def is_due(*_) -> bool:
        return next(calls) == number

    def die(*_, process: int | None = None) -> None:
        os.kill(process or os.getpid(), signal.SIGKILL)

    def write(value: object, file, real=torch.save) -> None:
        if not is_due():
            return real(value, file)
        whole = io.BytesIO()
        real(value, whole)
        file.write(whole.getvalue()[: random.Random(number).randrange(whole.tell() + 1)])
        file.flush()
        die()

    def replace(source: Path, target: Path, real=os.replace) -> None:
        name = Path(target).name
        real(source, target)
        ours = {"between two renames": name == STATES[1], "after the log": name == "log.csv"}
        if ours.get(kind, name.endswith(".pt") and name != STATES[1]) and is_due():
            die()

    def read(pair: Pair, real=Pair.read) -> tuple:
        if get_worker_info() is not None and is_due():
            die(process=os.getpid() if kind == "a worker" else os.getppid())
        return real(pair)

    if kind == "within a step":
        register_optimizer_step_post_hook(lambda *_: is_due() and die())
    elif kind == "within a write":
        torch.save = write
    elif kind in READING:
        Pair.read = read
    else:
        os.replace = replace


def play(training: str, argv: list[str], kind: str | None, number: int, output) -> None:
    """What the forked process does: the training, as its script would do it."""
    for number_of, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(output.fileno(), number_of)
        setattr(sys, name, open(number_of, "w", buffering=1, closefd=False))  # noqa: SIM115 (until the end)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a fresh process
    if kind:
        arm(kind, number)
    sys.exit(cli.run(lambda: TRAININGS[training].main(argv), torchrun=True))


# --- around it -----------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What came of all the kills."""

    kills: Counter = field(default_factory=Counter)
    trainings: int = 0  # that were brought to their end
    resumes: int = 0
    unreadable: list[str] = field(default_factory=list)  # checkpoints, after a kill
    lost: list[str] = field(default_factory=list)  # saved work that a kill took back
    strange: list[str] = field(default_factory=list)  # tracebacks, exit codes and messages that should not be
    orphans: int = 0  # workers that outlived their training
    bits: int = 0  # that differ in the end
    differing: list[str] = field(default_factory=list)  # where

    def __str__(self) -> str:
        lines = [f"{kind:24}{self.kills[kind]:6}" for kind in KINDS]
        lines = [f"{'killed':24}{'times':>6}", *lines, f"{'in all':24}{self.kills.total():6}", ""]
        counts = {
            "trainings brought to their end": self.trainings,
            "resumes": self.resumes,
            "unreadable checkpoints": len(self.unreadable),
            "saved work lost": len(self.lost),
            "strange ends": len(self.strange),
            "orphans": self.orphans,
            "differing bits": self.bits,
        }
        lines += [f"{name:32}{count:6}" for name, count in counts.items()]
        return "\n".join(lines + self.problems())

    def problems(self) -> list[str]:
        """All that must not be."""
        alone = [f"{self.orphans} workers outlived their training"] if self.orphans else []
        return [*self.unreadable, *self.lost, *self.strange, *self.differing, *alone]


def differing_bits(one: object, other: object) -> int:
    """Bits that differ between two states, of the tensors; what else is not equal counts as one."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return max(one.numel(), other.numel(), 1)
        pairs = (value.contiguous().flatten().view(torch.uint8) for value in (one, other))
        return int(sum(byte.bit_count() for byte in torch.bitwise_xor(*pairs).tolist()))
    if isinstance(one, dict) and isinstance(other, dict):
        return sum(differing_bits(one.get(key), other.get(key)) for key in one.keys() | other.keys())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return sum(itertools.starmap(differing_bits, itertools.zip_longest(one, other)))
    return int(one != other)


class Arena:
    """A place in which one kind of training is killed again and again.

    Args:
        training: 'joint' or 'augmented'.
        folder: for everything.
        real: whether the undisturbed training and last legs are the real script in a fresh process, not a fork.
    """

    def __init__(self, training: str, folder: Path, found: Found, rng: random.Random, real: bool) -> None:
        self.training, self.folder, self.found, self.rng, self.real = training, folder, found, rng, real
        self.data, self.pipes = write_pairs(folder / "data"), []
        self.flags = [*TINY, *SIZES[training], "--val_data_path", self.data / "rain", "--val_gt_path"]
        self.flags += [self.data / "norain"]
        if training == "augmented":
            torch.save(fill(EDNet(nz=5, nef=4, patch_size=16), 1).state_dict(), folder / "ED.pt")
            self.flags += ["--netED", folder / "ED.pt"]
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])
        self.whole, began = folder / "whole", time.monotonic()
        code, text = self._start(self.whole, real=True) if real else self._start(self.whole)
        self.seconds = time.monotonic() - began
        if code:
            raise RuntimeError(f"the undisturbed training ended with {code}:\n{text}")

    def killed(self, kinds: Iterator[str], number: int, progress: Callable[[], object]) -> None:
        """Kill a training and go on with it, until it ends or was killed so many times; then bring it to its end."""
        model, killed = self.folder / f"model{self.found.trainings}", 0
        while killed < number:
            before = self._state(model)
            kind = next(kinds)
            code, text = self._start(model, kind)
            self._look_at(model, kind, before, code, text)
            if code == 0:  # it was through before that moment came
                break
            killed += 1
            self.found.kills[kind] += 1
            progress()
        else:
            code, text = self._start(model, real=self.real)
        self.found.trainings += 1
        if code:
            self.found.strange.append(f"{model}: the last leg ended with {code}: {text}")
        else:
            self._compare(model)

    def _start(self, model: Path, kind: str | None = None, real: bool = False) -> tuple[int, str]:
        """Train, from the last state on if there is one; exit code and what was printed."""
        flags = [*folders(self.data, model), *self.flags]
        if any((model / name).exists() for name in STATES):
            flags = ["--model_dir", model, "--resume", -1]
            self.found.resumes += 1
        elif model.exists():
            flags += ["--overwrite"]
        workers = self.rng.choice((1, 2)) if kind in READING else 0
        argv = [*map(str, flags), "--workers", str(workers), "--cache", "none" if workers else "ram"]
        if kind == CLOCK or real:
            script = ROOT / "for_syn" / f"{TRAININGS[self.training].__name__.split('.')[-1]}.py"
            process = begin(sys.executable, script, *argv, env=ONE_THREAD)
            if kind == CLOCK:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.rng.uniform(0.5, 1) * self.seconds)
                process.kill()
            return process.wait(), process.stdout.read()
        reader, writer = self.context.Pipe(duplex=False)
        moment = self.rng.randint(1, KINDS[kind]) if kind else 0
        process = self.context.Process(target=play, args=(self.training, argv, kind, moment, writer))
        process.start()
        writer.close()
        process.join()
        text = b""
        while select.select([reader], [], [], 0)[0] and (part := os.read(reader.fileno(), 2**16)):
            text += part
        self.pipes.append(reader)  # open as long as a worker lives
        return process.exitcode, text.decode()

    def _read(self, path: Path) -> object:
        try:
            return torch.load(path, weights_only=True)
        except Exception as error:  # of many kinds
            self.found.unreadable.append(f"{path}: {error}")

    def _state(self, model: Path) -> tuple[int, int]:
        """Epoch and step of the newest whole state; (0, 0) where there is none."""
        found = [(0, 0)]
        for path in (model / name for name in STATES):
            with contextlib.suppress(Exception):  # missing, or unreadable, which ``_read`` tells
                state = torch.load(path, weights_only=True)
                found.append((state["epoch"], state["step"]))
        return max(found)

    def _look_at(self, model: Path, kind: str, before: tuple[int, int], code: int, text: str) -> None:
        """What must hold after every kill."""
        where = f"{self.training}, {model.name}, killed {kind}"
        for path in model.glob("*.pt"):
            self._read(path)
        if (after := self._state(model)) < before:
            self.found.lost.append(f"{where}: from {before} back to {after}")
        told = code == 1 and "a worker that reads the images died" in text
        fits = told if kind == "a worker" else code == -signal.SIGKILL
        if "Traceback" in text or "left out" in text or not (fits or code == 0):
            self.found.strange.append(f"{where}: exit code {code}: {text}")

    def _compare(self, model: Path) -> None:
        """With the undisturbed training."""

        def content(folder: Path) -> dict[str, object]:
            names = [path.name for path in folder.glob("*.pt")]
            files = {name: self._read(folder / name) for name in names if name != STATES[1]}  # as old as saves have it
            for flag in ("workers", "cache", "log_dir") if files[STATES[0]] else ():
                del files[STATES[0]]["options"][flag]
            with open(f"{folder}_l/log.csv", newline="") as file:
                rows = [row | {"seconds": ""} for row in csv.DictReader(file)]
            beside = {path.name: path.read_text() for path in folder.glob("*.json")}
            return files | {"log.csv": rows} | beside

        one, other = content(self.whole), content(model)
        for name in one.keys() | other.keys():
            if bits := differing_bits(one.get(name), other.get(name)):
                self.found.bits += bits
                self.found.differing.append(f"{self.training}, {model.name}: {name} differs in {bits} bits")

    def close(self) -> None:
        """Wait for the last worker to go."""
        until = time.monotonic() + ORPHANS
        for pipe in self.pipes:
            while True:
                ready = select.select([pipe], [], [], max(until - time.monotonic(), 0))[0]
                if not ready:
                    self.found.orphans += 1
                    break
                if not os.read(pipe.fileno(), 2**16):
                    break
            pipe.close()


def torment(folder: Path, kills: int, trainings: list[str], kinds: list[str], seed: int, real: bool) -> Found:
    """Kill trainings ``kills`` times, each kind of moment as often.

    Args:
        folder: for everything; empty or missing.
        real: see ``Arena``.
    """
    found, rng = Found(), random.Random(seed)
    shares = [kills // len(trainings) + (i < kills % len(trainings)) for i in range(len(trainings))]

    def turns() -> Iterator[str]:
        while True:
            yield from rng.sample(kinds, len(kinds))

    order = turns()
    with tqdm(total=kills, desc="killing", unit="kill", disable=None) as bar:
        for training, share in zip(trainings, shares, strict=True):
            arena = Arena(training, folder / training, found, rng, real)
            until = found.kills.total() + share
            while found.kills.total() < until:
                arena.killed(order, until - found.kills.total(), bar.update)
            arena.close()
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=cli.positive_int, default=60, help="in all")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="of moments")
    parser.add_argument("--seed", type=cli.seed, default=0, help="another one kills at other moments")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = torment(Path(folder), args.kills, args.trainings, args.kinds, args.seed, real=True)
    print(found)
    return 1 if found.problems() else 0


if __name__ == "__main__":
    __spec__ = __file__ = None  # or forked processes would run this file once more, as their main one
    sys.exit(importlib.import_module("tests.robustness.faults").main())  # forked processes look it up by this name
