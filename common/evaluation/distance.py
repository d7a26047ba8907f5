"""How far generated rain is from real rain: a distance between sets of rain layers, without any trained judge.

    python -m common.evaluation.distance --real STREAKS --netED ED_state_N.pt
    python -m common.evaluation.distance --real STREAKS --hold_out 20 --rain LAYERS [OTHERS ...]

STREAKS and LAYERS are folders of pictures of rain on black (generate_rain.py --save_layer writes such ones to layer/).
Beside the distances of what is asked for stand two to read them by: that between two halves of the real layers (rain as
varied as all of them may come nearer than one half to the other, the more so the fewer they are), and that of
procedural rain, which a generator should beat.

Sliced Wasserstein distance (Karras et al., ICLR 2018): each layer is split by a Laplacian pyramid; 7x7 patches of a
level are vectors; two sets of vectors are projected on random lines, and the distance on a line is the mean difference
of the sorted values. It is given in % of the standard deviation of the real set on that level, so that levels weigh
alike, and brightness counts.
"""

import argparse
import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from common import cli
from common.data.compose import add_gain, gain_of, part_of
from common.data.demo import rain_layer
from common.data.images import list_images, read_image, size_text, to_float
from common.errors import UserError
from common.evaluation.metrics import labels
from common.files import cell, write_bytes
from common.generation.latent import base_code
from common.generation.rain import RAINY, RainMaker, sampled
from common.models import EDNet
from common.terminal import print_result, printable, progress_bar
from common.training.checkpoint import load_generator
from common.training.runtime import pick_device

PATCH = 7  # px: side of the patches that are compared
LINES = 128  # random directions
PER_LAYER = 32  # patches of a level of a layer
SMALLEST = 16  # px: side of the coarsest level
HALVINGS = 5  # ways of halving the real layers, over which the floor is averaged
BIG = 256  # px: side of the layers of whole pictures, of which crops are compared

# Procedural rain, drawn for each layer: as the demo's, and over about the range that learned rain has to cover.
PLAIN = {"angle": (6, 14), "length": (16, 24), "width": (1.4, 2), "density": (0.08, 0.14), "brightness": (0.35, 0.45)}
VARIED = {"angle": (-20, 20), "length": (8, 40), "width": (1, 3), "density": (0.03, 0.3), "brightness": (0.1, 0.6)}


def pyramid(layers: np.ndarray) -> list[np.ndarray]:
    """Laplacian pyramid of square layers (N, p, p) float32: levels of p, p/2, ..., 16 px, the last one low-pass."""
    levels = []
    while layers.shape[1] > SMALLEST:
        small = np.stack([cv2.pyrDown(layer, borderType=cv2.BORDER_REFLECT_101) for layer in layers])
        large = np.stack([cv2.pyrUp(layer, borderType=cv2.BORDER_REFLECT_101) for layer in small])
        levels.append(layers - large)
        layers = small
    return [*levels, layers]


