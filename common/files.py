"""Write files whole or not at all."""

import contextlib
import os
import uuid
from pathlib import Path

from .errors import Stopped

UNFINISHED = ".writing-"  # start of the names of files that are not whole yet


def write_bytes(path: Path, data: bytes | memoryview, sync: bool = False) -> None:
    """Write a file that appears whole or not at all; folders are created.

    Args:
        sync: wait for the disk, so that a power cut leaves it whole, too; for files that one run at a time writes.

    Raises:
        Stopped: it is a folder, its folder can't be made or written to, or the disk is full.
    """
    path = Path(path)
    # A checkpoint is large: kills leave one such file at most. Other files may be written by two runs at once.
    temporary = path.parent / (f"{path.name}.tmp" if sync else f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise Stopped(
            f"{path}: can't be written ({error.strerror}); check the path, its permissions and the disk"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # it is gone where all went well
            temporary.unlink()
