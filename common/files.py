"""Write files whole or not at all, read small files, and keep CSV cells from being formulas."""

import contextlib
import errno
import os
import stat
import uuid
from pathlib import Path

from .errors import Unwritable, UserError

MOST = 64 * 2**20  # bytes of a JSON file, a table
UNFINISHED = ".writing-"  # start of the names of files that are not whole yet
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def read_small(path: str | Path, most: int = MOST) -> bytes:
    """All bytes of a file that has no reason to be large.

    Raises:
        OSError: it can't be read, is no file (a pipe might never end), or has more than ``most`` bytes.
    """
    facts = os.stat(path)
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "is no file", str(path))
    if facts.st_size > most:
        text = f"it has {facts.st_size / 2**20:.0f} MB, up to {most / 2**20:.0f} are read"
        raise OSError(errno.EFBIG, text, str(path))
    return Path(path).read_bytes()


def cell(text: str) -> str:
    """A text as a cell of a CSV; a ' stands before one that a spreadsheet would run as a formula."""
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def text_of(cell: str) -> str:
    """The text of a cell that ``cell`` made."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all; folders are created.

    Raises:
        UserError: it is a folder, or its folder is a file.
        Unwritable: the folder can't be written to, or the disk is full.
    """
    try:
        put_bytes(Path(path), data)
    except (IsADirectoryError, FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path}: can't be written ({error.strerror}); name another file") from None
    except OSError as error:
        raise Unwritable(f"{path}: can't be written ({error.strerror}); check the folder and the disk") from None


def put_bytes(path: Path, data: bytes) -> None:
    """Like ``write_bytes``; raises the OSError itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{UNFINISHED}{uuid.uuid4().hex}"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # of a disk that can't be written to any more
            temporary.unlink()
        raise
