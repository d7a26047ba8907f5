"""Locks of folders: of two runs that write to one folder, the second is refused."""

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from . import distributed
from .errors import UserError

SECONDS = 10  # the workers of a killed run hold its lock for some seconds
MISSING = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # how file systems without locks answer (NFS, Lustre)


@contextlib.contextmanager
def locked(place: Path, flag: str, is_file: bool = False) -> Iterator[None]:
    """Hold the lock of a folder; of several processes the first one does, for all. No lock file stays behind.

    Where the file system has no locks, a file stands for one.

    Args:
        place: a folder, which is created and, if empty in the end, deleted again; or a file in one (``is_file``).
        flag: names it, for messages.

    Raises:
        UserError: another run holds the lock, or the folder can't be written to.
    """
    if not distributed.is_first():
        yield
        return
    folder, file = (place.parent, place.with_name(f".{place.name}.lock")) if is_file else (place, place / ".lock")
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _acquire(file, flag, place)
    except OSError as error:
        raise UserError(f"{flag}: {folder} can't be written to ({error.strerror})") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            Path(held.lock_file).unlink()
        held.release()
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _acquire(file: Path, flag: str, place: Path) -> BaseFileLock:
    """Wait some seconds for a lock; says so where a file has to stand for it."""
    soft, busy = file.with_name(f"{file.name}.soft"), f"{flag}: another run writes to {place} now"
    try:
        return FileLock(file, fallback_to_soft=False).acquire(SECONDS).lock
    except Timeout:
        raise UserError(f"{busy}; wait for it, or name another one") from None
    except OSError as error:
        if error.errno not in MISSING:
            raise
        file.unlink(missing_ok=True)
        text = f"{file.parent} is on a file system without locks ({error.strerror}); {soft} keeps other runs out"
        print(f"warning: {flag}: {text}", file=sys.stderr)
    try:
        return SoftFileLock(soft).acquire(SECONDS).lock
    except Timeout:
        raise UserError(f"{busy}; wait for it, or name another one. If that run is gone, delete {soft}") from None
