"""A training run in its folder: the lock, the state to go on from, the options that win, the saving (T5, T6).

``model_dir`` holds ``PREFIX_state_N.pt`` (bare state dicts after N epochs), ``PREFIX_best.pt``, ``PREFIX.json`` (which
derainer, of how many stages), and the full state ``train_state_last.pt`` with its predecessor ``train_state_prev.pt``.
"""

import argparse
import contextlib
import errno
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import torch
from torch import nn
from torch.optim import Optimizer

from .. import derainer, ranks
from ..data.pairs import Pair
from ..data.patches import PatchDataset
from ..errors import TrainingStopped, UserError
from ..files import write_bytes
from ..terminal import print_result, printable
from . import checkpoint, runtime

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None

VERSION = 1
STATES = ("train_state_last.pt", "train_state_prev.pt")  # newest first
# May differ from the stored options on resume: they change how long, where and how fast, never what is computed.
FREE = {"niter", "workers", "use_gpu", "gpu_id", "data_path", "gt_path", "val_data_path", "val_gt_path", "log_dir"}
FREE |= {"cache", "compile", "cuda_graphs", "streaks", "clean"}
FREE |= {"pad_to", "pad_square"}  # of validation
FREE |= {"netED", "derainer"}  # files may move; another generator is noticed by its numbers, a network by its shapes
PATHS = {"streaks", "clean", "init_ED", "init_Derain"}  # among the flags, beside those that end with _path
MAY_BE_ZERO = {"workers", "manualSeed", "seed", "resume", "hold_out"}  # of the numbers
FRACTIONS = {"lambda_gp", "w_gp", "w_real", "ema"}
PER_CALL = {"resume", "overwrite", "dry_run", "quiet", "save_minutes", "model_dir"}  # of one call, never restored


