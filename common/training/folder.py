"""The folder of a training, --model_dir: the state to go on from, saving (T5, T6).

It holds ``PREFIX_state_N.pt`` (bare state dicts after N epochs), ``PREFIX_best.pt``, ``PREFIX.json`` (which derainer,
of how many stages), and ``train_state_last.pt``, the full state, from which the same command goes on.
"""

import argparse
import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .. import derainer, distributed
from ..data.pairs import Pair
from ..data.patches import PatchDataset
from ..errors import Stopped, UserError
from ..files import write_bytes
from ..lock import locked
from ..terminal import print_result
from . import checkpoint, seeds
from .kinds import kind_of

VERSION = 1
STATE = "train_state_last.pt"
AGAIN = "The same command goes on from there, without --overwrite and --resume."
GIVEN = {"streaks", "clean_path", "data_path"}  # files that may move, but not come or go
# Options that may change when a training goes on: how long, where and how fast, never what is computed. Other data and
# another generator are told by their content, another network by its shapes.
FREE = {"gt_path", "val_data_path", "val_gt_path", "clean", "netED", "derainer", "init_ED", "init_Derain"}
FREE |= {"model_dir", "log_dir", "pad_to", "pad_square"}
FREE |= {"niter", "workers", "use_gpu", "gpu_id", "cache", "cuda_graphs", "resume", "overwrite", "dry_run", "quiet"}
FREE |= {"save_every", "save_minutes", "log_every", "val_every"}


@dataclass
class Position:
    """Where a training stands; ``fit`` moves it, the folder reads and writes it."""

    epoch: int = 0  # finished epochs
    step: int = 0  # steps done in the next one
    best: float = float("-inf")  # best validation PSNR-Y so far, in dB
    sums: dict = field(default_factory=dict)  # of the losses over these steps, see ``LossSums``

    def __str__(self) -> str:
        return f"{self.epoch} epochs and {self.step} steps"


