"""The few argparse pieces that every script shares: real booleans, paths, checked numbers, exit codes.

Exit codes: 0 done, 1 done in part or stopped by trouble, 2 a mistake in the input, 130 ended by Ctrl-C.
"""

import argparse
import contextlib
import errno
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import ranks, terminal, weights
from .derainer import MOST_PADDING, MOST_STAGES
from .errors import StartAgain, UserError, is_out_of_memory
from .speed import Speed
from .terminal import printable, printable_lines

EXIT_CODES = "exit codes: 0 done; 1 done in part, or stopped by trouble; 2 a mistake in the flags or files; 130 Ctrl-C"
QUIET = "print results, warnings and errors alone"
MOST = 2**31 - 1  # of whole numbers, where nothing else is said
FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or what one may have of it
LONGEST = 1000  # characters of a message about flags


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Defaults as a user would write them, and words for values: N and X for numbers, not the flag once more."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default, text = action.default, action.help or ""
        if action.required:
            return f"{text} (required)"
        if default in (None, [], argparse.SUPPRESS) or default is _Missing:
            return text
        if isinstance(default, bool):
            default = str(default).lower()
        elif isinstance(default, list):
            default = " ".join(map(str, default))
        return f"{text} (default: {str(default).replace('%', '%%')})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if action.type is boolean:
            return "true|false"
        return getattr(action.type, "metavar", None) or super()._get_default_metavar_for_optional(action)


class _UserPath(argparse.Action):
    """A path that the user gives counts from the working directory; with nargs, each of several."""

    def __call__(self, parser, namespace, value, option_string=None):
        paths = value if isinstance(value, list) else [value]
        if not all(paths):
            parser.error(f"{option_string}: the path is empty")
        paths = [os.path.abspath(os.path.expanduser(path)) for path in paths]
        setattr(namespace, self.dest, paths if isinstance(value, list) else paths[0])


class _GeneratorPath(_UserPath):
    """A path that the user gives, or the word 'default' for the generator that comes with the project."""

    WORD = "default"

    def __call__(self, parser, namespace, value, option_string=None):
        super().__call__(parser, namespace, value, option_string)
        words, paths = (v if isinstance(v, list) else [v] for v in (value, getattr(namespace, self.dest)))
        paths = [str(weights.GENERATOR) if w == self.WORD else p for w, p in zip(words, paths, strict=True)]
        setattr(namespace, self.dest, paths if isinstance(value, list) else paths[0])


class _Missing:
    pass


