"""Checkpoint files: written whole or not at all, read without running code, put into networks and optimisers."""

import argparse
import contextlib
import hashlib
import io
import re
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import Optimizer

from .. import derainer
from ..errors import UserError
from ..files import write_bytes
from ..models import Derain, EDNet
from ..terminal import print_result
from ..weights import DERAINER
from .kinds import FOREIGN, KINDS, REMEDY, kind_of, unwrapped


def save(value: object, path: Path) -> None:
    """Write a checkpoint, which is whole whenever it is there; ``Stopped`` where it can't be written."""
    data = io.BytesIO()  # torch.save would hide a full disk behind an error of its own
    torch.save(value, data)
    write_bytes(path, data.getbuffer(), sync=True)


def load(path: Path, flag: str, hint: str = "") -> object:
    """Read a checkpoint, new zip or old format or safetensors, from any device, onto the CPU.

    T11: code in it is never run.

    Args:
        flag: the flag that named the file, for messages.
        hint: where the file comes from, for the message when it is missing.

    Raises:
        UserError: it is missing, broken, of another kind, or holds more than weights.
    """
    if Path(path).is_dir():
        raise UserError(f"{flag}: {path} is a folder; name the checkpoint file in it")
    if not Path(path).exists():
        raise UserError(f"{flag}: there is no {path}. {hint}".strip())
    with open(path, "rb") as file:
        start = file.read(64)
    try:
        if re.match(rb"(?s).{5}\0\0\0{", start):  # the length of a header in JSON
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of broken files, one message is enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers of damaged files raise many kinds
        for pattern, (is_a, remedy) in FOREIGN.items():
            if re.match(pattern, start + str(error).encode(), re.DOTALL):
                raise UserError(f"{flag}: {path} {is_a}. {remedy}.") from None
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise UserError(
            f"{flag}: {path} is no PyTorch checkpoint, is damaged, or holds code or objects besides weights{what}; "
            "nothing of it was run. Fetch it again, or save the network's state_dict() alone and load that."
        ) from None


def newest(path: Path, flag: str, hint: str = "") -> Path:
    """The file itself, or the weights of the most epochs in a folder of one augmented training (else UserError)."""
    if not Path(path).is_dir():
        return Path(path)
    name = r"((?:No)?Aug\d*_DerainNet)_state_(\d+)\.pt"
    found = [match for file in Path(path).iterdir() if (match := re.fullmatch(name, file.name))]
    if len(trainings := sorted({match[1] for match in found})) != 1:
        what = f"weights of several trainings ({', '.join(trainings)})" if found else "no Aug_DerainNet_state_N.pt"
        raise UserError(f"{flag}: {path} is a folder with {what}; name a file. {hint}".strip())
    file = max(found, key=lambda match: int(match[2]))[0]
    print(f"{flag}: {path} is a folder; taking {file}")
    return Path(path, file)


def load_derainer(args: argparse.Namespace, hint: str = "") -> nn.Module:
    """The derainer that --model_dir, --derainer and the choice beside the weights name, filled, on the CPU.

    Of a folder --model_dir becomes the file that is taken. If the flag is not given and its default folder is missing,
    it is the derainer that comes with the project. Other flags may be set from the choice, see ``follow_training``.
    UserError: weights or code are missing, or do not fit.
    """
    if "model_dir" not in args.given and not Path(args.model_dir).parent.exists():
        args.model_dir = str(DERAINER)
    if args.model_dir == str(DERAINER):
        if derainer.is_custom(args):
            raise UserError("--model_dir: name the weights of the derainer of --derainer")
        print_result("the derainer of the project: common/weights/derainer_default.md; --model_dir takes another")
    path = newest(args.model_dir, "--model_dir", hint)
    args.model_dir, content = str(path), load(path, "--model_dir", hint)
    derainer.follow_training(args, path)
    net = derainer.build(args)
    put_weights(net, content, f"--model_dir: {path}")
    return net


def load_joint(args: argparse.Namespace, hint: str = "") -> Derain:
    """BNet of --netDerain, filled, on the CPU; sets --stage, see ``follow_training``. Raises as ``load_weights``."""
    content = load(args.netDerain, "--netDerain", hint)
    derainer.follow_training(args, Path(args.netDerain))
    net = Derain(stage=args.stage)
    put_weights(net, content, f"--netDerain: {args.netDerain}")
    return net


def load_generator(path: Path, flag: str, hint: str = "") -> EDNet:
    """Make the EDNet that fits a released or own file, whatever its sizes, and fill it. Raises as ``load_weights``."""
    ends = {"encoder.main.0.weight", "decoder.main.0.weight"}  # which every size has
    content, net = unwrapped(load(path, flag, hint), ends, f"{flag}: {path}"), EDNet()
    if kind_of(content) == "ED":
        with contextlib.suppress(Exception):  # of a damaged file; put_weights tells
            nef, nc, *_ = content["encoder.main.0.weight"].shape
            nz = content["decoder.main.0.weight"].shape[1]
            convolutions = sum(key.startswith("encoder.main.") and x.dim() == 4 for key, x in content.items())
            net = EDNet(nc=nc, nz=nz, nef=nef, patch_size=2 ** (convolutions + 1))
    put_weights(net, content, f"{flag}: {path}")
    return net


