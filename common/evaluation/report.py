"""Results as a picture: rainy, derained and clean side by side, with generated rain below.

python -m common.evaluation.report --rainy RAIN --derained OUT --clean NORAIN --netED ED_state_N.pt --out sheet.png
"""

import argparse
import sys
from pathlib import Path

from .. import cli, flags
from ..data.images import read_image, to_eight_bits, write_image
from ..data.pairs import find_pairs
from ..data.pictures import GAP, sheet
from ..generation.latent import generated
from ..training.checkpoint import load_generator
from .metrics import labels


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_path("--rainy", required=True, help="folder of rainy images")
    parser.add_path(
        "--derained", required=True, nargs="+", help="folder of derained images, or several, paired by name"
    )
    parser.add_path("--clean", required=True, help="folder of clean images, paired by name")
    parser.add_netED()
    parser.add_argument("--number", type=cli.positive_int, default=4, help="images to show, the first by name")
    flags.add_picture(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    out = flags.picture(args)
    pairs = find_pairs(args.rainy, args.clean, "--rainy, --clean")[0][: args.number]
    names = [Path(pair.name) for pair in pairs]
    derained = [
        {pair.name: pair.clean for pair in find_pairs(args.rainy, folder, "--rainy, --derained", names=names)[0]}
        for folder in args.derained
    ]
    methods = ["derained"] if len(derained) == 1 else labels(args.derained)
    rows = []
    for pair in pairs:
        paths = (pair.rainy, *(results[pair.name] for results in derained), pair.clean)
        images = [read_image(path) for path in paths]
        rows.append(([to_eight_bits(image) for image in images], [f"{pair.name}: rainy", *methods, "clean"]))
    if args.netED:
        netED = load_generator(args.netED, "--netED")
        wide = sum(image.shape[1] + GAP for image in rows[0][0])
        side = max(128, netED.patch_size)
        count = max(1, wide // (side + GAP))
        rain, gain = generated(netED, count, 0, side)
        label = f"generated rain, {gain:g}x brighter" if gain > 1 else "generated rain"
        rows.append((rain, [label, *[""] * (count - 1)]))
    write_image(out, sheet(rows))
    print(f"picture: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