class _KeyValues(argparse.Action):
    """key=value texts, of one flag or several; each key once."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest)
        texts = [*([] if before is _Missing else before), *values]
        keys = [text.partition("=")[0] for text in texts]
        for key in keys:
            if keys.count(key) > 1:
                parser.error(f"argument {option_string}: {key} is given twice")
        setattr(namespace, self.dest, texts)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose default paths count from the script's own folder, and which knows what was given.

    Args:
        doc: the docstring, shown by --help.
        script: the script's ``__file__``; None where no path has a default.
        module: in place of a script, the name of a module that ``python -m`` runs.
    """

    def __init__(self, doc: str, script: str | None = None, module: str | None = None) -> None:
        name = Path(script).name if script else f"python -m {module}" if module else None
        super().__init__(prog=name, description=doc, epilog=EXIT_CODES, formatter_class=_Formatter, allow_abbrev=False)
        self.folder = Path(script).resolve().parent if script else Path.cwd()
        self.add_argument("--quiet", type=boolean, nargs="?", const=True, default=False, help=QUIET)

    def group(self, title: str) -> "Parser":
        """A titled section of --help."""
        group = self.add_argument_group(title)
        group.add_path = lambda flag, default=None, **kwargs: Parser.add_path(group, flag, default, **kwargs)
        group.add_netED = lambda default=None, **kwargs: Parser.add_netED(group, default, **kwargs)
        return group  # type: ignore[return-value]  # with what a Parser has

    def add_netED(self, default: str | None = None, **kwargs) -> None:
        """--netED, which takes a file or 'default'."""
        help = "weights of RNet and G; 'default': the generator that comes with the project"
        self.add_argument("--netED", action=_GeneratorPath, default=default, metavar="PATH", help=help, **kwargs)

    def add_path(self, flag: str, default: str | None = None, **kwargs) -> None:
        """A flag that takes a file or folder."""
        self.add_argument(flag, action=_UserPath, default=default, metavar="PATH", **kwargs)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with exit code 2; once, of several processes."""
        message = printable(message if len(message) <= LONGEST else f"{message[:LONGEST]}...")
        text = f"error: {message}; {self.prog} --help lists the flags"
        if ranks.launched():
            ranks.leave(2, text)
        self.exit(2, f"{text}\n")

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:
        """The flags as a namespace; ``given`` is the set of those on the command line."""
        actions = [a for a in self._actions if a.dest != argparse.SUPPRESS and a.dest != "help"]
        required = [f"{a.option_strings[0]} {a.metavar}" for a in actions if a.required]
        self.usage = " ".join([self.prog, *required, "[FLAGS]"])
        args = argparse.Namespace(**{action.dest: _Missing for action in actions})
        super().parse_args(argv, args)
        given = {action.dest for action in actions if getattr(args, action.dest) is not _Missing}
        for action in actions:
            if action.dest not in given:
                value = action.default
                if isinstance(action, _GeneratorPath) and value == action.WORD:
                    value = str(weights.GENERATOR)
                elif isinstance(action, _UserPath) and value is not None:
                    value = os.path.join(self.folder, os.path.normpath(value))
                setattr(args, action.dest, value)
        args.given = given
        if args.quiet:
            terminal.hush()
        return args


def boolean(text: str) -> bool:
    """true, false, 1, 0, yes, no in any case (T4)."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return values[text.lower()]


def number(kind: type, low: float, high: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """A converter for numbers of ``kind`` from ``low`` (or only above it) to ``high``."""
    name = "a whole number" if kind is int else "a number"
    bound = f"above {low:g}" if above else f"from {low:g}"
    if high < math.inf:
        bound += f" to {high}" if kind is int else f" to {high:g}"
    elif not above:
        bound += " on"
    most = MOST if kind is int and high == math.inf else high

    def convert(text: str):
        try:
            value = kind(text)
            fits = (low < value if above else low <= value) and value != math.inf
        except ValueError:
            fits = False
        if not fits or value > most:
            expected = f"{name} up to {most}" if fits and high > most else f"{name} {bound}"
            raise argparse.ArgumentTypeError(f"expected {expected}, got {repr(text)[:60]}")
        return value

    convert.metavar = "N" if kind is int else "X"
    return convert


positive_int = number(int, 1)
count = number(int, 0)
width = number(int, 1, 2**16)  # of a network's layer
stages = number(int, 1, MOST_STAGES)
positive = number(float, 0, above=True)
nonnegative = number(float, 0)
seed = number(int, 0, 2**32 - 1)
below_one = number(float, 0, 0.99999)


def patch_size(text: str) -> int:
    """A power of two from 16 to 4096."""
    value = int(positive_int(text))
    if not 16 <= value <= 4096 or value & (value - 1):
        raise argparse.ArgumentTypeError(f"expected a power of two from 16 on (16, 32, 64 ... 4096), got {text!r}")
    return value


patch_size.metavar = "N"


def pattern(text: str) -> str:
    """A pattern of names, with one {}."""
    if text.count("{}") != 1:
        raise argparse.ArgumentTypeError(f"expected one {{}}, for the part that both names share, got {text!r}")
    return _printable(text)


def add_pairing(group: argparse.ArgumentParser) -> None:
    """--pair_by and --side_by_side, for every pair of folders of a command, see ``pairs.Pairing``."""
    group.add_argument(
        "--pair_by",
        type=pattern,
        nargs=2,
        metavar=("RAINY", "CLEAN"),
        help="how names pair, where no rule finds it: {} is what both share, * anything, as in 'rain-{}' 'norain-{}'",
    )
    group.add_argument(
        "--side_by_side",
        choices=("left", "right"),
        help="the half that is rainy, where each image holds both; leave the folder of clean images out then",
    )


def derainer_name(text: str) -> str:
    """prenet, package.module:Class, or path/to/file.py:Class, whose path is made absolute."""
    module, _, name = text.rpartition(":")
    if text == "prenet":
        return text
    _printable(text)
    if module.endswith(".py") and name.isidentifier():
        return f"{_printable(os.path.abspath(os.path.expanduser(module)))}:{name}"
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise argparse.ArgumentTypeError(
            f"expected prenet, package.module:Class or path/to/file.py:Class, got {text!r}"
        )
    return text


def key_value(text: str) -> str:
    """key=value, where the key is a name."""
    key, equals, _ = text.partition("=")
    if not (equals and key.isidentifier()):
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    return _printable(text)


def _printable(text: str) -> str:
    """What is stored, and printed again from what is stored, where it could play tricks on a terminal."""
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} holds characters that can't be printed; rename it")
    return text


