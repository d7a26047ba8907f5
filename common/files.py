"""Files of others: how much of one is read at most, and cells of tables that no spreadsheet takes for formulas."""

import errno
import os
import stat
from pathlib import Path

MOST = 64 * 2**20  # bytes of a choice, a table, a list of knobs
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def read_small(path: str | Path, most: int = MOST) -> bytes:
    """All bytes of a file that has no reason to be large.

    Raises:
        OSError: it can't be read, is no file (but a pipe, say, which might never end), or has more than ``most`` bytes.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no file", str(path))
    if found.st_size > most:
        text = f"it has {found.st_size / 2**20:.0f} MB, up to {most / 2**20:.0f} are read"
        raise OSError(errno.EFBIG, text, str(path))
    return Path(path).read_bytes()


def cell(text: str) -> str:
    """A text as a cell of a CSV, a ' before what a spreadsheet would run as a formula."""
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def text_of(cell: str) -> str:
    """The text that ``cell`` has made a cell of."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell
