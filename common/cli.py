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
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from . import distributed, terminal, weights
from .errors import UserError, is_out_of_memory
from .terminal import printable, printable_lines

EXIT_CODES = "exit codes: 0 done; 1 done in part, or stopped by trouble; 2 a mistake in the flags or files; 130 Ctrl-C"
QUIET = "print results, warnings and errors alone"
MOST = 2**31 - 1  # of whole numbers, where nothing else is said
FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or what one may have of it


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


class GeneratorPath(_UserPath):
    """A path that the user gives, or the word 'default' for the generator that comes with the project."""

    WORD = "default"

    def __call__(self, parser, namespace, value, option_string=None):
        super().__call__(parser, namespace, value, option_string)
        words, paths = (v if isinstance(v, list) else [v] for v in (value, getattr(namespace, self.dest)))
        paths = [str(weights.GENERATOR) if w == self.WORD else p for w, p in zip(words, paths, strict=True)]
        setattr(namespace, self.dest, paths if isinstance(value, list) else paths[0])


class _Missing:
    pass


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
        self.add_argument("--netED", action=GeneratorPath, default=default, metavar="PATH", help=help, **kwargs)

    def add_path(self, flag: str, default: str | None = None, **kwargs) -> None:
        """A flag that takes a file or folder."""
        self.add_argument(flag, action=_UserPath, default=default, metavar="PATH", **kwargs)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with exit code 2; once, of several processes."""
        text = f"error: {printable(message[:1000])}; {self.prog} --help lists the flags\n"
        self.exit(2, None if distributed.launch_rank() else text)

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
                if isinstance(action, GeneratorPath) and value == action.WORD:
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
stages = number(int, 1, 1000)
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
    return text


def auto_or_scale(text: str) -> float | None:
    """A type of --scale: 'auto' is None."""
    return None if text == "auto" else number(float, 0.1, 100)(text)


def derainer_name(text: str) -> str:
    """prenet, package.module:Class, or path/to/file.py:Class, whose path is made absolute."""
    module, _, name = text.rpartition(":")
    if text == "prenet":
        return text
    if module.endswith(".py") and name.isidentifier():
        return f"{os.path.abspath(os.path.expanduser(module))}:{name}"
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
    return text


def _complain(text: str) -> None:
    """Write to stderr. Of several processes rank 0 goes first: torchrun then ends the others, which say the same."""
    if rank := distributed.launch_rank():
        time.sleep(2)
        text = f"[rank {rank}] {text}"
    with contextlib.suppress(OSError):  # whoever read it is gone
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def run(main: Callable[[], int | None], torchrun: bool = False) -> int:
    """Run a script's main and turn errors that the user can mend into one message and an exit code.

    Args:
        torchrun: whether the script shares its work out among the processes that torchrun starts; see distributed.py.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may hold anything
    if distributed.is_launched() and not torchrun:
        _complain("error: this command runs in one process; start it with python, not with torchrun")
        return 2
    before, sys.unraisablehook = sys.unraisablehook, _ask_again
    try:
        with distributed.process_group(), terminal.speaking():
            return main() or 0
    except BaseException as error:
        text, code = _explain(error)
        if distributed.is_launched():
            if text != "" and not (code == 130 and distributed.launch_rank()):  # rank 0 tells of Ctrl-C
                _complain(printable_lines(traceback.format_exc() if text is None else text))
            sys.__stdout__.flush()
            os._exit(code)  # not sys.exit, which may wait for lost processes
        if text is None:
            raise
        with contextlib.suppress(OSError):  # whoever read it is gone
            if text:
                print(printable_lines(text), file=sys.stderr)
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


def _explain(error: BaseException) -> tuple[str | None, int]:
    """The message of an error, None if it is not the user's to mend, and the exit code."""
    if isinstance(error, UserError):
        return f"error: {error}", error.exit_code
    if isinstance(error, SystemExit) and distributed.is_launched():  # argparse has spoken
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