def add_derainer(group: argparse.ArgumentParser, sizes: argparse.ArgumentParser) -> None:
    """The flags that choose a derainer (to one group) and the sizes of images that it can take (to another)."""
    group.add_argument(
        "--derainer",
        type=derainer_name,
        default="prenet",
        metavar="NAME",
        help="prenet, or a network of your own: package.module:Class or path/to/file.py:Class (docs/derainers.md)",
    )
    group.add_argument(
        "--derainer_args",
        type=key_value,
        action=_KeyValues,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of that class",
    )
    group.add_argument("--recurrent_iter", type=stages, default=6, help="stages of prenet")
    sizes.add_argument(
        "--pad_to",
        type=number(int, 1, MOST_PADDING),
        default=1,
        help="pad images to multiples of so many px, for a network of your own",
    )
    sizes.add_argument(
        "--pad_square", type=boolean, nargs="?", const=True, default=False, help="and to squares, for the same"
    )


ROUNDED = (
    "auto: as PyTorch does by itself, on a GPU factors of convolutions rounded to 10 bits (TF32), fp32 on a CPU; fp32: "
    "exact; tf32 (GPUs): factors of products, too"
)


def add_arithmetic(group: argparse.ArgumentParser) -> None:
    """--precision where no derainer is trained."""
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "tf32"),
        default="auto",
        help=ROUNDED,
    )


def add_speed(group: argparse.ArgumentParser, several: bool = False) -> None:
    """--precision, of which ``several`` may be allowed, and --compile."""
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "tf32", "bf16"),
        default=["fp32"] if several else "auto",
        **({"nargs": "+"} if several else {}),
        help=f"{ROUNDED}; bf16: the derainer in bfloat16 (8 bits), the rest as tf32 on a GPU and as fp32 on a CPU. "
        "Weights and losses stay fp32",
    )
    group.add_argument(
        "--compile", type=boolean, nargs="?", const=True, default=False, help="torch.compile the derainer"
    )


def add_recording(group: argparse.ArgumentParser) -> None:
    """--cuda_graphs."""
    group.add_argument(
        "--cuda_graphs",
        choices=("auto", "on", "off"),
        default="auto",
        help="on a GPU, record whole steps and replay them; auto: with networks of this project, in one process. "
        "Others' Python would run only once, and sums of several processes can hang in a recording",
    )


def add_device(group: argparse.ArgumentParser) -> None:
    """--use_gpu and --gpu_id."""
    group.add_argument("--use_gpu", type=boolean, default=True, help="use a CUDA GPU; without one the CPU is used")
    group.add_argument("--gpu_id", default="0", help="which GPU; under torchrun a list, or 0 for the first ones")


