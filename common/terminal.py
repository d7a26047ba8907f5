"""Output of the commands: progress bars, in a file as lines; with --quiet only results, warnings and errors."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TextIO

from tqdm import tqdm

from . import distributed

EVERY = 50  # seconds between lines of progress in a file: at least one a minute, as tqdm may be ten seconds late
_results: TextIO | None = None  # with --quiet, where results go
_warned: set[str] = set()


def hush() -> None:
    """Drop what is printed to the standard output from now on, except for results."""
    global _results
    if _results is None:
        _results, sys.stdout = sys.stdout, open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115 (as long as the command)


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """At its end undo ``hush``."""
    global _results
    before = sys.stdout
    try:
        yield
    finally:
        sys.stdout, _results = before, None


def printable(text: str) -> str:
    """A message with control characters and undecodable bytes, of names of files, escaped; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def ending_signals() -> list[signal.Signals]:
    """What ends a command besides Ctrl-C: SIGTERM, and SIGHUP, as the terminal is gone, unless nohup has it ignored."""
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


def end(number: int, frame: object) -> NoReturn:
    """A handler of signals that ends the command as Ctrl-C does."""
    raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")


@contextlib.contextmanager
def handling(numbers: Iterable[int], handler: Callable) -> Iterator[None]:
    """Within it signals have this handler, afterwards their own again."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def print_result(text: object) -> None:
    """Print the result of a command, which --quiet keeps: a table of scores, say."""
    print(text, file=_results or sys.stdout)


def progress_bar(iterable: Iterable | None = None, hidden: bool = False, **options) -> tqdm:
    """A progress bar on stderr, without --quiet and unless ``hidden``; options are tqdm's.

    Where stderr is no terminal, it is a line from time to time, and nothing for what is done before the first one.
    """
    if sys.stderr is None or not sys.stderr.isatty():  # None in programs with windows alone
        options |= {"file": _Lines(), "delay": EVERY, "mininterval": EVERY, "maxinterval": EVERY}
    return tqdm(iterable, disable=bool(hidden or _results), **options)


class _Lines:
    """Takes what tqdm would draw over what it drew before, and writes it to stderr as a line."""

    def write(self, text: str) -> None:
        if text := text.strip():
            with contextlib.suppress(OSError):  # whoever read it is gone
                print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


def warn_once(text: str, key: str) -> None:
    """Print a warning on stderr, unless this process printed one of the same key; in any of several processes."""
    if key not in _warned:
        _warned.add(key)
        stream = sys.__stderr__ if distributed.is_launched() else sys.stderr  # that of other ranks is closed
        tqdm.write(printable(f"warning: {text}"), stream)


def warn(texts: list[str]) -> None:
    """Print warnings about flags on stderr, each text without its --; only in the first of several processes."""
    if texts and distributed.is_first():
        print("\n".join(f"warning: --{text}" for text in texts), file=sys.stderr)


def tell(problems: list[str], headline: str) -> None:
    """Print on stderr, one a line, why images were left out; only in the first of several processes."""
    if distributed.is_first():
        print(f"{headline}:" + "".join(f"\n  {problem}" for problem in problems), file=sys.stderr)
