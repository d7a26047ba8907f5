"""Any derainer by one flag: PReNet, or a network of the user (--derainer, docs/derainers.md).

The contract: a torch.nn.Module from rainy (N, 3, H, W) in [0, 1] to derained of the same shape, or to a tuple or list
whose first element is that. Code is only ever imported for a name on the command line, never for one in a stored file.
"""

import argparse
import ast
import copy
import importlib.util
import json
import os
import pkgutil
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
CHOICE = "derainer", "derainer_args", "recurrent_iter", "pad_to", "pad_square", "stage"  # stored beside weights


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
    """'key=value' texts to keyword arguments: numbers, booleans (any case), none, lists ([1,2] or 1,2), else text.

    Raises:
        UserError: one has no =.
    """
    words, found = {"true": True, "false": False, "none": None}, {}
    for key, equals, text in (text.partition("=") for text in texts):
        if not equals:
            raise UserError(f"--derainer_args: expected key=value, got {key!r}")
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
    arguments = values(args.derainer_args)
    try:
        net = _find(args.derainer)(**arguments)
    except Exception as error:
        given = " ".join([" with --derainer_args", *args.derainer_args]) if args.derainer_args else ""
        raise DerainerError(
            f"--derainer {args.derainer}{given}: {_short(error)}. Name a network as package.module:Class "
            "or path/to/file.py:Class, and its arguments as --derainer_args key=value ..."
        ) from None
    if not isinstance(net, nn.Module):
        raise DerainerError(f"--derainer {args.derainer}: it makes a {type(net).__name__}. {CONTRACT}")
    return net


def _find(name: str) -> Callable:
    module, _, attribute = name.rpartition(":")
    if not module.endswith(".py"):
        sys.path.append(os.getcwd())  # as `python -m` does, but behind everything that is installed
        return pkgutil.resolve_name(name)
    sys.path.append(str(Path(module).parent))
    spec = importlib.util.spec_from_file_location(f"derainer_{Path(module).stem}", module)
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses and pickle look
    spec.loader.exec_module(made)
    return getattr(made, attribute)


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


# --- the flags of a training, beside its weights ---------------------------------------------------------------------


def stored(weights: Path) -> dict:
    """What a training stored beside its weights, as far as it can be read: Aug_DerainNet.json, for one."""
    path = weights.with_name(re.sub(r"_(state_\d+|best)$", "", weights.stem) + ".json")
    try:
        found = json.loads(path.read_bytes())
        return {key: found[key] for key in CHOICE if key in found}
    except (OSError, ValueError, TypeError):
        return {}


def follow_training(args: argparse.Namespace, weights: Path) -> None:
    """Flags that were left alone get their values in the training of the weights, where these stand beside them.

    Raises:
        UserError: a derainer of the user's must be named again, so that no code runs for a stored name.
    """
    found = {key: value for key, value in stored(weights).items() if key in args}
    found = {key: value for key, value in found.items() if isinstance(value, type(getattr(args, key)))}  # if edited
    name, now = found.pop("derainer", PRENET), getattr(args, "derainer", PRENET)
    if name != PRENET and "derainer" not in args.given:
        raise UserError(
            f"--model_dir: {weights} was trained with a derainer of its own, and code is only run where you name it. "
            f"If you trust it, add --derainer {shlex.quote(name)}"
        )
    if name.rpartition(":")[2] != now.rpartition(":")[2]:  # its file may have moved
        found = {}
    for key, value in found.items():
        if key not in args.given and value != getattr(args, key):
            setattr(args, key, value)
            print(f"--{key}: {value}, as in the training of {weights.name}")
        elif value != getattr(args, key):  # weights load with any number of stages, and remove rain badly
            print(f"warning: --{key}: {getattr(args, key)}, in the training it was {value}", file=sys.stderr)
    if now == PRENET and not {"recurrent_iter", "stage"} & found.keys():
        stages = args.recurrent_iter if "recurrent_iter" in args else args.stage
        print_result(f"note: {stages} stages; it must be the number of the training, which the weights don't tell")
