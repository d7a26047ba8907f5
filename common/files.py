"""Write files whole or not at all."""

import contextlib
import os
import uuid
from pathlib import Path

from .errors import Stopped

UNFINISHED = ".writing-"  # start of the names of files that are not whole yet


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all; folders are created.

    Raises:
        Stopped: it is a folder, its folder can't be made or written to, or the disk is full.
    """
    path = Path(path)
    temporary = path.parent / f"{UNFINISHED}{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise Stopped(
            f"{path}: can't be written ({error.strerror}); check the path, its permissions and the disk"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # it is gone where all went well
            temporary.unlink()
