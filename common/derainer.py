"""Any derainer by one flag: PReNet, or a network of the user (--derainer, docs/derainers.md).

The contract: a torch.nn.Module from rainy (N, 3, H, W) in [0, 1] to derained of the same shape, or to a tuple or list
whose first element is that. Code is only ever imported for a name on the command line, never for one in a stored file.
"""

import argparse
import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import sys
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import UserError, is_dead_worker, is_out_of_memory
from .files import read_small
from .models import Derain, PReNet
from .terminal import print_result

PRENET = "prenet"
MOST_STAGES, MOST_PADDING = 1000, 4096  # that flags and files may ask for
CONTRACT = (
    "A derainer is a torch.nn.Module from a batch (N, 3, H, W) in [0, 1] to the same shape, or to a tuple whose first "
    "element is that."
)
SIZES = (
    "Sizes that a network can't take: --pad_to 8 (say) pads them, --pad_square to squares; in training --patchSize and "
    "--batchSize."
)
GPU = "It asks for a GPU by itself; an argument of its class may spare that, --derainer_args use_GPU=false, say."


class DerainerError(UserError):
    """A derainer of the user's that can't be loaded, breaks the contract or fails."""


def is_prenet(net: nn.Module) -> bool:
    """PReNet in either head: of known receptive field, fit for every size."""
    return type(net) in (PReNet, Derain)  # a subclass may do anything


def is_custom(args: argparse.Namespace) -> bool:
    """Whether the flags of a script, which may have no --derainer, name a network of the user's."""
    return getattr(args, "derainer", PRENET) != PRENET


# --- from the flags to a network -------------------------------------------------------------------------------------


def values(texts: list[str]) -> dict[str, object]:
    """'key=value' texts to keyword arguments: numbers, booleans (any case), none, lists ([1,2] or 1,2), else text."""

    def value_of(text: str) -> object:
        words = {"true": True, "false": False, "none": None}
        if text.lower() in words:
            return words[text.lower()]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        return list(value) if isinstance(value, tuple) else value

    return {key: value_of(value) for key, _, value in (text.partition("=") for text in texts)}


def build(args: argparse.Namespace) -> nn.Module:
    """The network of --derainer, --derainer_args and --recurrent_iter, on the CPU.

    Raises:
        DerainerError: it can't be imported, is not there, or can't be made with these arguments; or is not a module.
        UserError: a flag that does not belong to it.
    """
    if args.derainer == PRENET:
        if args.derainer_args:
            raise UserError("--derainer_args: prenet has none; its number of stages is --recurrent_iter")
        return PReNet(args.recurrent_iter)
    what = f"--derainer {args.derainer}"
    if "recurrent_iter" in args.given:
        raise UserError("--recurrent_iter: it belongs to prenet; other derainers take --derainer_args key=value ...")
    factory, given = _find(args.derainer), values(args.derainer_args)
    try:
        net = factory(**given)
    except (Exception, SystemExit) as error:
        call = f"{getattr(factory, '__name__', args.derainer)}({', '.join(f'{k}={v!r}' for k, v in given.items())})"
        raise DerainerError(
            f"{what}: {call} failed: {_short(error)}. Give its arguments as --derainer_args key=value ..."
        ) from None
    if not isinstance(net, nn.Module):
        raise DerainerError(f"{what}: it makes a {type(net).__name__}, not a torch.nn.Module. {CONTRACT}")
    return net


def _find(spec: str):
    module_name, _, name = spec.rpartition(":")
    what = f"--derainer {spec}"
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise DerainerError(f"{what}: there is no file {path}")
        found = importlib.util.spec_from_file_location(f"derainer_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}", path)
    # The file's neighbours, or like `python -m` those of the working directory: behind everything that is installed.
    neighbours = str(path.parent) if module_name.endswith(".py") else os.getcwd()
    if neighbours not in sys.path:
        sys.path.append(neighbours)
    try:
        if module_name.endswith(".py"):
            module = importlib.util.module_from_spec(found)
            sys.modules[found.name] = module  # as dataclasses and pickle expect
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        remedy = f"Install it, or put it into {neighbours}"
        if str(error.name).partition(".")[0] in ("common", "for_syn", "for_spa"):
            remedy = "This project has a package of that name, so give yours another one"
        raise DerainerError(f"{what}: no module named {error.name!r}. {remedy}") from None
    except (Exception, SystemExit) as error:  # a script that runs at import, say
        raise DerainerError(f"{what}: {module_name} can't be imported: {_short(error)}") from None
    factory = getattr(module, name, None)
    if not callable(factory):
        classes = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)]
        there = f"it has {', '.join(classes[:8])}" if classes else "it has no torch.nn.Module"
        raise DerainerError(f"{what}: {module_name} has no class or function {name!r}; {there}")
    return factory