def add_deraining(group: argparse.ArgumentParser) -> None:
    """The flags of every script that removes rain."""
    group.add_argument(
        "--tile",
        type=number(int, -1),
        default=-1,
        help="core of a tile in px, its halo comes on top; 0: whole image; -1: tiles only where it needs more than "
        "half of the free memory, or on a CPU 1 GB",
    )
    group.add_argument(
        "--rounding",
        choices=("truncate", "nearest"),
        default="truncate",
        help="to 8 bits; the published images are truncated, nearest gains about 0.1 dB",
    )
    add_speed(group)
    add_device(group)


def add_tile_halo(group: argparse.ArgumentParser) -> None:
    """The tiles of derainers whose receptive field is not known."""
    group.add_argument(
        "--tile_halo", type=count, help="margin of a tile in px, for a derainer of your own with --tile: approximate"
    )


def add_run(
    parser: Parser, log_dir: str, model_dir: str, iters_per_epoch: int = 3000, derainer: bool = False
) -> Parser:
    """The flags of every training run: how long, how safe, where. Returns their group.

    Args:
        derainer: whether one is trained, whose speed can be chosen.
    """
    run = parser.group("run")
    run.add_argument("--resume", type=number(int, -1), default=0, help="go on after epoch N; -1: from the newest state")
    run.add_argument("--overwrite", type=boolean, nargs="?", const=True, default=False, help="delete an earlier run")
    run.add_argument("--iters_per_epoch", type=positive_int, default=iters_per_epoch, help="steps of an epoch")
    run.add_argument("--save_every", type=positive_int, default=50, help="epochs between weight files; the last always")
    run.add_argument("--save_minutes", type=positive, default=10, help="between full states within an epoch")
    run.add_argument("--log_every", type=positive_int, default=10, help="steps between entries of the logs")
    run.add_path("--log_dir", log_dir, help="TensorBoard files, log.csv, options.json")
    run.add_path("--model_dir", model_dir, help="checkpoints")
    run.add_argument(
        "--workers", type=count, default=4, help="processes that read images, where these are not in RAM; 0: none"
    )
    run.add_argument("--manualSeed", type=seed, help="seed of everything; drawn and printed if left alone")
    run.add_argument(
        "--dry_run", type=boolean, nargs="?", const=True, default=False, help="only say what would be done"
    )
    run.add_argument(
        "--cache",
        choices=("auto", "ram", "gpu", "none"),
        default="auto",
        help="where decoded images are kept; auto: on the GPU, or else in RAM, where they fit in a third of it; none: "
        "read again and again",
    )
    if derainer:
        add_speed(run)
    else:
        add_arithmetic(run)
    add_recording(run)
    add_device(run)
    return run


def add_training(parser: Parser, log_dir: str, model_dir: str) -> Parser:
    """The flags that every training script of a derainer shares. Returns the group of validation."""
    add_run(parser, log_dir, model_dir, derainer=True)
    val = parser.group("validation")
    val.add_path("--val_data_path", help="folder of rainy images; the best derainer on them is kept as ..._best.pt")
    val.add_path("--val_gt_path", help="folder of their clean partners")
    add_pairing(val)
    val.add_argument("--val_every", type=positive_int, default=1, help="epochs between validations; the last always")
    return val


def add_generator(group: argparse.ArgumentParser, netED: str, patch: bool = False) -> None:
    """--netED and its sizes, which are read from the file where they are left alone."""
    group.add_netED(netED)
    group.add_argument("--nc", type=number(int, 3, 3), default=3, help="image channels")
    group.add_argument("--nz", type=width, default=128, help="length of the rain code")
    group.add_argument("--nef", type=width, default=32, help="width of RNet and G")
    if patch:
        group.add_argument("--patch_size", type=patch_size, default=64, help="side of a patch in px")