class Run:
    """One run; made by ``open_run``.

    Attributes:
        epoch: finished epochs; ``step``: steps done in the next one.
        best: best validation PSNR-Y so far, in dB.
        sums: what the loop wants to find again after a resume within an epoch.
        settled: flags whose values stand: given on the command line, or stored by the run that is resumed.
    """

    def __init__(
        self, args: argparse.Namespace, script: str, prefixes: Callable[[argparse.Namespace], tuple[str, ...]]
    ) -> None:
        self.args, self._prefixes = args, prefixes
        self.settled = set(args.given)
        self.model_dir = Path(args.model_dir)
        self._script = Path(script).resolve()
        self.experiment = "/".join(self._script.parts[-2:])
        self.epoch = self.step = 0
        self.best = float("-inf")
        self.sums: dict = {}
        self._state: dict | None = None
        self._saved: dict = {}  # the options in the newest whole state
        self._bare: dict[str, Path] = {}
        self._aside: list[Path] = []  # whole states that a later --resume must not find: newer ones, damaged ones
        self._data = ""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Names of the network files, the derainer's first."""
        return self._prefixes(self.args)

    # --- what to start from ------------------------------------------------------------------------------------

    def files(self) -> list[Path]:
        """What a run of these networks has left in model_dir, with whatever --fake_ratio in the names."""
        names = [*self.prefixes, *(["ED_ema"] if "ED" in self.prefixes else [])]  # of whichever --ema
        prefixes = "|".join(re.sub(r"\d+", r"\\d+", re.escape(name)) for name in names)
        state, weights = r"(train|left)_state_(last|prev)\.pt", rf"({prefixes})_(state_\d+|best)\.pt"
        own = re.compile(rf"({state}|{weights})(\.tmp)?|({prefixes})\.json")
        return sorted(p for p in self.model_dir.glob("*") if own.fullmatch(p.name))

    def resolve(self) -> None:
        """Find what --resume asks for and let the stored options win. The first process does, and tells the others.

        Raises:
            UserError: the folder holds a run already, there is nothing to go on from, or a flag contradicts the run.
        """
        if ranks.first():
            self._find()
        found = {key: value for key, value in vars(self).items() if key not in ("args", "_prefixes")}
        options, found = ranks.from_first((vars(self.args), found))
        vars(self.args).update(options)
        vars(self).update(found)

    def _find(self) -> None:
        resume = self.args.resume
        self._check_folders()
        if resume == 0:
            if any(path.suffix != ".json" for path in self.files()) and not self.args.overwrite:
                raise UserError(
                    f"--model_dir: {self.model_dir} holds a run already. --resume -1 goes on with it, "
                    "--overwrite deletes its files, another --model_dir keeps both."
                )
            if Path(self.args.log_dir, "log.csv").exists() and not self.args.overwrite:
                raise UserError(
                    f"--log_dir: {self.args.log_dir} holds the log of another run. Give a --log_dir of its own, "
                    "or --overwrite to delete it."
                )
            if self.args.overwrite:
                self._states()  # refuses to delete those of another script
            return
        if self.args.overwrite:
            raise UserError("--overwrite and --resume contradict each other; give one of them")
        states = self._states()
        state = next((s for s in states if resume in (-1, s["epoch"])), None)
        if states:
            self._saved = states[0]["options"]
            self._restore_options(self._shared_out(state or states[0]))
        elif resume > 0:
            choice = derainer.stored(self.model_dir / f"{self.prefixes[0]}_state_{resume}.pt")
            self._restore_options(choice or {})
        self._check_folders()  # those that were stored
        if state is not None:
            self._state = state
            self.epoch, self.step = state["epoch"], state["step"]
            self.best, self.sums = state["best"], state["sums"]
            within = f" and {self.step} steps" if self.step else ""
            print(f"resume: the whole state after {self.epoch} epochs{within}, {self.model_dir}")
        elif resume == -1:
            raise UserError(f"--resume -1: {self.model_dir} holds no whole training state. {self._bare_epochs()}")
        else:
            self._bare = {prefix: self.model_dir / f"{prefix}_state_{resume}.pt" for prefix in self.prefixes}
            missing = [path.name for path in self._bare.values() if not path.exists()]
            if missing:
                raise UserError(
                    f"--resume {resume}: {self.model_dir} lacks {', '.join(missing)}. {self._bare_epochs()}"
                )
            self.epoch = resume
            self.best = states[0]["best"] if states else self.best
            print(f"resume: bare weights of epoch {resume}; Adam starts fresh, so this is not bit for bit the same run")
        self._aside += [s["path"] for s in states if (s["epoch"], s["step"]) > (self.epoch, self.step)]

    def _check_folders(self) -> None:
        """Input folders are never written to."""
        for flag in ("model_dir", "log_dir"):
            written = Path(getattr(self.args, flag)).resolve()
            for source in ("data_path", "gt_path", "val_data_path", "val_gt_path", "streaks", "clean"):
                folder = getattr(self.args, source, None)
                if folder and Path(folder).is_dir() and written.is_relative_to(Path(folder).resolve()):
                    raise UserError(f"--{flag}: {written} lies in the input folder --{source} {folder}; choose another")

    def _states(self) -> list[dict]:
        """The readable whole states, newest first; says which could not be read."""
        states = []
        for name in STATES:
            path = self.model_dir / name
            if not path.exists():
                continue
            try:
                state = checkpoint.load(path, "--resume")
                if checkpoint.kind_of(state) != "state":
                    raise UserError(f"{path} is no training state")
            except UserError as error:
                print(f"resume: left out: {error}")
                self._aside.append(path)
                continue
            if (version := str(state["vrgnet_state"])) != str(VERSION):
                raise UserError(
                    f"{path} has format {version:.40}, this program reads {VERSION}; "
                    "use the version that wrote it, or --resume N with bare weights"
                )
            content = {"experiment": str, "epoch": int, "step": int, "best": float, "data": str}
            content |= dict.fromkeys(("sums", "options", "nets", "optimizers", "rng"), dict) | {"processes": int}
            options = state.get("options")
            state.setdefault("processes", 1)  # older ones had one
            choice_fits = "derainer" not in self.args or derainer.valid(options)
            fits = all(isinstance(state.get(key), kind) for key, kind in content.items()) and choice_fits
            fits = fits and min(state["processes"], state["epoch"] + 1, state["step"] + 1) >= 1
            if not fits or "batchSize" not in options or not _are_values(options, self.args):
                print(f"resume: left out: {path} is no whole training state")
                self._aside.append(path)
                continue
            if state["experiment"] != self.experiment:
                remedy = "choose another --model_dir" if self.args.overwrite else "resume it with that script"
                raise UserError(f"{path} belongs to {state['experiment']}; {remedy}")
            states.append(state | {"path": path})
        return states

    def _bare_epochs(self) -> str:
        found = {int(m[1]) for p in self.files() if (m := re.fullmatch(rf"{self.prefixes[0]}_state_(\d+)\.pt", p.name))}
        if not found:
            others = [p.name for p in self.files() if re.search(r"_state_\d+\.pt$", p.name)]
            if others and "fake_ratio" in self.args:
                return f"It holds {others[-1]}, whose name tells its --fake_ratio; give that one."
            return "There are no bare weights either; start with --resume 0."
        shown = ", ".join(map(str, sorted(found)[-8:]))
        return f"Bare weights are there for --resume {shown}."

    def _shared_out(self, state: dict) -> dict:
        """The stored options, the batch shared out among the processes that there are now."""
        options, before, now = state["options"], state["processes"], ranks.count()
        if before == now:
            return options
        whole = options["batchSize"] * before
        if whole % now:
            fitting = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
            raise UserError(
                f"--resume: a step of this run has {whole} crops, which {now} processes can't share evenly; start as "
                f"many as divide it: {fitting}"
            )
        each = whole // now
        if "batchSize" in self.args.given and self.args.batchSize != each:
            raise UserError(
                f"--resume: --batchSize is {self.args.batchSize}, but a step of this run has {whole} crops, {each} for "
                f"each of {now} processes; leave it out"
            )
        print(f"resume: {before} processes before, {now} now, --batchSize {each}: a step still has {whole} crops")
        return options | {"batchSize": each}

    def _restore_options(self, stored: dict) -> None:
        given = self.args.given
        if "derainer" in stored:
            derainer.require_named(stored, self.args, f"--resume: {self.model_dir} trains")
            if "derainer" in given and self.args.derainer != stored["derainer"]:
                if derainer.PRENET in (self.args.derainer, stored["derainer"]):
                    raise UserError(
                        f"--resume: --derainer is {self.args.derainer}, the run has {stored['derainer']}; start a new "
                        "run in another --model_dir, or give the flags of this one:\n  " + derainer.flags(stored)
                    )
                print(f"resume: the derainer was {stored['derainer']}, now it is {self.args.derainer}")
        conflicts = [
            f"--{key} is {_shown(getattr(self.args, key))}, the run has {_shown(stored[key])}"
            for key in sorted(given & stored.keys() - FREE - PER_CALL)
            if _plain(key, getattr(self.args, key)) != _plain(key, stored[key])
        ]
        if conflicts:
            raise UserError(
                "--resume: these flags differ from the run that is resumed; leave them out, or start a new run in "
                f"another --model_dir: {'; '.join(conflicts)}"
            )
        for key in stored.keys() - given - PER_CALL:
            if hasattr(self.args, key):
                setattr(self.args, key, stored[key])
                self.settled.add(key)

    def options(self) -> dict:
        """The options that are stored: plain values of every flag."""
        return {key: value for key, value in vars(self.args).items() if key not in PER_CALL | {"given"}}

    def restore(self, nets: dict[str, nn.Module], optimizers: dict[str, Optimizer], data: str) -> None:
        """Fill networks, Adam and the random number generators from what was found; nothing on a fresh start.

        Args:
            data: fingerprint of the training data, which is stored and compared.

        Raises:
            UserError: the state is of other networks, or damaged.
        """
        self._data = data
        if self._state is not None:
            if self._state["data"] != data:
                print(
                    f"resume: other data than before ({printable(self._state['data']):.100}; now {data}): not bit for "
                    "bit the same run"
                )
            where = f"--resume: {self.model_dir}"
            for name, net in nets.items():
                if name not in self._state["nets"]:
                    raise UserError(f"{where}: this run keeps no {name}; leave --ema out, or start a new run with it")
                checkpoint.put_weights(net, self._state["nets"][name], self._kind(name), where)
                if name not in optimizers:  # an average of another one's weights
                    continue
                try:
                    put_averages(optimizers[name], self._state["optimizers"][name])
                except Exception:  # a layer was frozen or freed in between; or it is no state of ours
                    raise UserError(f"{where}: {name} trains other parameters than this run did; undo that") from None
            try:
                runtime.set_rng_state(self._state["rng"])
            except Exception:
                raise UserError(f"{where}: {STATES[0]} is damaged; go on from bare weights, --resume N") from None
            self._state = None  # its memory is needed
        for name, path in self._bare.items() if ranks.first() else ():  # the others are given them by ``fit``
            checkpoint.load_weights(nets[name], path, self._kind(name), "--resume")

    def _kind(self, prefix: str) -> str:
        joint = {"DerainNet": "joint", "ED": "ED", "ED_ema": "ED", "D": "D"}
        return joint.get(prefix) or checkpoint.kind_of_derainer(self.args)

    def begin(self) -> None:
        """The checks are done and the first step is next: deal with what would be mixed up with this run."""
        ranks.advise(self.last_good)
        if not ranks.first():
            return
        if self.args.overwrite:
            for path in self.files():
                path.unlink()
        for path in self._aside:
            left = path.with_name(path.name.replace("train_state", "left_state"))
            os.replace(path, left)
            print(f"resume: {path.name} is not part of this run any more; kept as {left.name}")
        if "derainer" in self.args or "stage" in self.args:
            choice = json.dumps(derainer.choice_of(self.args), indent=2)
            write_bytes(self.model_dir / f"{self.prefixes[0]}.json", f"{choice}\n".encode())

    # --- saving ------------------------------------------------------------------------------------------------

    def save_state(self, nets: dict[str, nn.Module], optimizers: dict[str, Optimizer]) -> None:
        """Save everything that a bit-for-bit continuation needs; loadable with ``weights_only=True``.

        The first process saves, the others have the same.

        Raises:
            TrainingStopped: a weight or an Adam average is not finite (the last good state stays), or the disk fails.
        """
        if not ranks.first():
            self._saved = self.options()
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
            "processes": ranks.count(),
            "nets": {name: net.state_dict() for name, net in nets.items()},
            "optimizers": {name: averages(optimizer) for name, optimizer in optimizers.items()},
            "rng": runtime.rng_state(),
        }
        require_finite(_parameters(nets) | {f"Adam of {k}": v for k, v in content["optimizers"].items()}, self)
        last, before = (self.model_dir / name for name in STATES)
        self._save(content, last, keep=before)
        self._saved = content["options"]

    def save_weights(self, nets: dict[str, nn.Module], suffix: str) -> None:
        """Save bare state dicts as ``PREFIX_SUFFIX.pt``, on the CPU, so that they load anywhere; once, see above.

        Raises:
            TrainingStopped: a weight is not finite, or the disk fails.
        """
        if not ranks.first():
            return
        states = {name: {k: v.cpu() for k, v in net.state_dict().items()} for name, net in nets.items()}
        require_finite(_parameters(nets), self)
        for name, state in states.items():
            self._save(state, self.model_dir / f"{name}_{suffix}.pt")

    def _save(self, content: dict, path: Path, keep: Path | None = None) -> None:
        try:
            checkpoint.save(content, path, keep)
        except TrainingStopped as error:
            raise TrainingStopped(f"{error} {self.last_good()}") from None

    def last_good(self) -> str:
        """The newest whole state and how to go on from it, for messages."""
        paths = [self.model_dir / name for name in STATES]
        there = [path for path in paths if path.exists()]  # only the one before, after a kill between two renames
        if not (there if ranks.first() else self._saved):  # others need not see the folder
            return "No state was saved before."
        return f"The last good state is {(there or paths)[0]}; go on with it: {self.command()}"

    def command(self) -> str:
        """The command that goes on with this run."""
        words = [str(self._script), "--model_dir", str(self.model_dir), "--resume", "-1"]
        for key in sorted(self.args.given & FREE - {"derainer", "pad_to", "pad_square"}):
            if key not in self._saved or self._saved[key] != getattr(self.args, key):  # a folder that has moved, say
                words += [f"--{key}", str(getattr(self.args, key))]
        line = f"{_starter()} {shlex.join(words)}"
        return f"{line} {derainer.flags(derainer.choice_of(self.args))}" if derainer.is_own(self.args) else line


