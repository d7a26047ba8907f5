"""report.html: a page with a summary, a table that sorts, and a before/after slider for each image.

The page holds its pictures itself, in a size for the screen, and asks no other file and no network for anything.
"""

import base64
import html
import io
import math
import os
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

from PIL import Image

from common.data.images import ImageError, read_image, to_eight_bits
from common.data.pictures import reduced
from common.files import write_bytes
from common.terminal import printable

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
    known = sorted(
        (item for item in items if not math.isnan(item.values[order.column])), key=lambda i: i.values[order.column]
    )
    rest = [item for item in items if math.isnan(item.values[order.column])]
    if len(items) <= SHOWN:
        return known + rest
    return [*known[: SHOWN // 2], *known[-(SHOWN // 2) :]] if len(known) >= SHOWN else (known + rest)[:SHOWN]


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
    shown: dict[str, str] = {}
    position = {item.name: number for number, item in enumerate(items)}
    for item in picked(items, order):
        try:
            shown[item.name] = _figure(item, position[item.name], path.parent, sides, order)
        except ImageError:  # somebody moved it
            continue
    template = string.Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    text = template.substitute(
        title=_text(title),
        lead="".join(f"<p>{_text(paragraph)}</p>\n" for paragraph in lead),
        table=_table(items, means or {}, {name: f"#i{position[name]}" for name in shown}),
        figures=_figures(list(shown.values()), len(items), order),
    )
    write_bytes(path, text.encode())


def _text(value: str) -> str:
    """Plain text as HTML; file names may hold anything."""
    return html.escape(printable(value))


def _number(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "-\N{INFINITY}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def _exact(value: float) -> str:
    """A number as JavaScript reads it."""
    return repr(float(value)).replace("inf", "Infinity").replace("nan", "NaN")


def _cell(value: float) -> str:
    return f'<td data-value="{_exact(value)}">{_number(value)}</td>'


def _table(items: Sequence[Item], means: dict[str, float], links: dict[str, str]) -> str:
    columns = list(items[0].values) if items else []
    if not columns:
        return ""
    heads = "".join(
        f'<th scope="col"><button type="button">{_text(name)}</button></th>' for name in ["image", *columns]
    )
    rows = []
    for number, item in enumerate(items):
        name = _text(item.name)
        name = f'<a href="{links[item.name]}">{name}</a>' if item.name in links else name
        rows.append(f'<tr><td data-value="{number}">{name}</td>{"".join(map(_cell, item.values.values()))}</tr>')
    foot = f"<tr><td>mean</td>{''.join(_cell(means[c]) for c in columns)}</tr>" if means else ""
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>'
        f"<tfoot>{foot}</tfoot></table></div>"
    )


def _figures(figures: list[str], number: int, order: Order | None) -> str:
    if not figures:
        return ""
    which = f"{len(figures)} of {number} images" if len(figures) < number else "All images"
    if order:
        ends = (f"{order.low} first", "value", "true"), (f"{order.high} first", "value", "false")
        buttons = " ".join(
            f'<button type="button" data-key="{key}" data-up="{up}">{_text(text)}</button>'
            for text, key, up in (*ends, ("by name", "number", "true"))
        )
        some = f": the {order.low} and the {order.high}" if len(figures) < number else ""
        which = f'{which}{some}, by {_text(order.column)}. <span class="order">{buttons}</span>'
    return f'<h2>Before and after</h2>\n<p>{which}</p>\n<div class="figures">\n{"".join(figures)}</div>'


def _figure(item: Item, number: int, folder: Path, sides: tuple[str, str], order: Order | None) -> str:
    images, size = [], (0, 0)
    for label, file in item.pictures.items():
        pixels = reduced(to_eight_bits(read_image(file)), SIDE)
        size = pixels.shape[:2]
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=QUALITY, subsampling=0)
        side = " ".join(name for name, first in zip(("left", "right"), sides, strict=True) if first == label)
        coded = base64.b64encode(data.getvalue()).decode()
        images.append(f'<img class="{side}" alt="{_text(label)}" src="data:image/jpeg;base64,{coded}">')
    height, width = size
    scale = max(1, min(SMALL / max(width, height), 8))
    wide, high = round(scale * width), round(scale * height)
    choices = "".join(
        _choice(name, list(item.pictures), first) for name, first in zip(("left", "right"), sides, strict=True)
    )
    values = ", ".join(f"{_text(name)} {_number(value)}" for name, value in item.values.items())
    value = _exact(item.values[order.column]) if order else ""
    small = " small" if scale > 1 else ""
    shape = f"width:{wide}px;max-height:{high}px;aspect-ratio:{width}/{height}"
    return (
        f'<figure id="i{number}" data-number="{number}" data-value="{value}" style="max-width:{max(wide, SMALL)}px">'
        f"<figcaption>{_link(item, folder)}{': ' if values else ''}{values}</figcaption>\n"
        f'<div class="view{small}" style="{shape}">{"".join(images)}<i></i>'
        f'<input type="range" min="0" max="100" value="50" step="0.5" aria-label="from {_text(sides[0])} to '
        f'{_text(sides[1])}"></div>\n<div class="sides">{choices}</div></figure>\n'
    )


def _choice(name: str, labels: Sequence[str], first: str) -> str:
    options = "".join(f"<option{' selected' if label == first else ''}>{_text(label)}</option>" for label in labels)
    return f'<select name="{name}" aria-label="picture on the {name}">{options}</select>'


def _link(item: Item, folder: Path) -> str:
    inside = [file for file in item.pictures.values() if file.is_relative_to(folder)]
    if not inside:
        return _text(item.name)
    address = quote_from_bytes(os.fsencode(inside[-1].relative_to(folder).as_posix()))
    return f'<a href="./{address}">{_text(item.name)}</a>'
