"""Results as a picture: rainy, derained and clean side by side, with generated rain below.

python -m common.evaluation.report --rainy RAIN --derained OUT --clean NORAIN --netED ED_state_N.pt --out sheet.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from common import cli
from common.data.images import read_image, to_uint8, write_image
from common.data.pairs import find_pairs
from common.errors import UserError
from common.evaluation.metrics import labels
from common.models import EDNet
from common.training.checkpoint import load_generator

GAP, LABEL = 6, 22  # px


def row(images: list[np.ndarray], labels: list[str], width: int) -> np.ndarray:
    """Images of equal height side by side, centred in ``width`` px, a line of text above each.

    Args:
        images: (H, W_i, 3) uint8.
        labels: as many as images; empty ones for none.

    Returns:
        (H + 22, width, 3) uint8, white where nothing is.
    """
    height = max(image.shape[0] for image in images)
    sheet = Image.new("RGB", (width, height + LABEL), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    x = (width - sum(image.shape[1] for image in images) - GAP * (len(images) - 1)) // 2
    for image, label in zip(images, labels, strict=True):
        draw.text((x, 3), label, "black", font)
        sheet.paste(Image.fromarray(image), (x, LABEL))
        x += image.shape[1] + GAP
    return np.asarray(sheet)


def sheet(rows: list[tuple[list[np.ndarray], list[str]]]) -> np.ndarray:
    """Rows of (images, labels) below each other; see ``row``."""
    width = max(sum(image.shape[1] + GAP for image in images) for images, _ in rows) + GAP
    lines = [row(images, labels, width) for images, labels in rows]
    return np.concatenate(lines)


def generated(netED: EDNet, number: int, seed: int, scale: int) -> tuple[list[np.ndarray], float]:
    """Rain layers of random codes as (p * scale, p * scale, 3) uint8, and how much brighter they are shown."""
    codes = torch.randn(number, netED.nz, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        rain = netED.sample(codes).permute(0, 2, 3, 1).numpy()
    gain = float(np.clip(0.8 / max(np.quantile(rain, 0.995), 1e-6), 1, 10).round(1))  # faint rain would not be seen
    return [to_uint8(gain * layer.repeat(scale, 0).repeat(scale, 1), "nearest") for layer in rain], gain


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_path("--rainy", required=True, help="folder of rainy images")
    parser.add_path(
        "--derained", required=True, nargs="+", help="folder of derained images, or several, paired by name"
    )
    parser.add_path("--clean", required=True, help="folder of clean images, paired by name")
    parser.add_path("--netED", help="weights of the generator, for a row of generated rain")
    parser.add_argument("--number", type=cli.positive_int, default=4, help="images to show, the first by name")
    parser.add_path("--out", required=True, help="the picture to write (.png or .jpg)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if Path(args.out).suffix.lower() not in (".png", ".jpg"):
        raise UserError(f"--out: {args.out} must end in .png or .jpg")
    derained = [
        {pair.name: pair.clean for pair in find_pairs(args.rainy, folder, "--rainy, --derained")[0]}
        for folder in args.derained
    ]
    methods = ["derained"] if len(derained) == 1 else labels(args.derained)
    rows = []
    for pair in find_pairs(args.rainy, args.clean, "--rainy, --clean")[0][: args.number]:
        paths = (pair.rainy, *(results[pair.name] for results in derained), pair.clean)
        images = [read_image(path) for path in paths]
        eight = [image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8) for image in images]
        rows.append((eight, [f"{pair.name}: rainy", *methods, "clean"]))
    if args.netED:
        netED = load_generator(args.netED, "--netED")
        wide = sum(image.shape[1] + GAP for image in rows[0][0])
        scale = max(1, 128 // netED.patch_size)
        count = max(1, wide // (netED.patch_size * scale + GAP))
        rain, gain = generated(netED, count, 0, scale)
        label = f"generated rain, {gain:g}x brighter" if gain > 1 else "generated rain"
        rows.append((rain, [label, *[""] * (count - 1)]))
    write_image(Path(args.out), sheet(rows))
    print(f"picture: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
