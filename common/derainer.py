"""Any derainer by one flag: PReNet, or a network of the user (--derainer, docs/derainers.md).

The contract: a torch.nn.Module from rainy (N, 3, H, W) in [0, 1] to derained of the same shape, or to a tuple or list
whose first element is that. Code is only ever imported for a name on the command line, never for one in a stored file.
"""

import argparse
import ast
import copy
import importlib
import importlib.util
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .errors import UserError, is_dead_worker, is_out_of_memory
from .models import Derain, PReNet
from .terminal import print_result

PRENET = "prenet"
CONTRACT = (
    "A derainer is a torch.nn.Module from a batch (N, 3, H, W) in [0, 1] to the same shape, or to a tuple whose first "
    "element is that."
)
SIZES = "Sizes that a network can't take: --pad_to 8 (say) pads them, --pad_square to squares; in training --patchSize."
CHOICE = {"derainer": str, "derainer_args": list, "recurrent_iter": int, "pad_to": int, "pad_square": bool}


class DerainerError(UserError):
    """A derainer of the user's that can't be loaded, breaks the contract or fails."""


def inner(net: nn.Module) -> nn.Module:
    """The network that DataParallel, torch.compile or an average of weights calls unchanged."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    while isinstance(net, wrappers) or hasattr(net, "_orig_mod"):
        net = net.module if isinstance(net, wrappers) else net._orig_mod
    return net


def is_prenet(net: nn.Module) -> bool:
    """PReNet in either head: of known receptive field, fit for every size."""
    return type(inner(net)) in (PReNet, Derain)  # a subclass may do anything


def is_custom(args: argparse.Namespace) -> bool:
    """Whether the flags of a script, which may have no --derainer, name a network of the user's."""
    return getattr(args, "derainer", PRENET) != PRENET


# --- from the flags to a network -------------------------------------------------------------------------------------


def values(texts: list[str]) -> dict[str, object]:
    """'key=value' texts to keyword arguments: numbers, booleans (any case), none, lists ([1,2] or 1,2), else text."""
    words, found = {"true": True, "false": False, "none": None}, {}
    for key, _, text in (text.partition("=") for text in texts):
        try:
            value = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        found[key] = list(value) if isinstance(value, tuple) else value
    return found


def build(args: argparse.Namespace) -> nn.Module:
    """The network of --derainer, --derainer_args and --recurrent_iter, on the CPU.

    Raises:
        DerainerError: it can't be imported or made with these arguments, or is not a module.
        UserError: a flag that does not belong to it.
    """
    if args.derainer == PRENET:
        if args.derainer_args:
            raise UserError("--derainer_args: prenet has none; its number of stages is --recurrent_iter")
        return PReNet(args.recurrent_iter)
    if "recurrent_iter" in args.given:
        raise UserError("--recurrent_iter: it belongs to prenet; other derainers take --derainer_args key=value ...")
    try:
        net = _find(args.derainer)(**values(args.derainer_args))
    except Exception as error:
        given = " ".join([" with --derainer_args", *args.derainer_args]) if args.derainer_args else ""
        raise DerainerError(
            f"--derainer {args.derainer}{given}: {_short(error)}. Check the name, and give its arguments as "
            "--derainer_args key=value ..."
        ) from None
    if not isinstance(net, nn.Module):
        raise DerainerError(f"--derainer {args.derainer}: it makes a {type(net).__name__}. {CONTRACT}")
    return net


def _find(spec: str) -> Callable:
    module_name, _, name = spec.rpartition(":")
    if not module_name.endswith(".py"):
        sys.path.append(os.getcwd())  # as `python -m` does, but behind everything that is installed
        return getattr(importlib.import_module(module_name), name)
    path = Path(module_name)
    sys.path.append(str(path.parent))
    found = importlib.util.spec_from_file_location(f"derainer_{path.stem}", path)
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)  # where dataclasses and pickle look
    found.loader.exec_module(module)
    return getattr(module, name)