def patches(level: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Random 7x7 patches of a level (N, h, h), as vectors (64 N, 49)."""
    number, side = level.shape[:2]
    which = np.repeat(np.arange(number), PER_LAYER)
    rows, columns = rng.randint(0, side - PATCH + 1, (2, number * PER_LAYER))
    y, x = np.mgrid[:PATCH, :PATCH]
    return level[which[:, None, None], rows[:, None, None] + y, columns[:, None, None] + x].reshape(len(which), -1)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, seed: int = 0) -> list[float]:
    """Distance between two sets of rain layers, on each level of the pyramid, fine to coarse, in % (see above).

    Args:
        a: (N, p, p) float32 in [0, 1], the real set, whose deviations are the unit; p a power of two from 16 on.
        b: (N, p, p), as many.
        seed: of patches and lines.

    Raises:
        ValueError: the sets differ in size, or all of ``a`` is the same.
    """
    if a.shape != b.shape:
        raise ValueError(f"two sets of one size are compared, got {a.shape} and {b.shape}")
    rng, distances = np.random.RandomState(seed), []
    for level_a, level_b in zip(pyramid(a), pyramid(b), strict=True):
        lines = rng.standard_normal((PATCH**2, LINES)).astype(np.float32)
        lines /= np.linalg.norm(lines, axis=0)
        ours, theirs = (np.sort(patches(level, rng) @ lines, axis=0) for level in (level_a, level_b))
        unit = level_a.std()
        if unit < 1e-4:  # rounding alone
            raise ValueError("the real layers do not vary")
        distances.append(float(100 * np.abs(ours - theirs).mean() / unit))
    return distances


def grey(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 to (H, W) float32 in [0, 1], the mean of the channels."""
    return to_float(pixels).mean(2)


def crops(
    layers: Sequence[np.ndarray], number: int, p: int, gain: tuple[float, float], rng: np.random.RandomState
) -> np.ndarray:
    """Random crops of layers, each (H, W) in [0, 1], as compose.py makes rain of them: (number, p, p) float32.

    Args:
        gain: range of the factor of a crop.
    """
    found = np.empty((number, p, p), np.float32)
    for k in range(number):
        layer = layers[k % len(layers)]
        top, left = rng.randint(layer.shape[0] - p + 1), rng.randint(layer.shape[1] - p + 1)
        crop = layer[top : top + p, left : left + p]
        found[k] = (crop[:, ::-1] if rng.randint(2) else crop) * rng.uniform(*gain)
    return found.clip(0, 1)


def procedural(number: int, p: int, ranges: dict[str, tuple[float, float]], rng: np.random.RandomState) -> np.ndarray:
    """Layers of drawn streaks, (number, p, p) float32 in [0, 1], each with its own draw from ``ranges``."""
    return np.stack(
        [
            rain_layer((p, p), int(rng.randint(2**31)), **{name: rng.uniform(*ends) for name, ends in ranges.items()})[
                ..., 0
            ]
            for _ in range(number)
        ]
    )


@torch.no_grad()
def of_generator(netED: EDNet, number: int, seed: int) -> np.ndarray:
    """Patches of G for random codes: (number, p, p) float32 in [0, 1], the mean of the channels."""
    rain = sampled(netED, base_code(netED.nz, seed, number))
    return rain.clamp(0, 1).mean(1).cpu().numpy()


def of_pictures(netED: EDNet, number: int, seed: int) -> list[np.ndarray]:
    """Layers of 256x256 px as generate_rain.py makes them for whole pictures, each (256, 256) float32 in [0, 1]."""
    maker, rng = RainMaker(netED), np.random.RandomState(seed)
    layers = (maker.layer(BIG, BIG, 0.5, rng) for _ in range(number))
    return [layer.clamp(0, 1).mean(0).cpu().numpy() for layer in layers]


def read_layers(folder: Path, flag: str, p: int, hold_out: int = 0) -> list[np.ndarray]:
    """All pictures of a folder as grey layers, or those alone that ``compose.held_out`` keeps out of training.

    Raises:
        UserError: the folder is missing or empty, or a picture can't be read or is smaller than a patch.
    """
    if not folder.is_dir():
        raise UserError(f"{flag}: there is no folder {folder}; name one of pictures of rain on black")
    layers = []
    names = list_images(folder)[0]
    for name in part_of(names, hold_out, "held_out") if hold_out and names else names:
        pixels = read_image(folder / name)
        if min(pixels.shape[:2]) < p:
            raise UserError(f"{flag}: {folder / name} is {size_text(pixels.shape)}, smaller than the {p} px compared")
        layers.append(grey(pixels))
    if not layers:
        raise UserError(f"{flag}: no image (PNG, JPEG, BMP, WebP, TIFF) in {folder}")
    return layers


def floor(layers: Sequence[np.ndarray], number: int, p: int, gain: tuple[float, float]) -> np.ndarray:
    """Mean distance between two random halves of the real layers, on each level."""
    found = []
    for k in range(HALVINGS):
        rng = np.random.RandomState(1000 + k)
        order = rng.permutation(len(layers))
        half = len(layers) // 2
        one, other = (crops([layers[i] for i in part], number, p, gain, rng) for part in (order[:half], order[half:]))
        found.append(sliced_wasserstein(one, other, seed=k))
    return np.mean(found, 0)


def _names(paths: list[str] | None) -> list[str]:
    """What the rows are called: the last part of each path, or as much as makes them distinct."""
    return [
        printable(name) for name in (labels(paths) if paths and len(paths) > 1 else map(os.path.basename, paths or ()))
    ]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_path("--real", required=True, help="folder of real rain on black, which the generator never saw")
    parser.add_netED(nargs="+")
    parser.add_path("--rain", nargs="+", help="folders of other rain on black")
    parser.add_argument(
        "--hold_out",
        type=cli.count,
        default=0,
        help="of --real, only the so many that compose.py --hold_out leaves out",
    )
    parser.add_argument("--patch", type=cli.patch_size, default=64, help="side of what is compared, in px")
    parser.add_argument("--number", type=cli.number(int, 2, 2**20), default=1024, help="crops of each set")
    add_gain(parser, "range of the factor of real layers, as of the training pairs (compose.py)")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of codes and crops")
    parser.add_path("--csv", help="also write the table to this file")
    cli.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    p, number, gain = args.patch, args.number, gain_of(args)
    device = pick_device(args.use_gpu, args.gpu_id)
    real = read_layers(Path(args.real), "--real", p, args.hold_out)
    if len(real) < 2:
        raise UserError(f"--real: {args.real} holds one picture; two halves of several are compared")
    target = crops(real, number, p, gain, np.random.RandomState(args.seed))
    if target.std() < 1e-4:
        raise UserError(f"--real: the pictures of {args.real} (times --gain) are black or all the same")
    sets: dict[str, np.ndarray] = {}
    for name, path in zip(_names(args.netED), args.netED or (), strict=True):
        netED = load_generator(path, "--netED").eval().requires_grad_(False).to(device)
        if netED.patch_size < p:
            raise UserError(f"--patch {p}: {path} makes patches of {netED.patch_size} px; give --patch that or less")
        rng = np.random.RandomState(args.seed)
        layers = of_generator(netED, number, args.seed)
        sets[f"{name}, patches of G"] = layers if layers.shape[1] == p else crops(list(layers), number, p, (1, 1), rng)
        whole = of_pictures(netED, max(2, number // 16), args.seed)
        sets[f"{name}, whole pictures"] = crops(whole, number, p, (1, 1), rng)
    for name, folder in zip(_names(args.rain), args.rain or (), strict=True):
        theirs = read_layers(Path(folder), "--rain", p)
        sets[name] = crops(theirs, number, p, (1, 1), np.random.RandomState(args.seed))
    rng = np.random.RandomState(args.seed)
    sets["procedural rain, plain"] = procedural(number, p, PLAIN, rng)
    sets["procedural rain, varied"] = procedural(number, p, VARIED, rng)
    try:
        rows = [["two halves of the real rain", *floor(real, number, p, gain)]]
    except ValueError:
        raise UserError(
            f"--real: half of the pictures of {args.real} are black or all the same; remove those"
        ) from None
    bar = progress_bar(sets.items(), desc="comparing", unit="set", leave=False)
    rows += [[name, *sliced_wasserstein(target, layers, args.seed)] for name, layers in bar]
    sides = [f"{p >> level}_px" for level in range(len(rows[0]) - 1)]
    table = [["rain", "distance", *sides]] + [[name, np.mean(values), *values] for name, *values in rows]
    print_result(f"real rain: {len(real)} layers, {100 * (target > RAINY).mean():.1f}% of the pixels are rainy")
    print_result("sliced Wasserstein distance in % of the real deviation, mean and by level of the pyramid:")
    width = max(len(row[0]) for row in table)
    for row in table:
        cells = [f"{value:>9}" if isinstance(value, str) else f"{value:9.2f}" for value in row[1:]]
        print_result(f"{row[0]:<{width}}  {' '.join(cells)}")
    if args.csv:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(
            [cell(value) if isinstance(value, str) else f"{value:.4f}" for value in row] for row in table
        )
        write_bytes(Path(args.csv), out.getvalue().encode())
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
