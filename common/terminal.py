"""What a command says: progress bars on a terminal alone, and with --quiet results, warnings and errors alone."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

from . import distributed

_results: TextIO | None = None  # with --quiet, where results go


def hush() -> None:
    """From here on what is printed to the standard output is dropped, unless it is a result."""
    global _results
    if _results is None:
        _results, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 (as long as the command)


class _Plain:
    """A stream to which names of files can be printed that hold anything: what could play tricks is escaped."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(printable_lines(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """Within it nothing on the standard output controls the terminal; undoes at its end what ``hush`` did in it."""
    global _results
    before, sys.stdout = sys.stdout, _Plain(sys.stdout)
    try:
        yield
    finally:
        if _results is not None:
            sys.stdout.close()
        sys.stdout, _results = before, None


def printable(text: str) -> str:
    """A text, such as the name of a file, with line breaks, control characters and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """A text of several lines, each of them ``printable``."""
    return "\n".join(map(printable, text.split("\n")))


def print_result(text: object) -> None:
    """Print what a command was called for: a table of scores, say."""
    print(text, file=_results or sys.stdout)


def progress_bar(iterable: Iterable | None = None, hidden: bool = False, **options) -> tqdm:
    """A progress bar on stderr, where that is a terminal and --quiet was not said.

    Args:
        hidden: there is none at all.
        options: of tqdm.
    """
    return tqdm(iterable, disable=True if hidden or _results or sys.stderr is None else None, **options)


def tell(problems: list[str], headline: str) -> None:
    """Name on stderr, one a line, the images that work went on without; once, of several processes."""
    if not distributed.is_first():
        return
    print(f"{headline}:" + "".join(f"\n  {printable(problem)}" for problem in problems), file=sys.stderr)
