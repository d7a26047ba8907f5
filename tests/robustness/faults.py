"""Kill trainings with SIGKILL at exact moments, resume them, and compare the end with an undisturbed training.

    python -m tests.robustness.faults --kills 60

A training starts in a forked process in which the kill is wired to a moment; the product knows nothing of it.

After every kill each .pt must load and no saved step may be lost. At the end networks, Adam, random numbers, best score
and log.csv (apart from the seconds) must equal those of the undisturbed training, bit for bit; TensorBoard shows the
same points.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import skimage.metrics  # noqa: F401 (validation takes a second to import it, Adam two for the next)
import torch
import torch._dynamo
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import get_worker_info
from tqdm import tqdm

from common import cli
from common.data.pairs import Pair
from common.models import EDNet
from common.training import checkpoint
from for_syn import train_syn_aug, train_syn_joint
from tests.conftest import folders, write_pairs
from tests.golden import fill
from tests.runs import content, differing, load, log_of, tensorboard_of

WORKER = "a worker, as it reads"
KINDS = {  # how many moments of a kind one start has at least; the kill hits one of them
    "in a step, after Adam": 8,
    "in a write of a checkpoint": 4,
    "after a save": 4,
    "after the log of an epoch": 1,  # its state is not saved yet
    WORKER: 14,
}
TRAININGS = {"joint": train_syn_joint, "augmented": train_syn_aug}
STATE = "train_state_last.pt"
TINY = ["--patchSize", "16", "--batchSize", "2", "--niter", "3", "--use_gpu", "false", "--manualSeed", "5"]
JOINT = ["--stage", "1", "--nz", "4", "--nef", "2", "--ndf", "4", "--n_dis", "2"]
OFTEN = ["--save_minutes", "1e-9"]  # saves a state after every step
HABITS = ["--iters_per_epoch", "4", "--val_every", "2", "--save_every", "2", "--log_every", "2", *OFTEN]


# --- in the process that is killed ---------------------------------------------------------------------------------


def arm(kind: str, number: int) -> None:
    """Wire the kill at the ``number``-th moment of a kind, from 1 on, into this process."""
    calls = itertools.count(1)

    def is_due() -> bool:
        return next(calls) == number

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write(path: Path, data: memoryview, real=checkpoint.write_bytes, **more) -> None:
        if is_due():
            data = data[: random.Random(number).randrange(len(data) + 1)]
            os.replace = lambda *_: die()
        real(path, data, **more)

    def replace(source: Path, target: Path, real=os.replace) -> None:
        real(source, target)
        if Path(target).match("log.csv" if kind == "after the log of an epoch" else "*.pt") and is_due():
            die()

    def read(pair: Pair, real=Pair.read) -> tuple:
        if get_worker_info() is not None and is_due():
            die()
        return real(pair)

    if kind == "in a step, after Adam":
        register_optimizer_step_post_hook(lambda *_: is_due() and die())
    elif kind == "in a write of a checkpoint":
        checkpoint.write_bytes = write
    elif kind == WORKER:
        Pair.read = read
    else:
        os.replace = replace


def play(training: str, argv: list[str], kind: str | None, number: int, output: Path) -> None:
    """In the forked process: the training, as its script starts it."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(file, descriptor)
        setattr(sys, name, open(descriptor, "w", buffering=1, closefd=False))  # noqa: SIM115
    torch.set_num_threads(1)
    if kind:
        arm(kind, number)
    sys.exit(cli.run(lambda: TRAININGS[training].main(argv), torchrun=True))


# --- around it -----------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """The result of all kills."""

    kills: Counter = field(default_factory=Counter)  # by kind
    trainings: int = 0  # that reached their end
    resumes: int = 0
    problems: list[str] = field(default_factory=list)


