"""manifest.csv: which photo and which settings make each pair of a folder; written before the first pair."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from ..files import write_bytes

NAME = "manifest.csv"
SETTINGS = ["seed", "num", "intensity", "coherence", "grey", "checkpoint", "version", "knobs"]  # of all pairs
COLUMNS = ["file", "photo", "variant", "drawn", *SETTINGS]  # drawn: the knobs of each shower
Row = dict[str, str]


def read(folder: Path) -> list[Row]:
    """The rows of a folder's manifest; none where there is no file.

    Raises:
        UserError: the file is no manifest.
    """
    path = folder / NAME
    if not path.exists():
        return []
    table = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8", "surrogateescape"), newline=""))
    if table.fieldnames != COLUMNS:
        raise UserError(
            f"{path}: is in the way, its first line is not {','.join(COLUMNS)}; choose another --save_path, or move it"
        )
    rows = list(table)
    for row in rows:
        if None in row.values() or Path(row["file"]).is_absolute() or ".." in Path(row["file"]).parts:
            raise UserError(f"{path}: {row['file']!r} names no pair of this folder; choose another --save_path")
    return rows


def write(folder: Path, rows: Iterable[Row]) -> None:
    """Write the manifest of a folder, whole or not at all."""
    out = io.StringIO(newline="")
    table = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(folder / NAME, out.getvalue().encode("utf-8", "surrogateescape"))