class TrainingFolder:
    """One training in its folder; made by ``open_folder``."""

    def __init__(self, args: argparse.Namespace, script: str, prefixes: tuple[str, ...]) -> None:
        self.args, self.prefixes = args, prefixes
        self.path = Path(args.model_dir)
        self.experiment = "/".join(Path(script).resolve().parts[-2:])
        self.at = Position()  # where it stands
        self._state: dict | None = None  # what it goes on from; of --resume N maybe the weights alone
        self._data = ""

    @property
    def is_new(self) -> bool:
        """Whether the training starts from the beginning."""
        return self._state is None

    # --- find ----------------------------------------------------------------------------------------------------

    def files(self) -> list[Path]:
        """All files of a training with these prefixes, of whichever --fake_ratio and --ema."""
        names = "|".join(re.sub(r"\d+", r"\\d+", name) for name in self.prefixes)
        weights = rf"({names})(_ema)?_(state_\d+|best|half)"
        own = re.compile(rf"(train_state_last|{weights})\.pt(\.tmp)?|({names})\.json")
        return sorted(path for path in self.path.glob("*") if own.fullmatch(path.name))

    def find(self) -> None:
        """Find what to go on from: the full state, or with --resume N the weights after N epochs.

        A state of no step counts as a new training: other options will do, and nothing that was learned is lost.
        UserError: there is nothing to go on from, or the folder holds another training.
        """
        args, state = self.args, self._read()
        if args.overwrite and args.resume:
            raise UserError("--overwrite and --resume contradict each other; give one of them")
        if args.overwrite:
            return
        if state and args.manualSeed is None:
            args.manualSeed = state["options"]["manualSeed"]
        at = Position(*(state[key] for key in ("epoch", "step", "best", "sums"))) if state else Position()
        stands = at.epoch, at.step
        if state and (not args.resume or stands == (args.resume, 0)):
            if any(stands):
                self._state, self.at = state, at
                print(f"going on after {self.at}: {self.path / STATE}")
            elif args.log_dir != state["options"]["log_dir"]:
                self._require_no_log()
        elif args.resume:
            files = {name: self.path / f"{name}_state_{args.resume}.pt" for name in self.prefixes}
            self._state = {"nets": {name: checkpoint.load(file, "--resume") for name, file in files.items()}}
            self.at = Position(args.resume, best=at.best)
            print(f"going on with bare weights after {self.at}; Adam starts fresh: not bit for bit the same run")
        elif any(path.suffix == ".pt" for path in self.files()):
            raise UserError(
                f"--model_dir: {self.path} holds weights, but no full state to go on from. --resume N goes on from "
                "..._state_N.pt with a fresh Adam, --overwrite deletes its files, another --model_dir keeps them."
            )
        else:
            self._require_no_log()

    def _require_no_log(self) -> None:
        if Path(self.args.log_dir, "log.csv").exists():
            raise UserError(
                f"--log_dir: {self.args.log_dir} holds the log of another training. Name another --log_dir, or "
                "--overwrite to delete it."
            )

    def _read(self) -> dict | None:
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            state = checkpoint.load(path, "--model_dir")
            if kind_of(state) != "state":
                raise UserError(f"{path} is no full training state")
        except UserError as error:  # of a damaged disk; ``find`` tells what is left
            print(f"left out: {error}")
            return None
        owner = f"{state['experiment']} (format {state['vrgnet_state']})"
        if owner != (own := f"{self.experiment} (format {VERSION})"):
            raise UserError(f"--model_dir: {path} belongs to {owner}, this is {own}; choose another folder")
        return state

    # --- go on ---------------------------------------------------------------------------------------------------

    def options(self) -> dict:
        """The options as they are stored: plain values of every flag."""
        return {key: value for key, value in vars(self.args).items() if key not in ("given", "defaults")}

    def restore(
        self, nets: dict[str, nn.Module], optimizers: dict[str, Optimizer], data: str, generator: str
    ) -> Position:
        """Fill networks, optimisers and random number generators, on a fresh start nothing; where they stand.

        Args:
            data: fingerprint of the training data, which is stored and compared.
            generator: that of the frozen generator, the same; empty without one.

        Raises:
            UserError: an option, the generator or a network differs from the stored ones.
        """
        self._data = f"{data}, generator {generator}" if generator else data
        self.require_same_options()
        if self._state is None:
            return self.at
        state, self._state = self._state, None  # its memory is needed
        for name, content in state["nets"].items():
            checkpoint.put_weights(nets[name], content, f"--model_dir: {self.path}, {name}")
        if "rng" not in state:  # bare weights
            return self.at
        before, _, of_generator = state["data"].partition(", generator ")
        if of_generator != generator:
            text = f"{self.args.netED} is not the generator of the training in {self.path}"
            raise UserError(f"--netED: {text}; name that one, or another --model_dir")
        if before != data:
            print(f"other data than before ({before}; now {data}): not bit for bit the same run")
        try:
            for name, optimizer in optimizers.items():
                checkpoint.load_state(optimizer, state["optimizers"][name])
        except (KeyError, ValueError):
            text = f"{self.path / STATE} is damaged, or other parameters learn now; --resume N takes bare weights"
            raise UserError(f"--model_dir: {text}") from None
        seeds.set_rng_state(state["rng"])
        return self.at

    def require_same_options(self) -> None:
        """Raise UserError if an option differs from those of the state to go on from."""
        if "options" not in (self._state or {}):  # a new training, or bare weights
            return
        # A flag that is newer than the state had its default.
        now, stored = self.options(), self.args.defaults | self._state["options"]
        differ = [
            f"--{key} is {_text(now[key])}, was {_text(stored[key])}"
            for key in sorted(now.keys() - FREE)
            if _compared(key, now[key]) != _compared(key, stored[key])
        ]
        if differ:
            raise UserError(
                f"--model_dir: {self.path} holds a training with other options: {'; '.join(differ)}. Give the same "
                "options to go on with it, --overwrite to start anew, or another --model_dir."
            )

    def begin(self, nets: dict[str, nn.Module], optimizers: dict[str, Optimizer]) -> None:
        """The checks are done and the first step is next: delete what --overwrite deletes, and write the choice.

        A new training saves its state, so that the same command goes on after a kill at any moment.
        """
        if not distributed.is_first():
            return
        if self.args.overwrite:
            (self.path / STATE).unlink(missing_ok=True)  # first: nothing goes on from what is half deleted
            for path in self.files():
                path.unlink()
        if self.at == Position():
            self.save_state(self.at, nets, optimizers)
        if choice := {key: getattr(self.args, key) for key in derainer.CHOICE if key in self.args}:
            text = json.dumps(choice, indent=2)
            write_bytes(self.path / f"{self.prefixes[0]}.json", f"{text}\n".encode())

    # --- save ----------------------------------------------------------------------------------------------------

    def save_state(self, at: Position, nets: dict[str, nn.Module], optimizers: dict[str, Optimizer]) -> None:
        """Save everything that a bit-for-bit continuation needs; loadable with ``weights_only=True``.

        The first process saves, the others have the same. Stopped: a weight is not finite (the last good state stays),
        or the disk fails.
        """
        if not distributed.is_first():
            return
        for name, net in nets.items():
            _require_finite(name, net.parameters())
        content = {
            "vrgnet_state": VERSION,
            "experiment": self.experiment,
            **vars(at),
            "data": self._data,
            "options": self.options(),
            "nets": {name: net.state_dict() for name, net in nets.items()},
            "optimizers": {name: checkpoint.state_of(optimizer) for name, optimizer in optimizers.items()},
            "rng": seeds.rng_state(),
        }
        checkpoint.save(content, self.path / STATE)

    def save_weights(self, nets: dict[str, nn.Module], suffix: str) -> None:
        """Save bare state dicts, on the CPU, as ``PREFIX_SUFFIX.pt``; they load anywhere. Raises as ``save_state``."""
        if not distributed.is_first():
            return
        for name, net in nets.items():
            _require_finite(name, net.parameters())  # not the buffers: one may be a mask of -inf
            checkpoint.save({k: v.cpu() for k, v in net.state_dict().items()}, self.path / f"{name}_{suffix}.pt")

    def last_good(self) -> str:
        """The full state, and how to go on from it; ends messages."""
        return f"The last good state is {self.path / STATE}. {AGAIN}"