class Arena:
    """A folder in which one kind of training is killed again and again.

    Args:
        training: 'joint' or 'augmented'.
        folder: for all files.
    """

    def __init__(self, training: str, folder: Path, report: Report, rng: random.Random) -> None:
        self.training, self.folder, self.report, self.rng = training, folder, report, rng
        self.data = write_pairs(folder / "data")
        self.flags = [*TINY, *HABITS, "--val_data_path", self.data / "rain", "--val_gt_path", self.data / "norain"]
        if training == "augmented":
            torch.save(fill(EDNet(nz=5, nef=4, patch_size=16), 1).state_dict(), folder / "ED.pt")
            self.flags += ["--recurrent_iter", "1", "--fake_ratio", "1", "--netED", folder / "ED.pt"]
        else:
            self.flags += [*JOINT, "--ema", "0.9"]
        self.whole = folder / "whole"
        code, text = self._start(self.whole)
        if code:
            raise RuntimeError(f"the undisturbed training ended with {code}:\n{text}")

    def kill(self, kinds: Iterator[str], number: int, bar: tqdm) -> None:
        """Kill and resume a training up to ``number`` times, let it end and compare it with the undisturbed one."""
        model, code = self.folder / f"model{self.report.trainings}", -1
        for kind in itertools.islice(kinds, number):
            before = self._position(model)
            code, text = self._start(model, kind)
            self._check(model, kind, before, code, text)
            if code == 0:  # it ended before the moment of the kill
                break
            self.report.kills[kind] += 1
            bar.update()
        if code:
            code, text = self._start(model)
        self.report.trainings += 1
        if code:
            self.report.problems.append(f"{model}: the last part ended with {code}: {text}")
        elif not self.report.problems:
            # As a set: a kill between the log and the state of an epoch repeats the points of its validation.
            runs = [
                content(run) | {"log.csv": log_of(run), "events": sorted(set(tensorboard_of(run)))}
                for run in (self.whole, model)
            ]
            self.report.problems += [f"{model}: {name} differs" for name in differing(*runs)]

    def _start(self, model: Path, kind: str | None = None) -> tuple[int, str]:
        """Train, from the last state on if there is one; exit code and output."""
        flags = [*folders(self.data, model), *self.flags]
        if (model / STATE).exists():
            self.report.resumes += 1
        workers = self.rng.choice((1, 2)) if kind == WORKER else 0
        argv = [*map(str, flags), "--workers", str(workers), "--cache", "none" if workers else "ram"]
        moment, output = self.rng.randint(1, KINDS[kind]) if kind else 0, self.folder / "output.txt"
        process = multiprocessing.get_context("fork").Process(
            target=play, args=(self.training, argv, kind, moment, output)
        )
        process.start()
        process.join()
        return process.exitcode, output.read_text()

    @staticmethod
    def _position(model: Path) -> tuple[int, int]:
        """Epoch and step of the full state; (0, 0) without one."""
        with contextlib.suppress(Exception):  # ``_check`` reports files that do not load
            state = load(model / STATE)
            return state["epoch"], state["step"]
        return 0, 0

    def _check(self, model: Path, kind: str, before: tuple[int, int], code: int, text: str) -> None:
        """What must hold after every kill."""
        where = f"{model}, killed: {kind}"
        for path in model.glob("*.pt"):
            try:
                load(path)
            except Exception as error:
                self.report.problems.append(f"{where}: {path} does not load: {error}")
        if (after := self._position(model)) < before:
            self.report.problems.append(f"{where}: from {before} back to {after}")
        expected = 1 if kind == WORKER else -signal.SIGKILL
        told = kind != WORKER or code == 0 or "a worker that reads the images died" in text
        if "Traceback" in text or "left out" in text or code not in (0, expected) or not told:
            self.report.problems.append(f"{where}: exit code {code}: {text}")


def torment(folder: Path, kills: int, trainings: list[str], seed: int) -> Report:
    """Kill trainings ``kills`` times, at each kind of moment about equally often; see ``Arena``."""
    report, rng = Report(), random.Random(seed)
    order = itertools.chain.from_iterable(rng.sample(list(KINDS), len(KINDS)) for _ in itertools.count())
    with tqdm(total=kills, desc="killing", unit="kill", disable=None) as bar:
        for number, training in enumerate(trainings, 1):
            arena = Arena(training, folder / training, report, rng)
            while (left := kills * number // len(trainings) - report.kills.total()) > 0:
                arena.kill(order, left, bar)
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=cli.positive_int, default=60, help="in all")
    parser.add_argument("--seed", type=cli.seed, default=0, help="another one kills at other moments")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        report = torment(Path(folder), args.kills, list(TRAININGS), args.seed)
    print(*report.kills.items(), f"{report.resumes} resumes, {report.trainings} trainings", *report.problems, sep="\n")
    return int(bool(report.problems))


if __name__ == "__main__":
    sys.exit(main())
