"""Write files whole or not at all."""

import contextlib
import os
import uuid
from pathlib import Path

from .errors import Unwritable, UserError

UNFINISHED = ".writing-"  # start of the names of files that are not whole yet


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all; folders are created.

    Raises:
        UserError: it is a folder, or its folder is a file.
        Unwritable: the folder can't be written to, or the disk is full.
    """
    path = Path(path)
    temporary = path.parent / f"{UNFINISHED}{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except (IsADirectoryError, FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path}: can't be written ({error.strerror}); name another file") from None
    except OSError as error:
        raise Unwritable(f"{path}: can't be written ({error.strerror}); check the folder and the disk") from None
    finally:
        with contextlib.suppress(OSError):  # it is gone where all went well
            temporary.unlink()
