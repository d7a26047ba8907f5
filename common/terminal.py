"""What a command says: progress bars on a terminal alone, and with --quiet results, warnings and errors alone."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from tqdm import tqdm

_results: TextIO | None = None  # with --quiet, where results go


def hush() -> None:
    """From here on what is printed to the standard output is dropped, unless it is a result."""
    global _results
    if _results is None:
        _results, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 (as long as the command)


@contextlib.contextmanager
def hushable() -> Iterator[None]:
    """Undoes at its end what ``hush`` did in it."""
    global _results
    try:
        yield
    finally:
        if _results is not None:
            sys.stdout.close()
            sys.stdout, _results = _results, None


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