def generator_of(args: argparse.Namespace, device: torch.device, hint: str, any_crop: bool = False) -> EDNet:
    """The generator of --netED, frozen, in eval mode, on the device.

    Its sizes go to the flags --nz, --nef, --patchSize and --patch_size that the script has and that were left alone.

    Args:
        any_crop: --patchSize may be another one than the generator's.

    Raises:
        UserError: the file is missing or the wrong one, its sizes contradict given flags, or it does not make RGB.
    """
    net = load_generator(args.netED, "--netED", hint)
    if net.nc != 3:
        raise UserError(f"--netED: {args.netED} makes rain of {net.nc} channels; RGB images have 3")
    sizes = {"nz": net.nz, "nef": net.nef, "patchSize": net.patch_size, "patch_size": net.patch_size}
    if any_crop and "patchSize" in args.given:
        del sizes["patchSize"]
    differ = {flag: size for flag, size in sizes.items() if hasattr(args, flag) and size != getattr(args, flag)}
    wrong = [flag for flag in differ if flag in args.given]
    if wrong:
        text = "; ".join(f"--{flag} is {getattr(args, flag)}, it has {differ[flag]}" for flag in wrong)
        raise UserError(
            f"--netED: {args.netED} is a generator of other sizes: {text}. Leave these flags out, or name another one"
        )
    if differ:
        own = ", ".join(f"{flag} {size}" for flag, size in differ.items())
        print(f"--netED: this generator has {own}; the flags follow it")
        vars(args).update(differ)
    return net.eval().requires_grad_(False).to(device)


def load_weights(net: nn.Module, path: Path, flag: str) -> None:
    """Load a released or own state dict into a network, in place; ``flag`` names the file in messages.

    Raises:
        UserError: says what the file looks like, what was expected, and which keys or shapes differ.
    """
    put_weights(net, load(path, flag), f"{flag}: {path}")


def put_weights(net: nn.Module, content: object, where: str) -> None:
    """``load_weights`` for a file that is read already; ``where`` names it in messages. Raises the same."""
    net = derainer.inner(net)
    own = net.state_dict()
    kind = kind_of(own)  # None: a network of the user's
    expected = KINDS[kind][1] if kind else f"weights of {type(net).__name__}"
    content = unwrapped(content, own.keys(), where)
    actual = kind_of(content)
    if actual not in (kind, None) and (kind or actual == "state"):
        _, is_a, remedy = KINDS[actual]
        raise UserError(f"{where}: this is {is_a}; {remedy}. Expected here: {expected}.")
    if actual == "augmented" and "res_conv2.0.weight" in own.keys() - content.keys():
        print(f"{where}: this is PReNet_r, whose one residual block stands for all five")
        one = {key: value for key, value in content.items() if key.startswith("res_conv1.")}
        content |= {key.replace("1", str(k), 1): value for k in range(2, 6) for key, value in one.items()}
    try:
        net.load_state_dict(content)
    except Exception as error:  # names or shapes differ, or it is no state dict at all
        text = " ".join(str(error).split())
        raise UserError(
            f"{where}: this does not fit. Expected: {expected}. {REMEDY} PyTorch says: {text:.600}"
        ) from None
    for key, value in net.state_dict().items():
        if value.is_floating_point() and not content[key].is_floating_point():  # loading makes floats of quantized ones
            raise UserError(f"{where}: {key} holds {content[key].dtype}, no floats; take the weights of full precision")
    broken = [key for key, value in net.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{where}: {broken[0]} is not finite. The training that wrote it went wrong; use an earlier checkpoint."
        )


def digest(net: nn.Module) -> str:
    """Twelve digits that change with the weights of a network, whatever file they came in."""
    sha = hashlib.sha256()
    for value in net.state_dict().values():
        sha.update(value.cpu().numpy().tobytes())
    return sha.hexdigest()[:12]


# --- optimisers ----------------------------------------------------------------------------------------------------


def state_of(optimizer: Optimizer) -> dict:
    """The state of an optimizer from which one on any device can go on."""
    state = optimizer.state_dict()
    groups = [group | {"lr": float(group["lr"])} for group in state["param_groups"]]
    return state | {"param_groups": groups}


def load_state(optimizer: Optimizer, stored: dict) -> None:
    """Go on from a ``state_of``; the kind of optimizer and its rates stay. ValueError: it was of other parameters."""
    groups = zip(stored["param_groups"], optimizer.state_dict()["param_groups"], strict=True)
    groups = [own | {"params": theirs["params"]} for theirs, own in groups]
    optimizer.load_state_dict(stored | {"param_groups": groups})
    for weight, state in optimizer.state.items():  # in the weight's memory layout, which fused Adam asks for
        state |= {k: torch.empty_like(weight).copy_(v) for k, v in state.items() if k != "step"}
