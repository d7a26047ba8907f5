"""Results to look at: a picture of rainy, derained and clean side by side; or a page of pictures.

    python -m common.evaluation.report --rainy RAIN --derained OUT --clean NORAIN --out sheet.png
    python -m common.evaluation.report --show sheet.png "What it shows." --out results

The page is index.html in the folder --out, beside copies of its pictures.
"""

import argparse
import sys
from pathlib import Path

from .. import cli, flags
from ..data.images import read_image, require_outside, to_eight_bits, write_image
from ..data.page import render
from ..data.pairs import Pairing, find_pairs
from ..data.pictures import sheet
from ..errors import UserError
from ..files import write_bytes

ROWS = 4


def compare(args: argparse.Namespace) -> Path:
    """Write a row for each of the first four pairs: rainy, derained, clean; returns the file."""
    out = flags.picture(args)
    require_outside("--out", out, {"--rainy": args.rainy, "--derained": args.derained, "--clean": args.clean})
    any_light = Pairing(dark_rain=True)  # of either; the second pairs have no clean image
    pairs = find_pairs(args.rainy, args.clean, "--rainy, --clean", pairing=any_light)[0][:ROWS]
    names = [Path(pair.name) for pair in pairs]
    results = find_pairs(args.rainy, args.derained, "--rainy, --derained", names=names, pairing=any_light)[0]
    derained, rows = {result.name: result.clean for result in results}, []
    for pair in pairs:
        images = [to_eight_bits(read_image(path)) for path in (pair.rainy, derained[pair.name], pair.clean)]
        rows.append((images, [f"{pair.name}: rainy", "derained", "clean"]))
    write_image(out, sheet(rows))
    return out


def show(args: argparse.Namespace) -> Path:
    """Write a page that shows each picture with its sentence; returns the file."""
    out, figures = Path(args.out), []
    if len(args.show) % 2:
        raise UserError(f"--show: a picture and a sentence in turn; the last one, {args.show[-1]}, has no sentence")
    for number, (picture, sentence) in enumerate(zip(args.show[::2], args.show[1::2], strict=True), 1):
        path = Path(picture).expanduser()
        if not path.is_file():
            raise UserError(f"--show: there is no picture {path}")
        figures.append((f"{number:02d}{path.suffix}", sentence))
        write_bytes(out / figures[-1][0], path.read_bytes())
    page = render("gallery.html", title=args.title, figures=figures)
    write_bytes(out / "index.html", page.encode(errors="xmlcharrefreplace"))
    return out / "index.html"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_path(
        "--out", required=True, help="the picture to write (.png, .jpg); with --show the folder of the page"
    )
    parser.add_path("--rainy", help="folder of rainy images")
    parser.add_path("--derained", help="folder of derained images, paired by name")
    parser.add_path("--clean", help="folder of clean images, paired by name")
    parser.add_argument(
        "--show", nargs="+", metavar="PICTURE SENTENCE", help="pictures of a page, each with a sentence"
    )
    parser.add_argument("--title", default="Results", help="of the page")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if not args.show and not (args.rainy and args.derained and args.clean):
        raise UserError("--rainy, --derained, --clean: give all three for a picture; or --show for a page")
    print(f"page: {show(args)}" if args.show else f"picture: {compare(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
