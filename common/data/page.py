"""report.html: a page with a summary, a table that sorts, and a before/after slider for each image.

The page holds its pictures itself, in a size for the screen; it loads no other file and needs no network.
"""

import base64
import contextlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_from_bytes

import jinja2
from PIL import Image

from ..files import write_bytes
from ..terminal import printable
from .images import ImageError, half_of, read_image, to_eight_bits
from .pictures import reduced

NAME = "report.html"
SHOWN = 24  # images with a slider, half of them the lowest and half the highest
SIDE, QUALITY = 960, 90  # px of the longer side and quality of a JPEG, as the page shows it
SMALL = 320  # px of the longer side; smaller pictures are shown enlarged


@dataclass(frozen=True)
class Item:
    """An image of the table: its name, its versions (label -> file, in this order) and its values (column -> number).

    Every item of a page has the same labels and the same columns. Values may be infinite or nan.
    """

    name: str
    pictures: dict[str, Path]
    values: dict[str, float]
    halves: Mapping[str, str] = field(default_factory=dict)  # label -> 'left' or 'right', where half a file is shown


@dataclass(frozen=True)
class Order:
    """The column by which images are picked and ordered, and what its low and its high end are called."""

    column: str
    low: str = "worst"
    high: str = "best"


def picked(items: Sequence[Item], order: Order | None) -> list[Item]:
    """The items that get a slider: all of few; of many the lowest, then the highest; without an order the first."""
    if order is None:
        return list(items[:SHOWN])
    values = {item.name: item.values[order.column] for item in items}
    known = sorted((i for i in items if not math.isnan(values[i.name])), key=lambda i: values[i.name])
    if len(known) >= SHOWN:
        return [*known[: SHOWN // 2], *known[-(SHOWN // 2) :]] if len(items) > SHOWN else known
    return (known + [item for item in items if math.isnan(values[item.name])])[:SHOWN]


def write(
    path: Path,
    title: str,
    lead: Sequence[str],
    items: Sequence[Item],
    sides: tuple[str, str],
    means: dict[str, float] | None = None,
    order: Order | None = None,
) -> None:
    """Write the page; a picture that can't be read any more is left out of it, its row stays.

    Args:
        path: the page. Names of items link to the last of their versions that lies in its folder.
        title, lead: plain text; each element of ``lead`` is a paragraph.
        items: rows of the table, in this order.
        sides: labels of the versions that are at first to the left and to the right of the slider.
        means: last row of the table.
        order: see ``Order``; None keeps the order of ``items``.

    Raises:
        UserError: the page can't be written.
    """
    figures, places = [], {item.name: place for place, item in enumerate(items)}
    for item in picked(items, order):
        with contextlib.suppress(ImageError):  # the file was moved
            figures.append(_figure(item, places[item.name], path.parent, order))
    text = render(
        "page.html",
        title=title,
        lead=lead,
        items=items,
        columns=list(items[0].values) if items else [],
        means=means,
        shown={figure["number"] for figure in figures},
        figures=figures,
        sides=sides,
        order=order,
    )
    write_bytes(path, text.encode())


def render(template: str, **values: object) -> str:
    """Fill a template beside this file. All text is escaped, because file names may hold anything."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
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


def _figure(item: Item, place: int, folder: Path, order: Order | None) -> dict[str, object]:
    """The values of the template for an image; its pictures are JPEGs in base64."""
    pictures, size = [], (0, 0)
    for label, file in item.pictures.items():
        pixels = reduced(to_eight_bits(half_of(read_image(file), item.halves.get(label, ""))), SIDE)
        size = pixels.shape[:2]
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=QUALITY, subsampling=0)
        pictures.append((label, base64.b64encode(data.getvalue()).decode()))
    height, width = size
    scale = max(1, min(SMALL / max(width, height), 8))
    inside = [file for file in item.pictures.values() if file.is_relative_to(folder)]
    return {
        "number": place,
        "name": item.name,
        "address": inside and quote_from_bytes(os.fsencode(inside[-1].relative_to(folder).as_posix())),
        "values": item.values,
        "value": _exact(item.values[order.column]) if order else "",
        "pictures": pictures,
        "enlarged": scale > 1,
        "width": round(scale * width),
        "height": round(scale * height),
        "ratio": f"{width}/{height}",
        "widest": max(round(scale * width), SMALL),
    }