def _starter() -> str:
    """What runs a script in as many processes as now."""
    if ranks.count() == 1:
        return shlex.quote(sys.executable)
    if ranks.count() > ranks.local_count():
        return "torchrun, on every machine and with its flags as before,"
    return ranks.torchrun(ranks.count())


def averages(optimizer: Optimizer) -> dict:
    """The state of an optimizer as every other one of its kind can go on from it, whether it is recorded or not."""
    state = optimizer.state_dict()
    groups = [group | {"lr": float(group["lr"])} for group in state["param_groups"]]
    return state | {"param_groups": groups}


def put_averages(optimizer: Optimizer, stored: dict) -> None:
    """Go on from stored ``averages``; what kind of optimizer it is, and its rates, stay.

    Raises:
        ValueError: it was of other parameters.
    """
    groups = zip(stored["param_groups"], optimizer.state_dict()["param_groups"], strict=True)
    groups = [own | {"params": theirs["params"]} for theirs, own in groups]
    optimizer.load_state_dict(stored | {"param_groups": groups})
    for weight, state in optimizer.state.items():  # in the weight's order of memory, which fused Adam asks for
        state |= {k: torch.empty_like(weight).copy_(v) for k, v in state.items() if k != "step"}


def _parameters(nets: dict[str, nn.Module]) -> dict[str, dict]:
    return {name: dict(net.named_parameters()) for name, net in nets.items()}  # a buffer may be a mask of -inf


