"""The folder of a training, --model_dir: the state to go on from, saving (T5, T6).

It holds ``PREFIX_state_N.pt`` (bare state dicts after N epochs), ``PREFIX_best.pt``, ``PREFIX.json`` (which derainer,
of how many stages), and the full state ``train_state_last.pt`` with its predecessor ``train_state_prev.pt``. The same
command goes on from the full state.
"""

import argparse
import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from .. import derainer, distributed
from ..data.images import require_outside
from ..data.pairs import Pair
from ..data.patches import PatchDataset
from ..errors import TrainingStopped, UserError
from ..files import write_bytes
from ..lock import locked
from ..terminal import print_result
from . import checkpoint, seeds
from .kinds import kind_of
from .optimizer import load_state, state_of

VERSION = 1
STATES = ("train_state_last.pt", "train_state_prev.pt")  # newest first
# Options that may change when a training goes on: how long, where and how fast, never what is computed.
FREE = {"niter", "workers", "use_gpu", "gpu_id", "cache", "cuda_graphs", "save_every"}
FREE |= {"log_every", "val_every", "pad_to", "pad_square", "log_dir"}
# Files may move. Other data and another generator are told by their content, another network by its shapes.
INPUTS = {"data_path", "gt_path", "val_data_path", "val_gt_path", "streaks", "clean", "clean_path"}
FREE |= INPUTS | {"netED", "derainer", "init_ED", "init_Derain"}
PER_CALL = {"resume", "overwrite", "dry_run", "quiet", "save_minutes", "model_dir", "given", "defaults"}


