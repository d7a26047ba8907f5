"""Pictures in one folder, with a page index.html that shows each with a sentence.

python -m common.evaluation.gallery --out results --title "A run" --show sheet.png "What it shows." --table metrics.csv
"""

import argparse
import csv
import io
import re
import sys
from pathlib import Path

from .. import cli
from ..data.page import render
from ..errors import UserError
from ..files import read_small, text_of, write_bytes

PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")


def rounded(rows: list[list[str]]) -> list[list[str]]:
    """Rows of a CSV, the first one its head and the first column names, with its numbers rounded for the eye."""

    def shown(cell: str) -> str:
        try:
            return f"{float(cell):.4f}" if abs(float(cell)) < 10 else f"{float(cell):.2f}"
        except ValueError:
            return cell.replace("_", " ")

    return [[row[0], *map(shown, row[1:])] for row in rows]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_path("--out", required=True, help="folder for the pictures and index.html")
    parser.add_argument("--title", default="Results", help="of the page")
    parser.add_argument(
        "--show", nargs="+", required=True, metavar="PICTURE SENTENCE", help="pictures, each with what it shows"
    )
    parser.add_path("--table", help="a CSV to show below")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    out, figures = Path(args.out), []
    if len(args.show) % 2:
        raise UserError(f"--show: a picture and a sentence in turn; the last one, {args.show[-1]}, has no sentence")
    for number, (picture, sentence) in enumerate(zip(args.show[::2], args.show[1::2], strict=True), 1):
        path = Path(picture).expanduser()
        if path.suffix.lower() not in PICTURES:
            raise UserError(f"--show: {path} is no picture ({', '.join(PICTURES)})")
        if not path.is_file():
            raise UserError(f"--show: there is no {path}")
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem)[:100]  # a name that needs no quoting in an address
        figures.append((f"{number:02d}_{plain}{path.suffix.lower()}", sentence, path.read_bytes()))
    rows = []
    if args.table:
        try:
            text = read_small(args.table).decode(errors="replace")
            rows = [list(map(text_of, row)) for row in csv.reader(io.StringIO(text, newline="")) if row]
        except (OSError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--table: {args.table} can't be read as a CSV ({reason})") from None
        if not rows:
            raise UserError(f"--table: {args.table} is empty")
    for name, _, data in figures:
        write_bytes(out / name, data)
    page = render("gallery.html", title=args.title, figures=[figure[:2] for figure in figures], rows=rounded(rows))
    write_bytes(out / "index.html", page.encode())
    print(f"pictures: {out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
