"""manifest.csv of generated pairs: which photo, which settings; written by one process or several at once."""

import contextlib
import csv
import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath

from ..data.images import natural_key
from ..errors import Unwritable, UserError
from ..files import LONGEST_NAME, cell, text_of, write_bytes
from ..terminal import printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "manifest.csv"
PAIR = ("rain", "norain")  # folders of the rainy and the clean pictures
LONGEST = 2**20  # characters of a line that are read at once
_KINDS = {bool: {"True": True, "False": False}.__getitem__, int: int, float: float, str: text_of}


@dataclass(frozen=True)
class Settings:
    """What, besides the photo's own path and the variant, decides which rain it gets."""

    seed: int
    num: int  # variants of a photo
    intensity: float  # factor of the layer, 0 to 2
    coherence: float  # correlation of neighbouring codes, 0 to 1
    grey: bool  # the maximum over the channels in all of them
    checkpoint: str  # SHA-256 of the generator's weights
    version: int  # of how a layer is made, see rain.py
    knobs: str = ""  # 'angle=15 density=0.2', in this order; '' where all are left alone


@dataclass(frozen=True)
class Row:
    """A line of the manifest: one pair."""

    file: str  # in rain/ and norain/
    photo: str  # relative to data_path
    variant: int  # from 1 on
    width: int
    height: int
    seed: int
    num: int
    intensity: float
    coherence: float
    grey: bool
    checkpoint: str
    version: int
    layer: bool  # saved too
    photo_sha256: str  # of the photo's file
    knobs: str = ""  # last, since older manifests lack it

    @property
    def settings(self) -> Settings:
        """Those of the run that made the pair."""
        return Settings(*(getattr(self, field.name) for field in fields(Settings)))


class Manifest:
    """manifest.csv: one line a pair, appended when the pair is whole, sorted at the end; several processes may write.

    Raises:
        UserError: the file is there and is no manifest, or names a pair outside its folders.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self.rows = self._read()

    def _read(self, number: int | None = None) -> dict[str, Row]:
        """The rows by file, or the first so many."""
        if not self.path.exists():
            return {}
        if not self.path.is_file():
            raise UserError(f"{self.path}: is in the way, and no file; choose another --save_path, or move it away")
        kinds = [_KINDS[field.type] for field in fields(Row)]
        names = [field.name for field in fields(Row)]
        rows = {}
        with open(self.path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.reader(iter(lambda: file.readline(LONGEST), ""))
            head = None
            with contextlib.suppress(csv.Error):
                head = next(reader, names)  # an empty file is as good as none
            if head not in (names, names[:-1]):
                raise UserError(
                    f"{self.path}: is no list of generated pairs (its first line is not {','.join(names)}); "
                    "choose another --save_path, or move it away"
                )
            with contextlib.suppress(csv.Error):  # what a crash left may look like one endless field
                for line in itertools.islice(reader, number):
                    with contextlib.suppress(ValueError, KeyError):  # cut short: the pair is made again
                        row = Row(*(kind(text) for kind, text in zip(kinds[: len(head)], line, strict=True)))
                        if len(row.photo_sha256) == 64:
                            self._require_inside(row)
                            rows[row.file] = row  # the last one counts
        return rows

    def _require_inside(self, row: Row) -> None:
        path = PurePosixPath(row.file)
        inside = not path.is_absolute() and ".." not in path.parts and "\0" not in row.file
        if not inside or path.suffix != ".png" or max(len(os.fsencode(part)) for part in path.parts) > LONGEST_NAME:
            raise UserError(
                f"{self.path}: {printable(row.file):.200} is no pair of {printable(row.photo):.200}; mend it"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.folder, os.O_RDONLY) if fcntl else -1
        try:
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            if fcntl:
                os.close(handle)

    def mend(self) -> None:
        """Cut off what a crash left of a line, so that it can't swallow those that follow."""
        if not self.path.exists():
            return
        with self._locked():
            self.rows = self._read()
            whole = self._text(list(self.rows.values()), head=True)
            if self.path.read_bytes() != whole:
                write_bytes(self.path, whole)

    @staticmethod
    def _text(rows: list[Row], head: bool) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # names may hold anything
        if head:
            writer.writerow([field.name for field in fields(Row)])
        writer.writerows([cell(value) if isinstance(value, str) else value for value in astuple(row)] for row in rows)
        return out.getvalue().encode("utf-8", "surrogateescape")

    def append(self, row: Row) -> None:
        """Note a pair that is written.

        Raises:
            UserError: another process has begun to write pairs of other settings.
            Unwritable: the file can't be written.
        """
        self.rows[row.file] = row
        with self._locked():
            if any(first.settings != row.settings for first in self._read(1).values()):
                raise UserError(f"{self.path}: another run writes pairs of other settings here; use two folders")
            try:
                with open(self.path, "ab") as file:
                    file.write(self._text([row], head=file.tell() == 0))
            except OSError as error:  # ``mend`` cuts off what there was room for
                raise Unwritable(f"{self.path}: can't be written ({error.strerror}); check the disk") from None

    @contextlib.contextmanager
    def finished(self) -> Iterator[list[Row]]:
        """The rows of all processes whose pairs are there, by photo, with the file sorted; nobody writes meanwhile."""
        with self._locked():
            there = [row for row in self._read().values() if all((self.folder / k / row.file).exists() for k in PAIR)]
            rows = sorted(there, key=lambda row: (natural_key(row.photo), row.variant))
            write_bytes(self.path, self._text(rows, head=True))
            yield rows