def add_start(group: Parser) -> None:
    """--init_ED and --init_Derain of joint training, see ``start_from``."""
    what = "to start from, weights only"
    group.add_argument(
        "--init_ED",
        action=_GeneratorPath,
        metavar="PATH",
        help=f"RNet and G {what}; 'default': the generator that comes with the project",
    )
    group.add_path("--init_Derain", help=f"BNet {what}, DerainNet_state_N.pt")


def add_unused(group: argparse.ArgumentParser, **defaults: int) -> None:
    """Flags of the reference that change nothing here; they are taken, so that its command lines run."""
    for name, default in defaults.items():
        group.add_argument(f"--{name}", type=count, default=default, help="changes nothing, for old command lines")


def add_picture(parser: Parser) -> None:
    """--out of a command that makes a picture, see ``picture``."""
    parser.add_path("--out", required=True, help="the picture to write (.png or .jpg)")


def picture(args: argparse.Namespace) -> Path:
    """The file of ``add_picture``.

    Raises:
        UserError: its name is not that of a picture.
    """
    if Path(args.out).suffix.lower() not in (".png", ".jpg"):
        raise UserError(f"--out: {args.out} must end in .png or .jpg")
    return Path(args.out)


def add_figures(group: argparse.ArgumentParser) -> None:
    """The flags of test_disentanglement.py that choose pictures."""
    group.add_argument(
        "--figure",
        choices=("sweeps", "generated", "diversity"),
        default="sweeps",
        help="sweeps of every dimension; a sheet of random rains; an animation of random rains",
    )
    group.add_argument(
        "--gif", type=boolean, nargs="?", const=True, default=False, help="also animate the dimensions of --dims"
    )
    group.add_argument(
        "--dims", type=count, nargs="+", help="dimensions to animate; if left alone, the three that change most"
    )
    group.add_argument("--manualSeed", type=seed, help="one seed of the codes, in place of 10, 15, ..., 50")


def check_figures(args: argparse.Namespace) -> None:
    """Raises:
    UserError: flags of ``add_figures`` that contradict each other.
    """
    if args.figure != "sweeps" and (args.gif or args.dims):
        raise UserError(f"--dims, --gif: they belong to the sweeps; leave them or --figure {args.figure} out")
    if args.dims and not args.gif:
        raise UserError("--dims: it chooses dimensions to animate; add --gif")


def auto_or_scale(text: str) -> float | None:
    """A type of --scale: 'auto' is None."""
    return None if text == "auto" else number(float, 0.1, 100)(text)


def add_rain(parser: Parser) -> Parser:
    """The flags of generate_rain.py beyond its paths and the generator. Returns the group of the run."""
    rain = parser.group("rain")
    rain.add_argument("--num", type=number(int, 1, 10_000), default=1, help="rains a photo")
    rain.add_argument("--seed", type=seed, default=0, help="another one gives other rain")
    rain.add_argument("--intensity", type=number(float, 0, 2), default=1.0, help="factor of the rain, 0 to 2")
    rain.add_argument(
        "--coherence", type=number(float, 0, 1), default=0.5, help="how alike the rain is all over a photo, 0 to 1"
    )
    rain.add_argument("--grey", type=boolean, nargs="?", const=True, default=False, help="rain without colours")
    rain.add_argument(
        "--scale",
        type=auto_or_scale,
        metavar="auto|S",
        help="factor of the size of the streaks; auto: 1 up to 512 px of the shorter side, growing with it beyond",
    )
    knobs = parser.group("knobs; one that is not set is left to chance")
    knobs.add_argument("--angle", type=number(float, -90, 90), help="degrees from vertical, lower end to the right")
    knobs.add_argument("--density", type=number(float, 0, 1), help="share of rainy pixels")
    knobs.add_argument("--thickness", type=number(float, 0, 1e3), help="median width of streaks in px, at --scale 1")
    knobs.add_argument("--brightness", type=number(float, 0, 1), help="mean of the rain over rainy pixels")
    run = parser.group("run")
    run.add_argument(
        "--save_layer", type=boolean, nargs="?", const=True, default=False, help="also save the rain alone, in layer/"
    )
    run.add_argument(
        "--overwrite",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="first delete all pairs of an earlier run",
    )
    run.add_argument(
        "--strict", type=boolean, nargs="?", const=True, default=False, help="stop at a photo that can't be read"
    )
    add_device(run)
    return run