def _are_values(stored: dict, args: argparse.Namespace) -> bool:
    """Whether stored options are such as the flags of the script may have."""
    return all(_is_value(key, stored[key], now) for key, now in vars(args).items() if key in stored.keys() - PER_CALL)


def _is_value(key: str, value: object, now: object) -> bool:
    if key == "side_by_side":
        return value in (None, "left", "right")
    if key == "pair_by":
        return value is None or (isinstance(value, list) and len(value) == 2 and all(type(v) is str for v in value))
    if value is None or now is None:
        return value is None or isinstance(value, str if key.endswith("_path") or key in PATHS else int)
    if isinstance(now, list):
        return isinstance(value, list) and all(type(item) is (str if key == "derainer_args" else int) for item in value)
    if isinstance(now, (bool, str)):
        return type(value) is type(now)
    if key in ("patchSize", "patch_size"):
        return type(value) is int and value >= 16 and value & (value - 1) == 0
    if isinstance(now, float) or key in FRACTIONS:
        return type(value) in (int, float) and 0 <= value < float("inf")
    return type(value) is int and (0 if key in MAY_BE_ZERO else 1) <= value < 2**32


def _plain(key: str, value: object) -> object:
    return derainer.values(value) if key == "derainer_args" else value  # in whatever order


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def require_finite(tree: dict, run: Run) -> None:
    """Look at every tensor in nested dicts.

    Raises:
        TrainingStopped: a tensor holds nan or inf; names the network and the last good state.
    """

    def tensors(value: object) -> Iterator[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            for item in value.values():
                yield from tensors(item)

    for name, part in tree.items():
        if not all(bool(torch.isfinite(t).all()) for t in tensors(part)):
            raise TrainingStopped(f"weights of {name} are not finite; nothing was saved. {run.last_good()}")


def _lock(file: IO, run: Run) -> None:
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: workers do not inherit it
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"--model_dir: another run trains in {run.model_dir} right now; wait for it or take another folder"
            ) from None
        print(f"no lock on {run.model_dir} ({error.strerror}): take care not to start a second run in it")  # some disks


