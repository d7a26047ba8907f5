"""report.html: a page with a summary, a table that sorts, and a before/after slider for each image.

The page holds its pictures itself, in a size for the screen; it loads no other file and needs no network.
"""

import base64
import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from PIL import Image

from ..files import write_bytes
from .images import ImageError, half_of, read_image, to_eight_bits
from .pictures import reduced

NAME = "report.html"
SHOWN = 24  # images with a slider, half of them the worst and half the best
SIDE, QUALITY = 960, 90  # px of the longer side and quality of a JPEG, as the page shows it


class Item(NamedTuple):
    """An image of the table: its name, its versions (label -> file, in this order) and its values (column -> number).

    Every item of a page has the same labels and the same columns. Values may be infinite or nan.
    """

    name: str
    pictures: dict[str, Path]
    values: dict[str, float]


def picked(items: Sequence[Item], column: str | None) -> list[Item]:
    """The items that get a slider: without a column the first; else ordered by it, of many the lowest and highest."""
    if column is None:
        return list(items[:SHOWN])
    values = {item.name: item.values[column] for item in items}
    ordered = sorted(items, key=lambda item: -math.inf if math.isnan(values[item.name]) else values[item.name])
    return ordered if len(items) <= SHOWN else [*ordered[: SHOWN // 2], *ordered[-(SHOWN // 2) :]]


def write(
    path: Path,
    title: str,
    lead: Sequence[str],
    items: Sequence[Item],
    sides: tuple[str, str],
    means: dict[str, float] | None = None,
    column: str | None = None,
    halves: Mapping[str, str] | None = None,
) -> None:
    """Write the page; a picture that can't be read is left out of it, its row stays.

    Args:
        title, lead: plain text; each element of ``lead`` is a paragraph.
        items: rows of the table, in this order.
        sides: labels of the versions that are at first to the left and to the right of the slider.
        means: last row of the table.
        column: by which images are picked and ordered, the lowest first; None keeps the order of ``items``.
        halves: label -> 'left' or 'right', where half a file is shown.

    Raises:
        UserError: the page can't be written.
    """
    figures = []
    for item in picked(items, column):
        with contextlib.suppress(ImageError):
            figures.append(_figure(item, halves or {}))
    columns = list(items[0].values) if items else []
    values = {"title": title, "lead": lead, "items": items, "columns": columns, "means": means, "column": column}
    # Bytes of a name that are no text become references.
    write_bytes(path, render("page.html", figures=figures, sides=sides, **values).encode(errors="xmlcharrefreplace"))


def render(template: str, **values: object) -> str:
    """Fill a template beside this file. All text is escaped, because file names may hold anything."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template(template).render(number=_number, exact=_exact, **values)


def _number(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "-\N{INFINITY}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def _exact(value: float) -> str:
    """A number as JavaScript reads it."""
    return repr(float(value)).replace("inf", "Infinity").replace("nan", "NaN")


def _figure(item: Item, halves: Mapping[str, str]) -> dict[str, object]:
    """The values of the template for an image; its pictures are JPEGs in base64."""
    pictures, width, height = [], 0, 0
    for label, file in item.pictures.items():
        pixels = reduced(to_eight_bits(half_of(read_image(file), halves.get(label, ""))), SIDE)
        height, width = pixels.shape[:2]
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=QUALITY, subsampling=0)
        pictures.append((label, base64.b64encode(data.getvalue()).decode()))
    return {"item": item, "pictures": pictures, "width": width, "height": height, "rows": _rows(item.values)}


def _rows(values: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
    """Values as a small table, row -> column -> value: 'rainy PSNR-Y' stands in row 'rainy', if all rows are alike."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        row, _, column = name.rpartition(" ")
        rows.setdefault(row, {})[column] = value
    return rows if len({tuple(row) for row in rows.values()}) < 2 else {"": values}