def _short(error: BaseException) -> str:
    """Kind, message and place of an error in the user's code."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = ""
    if isinstance(error, SyntaxError) and error.filename:
        text, place = error.msg, f" ({Path(error.filename).name}, line {error.lineno})"
    elif frames and Path(frames[-1].filename) != Path(__file__):
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return f"{type(error).__name__}: {text[:300]}{place}"


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
    name, shape = f"--derainer: {type(net).__name__}", tuple(rainy.shape)
    try:
        # A copy in the usual order of memory: it may rely on that, and may change its input.
        out = net(rainy.clone(memory_format=torch.contiguous_format))
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error) or is_dead_worker(error):
            raise
        asks = rainy.device.type == "cpu" and re.search("cuda|nvidia", str(error), re.I)
        raise DerainerError(f"{name} failed on a batch {shape}: {_short(error)}. {GPU if asks else SIZES}") from None
    first = out[0] if isinstance(out, (tuple, list)) and out else out
    if not isinstance(first, Tensor) or first.shape != rainy.shape or not first.is_floating_point():
        is_tensor = isinstance(first, Tensor)
        got = f"{tuple(first.shape)} of {first.dtype}" if is_tensor else f"a {type(first).__name__}"
        raise DerainerError(f"{name} made {got} of a batch {shape}. {CONTRACT} {SIZES}")
    return first.to(rainy.dtype)


def check(net: nn.Module, batch_size: int, patch_size: int, device: torch.device) -> None:
    """Try a network of the user's forth and back before training; it and the random numbers stay as they were.

    Raises:
        DerainerError: it breaks the contract, or has nothing to learn.
    """
    if is_prenet(net):
        return
    name = f"--derainer: {type(net).__name__}"
    weights = [p for p in net.parameters() if p.requires_grad]
    if not weights:
        raise DerainerError(f"{name} has no parameter that can be trained")
    before = {key: value.clone() for key, value in net.state_dict().items()}  # statistics of a batch norm, say
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        out = apply(net, torch.rand(batch_size, 3, patch_size, patch_size, device=device))
    if not out.requires_grad:
        raise DerainerError(f"{name} gives a result that no gradient goes through; it can't be trained")
    try:
        torch.autograd.grad(out.sum(), weights, allow_unused=True)
    except Exception as error:
        raise DerainerError(f"{name}: no gradient can be computed: {_short(error)}") from None
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
    return {key: getattr(args, key) for key in ("derainer", "derainer_args", "recurrent_iter", "pad_to", "pad_square")}


def choice_file(weights: Path) -> Path:
    """The file with the choice beside a weights file: Aug_DerainNet_state_9.pt -> Aug_DerainNet.json."""
    return weights.with_name(re.sub(r"_(state_\d+|best)$", "", weights.stem) + ".json")


def stored(weights: Path) -> dict | None:
    """The choice beside a weights file; None where there is none. Says so where it can't be understood."""
    path = choice_file(weights)
    try:
        choice = json.loads(read_small(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        choice = None
    if not valid(choice):
        print(f"warning: {path} can't be understood; going by the flags alone", file=sys.stderr)
        return None
    return choice


def valid(choice: object) -> bool:
    """Whether stored values have the kinds of a choice, and texts that are safe to print."""
    if isinstance(choice, dict) and choice.keys() == {"stage"}:
        return type(choice["stage"]) is int and 1 <= choice["stage"] <= MOST_STAGES
    kinds = {"derainer": str, "derainer_args": list, "recurrent_iter": int, "pad_to": int, "pad_square": bool}
    if not isinstance(choice, dict) or not all(type(choice.get(key)) is kind for key, kind in kinds.items()):
        return False
    texts = [choice["derainer"], *choice["derainer_args"]]
    fits = 1 <= choice["recurrent_iter"] <= MOST_STAGES and 1 <= choice["pad_to"] <= MOST_PADDING
    return fits and all(isinstance(text, str) and text.isprintable() for text in texts)


def require_named(choice: dict, args: argparse.Namespace, where: str) -> None:
    """Let no code run for a stored name.

    Args:
        choice: what was stored.
        args: the flags.
        where: begins the message.

    Raises:
        UserError: a derainer of the user's, or its arguments, must be named again; gives the flags.
    """
    half = choice["derainer"] == args.derainer and choice["derainer_args"] and "derainer_args" not in args.given
    unnamed = "derainer" not in args.given or half
    if choice["derainer"] != PRENET and unnamed:
        raise UserError(
            f"{where} a derainer of its own, and code is only run where you name it. If you trust it, add:\n"
            f"  {flags(choice)}"
        )


def settle(args: argparse.Namespace, weights: Path) -> str:
    """Bring the flags of a test script in line with the choice beside the weights; says what differs from it, and with
    how many stages PReNet is tested.

    Args:
        args: recurrent_iter, pad_to and pad_square are set from the stored choice, unless they were given.

    Returns:
        How the weights were trained, for the message when they do not fit; empty if that is not known.

    Raises:
        UserError: see ``require_named``.
    """
    choice = stored(weights)
    if choice is None or "derainer" not in choice:
        if args.derainer == PRENET:
            tell_stages("--recurrent_iter", args.recurrent_iter, None)
        return ""
    require_named(choice, args, f"--model_dir: {weights} was trained with")
    trained = f"{weights.name} was trained with {flags(choice)}"
    if (choice["derainer"] == PRENET) == (args.derainer == PRENET):
        for key in ("recurrent_iter",) if args.derainer == PRENET else ("pad_to", "pad_square"):
            if key not in args.given:
                setattr(args, key, choice[key])
    if flags(choice_of(args)) != flags(choice):
        print(f"warning: {trained}; now it is {flags(choice_of(args))}", file=sys.stderr)
    elif args.derainer == PRENET:
        tell_stages("--recurrent_iter", args.recurrent_iter, args.recurrent_iter)
    return trained


def settle_stage(args: argparse.Namespace, weights: Path) -> None:
    """Set --stage as it was in the training of BNet, if that stands beside the weights and the flag was not given."""
    trained = (stored(weights) or {}).get("stage")
    if trained and "stage" not in args.given:
        args.stage = trained
    tell_stages("--stage", args.stage, trained)


def tell_stages(flag: str, used: int, trained: int | None) -> None:
    """Say how many stages a network is used with; weights for another number load, and give garbage.

    Args:
        trained: those of its training; None where nothing beside the weights tells.
    """
    if trained is None:
        print_result(
            f"note: {used} stages ({flag}); it must be the number of the training, which the weights don't tell"
        )
    elif used == trained:
        print(f"{used} stages, as in the training")
    else:
        print(f"warning: {used} stages ({flag}), the training had {trained}", file=sys.stderr)