@contextlib.contextmanager
def open_run(
    args: argparse.Namespace, script: str, prefixes: Callable[[argparse.Namespace], tuple[str, ...]]
) -> Iterator[Run]:
    """Open the run of a training script: lock --model_dir, find the state of --resume, let its options win.

    Args:
        args: flags of the script, changed in place on resume; a --dry_run locks and creates nothing. Of several
            processes the first does all this, and its flags are everybody's.
        script: the script's ``__file__``; a state is only resumed by the script that wrote it.
        prefixes: from the flags, the names of the network files, ``DerainNet`` for ``DerainNet_state_N.pt``.

    Raises:
        UserError: see ``Run.resolve``; or another process trains in the same folder.
    """
    run = Run(args, script, prefixes)
    if args.dry_run or not ranks.first():
        run.resolve()
        yield run
        return
    created = not run.model_dir.exists()
    lock = run.model_dir / ".lock"
    try:
        run.model_dir.mkdir(parents=True, exist_ok=True)
        file = open(lock, "w")  # noqa: SIM115 (open as long as the run)
    except OSError as error:
        raise UserError(f"--model_dir: {run.model_dir} can't be written to ({error.strerror})") from None
    try:
        _lock(file, run)
        run.resolve()
        yield run
    finally:
        file.close()  # frees the lock; the file stays, since deleting it could free the lock of another process
        if created and [p.name for p in run.model_dir.iterdir()] == [lock.name]:  # nothing came of it
            lock.unlink()
            run.model_dir.rmdir()


def describe(
    run: Run,
    dataset: PatchDataset,
    rule: str,
    held_out: list[Pair],
    nets: dict[str, nn.Module | None],
    device: torch.device,
) -> None:
    """What --dry_run prints: the resolved options, the data found, the sizes of the networks."""
    print_result("options:")
    for key, value in run.options().items():
        print_result(f"  --{key} {_shown(value)}")
    pairs = dataset.pairs
    first, last = printable(pairs[0].name), printable(pairs[-1].name)
    print_result(f"data: {len(pairs)} pairs, by the rule: {rule}; first {first}, last {last}")
    print_result(f"validation: {len(held_out)} pairs" if held_out else "validation: none")
    if ranks.count() > 1:
        print_result(f"processes: {ranks.count()}; a step has {ranks.count() * run.args.batchSize} crops")
    print_result("networks:")
    for name, net in nets.items():
        print_result(f"  {name}: {sum(p.numel() for p in net.parameters()):,} parameters" if net else f"  {name}: none")
    start = f"epoch {run.epoch + 1}, step {run.step + 1}" if run.epoch or run.step else "the beginning"
    what = (
        f"would train on {device} from {start}" if run.epoch < run.args.niter else "nothing to do, all epochs are done"
    )
    print_result(f"{what}; --dry_run: nothing was written")
