"""Checkpoint files: written whole or not at all, read without running code, put into networks that they fit."""

import argparse
import contextlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import derainer
from ..errors import TrainingStopped, UserError, is_dead_worker
from ..models import Derain, EDNet
from ..terminal import printable
from .kinds import KINDS, REMEDIES, kind_of, unwrapped

KEYS_SHOWN = 4
_DAMAGED = "is not a PyTorch checkpoint, or a damaged one. Fetch or save it again."
_PROFILED = ("total_ops", "total_params")  # what counting operations (thop) leaves in a network


def save(value: object, path: Path, keep: Path | None = None) -> None:
    """Write a file aside and rename it, so that it is whole whenever it is there.

    Args:
        keep: what stood at ``path`` before moves here; at every moment one of the two is there and whole.

    Raises:
        TrainingStopped: it can't be written; what stood there before is untouched.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        with open(aside, "wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # torch hides a full disk behind a RuntimeError of its own
        with contextlib.suppress(OSError):  # of a disk that can't be written to any more
            aside.unlink(missing_ok=True)
        causes = list(_causes(error))
        for cause in causes:
            if is_dead_worker(cause):
                raise cause from None
        reasons = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
        reason = (reasons or str(error).splitlines())[0]
        raise TrainingStopped(
            f"{path}: can't be saved ({reason}); check the disk and the permissions of the folder. What was saved "
            "before is untouched."
        ) from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def load(path: Path, flag: str, hint: str = "") -> object:
    """Read a checkpoint, new zip or old format, from any device, onto the CPU. T11: code in it is never run.

    Args:
        flag: the flag that named the file, for messages.
        hint: where the file comes from, for the message when it is missing.

    Raises:
        UserError: it is missing, broken, or holds more than weights.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder; name the checkpoint file in it. {_beside(path)}".rstrip())
    if not path.is_file():
        raise UserError(f"{flag}: there is no {path}. {_beside(path.parent)} {hint}".strip())
    try:
        _check_sizes(path)
        with warnings.catch_warnings(action="ignore"):  # of broken files, one message is enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch says so in several wordings; anything else that can't be unpickled is damage
        text = str(error)
        if code := re.search(r"[^.\n]*(unsupported (global|class|function)|not an allowed global)[^\n]*", text, re.I):
            named = re.search(r"\bGLOBAL ([\w.]+)", text)
            raise UserError(
                f"{flag}: {path} holds code or objects, not just weights; refused, nothing of it was run "
                f"({named[1] if named else code[0].strip()}). If you trust it, save its state_dict() alone and load "
                "that."
            ) from None
        raise UserError(f"{flag}: {path} {_damage(path)}") from None
    except PermissionError:
        raise UserError(f"{flag}: {path} may not be read; check its permissions") from None
    except Exception:  # the readers of damaged files raise many kinds
        raise UserError(f"{flag}: {path} {_damage(path)}") from None


def _damage(path: Path) -> str:
    """What a file is that can't be read as a checkpoint."""
    with open(path, "rb") as file:
        start = file.read(100).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the weights themselves. Fetch them with git lfs pull."
    if start.startswith((b"<!doctype", b"<html")):
        return "is a web page, not a checkpoint: the download was refused or needs a click. Fetch it again."
    return _DAMAGED


