"""The few argparse pieces that every script shares: real booleans, paths, checked numbers, exit codes.

Exit codes: 0 done, 1 done in part or stopped by trouble, 2 a mistake in the input, 130 ended by Ctrl-C.
"""

import argparse
import contextlib
import errno
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from . import distributed, terminal
from .errors import explain

EXIT_CODES = "exit codes: 0 done; 1 done in part, or stopped by trouble; 2 a mistake in the flags or files; 130 Ctrl-C"
QUIET = "print results, warnings and errors alone"
SHORT = {"metrics": "evaluation.metrics", "compose": "data.compose", "pack": "data.pack"}  # vrgnet NAME runs a module
FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or what one may have of it


def typed(module: str) -> str:
    """How a module of the package is run: 'data.pack' is `vrgnet pack` where it is installed, else `python -m ...`."""
    names = [name for name, of_name in SHORT.items() if of_name == module and __package__ == "vrgnet"]
    return f"vrgnet {names[0]}" if names else f"python -m {__package__}.{module}"


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows defaults as a user would write them."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if action.required:
            return f"{action.help} (required)"
        if default is None or default is False or default in ([], argparse.SUPPRESS):
            return action.help or ""
        text = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{action.help} (default: {text})"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that knows what was given. All paths, defaults too, count from the folder one is in.

    Args:
        doc: the docstring, shown by --help.
        name: the script's ``__file__``, or how the command is typed.
    """

    def __init__(self, doc: str, name: str) -> None:
        doc = re.sub(r"python -m common\.([\w.]+)", lambda match: typed(match[1]), doc)
        super().__init__(
            Path(name).name, "%(prog)s [FLAGS]", doc, EXIT_CODES, formatter_class=Formatter, allow_abbrev=False
        )
        self.add_argument("--quiet", type=boolean, nargs="?", const=True, default=False, help=QUIET)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with exit code 2; once, of several processes."""
        text = f"error: {message}; {self.prog} --help lists the flags\n"
        self.exit(2, None if distributed.rank() else text)

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:
        """The flags as a namespace; ``given`` names those on the command line, ``defaults`` has those of all."""
        defaults = {action.dest: action.default for action in self._actions if action.dest != "help"}
        untouched = argparse.Namespace(**dict.fromkeys(defaults, argparse.SUPPRESS))
        found = vars(super().parse_args(argv, untouched))
        args = super().parse_args(argv)
        args.given = {name for name, value in found.items() if value is not argparse.SUPPRESS}
        args.defaults = defaults
        if args.quiet:
            terminal.hush()
        return args


# --- types of flags --------------------------------------------------------------------------------------------------


def path(text: str) -> str:
    """A path counts from the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return os.path.abspath(os.path.expanduser(text))


def boolean(text: str) -> bool:
    """true, false, 1, 0, yes, no in any case (T4)."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return values[text.lower()]


def number(kind: type, low: float, high: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """A converter for numbers of ``kind`` from ``low`` (or only above it) to ``high``."""
    name = "a whole number" if kind is int else "a number"
    bound = f"above {low}" if above else f"from {low} on" if high == math.inf else f"from {low} to {high}"

    def convert(text: str):
        try:
            value = kind(text)
            fits = (low < value if above else low <= value) and value <= high and value != math.inf
        except ValueError:
            fits = False
        if not fits:
            raise argparse.ArgumentTypeError(f"expected {name} {bound}, got {text!r:.60}")
        return value

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


# --- running a command -----------------------------------------------------------------------------------------------


def run(main: Callable[[], int | None], torchrun: bool = False) -> int:
    """Run a script's main and turn errors that the user can mend into one message and an exit code.

    Args:
        torchrun: whether the script shares its work out among the processes that torchrun starts; see distributed.py.
    """
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:  # closed: its number would go to the first file that is opened
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # file names may hold anything
    if distributed.is_launched() and not torchrun:
        _complain("error: this command runs in one process; start it with python, not with torchrun")
        return 2
    # Other signals end a command as Ctrl-C does; not under torchrun, which ends processes that wait.
    ending = [] if distributed.is_launched() else terminal.ending_signals()
    try:
        with terminal.handling(ending, terminal.end), distributed.process_group(), terminal.speaking():
            return main() or 0
    except BaseException as error:
        text, code = _explain(error)
        if distributed.is_launched():
            _end_rank(traceback.format_exc() if text is None else text, code)
        if text is None:
            raise
        _complain(text)
        return code


def _complain(text: str) -> None:
    """Write to stderr, without characters that would control the terminal: file names may hold any."""
    stream = sys.__stderr__ if distributed.is_launched() else sys.stderr  # that of other ranks is closed
    with contextlib.suppress(OSError):  # whoever read it is gone
        if text:
            print(terminal.printable(text), file=stream)


def _end_rank(text: str, code: int) -> NoReturn:
    """End one of several processes. Rank 0 speaks first: torchrun then ends the others, which say the same."""
    if rank := distributed.rank():
        time.sleep(2)
        text = "" if code == 130 else text and f"[rank {rank}] {text}"  # rank 0 tells of Ctrl-C
    _complain(text)
    sys.__stdout__.flush()
    os._exit(code)  # not sys.exit, which may wait for lost processes


def _explain(error: BaseException) -> tuple[str | None, int]:
    """The message of an error, None if it is not the user's to mend, and the exit code."""
    if isinstance(error, SystemExit) and distributed.is_launched():  # argparse has spoken
        return "", int(error.code or 0)
    if isinstance(error, KeyboardInterrupt):
        return f"\n{str(error) or 'stopped by Ctrl-C'}", 130
    if isinstance(error, BrokenPipeError):  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "", 1
    if (text := explain(error)) is None:
        return None, 1
    is_mistake = isinstance(error, OSError) and error.errno not in FULL
    return f"error: {text}", 2 if is_mistake else getattr(error, "exit_code", 1)