class TrainingFolder:
    """One training in its folder; made by ``open_folder``.

    Attributes:
        epoch: finished epochs; ``step``: steps done in the next one.
        best: best validation PSNR-Y so far, in dB.
        sums: the sums of the losses, of a training that was stopped within an epoch.
    """

    def __init__(self, args: argparse.Namespace, script: str, prefixes: tuple[str, ...]) -> None:
        self.args, self.prefixes = args, prefixes
        self.path = Path(args.model_dir)
        self.experiment = "/".join(Path(script).resolve().parts[-2:])
        self.epoch = self.step = 0
        self.best = float("-inf")
        self.sums: dict = {}
        self._state: dict | None = None
        self._bare: dict[str, Path] = {}  # of --resume N
        self._found = self.path / STATES[0]  # the full state to go on from
        self._data = ""

    @property
    def is_new(self) -> bool:
        """Whether the training starts from the beginning."""
        return self._state is None and not self._bare

    # --- find ----------------------------------------------------------------------------------------------------

    def files(self) -> list[Path]:
        """All files of a training with these prefixes, of whichever --fake_ratio and --ema."""
        prefixes = [*self.prefixes, *(["ED_ema"] if "ED" in self.prefixes else [])]
        names = "|".join(re.sub(r"\d+", r"\\d+", name) for name in prefixes)  # of any --fake_ratio
        own = re.compile(rf"(train_state_(last|prev)|({names})_(state_\d+|best))\.pt(\.tmp)?|({names})\.json")
        return sorted(path for path in self.path.glob("*") if own.fullmatch(path.name))

    def find(self) -> None:
        """Find what to go on from: the newest full state, or with --resume N what stands there after N epochs.

        Raises:
            UserError: there is nothing to go on from, or the folder holds another training.
        """
        resume, overwrite = self.args.resume, self.args.overwrite
        if overwrite and resume:
            raise UserError("--overwrite and --resume contradict each other; give one of them")
        states = self._states()
        if overwrite:
            return
        if states and self.args.manualSeed is None:
            self.args.manualSeed = states[0]["options"]["manualSeed"]
        self._state = next((state for state in states if resume in (0, state["epoch"])), None)
        if self._state is not None:
            self._found = self._state["path"]
            self.epoch, self.step = self._state["epoch"], self._state["step"]
            self.best, self.sums = self._state["best"], self._state["sums"]
            within = f" and {self.step} steps" if self.step else ""
            print(f"going on after {self.epoch} epochs{within}: {self._found}")
        elif resume:
            self._bare = {prefix: self.path / f"{prefix}_state_{resume}.pt" for prefix in self.prefixes}
            missing = [path.name for path in self._bare.values() if not path.exists()]
            if missing:
                raise UserError(f"--resume {resume}: {self.path} lacks {', '.join(missing)}. {self._bare_epochs()}")
            self.epoch, self.best = resume, states[0]["best"] if states else self.best
            print(f"going on with bare weights after {resume} epochs; Adam starts fresh: not bit for bit the same run")
        elif any(path.suffix != ".json" for path in self.files()):
            raise UserError(
                f"--model_dir: {self.path} holds weights, but no full state to go on from. {self._bare_epochs()} "
                "--overwrite deletes its files, another --model_dir keeps both."
            )
        elif Path(self.args.log_dir, "log.csv").exists():
            raise UserError(
                f"--log_dir: {self.args.log_dir} holds the log of another training. Name another --log_dir, or "
                "--overwrite to delete it."
            )

    def _states(self) -> list[dict]:
        """The readable full states, newest first; says which can't be read."""
        states = []
        for path in (self.path / name for name in STATES):
            if not path.exists():
                continue
            try:
                state = checkpoint.load(path, "--model_dir")
                if kind_of(state) != "state":
                    raise UserError(f"{path} is no full training state")
            except UserError as error:
                print(f"left out: {error}")
                continue
            if state["vrgnet_state"] != VERSION:
                raise UserError(f"{path} has format {state['vrgnet_state']}, this program reads {VERSION}")
            if state["experiment"] != self.experiment:
                raise UserError(f"--model_dir: {path} belongs to {state['experiment']}; choose another folder")
            states.append(state | {"path": path})
        return states

    def _bare_epochs(self) -> str:
        pattern = rf"{self.prefixes[0]}_state_(\d+)\.pt"
        epochs = sorted(int(match[1]) for path in self.files() if (match := re.fullmatch(pattern, path.name)))
        return f"There are weights for --resume {', '.join(map(str, epochs[-8:]))}." if epochs else ""

    # --- go on ---------------------------------------------------------------------------------------------------

    def options(self) -> dict:
        """The options as they are stored: plain values of every flag."""
        return {key: value for key, value in vars(self.args).items() if key not in PER_CALL}

    def restore(self, nets: dict[str, nn.Module], optimizers: dict[str, Optimizer], data: str) -> None:
        """Fill networks, optimisers and random number generators; on a fresh start nothing.

        Args:
            data: fingerprint of the training data, which is stored and compared.

        Raises:
            UserError: an option or a network differs from the stored ones.
        """
        self._data = data
        self.require_same_options()
        if self._state is not None:
            state, self._state = self._state, None  # its memory is needed
            if state["data"] != data:
                print(f"other data than before ({state['data']}; now {data}): not bit for bit the same run")
            where = f"--model_dir: {state['path']}"
            for name, net in nets.items():
                checkpoint.put_weights(net, state["nets"][name], self._kind(name), where)
            try:
                for name, optimizer in optimizers.items():
                    load_state(optimizer, state["optimizers"][name])
            except (KeyError, ValueError):
                raise UserError(
                    f"{where}: it is damaged, or other parameters learn now; go on from bare weights, --resume N"
                ) from None
            seeds.set_rng_state(state["rng"])
        if distributed.is_first():  # ``fit`` copies them to the others
            for name, path in self._bare.items():
                checkpoint.load_weights(nets[name], path, self._kind(name), "--resume")

    def require_same_options(self) -> None:
        """Raise UserError if an option differs from those of the state to go on from."""
        if self._state is None:
            return
        # A flag that is newer than the state had its default.
        now, stored = self.options(), self.args.defaults | self._state["options"]
        differ = [
            f"--{key} is {_text(now[key])}, was {_text(stored[key])}"
            for key in sorted(now.keys() - FREE)
            if _plain(key, now[key]) != _plain(key, stored[key])
        ]
        if differ:
            raise UserError(
                f"--model_dir: {self.path} holds a training with other options: {'; '.join(differ)}. Give the same "
                "options to go on with it, --overwrite to start anew, or another --model_dir."
            )

    def _kind(self, prefix: str) -> str:
        joint = {"DerainNet": "joint", "ED": "ED", "ED_ema": "ED", "D": "D"}
        return joint.get(prefix) or checkpoint.kind_of_derainer(self.args)

    def begin(self) -> None:
        """The checks are done and the first step is next: delete what --overwrite or going back leaves behind."""
        if not distributed.is_first():
            return
        if self.args.overwrite:
            for path in self.files():
                path.unlink()
        elif self._found.name != STATES[0]:  # in place of a newer or damaged one; else the next save would lose it
            os.replace(self._found, self.path / STATES[0])
        if "derainer" in self.args or "stage" in self.args:
            choice = json.dumps(derainer.choice_of(self.args), indent=2)
            write_bytes(self.path / f"{self.prefixes[0]}.json", f"{choice}\n".encode())

    # --- save ----------------------------------------------------------------------------------------------------

    def save_state(self, nets: dict[str, nn.Module], optimizers: dict[str, Optimizer]) -> None:
        """Save everything that a bit-for-bit continuation needs; loadable with ``weights_only=True``.

        The first process saves, the others have the same.

        Raises:
            TrainingStopped: a weight or an Adam average is not finite (the last good state stays), or the disk fails.
        """
        if not distributed.is_first():
            return
        content = {
            "vrgnet_state": VERSION,
            "experiment": self.experiment,
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "sums": self.sums,
            "data": self._data,
            "options": self.options(),
            "nets": {name: net.state_dict() for name, net in nets.items()},
            "optimizers": {name: state_of(optimizer) for name, optimizer in optimizers.items()},
            "rng": seeds.rng_state(),
        }
        for name, net in nets.items():
            _require_finite(name, net.parameters())
        for name, optimizer in optimizers.items():
            _require_finite(f"Adam of {name}", (x for state in optimizer.state.values() for x in state.values()))
        last, before = (self.path / name for name in STATES)
        checkpoint.save(content, last, keep=before)

    def save_weights(self, nets: dict[str, nn.Module], suffix: str) -> None:
        """Save bare state dicts as ``PREFIX_SUFFIX.pt``, on the CPU, so that they load anywhere.

        Raises:
            TrainingStopped: a weight is not finite, or the disk fails.
        """
        if not distributed.is_first():
            return
        for name, net in nets.items():
            _require_finite(name, net.parameters())  # not the buffers: one may be a mask of -inf
            checkpoint.save({k: v.cpu() for k, v in net.state_dict().items()}, self.path / f"{name}_{suffix}.pt")

    def last_good(self) -> str:
        """The newest full state, and how to go on from it; ends messages."""
        state = next((self.path / name for name in STATES if (self.path / name).exists()), None)
        if state is None:
            return "No state was saved before."
        return f"The last good state is {state}; {self.again()} goes on from there."

    def again(self) -> str:
        """The command that goes on with this training, in words."""
        once = [f"--{flag}" for flag in ("overwrite", "resume") if getattr(self.args, flag)]  # they would start again
        return "the same command" + (f" without {once[0]}" if once else "")