def _short(error: Exception) -> str:
    """Kind, message and place of an error in the user's code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"


# --- calling it ------------------------------------------------------------------------------------------------------


def apply(net: nn.Module, rainy: Tensor) -> Tensor:
    """Derain a batch with any network that keeps the contract.

    Args:
        net: PReNet, Derain or the user's own.
        rainy: (N, 3, H, W) in [0, 1].

    Returns:
        (N, 3, H, W), not clamped, of the type of ``rainy``.

    Raises:
        DerainerError: the user's network failed, or returned something else.
    """
    if is_prenet(net):
        return net(rainy)[0].to(rainy.dtype)
    what = f"--derainer: {type(net).__name__} {{}} a batch {tuple(rainy.shape)}"
    try:
        # A copy in the usual order of memory: it may rely on that, and may change its input.
        out = net(rainy.clone(memory_format=torch.contiguous_format))
    except Exception as error:
        if is_out_of_memory(error) or is_dead_worker(error):
            raise
        raise DerainerError(f"{what.format('failed on')}: {_short(error)}. {SIZES}") from None
    first = out[0] if isinstance(out, (tuple, list)) else out
    if not isinstance(first, Tensor) or first.shape != rainy.shape:
        got = tuple(first.shape) if isinstance(first, Tensor) else f"a {type(first).__name__}"
        raise DerainerError(f"{what.format(f'made {got} of')}. {CONTRACT} {SIZES}")
    return first.to(rainy.dtype)


def check(net: nn.Module, batch_size: int, patch_size: int, device: torch.device) -> None:
    """Try a network of the user's forth and back before training; it and the random numbers stay as they were.

    Raises:
        DerainerError: it breaks the contract, or has nothing to learn.
    """
    if is_prenet(net):
        return
    before = copy.deepcopy(net.state_dict())  # statistics of a batch norm, say
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        out = apply(net, torch.rand(batch_size, 3, patch_size, patch_size, device=device))
    try:
        out.sum().backward()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise DerainerError(f"--derainer: {type(net).__name__} can't be trained: {_short(error)}") from None
    net.zero_grad()
    net.load_state_dict(before)


# --- the choice beside the weights -----------------------------------------------------------------------------------


def flags(choice: dict) -> str:
    """The choice as it is typed, quoted for the shell."""
    words = ["--derainer", choice["derainer"]]
    if choice["derainer"] == PRENET:
        words += ["--recurrent_iter", str(choice["recurrent_iter"])]
    if choice["derainer_args"]:
        words += ["--derainer_args", *choice["derainer_args"]]
    if choice["pad_to"] > 1:
        words += ["--pad_to", str(choice["pad_to"])]
    return shlex.join(words + (["--pad_square"] if choice["pad_square"] else []))


def choice_of(args: argparse.Namespace) -> dict:
    """What is stored of the flags; of joint training only the stages of BNet."""
    if "derainer" not in args:
        return {"stage": args.stage}
    return {key: getattr(args, key) for key in CHOICE}


def choice_file(weights: Path) -> Path:
    """The file with the choice beside a weights file: Aug_DerainNet_state_9.pt -> Aug_DerainNet.json."""
    return weights.with_name(re.sub(r"_(state_\d+|best)$", "", weights.stem) + ".json")


def stored(weights: Path) -> dict | None:
    """The choice beside a weights file; None where there is none. Says so where it can't be understood."""
    path = choice_file(weights)
    if not path.exists():
        return None
    try:
        choice = json.loads(path.read_bytes())
        kinds = {"stage": int} if "stage" in choice else CHOICE
        return {key: kind(choice[key]) for key, kind in kinds.items()}
    except (ValueError, TypeError, KeyError):
        print(f"warning: {path} can't be understood; going by the flags alone", file=sys.stderr)
        return None


def settle(args: argparse.Namespace, weights: Path) -> str:
    """Bring the flags of a test script in line with the choice beside the weights; says what differs from it.

    Args:
        args: recurrent_iter, pad_to and pad_square are set from the stored choice, unless they were given.

    Returns:
        How the weights were trained, for the message when they do not fit; empty if that is not known.

    Raises:
        UserError: a derainer of the user's must be named again, so that no code runs for a stored name.
    """
    choice = stored(weights)
    if choice is None or "stage" in choice:
        if args.derainer == PRENET:
            tell_stages("--recurrent_iter", args.recurrent_iter, None)
        return ""
    if choice["derainer"] != PRENET and "derainer" not in args.given:
        raise UserError(
            f"--model_dir: {weights} was trained with a derainer of its own, and code is only run where you name it. "
            f"If you trust it, add:\n  {flags(choice)}"
        )
    if (choice["derainer"] == PRENET) == (args.derainer == PRENET):
        for key in ("recurrent_iter", "pad_to", "pad_square"):
            if key not in args.given:
                setattr(args, key, choice[key])
    trained, now = flags(choice), flags(choice_of(args))
    if now != trained:
        print(f"warning: {weights.name} was trained with {trained}; now it is {now}", file=sys.stderr)
    elif args.derainer == PRENET:
        tell_stages("--recurrent_iter", args.recurrent_iter, args.recurrent_iter)
    return f"{weights.name} was trained with {trained}"


def settle_stage(args: argparse.Namespace, weights: Path) -> None:
    """Set --stage as it was in the training of BNet, if that stands beside the weights and the flag was not given."""
    trained = (stored(weights) or {}).get("stage")
    if trained and "stage" not in args.given:
        args.stage = trained
    tell_stages("--stage", args.stage, trained)


def tell_stages(flag: str, used: int, trained: int | None) -> None:
    """Say how many stages a network is used with; weights of another number load, and remove rain badly.

    Args:
        trained: those of its training; None where no file tells.
    """
    if trained is None:
        print_result(
            f"note: {used} stages ({flag}); it must be the number of the training, which the weights don't tell"
        )
    elif used == trained:
        print(f"{used} stages, as in the training")
    else:
        print(f"warning: {used} stages ({flag}), the training had {trained}", file=sys.stderr)
