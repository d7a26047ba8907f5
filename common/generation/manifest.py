"""manifest.csv: which photo and which settings made each pair; one process or several append to it."""

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath

from filelock import FileLock

from ..data.images import natural_key
from ..errors import Unwritable, UserError
from ..files import cell, read_small, text_of, write_bytes
from ..terminal import printable

NAME = "manifest.csv"
PAIR = ("rain", "norain")  # folders of the rainy and the clean pictures
MOST = 2**29  # bytes, those of about two million pairs
SETTINGS = ("seed", "num", "intensity", "coherence", "grey", "checkpoint", "version", "knobs")
_OF_TEXT = {bool: {"True": True, "False": False}.__getitem__, int: int, float: float, str: text_of}


@dataclass(frozen=True)
class Row:
    """A line of the manifest: one pair."""

    file: str  # in rain/ and norain/
    photo: str  # relative to data_path
    variant: int  # from 1 on
    width: int
    height: int
    seed: int
    num: int  # variants of a photo
    intensity: float  # factor of the layer, 0 to 2
    coherence: float  # correlation of any two codes, 0 to 1
    grey: bool  # the maximum over the channels in all of them
    checkpoint: str  # SHA-256 of the generator's weights
    version: int  # of the way a layer is made, see rain.py
    layer: bool  # saved too
    photo_sha256: str  # of the photo's file
    knobs: str = ""  # 'angle=15 density=0.2', in this order; '' where none is set

    @property
    def settings(self) -> dict[str, object]:
        """What decides the rain, besides the photo's path and the variant: the same in all rows of a folder."""
        return {name: getattr(self, name) for name in SETTINGS}


_COLUMNS = [field.name for field in fields(Row)]


class Manifest:
    """manifest.csv of a folder: a line is appended when its pair is whole; at the end the lines are sorted.

    Attributes:
        rows: by file.

    Raises:
        UserError: the file is no manifest, or names a pair outside of its folders.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self._lock = FileLock(folder / f".{NAME}.lock")
        self.rows = self._read()

    def _read(self) -> dict[str, Row]:
        if not self.path.exists():
            return {}
        try:
            text = read_small(self.path, MOST).decode("utf-8", "surrogateescape")
            head, *lines = list(csv.reader(io.StringIO(text, newline=""))) or [_COLUMNS]
            if head != _COLUMNS:
                raise csv.Error(f"its first line is not {','.join(_COLUMNS)}")
        except (OSError, csv.Error) as error:
            raise UserError(
                f"{self.path}: is in the way, and is no list of generated pairs ({error}); choose another --save_path, "
                "or move it away"
            ) from None
        rows = {}
        for line in lines if text.endswith("\n") else lines[:-1]:  # a crash may leave half a line
            with contextlib.suppress(ValueError, KeyError):  # no row: its pair is made again
                values = zip(fields(Row), line, strict=True)
                row = Row(*(_OF_TEXT[field.type](text) for field, text in values))
                path = PurePosixPath(row.file)
                if path.is_absolute() or ".." in path.parts or path.suffix != ".png":  # --overwrite deletes such files
                    raise UserError(f"{self.path}: {printable(row.file)} is no pair of {printable(row.photo)}; mend it")
                rows[row.file] = row  # the last one counts
        return rows

    def mend(self) -> None:
        """Remove half a line that a crash left: the next line would go on with it."""
        if self.path.exists():
            write_bytes(self.path, _as_csv(self.rows.values(), head=True))

    def append(self, row: Row) -> None:
        """Add the line of a pair that is written.

        Raises:
            Unwritable: the disk is full, say.
        """
        self.rows[row.file] = row
        try:
            with self._lock, open(self.path, "ab") as file:
                file.write(_as_csv([row], head=file.tell() == 0))
        except OSError as error:
            raise Unwritable(f"{self.path}: can't be written ({error.strerror}); check the disk") from None

    @contextlib.contextmanager
    def finished(self) -> Iterator[list[Row]]:
        """Sort the file, and give the rows of all pairs that exist, by photo; other processes wait meanwhile."""
        with self._lock:
            whole = [row for row in self._read().values() if all((self.folder / k / row.file).exists() for k in PAIR)]
            rows = sorted(whole, key=lambda row: (natural_key(row.photo), row.variant))
            write_bytes(self.path, _as_csv(rows, head=True))
            yield rows
            with contextlib.suppress(OSError):  # Windows keeps it; who waits for it makes another one
                Path(self._lock.lock_file).unlink()


def _as_csv(rows: Iterable[Row], head: bool) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # names may hold anything
    if head:
        writer.writerow(_COLUMNS)
    writer.writerows([cell(value) if isinstance(value, str) else value for value in astuple(row)] for row in rows)
    return out.getvalue().encode("utf-8", "surrogateescape")