def _require_finite(name: str, tensors: Iterable[torch.Tensor]) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise TrainingStopped(f"weights of {name} are not finite; nothing was saved.")


def _plain(key: str, value: object) -> object:
    return derainer.values(value) if key == "derainer_args" else value  # in whatever order


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _require_apart(args: argparse.Namespace) -> None:
    """Raise UserError if --model_dir or --log_dir lies in an input folder, which is never written to."""
    inputs = {f"--{flag}": getattr(args, flag, None) for flag in sorted(INPUTS)}
    for flag in ("model_dir", "log_dir"):
        require_outside(f"--{flag}", getattr(args, flag), inputs)


@contextlib.contextmanager
def open_folder(args: argparse.Namespace, script: str, *prefixes: str) -> Iterator[TrainingFolder]:
    """Open --model_dir for a training script: lock it and --log_dir, find the state to go on from.

    A --dry_run only looks.

    Args:
        args: flags of the script; a seed that was drawn before is put into it.
        script: the script's ``__file__``; only the script that wrote a state goes on from it.
        prefixes: names of the network files, ``DerainNet`` for ``DerainNet_state_N.pt``, the derainer's first.

    Raises:
        UserError: see ``TrainingFolder.find``; or another process trains in one of the folders.
    """
    _require_apart(args)
    folder = TrainingFolder(args, script, prefixes)
    with contextlib.ExitStack() as locks:
        if not args.dry_run:
            locks.enter_context(locked(folder.path, "--model_dir"))
            if not (logs := Path(args.log_dir)).exists() or not logs.samefile(folder.path):
                locks.enter_context(locked(logs, "--log_dir"))
        folder.find()
        distributed.require_same("--model_dir", f"{folder.epoch} epochs and {folder.step} steps")
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
    start = f"epoch {folder.epoch + 1}, step {folder.step + 1}" if folder.epoch or folder.step else "the beginning"
    will = f"would train on {device} from {start}"
    print_result(f"{will if folder.epoch < folder.args.niter else 'nothing to do'}; --dry_run: nothing was written")