def knobs(args: argparse.Namespace) -> dict[str, float]:
    """The knobs of ``add_rain`` that were set."""
    values = {name: getattr(args, name) for name in ("angle", "density", "thickness", "brightness")}
    return {name: value for name, value in values.items() if value is not None}


def records(args: argparse.Namespace) -> bool:
    """Whether --cuda_graphs, for the derainer of --derainer, wants work recorded; says so where it can't be."""
    ours = getattr(args, "derainer", "prenet") == "prenet"
    wanted = args.cuda_graphs == "on" or (args.cuda_graphs == "auto" and ours and ranks.count() == 1)
    if not (getattr(args, "use_gpu", True) and torch.cuda.is_available()):
        if args.cuda_graphs == "on":
            print("--cuda_graphs on: no GPU is used, so nothing is recorded")
        return wanted
    from .training import trial  # which imports this

    if wanted and (reason := trial.reason(args.precision)):
        print(f"--cuda_graphs: {reason}; going on without")
        return False
    return wanted


def loop_settings(args: argparse.Namespace) -> dict:
    """The flags that go to the training loop as they are, see ``fit``."""
    names = ["niter", "iters_per_epoch", "workers", "log_dir", "save_every", "save_minutes", "log_every"]
    names += ["val_every"] if "val_every" in args else []
    speed = Speed(args.precision, getattr(args, "compile", False), record=records(args), again=args.iters_per_epoch)
    return {name: getattr(args, name) for name in names} | {"batch_size": args.batchSize, "speed": speed}


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read it is gone
        print(text, file=sys.stderr)


def run(main: Callable[[], int | None], torchrun: bool = False) -> int:
    """Run a script's main and turn errors that the user can mend into one message and an exit code.

    Args:
        torchrun: whether the script shares its work out among the processes that torchrun starts; see common/ranks.py.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may hold anything
    if ranks.launched() and not torchrun:
        if os.environ["RANK"] == "0":
            _complain("error: this command runs in one process; start it with python, not with torchrun")
        return 2
    before, sys.unraisablehook = sys.unraisablehook, _ask_again
    try:
        with ranks.joined(), terminal.speaking():
            return main() or 0
    except StartAgain as again:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], *again.flags])
    except BaseException as error:
        text, code = _explained(error)
        text = text and printable_lines(text)  # it may name files of others
        if ranks.launched():
            ranks.leave(code, traceback.format_exc() if text is None else text)
        if text is None:
            raise
        if text:
            _complain(text)
        return code
    finally:
        sys.unraisablehook = before


def _ask_again(unraisable: Any) -> None:
    """Ctrl-C where Python can't raise it (in weak references, which h5py has many of): it comes again in a moment."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        timer = threading.Timer(0.01, os.kill, [os.getpid(), signal.SIGINT])
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(unraisable)


def _explained(error: BaseException) -> tuple[str | None, int]:
    """What to say of an error, None if it is not the user's to mend, and the exit code."""
    if isinstance(error, UserError):
        return f"error: {error}", error.exit_code
    if isinstance(error, SystemExit) and ranks.launched():  # --help has spoken
        return "", error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return f"\n{str(error) or 'stopped by Ctrl-C'}", 130
    if isinstance(error, BrokenPipeError):  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "", 1
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        code = 1 if error.errno in FULL else 2
        return f"error: {where}{error.strerror or error}; check the path, its permissions and the disk", code
    if is_out_of_memory(error):
        text = str(error) or type(error).__name__
        advice = (
            "Use a smaller --batchSize, --patchSize or network for training, a smaller --tile for deraining, "
            "smaller photos for rain."
        )
        return f"error: out of memory ({text.splitlines()[0]}). {advice}", 1
    return None, 1