def _check_sizes(path: Path) -> None:
    """Let no member of a zip file be larger than it is in the file, before torch takes the memory for it.

    Raises:
        zipfile.BadZipFile: one is compressed, which torch never does, or several lie in the same place.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # as torch tells the formats apart
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise zipfile.BadZipFile


def _beside(folder: Path) -> str:
    names = sorted(p.name for p in folder.glob("*.pt*")) if folder.is_dir() else []
    if not names:
        return f"{folder} holds no checkpoint."
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{folder} holds {printable(', '.join(names[:6]))}{more}."


def load_newest(path: Path, flag: str, hint: str = "") -> tuple[Path, object]:
    """``load`` for a derainer's file, or of a folder the whole file with most epochs of the latest run; says which.

    Returns:
        The file and what is in it.

    Raises:
        UserError: see ``load``; or the folder holds none.
    """
    path = Path(path)
    if not path.is_dir():
        return path, load(path, flag, hint)
    others = re.compile(
        r"(train|left)_state|(ED|ED_ema|D|DerainNet)_(state_\d+|best)\.pt"
    )  # other networks, joint training

    def epoch(file: Path) -> int:
        number = re.search(r"_state_(\d+)\.pt$", file.name)
        return int(number[1]) if number else -1

    def rank(run: list[Path]) -> tuple[bool, float]:  # numbered files before others, then what was written last
        return epoch(run[0]) >= 0, max(file.stat().st_mtime for file in run)

    runs: dict[str, list[Path]] = {}
    for file in path.iterdir():
        if file.suffix in (".pt", ".pth") and file.is_file() and not others.match(file.name):
            runs.setdefault(derainer.choice_file(file).stem if epoch(file) >= 0 else "", []).append(file)
    for run in sorted(runs.values(), key=rank, reverse=True):
        for file in sorted(run, key=epoch, reverse=True):
            try:
                content = load(file, flag)
            except UserError as error:
                print(f"left out: {printable(str(error))}")
                continue
            print(f"{flag}: {path} is a folder; taking {printable(file.name)}")
            return file, content
    raise UserError(
        f"{flag}: {path} is a folder without a whole checkpoint of a derainer. {_beside(path)} {hint}".strip()
    )


def kind_of_derainer(args: argparse.Namespace) -> str:
    """What the weights of --derainer must be: 'augmented' or 'own', see ``put_weights``."""
    return "own" if derainer.is_custom(args) else "augmented"


def load_derainer(args: argparse.Namespace, hint: str = "") -> nn.Module:
    """The derainer that --model_dir, --derainer and the choice beside the weights name, filled, on the CPU.

    Args:
        args: flags of test_syn_aug.py or test_spa_aug.py; of a folder --model_dir becomes the file that is taken, and
            some may be set from the stored choice, see ``settle``.
        hint: where the checkpoint comes from, for the message when it is missing.

    Raises:
        UserError: see ``load_newest``, ``derainer.settle``, ``derainer.build`` and ``put_weights``.
    """
    path, content = load_newest(args.model_dir, "--model_dir", hint)
    args.model_dir = str(path)
    trained = derainer.settle(args, path)
    try:
        net = derainer.build(args)
        put_weights(net, content, kind_of_derainer(args), f"--model_dir: {path}")
    except UserError as error:
        raise UserError(f"{error} {trained}".rstrip()) from None
    return net


def load_joint(args: argparse.Namespace, hint: str = "") -> Derain:
    """BNet of --netDerain with the stages of --stage, filled, on the CPU; --stage may be set, see ``settle_stage``.

    Raises:
        UserError: see ``load_weights``.
    """
    content = load(args.netDerain, "--netDerain", hint)
    derainer.settle_stage(args, Path(args.netDerain))
    net = Derain(stage=args.stage)
    put_weights(net, content, "joint", f"--netDerain: {args.netDerain}")
    return net


def load_generator(path: Path, flag: str, hint: str = "") -> EDNet:
    """Make the EDNet that fits a released or own file, whatever its sizes, and fill it.

    Raises:
        UserError: see ``load`` and ``load_weights``.
    """
    ends = {"encoder.main.0.weight", "decoder.main.0.weight"}  # which every size has
    content = unwrapped(load(path, flag, hint), ends, "ED", f"{flag}: {path}")
    net = EDNet()
    if kind_of(content) == "ED":
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if any(value.numel() * value.element_size() > os.path.getsize(path) for value in tensors.values()):
            raise UserError(f"{flag}: {path} {_DAMAGED}")  # a few numbers that claim to be many
        shapes = {key: value.shape for key, value in tensors.items()}
        convs = [shape for key, shape in shapes.items() if key.startswith("encoder.main.") and len(shape) == 4]
        codes = [shape for key, shape in shapes.items() if key.startswith("decoder.main.") and len(shape) == 2]
        first = shapes.get("encoder.main.0.weight", ())
        if 3 <= len(convs) <= 12 and len(codes) == 1 and len(first) == 4 and all((*first, *codes[0])):
            sizes = {"nc": first[1], "nz": codes[0][1], "nef": first[0], "patch_size": 2 ** (len(convs) + 1)}
            with torch.device("meta"):  # which takes no memory
                net = EDNet(**sizes)
            if {key: value.shape for key, value in net.state_dict().items()} == shapes:  # else put_weights tells
                net = EDNet(**sizes)
    put_weights(net, content, "ED", f"{flag}: {path}")
    return net


def generator_of(args: argparse.Namespace, device: torch.device, hint: str) -> EDNet:
    """The generator of --netED, frozen, in eval mode, on the device.

    Its sizes go to whichever of the flags --nc, --nz, --nef, --patchSize and --patch_size the script has, and are said,
    where these were left alone.

    Args:
        hint: where the file comes from, for the message when it is missing.

    Raises:
        UserError: the file is missing or the wrong one, its sizes contradict given flags, or it does not make RGB.
    """
    net = load_generator(args.netED, "--netED", hint)
    sizes = {"nc": net.nc, "nz": net.nz, "nef": net.nef, "patchSize": net.patch_size, "patch_size": net.patch_size}
    differ = {flag: size for flag, size in sizes.items() if hasattr(args, flag) and size != getattr(args, flag)}
    wrong = [flag for flag in differ if flag in args.given]
    if wrong:
        text = "; ".join(f"--{flag} is {getattr(args, flag)}, it has {differ[flag]}" for flag in wrong)
        remedy = (
            f"Give {' '.join(f'--{flag} {differ[flag]}' for flag in wrong)} or leave it out, or name another generator"
        )
        raise UserError(f"--netED: {args.netED} is a generator of other sizes: {text}. {remedy}")
    if net.nc != 3:
        raise UserError(f"--netED: {args.netED} makes rain of {net.nc} channels; RGB images have 3")
    if differ:
        own = ", ".join(f"{flag} {size}" for flag, size in differ.items())
        print(f"--netED: this generator has {own}; the flags follow it")
        vars(args).update(differ)
    return net.eval().requires_grad_(False).to(device)


def load_weights(net: nn.Module, path: Path, kind: str, flag: str, hint: str = "") -> None:
    """Load a released or own state dict into a network, in place.

    Args:
        kind: what is expected, see ``kind_of``.
        flag, hint: see ``load``.

    Raises:
        UserError: says what the file looks like, what was expected, and which keys or shapes differ.
    """
    put_weights(net, load(path, flag, hint), kind, f"{flag}: {path}")


def put_weights(net: nn.Module, content: object, kind: str, where: str) -> None:
    """``load_weights`` for a file that is read already; ``where`` names it in messages. Raises the same."""
    expected = KINDS[kind][0]
    own = net.state_dict()
    content = unwrapped(content, own.keys(), kind, where)
    actual = kind_of(content)
    if kind == "own" and actual != "state":
        actual = None  # whatever else it may look like
    if actual == "PReNet_r" and kind == "augmented":
        print(f"{where}: this is PReNet_r, whose one residual block stands for all five")
        actual, one = kind, {key: value for key, value in content.items() if key.startswith("res_conv1.")}
        content = content | {key.replace("1", str(k), 1): value for k in range(2, 6) for key, value in one.items()}
    if actual not in (kind, None):
        is_a, remedy = KINDS[actual]
        raise UserError(f"{where}: this is {is_a}; {remedy}. Expected here: {expected}.")
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        shape = (
            f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
        )
        raise UserError(f"{where}: this is no state dict ({shape}). Expected: {expected}.")
    content = {key: value for key, value in content.items() if key in own or not key.endswith(_PROFILED)}
    content = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")} | content  # < 0.4.1
    missing = sorted(own.keys() - content.keys())
    surplus = sorted(content.keys() - own.keys())
    shapes = [
        f"{key} {tuple(content[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(own.keys() & content.keys())
        if content[key].shape != own[key].shape
    ]
    if missing or surplus or shapes:
        parts = [_some("missing", missing), _some("not expected", surplus), _some("of another shape", shapes)]
        looks = f"this looks like {KINDS[actual][0]}, but of another size" if actual else "this is something else"
        remedy = REMEDIES.get(kind, "") if actual or kind in ("own", "augmented") else ""
        raise UserError(f"{where}: {looks}. Expected: {expected}. {' '.join(filter(None, parts))} {remedy}".rstrip())
    other = [k for k, v in content.items() if v.is_complex() or v.is_quantized or v.layout != own[k].layout]
    if other:
        raise UserError(f"{where}: {_some('not of plain numbers', other)} Expected: {expected}.")
    weights = [key for key, _ in net.named_parameters() if key in content]
    broken = [key for key in weights if not torch.isfinite(content[key]).all()]
    if broken:
        raise UserError(f"{where}: {_some('not finite', broken)} The training went wrong; use an earlier checkpoint.")
    net.load_state_dict(content)


def _some(label: str, items: list[str]) -> str:
    if not items:
        return ""
    items = [item if len(item) <= 100 else f"{item[:100]}..." for item in items]
    more = f" and {len(items) - KEYS_SHOWN} more" if len(items) > KEYS_SHOWN else ""
    return f"{label[0].upper()}{label[1:]}: {', '.join(items[:KEYS_SHOWN])}{more}."