def _require_finite(name: str, tensors: Iterable[torch.Tensor]) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise Stopped(f"weights of {name} are not finite; nothing was saved.")


def _compared(key: str, value: Any) -> object:
    if key in GIVEN:
        return bool(value)
    return sorted(value) if key == "derainer_args" else value


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value) or "not given"


@contextlib.contextmanager
def open_folder(args: argparse.Namespace, script: str, *prefixes: str) -> Iterator[TrainingFolder]:
    """Open --model_dir for a training script: lock it and --log_dir, find the state to go on from.

    A --dry_run only looks.

    Args:
        args: flags of the script; a seed that was drawn before is put into it.
        script: the script's ``__file__``; only the script that wrote a state goes on from it.
        prefixes: names of the network files, ``DerainNet`` for ``DerainNet_state_N.pt``, the derainer's first.

    Raises:
        UserError: see ``TrainingFolder.find``; another process trains in one of the folders.
    """
    folder = TrainingFolder(args, script, prefixes)
    with contextlib.ExitStack() as locks:
        if not args.dry_run:
            locks.enter_context(locked(folder.path, "--model_dir"))
            if not (logs := Path(args.log_dir)).exists() or not logs.samefile(folder.path):
                locks.enter_context(locked(logs, "--log_dir"))
        folder.find()
        distributed.require_same("--model_dir", str(folder.at))
        yield folder


def describe(
    folder: TrainingFolder,
    dataset: PatchDataset,
    rule: str,
    held_out: list[Pair],
    nets: dict[str, nn.Module | None],
    device: torch.device,
) -> None:
    """Print what --dry_run tells: the options, the data, the sizes of the networks; see ``require_same_options``."""
    folder.require_same_options()
    print_result("options:")
    for key, value in folder.options().items():
        print_result(f"  --{key} {_text(value)}")
    pairs = dataset.pairs
    print_result(f"data: {len(pairs)} pairs, by the rule: {rule}; first {pairs[0].name}, last {pairs[-1].name}")
    print_result(f"validation: {len(held_out)} pairs" if held_out else "validation: none")
    print_result("networks:")
    for name, net in nets.items():
        print_result(f"  {name}: {sum(p.numel() for p in net.parameters()):,} parameters" if net else f"  {name}: none")
    will = f"would train on {device}, after {folder.at}"
    print_result(f"{will if folder.at.epoch < folder.args.niter else 'nothing to do'}; --dry_run: nothing was written")
