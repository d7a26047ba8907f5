"""How far generated rain is from real rain: a distance, a classifier's judgement, angles and straightness.

    python -m common.evaluation.distance --real STREAKS --hold_out 20 --netED ED_state_N.pt
    python -m common.evaluation.distance --real STREAKS --rain LAYERS [OTHERS ...] --steps 0

STREAKS and LAYERS are folders of pictures of rain on black (generate_rain.py --save_layer writes such ones to layer/).
Rows to read the others by: real rain against real rain, and procedural rain, which a generator should beat. Give the
--hold_out of the generator's training; without it, classifiers learn from every second real layer and are measured on
the others.
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import torch

from .. import cli, flags
from ..data.compose import part_of
from ..data.demo import rain_layer
from ..data.images import read_image, size_text, to_float
from ..data.layers import variant
from ..data.pairs import images_in
from ..errors import UserError
from ..files import cell, write_bytes
from ..generation.latent import base_code
from ..generation.rain import RainMaker, sampled
from ..models import EDNet
from ..terminal import print_result, progress_bar
from ..training.checkpoint import load_generator
from ..training.device import pick_device
from .metrics import labels
from .streaks import median_bend, spread_over, spread_within
from .two_sample import SMALL, STEPS, STRICT, largest_auc

Layers = Sequence[np.ndarray]  # each (H, W) float32 in [0, 1]

PATCH = 7  # px: side of the patches that are compared
LINES = 128  # random directions
PER_LAYER = 32  # patches of a level of a layer
SMALLEST = 16  # px: side of the coarsest level
HALVINGS = 5  # ways of halving the real layers, over which the floor is averaged
BIG = 256  # px: side of the layers of whole pictures, of which crops are compared; or twice --patch
SHARE = 16  # crops from a whole picture
VARIANTS = 200  # of the real layers together, at least one of each
LEGEND = """\
distance  sliced Wasserstein distance (Karras et al., ICLR 2018), mean of the levels of a Laplacian pyramid that follow,
          in % of the real deviation on a level; two halves of few layers may differ much
auc_N     how well a small classifier tells N px crops from real ones that it never saw, the largest AUC of three: 0.5
          chance (less is chance, too), 1 always; N is that of G's patches, and twice that for whole pictures
strict_N  the same with a stronger classifier, which finds far smaller differences; two_sample.py
angles    deviation of the angles of patches, in degrees: as large as that of real rain, it is as varied
within    the same among the patches of a picture, median of pictures: as small as that of real rain, it has one wind
bend      by how many degrees streaks change their direction along themselves: as small as that of real rain; streaks.py
"""
HALVES, TRAINING = "two halves of the real rain", "real rain of the training"  # rows

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
    """Random 7x7 patches of a level (N, h, h), as vectors (PER_LAYER N, 49)."""
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


def crops(layers: Layers, number: int, p: int, rng: np.random.RandomState) -> np.ndarray:
    """Random crops of layers, each (H, W) in [0, 1], half of them mirrored: (number, p, p) float32 in [0, 1]."""
    made = np.empty((number, p, p), np.float32)
    for k in range(number):
        layer = layers[k % len(layers)]
        top, left = rng.randint(layer.shape[0] - p + 1), rng.randint(layer.shape[1] - p + 1)
        crop = layer[top : top + p, left : left + p]
        made[k] = crop[:, ::-1] if rng.randint(2) else crop
        rng.random_sample()  # of a factor that is gone: the figures of the generators' cards stay
    return made


def draw_layers(number: int, p: int, ranges: dict[str, tuple[float, float]], seed: int | list[int]) -> np.ndarray:
    """Layers of drawn streaks, (number, p, p) float32 in [0, 1], each with its own draw from ``ranges``."""
    rng, made = np.random.RandomState(seed), []
    for _ in range(number):
        layer_seed = int(rng.randint(2**31))
        how = {name: rng.uniform(*ends) for name, ends in ranges.items()}
        made.append(rain_layer((p, p), layer_seed, **how)[..., 0])
    return np.stack(made)


@torch.no_grad()
def sample_patches(netED: EDNet, number: int, seed: int) -> np.ndarray:
    """Patches of G for random codes: (number, p, p) float32 in [0, 1], the mean of the channels."""
    rain = sampled(netED, base_code(netED.nz, seed, number))
    return rain.clamp(0, 1).mean(1).cpu().numpy()


def sample_pictures(netED: EDNet, number: int, side: int, seed: int) -> list[np.ndarray]:
    """Square layers as generate_rain.py makes them for whole pictures, each (side, side) float32 in [0, 1]."""
    maker, rng = RainMaker(netED), np.random.RandomState(seed)
    layers = (maker.layer(side, side, 0.5, rng) for _ in range(number))
    return [layer.clamp(0, 1).mean(0).cpu().numpy() for layer in layers]


def vary(layers: Layers, smallest: int, seed: int) -> list[np.ndarray]:
    """Variants of real layers as G learns from, see ``layers.variant``: (H, W) in [0, 1] to about that size."""
    made = []
    for k in range(max(VARIANTS, len(layers))):
        turn, i = divmod(k, len(layers))
        changed = variant(eight_bits(layers[i])[..., None], np.random.RandomState([seed, i, turn]), smallest)
        made.append(to_float(changed)[..., 0])
    return made


def read_layers(folder: Path, flag: str, p: int) -> list[np.ndarray]:
    """All pictures of a folder as grey layers.

    Raises:
        UserError: the folder is missing or empty, or a picture can't be read or is smaller than a patch.
    """
    layers = []
    for name in images_in(folder, flag, "Name one of pictures of rain on black."):
        pixels = read_image(folder / name)
        if min(pixels.shape[:2]) < p:
            raise UserError(f"{flag}: {folder / name} is {size_text(pixels.shape)}, smaller than the {p} px compared")
        layers.append(to_float(pixels).mean(2))
    return layers


def select(made: Layers, layers: int, chosen: Iterable[int]) -> list[np.ndarray]:
    """What ``vary`` made of the chosen ones of so many layers."""
    return [layer for i in chosen for layer in made[i::layers]]


def floor_distance(made: Layers, layers: int, number: int, p: int) -> np.ndarray:
    """Mean distance between two random halves of the real layers on each level; ``made``: their variants."""
    distances = []
    for k in range(HALVINGS):
        rng = np.random.RandomState(1000 + k)
        halves = np.split(rng.permutation(layers), [layers // 2])
        a, b = (crops(select(made, layers, half), number, p, rng) for half in halves)
        distances.append(sliced_wasserstein(a, b, seed=k))
    return np.mean(distances, 0)


@dataclass
class Rain:
    """A set of rain that is measured."""

    crops: np.ndarray  # (number, p, p) float32 in [0, 1]
    pictures: Layers  # whole ones, each (H, W)
    known: dict[int, np.ndarray]  # crops that classifiers learn from, by their side p: (N, p, p) uint8
    fresh: dict[int, np.ndarray]  # crops that classifiers are measured on


def eight_bits(crops: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8: as pictures hold rain, and in a quarter of the memory."""
    return np.rint(255 * crops).astype(np.uint8)


def by_side(layers: Layers, sides: Sequence[int], number: int) -> dict[int, np.ndarray]:
    """Crops of each side for which the layers are large enough: {p: (number, p, p) uint8}."""
    least = min((min(layer.shape) for layer in layers), default=0)
    return {p: eight_bits(crops(layers, number, p, np.random.RandomState(p))) for p in sides if p <= least}


def make_sets(
    args: argparse.Namespace, sides: Sequence[int], nets: dict[str, EDNet], folders: dict[str, list[np.ndarray]]
) -> Iterator[tuple[str, Rain]]:
    """The names and sets of rain that are compared with real rain. Classifiers learn from twice as many crops."""
    p, big, number, seed = sides[0], sides[-1], args.number, args.seed
    pictures, times = max(2, number // SHARE), 3 if args.steps else 1

    def whole(layers: Layers) -> Rain:
        """Of whole pictures, the first of which are measured."""
        ours = layers[:pictures]
        cut = crops(ours, number, p, np.random.RandomState(seed))
        return Rain(cut, ours, by_side(layers[pictures:], [big], 2 * number), by_side(ours, [big], number))

    for name, netED in nets.items():
        made = sample_patches(netED, times * number, seed)
        if made.shape[1] != p:
            made = crops(made, len(made), p, np.random.RandomState(seed))
        own, rest = made[:number], made[number:]
        yield f"{name}, patches of G", Rain(own, (), {p: eight_bits(rest)}, {p: eight_bits(own)})
        yield f"{name}, whole pictures", whole(sample_pictures(netED, times * pictures, max(BIG, big), seed))
    for name, layers in folders.items():
        cut = crops(layers, number, p, np.random.RandomState(seed))
        yield name, Rain(cut, layers, by_side(layers[::2], sides, 2 * number), by_side(layers[1::2], sides, number))
    for name, ranges in (("plain", PLAIN), ("varied", VARIED)):
        made = draw_layers(times * number, p, ranges, seed)
        rain = whole(draw_layers(times * pictures, max(BIG, big), ranges, [seed, 1]))
        own, rest = made[:number], made[number:]
        rain = Rain(own, rain.pictures, rain.known | {p: eight_bits(rest)}, rain.fresh | {p: eight_bits(own)})
        yield f"procedural rain, {name}", rain


def aucs(real: Rain, rain: Rain, sides: Sequence[int], steps: int, device: torch.device) -> list[float]:
    """See ``largest_auc``, of each kind for crops of each side; nan where there are none."""
    values = []
    for kind, p in product((SMALL, STRICT), sides):
        if steps and all(p in crops for crops in (real.known, rain.known, real.fresh, rain.fresh)):
            known, fresh = (real.known[p], rain.known[p]), (real.fresh[p], rain.fresh[p])
            values.append(largest_auc(known, fresh, device, kind, steps))
        else:
            values.append(np.nan)
    return values


def compare(
    args: argparse.Namespace,
    device: torch.device,
    sides: Sequence[int],
    parts: Sequence[list[np.ndarray]],
    others: Iterator[tuple[str, Rain]],
) -> Iterator[list]:
    """Rows of the table as they get ready: name, distance, distance by level, AUCs, angles, within, bend.

    Args:
        sides: of the crops that classifiers tell apart, the first one that of all else.
        parts: real layers that are compared, that classifiers learn from, and that they are measured on.
        others: names and sets of what is compared with them.
    """
    p, number = sides[0], args.number
    ready = {id(part): vary(part, sides[-1], args.seed) for part in parts}
    made, learnt, fresh = (ready[id(part)] for part in parts)  # two of them may be the same

    def real_rain(layers: Layers, known: Layers, fresh: Layers) -> Rain:
        cut = crops(layers, number, p, np.random.RandomState(args.seed))
        return Rain(cut, layers, by_side(known, sides, 2 * number), by_side(fresh, sides, number))

    def row(name: str, rain: Rain, judged: Sequence[float], distances: Sequence[float] | None = None) -> list:
        if distances is None:
            distances = sliced_wasserstein(real.crops, rain.crops, args.seed)
        cut = [picture[:BIG, :BIG] for picture in rain.pictures]  # of one size, since angles drift across a picture
        seen = spread_over(rain.crops), spread_within(cut, p), median_bend(rain.crops)
        return [name, np.mean(distances), *distances, *judged, *seen]

    real, count = real_rain(made, learnt, fresh), len(parts[1])
    try:
        distances = floor_distance(made, len(parts[0]), number, p)
    except ValueError:
        raise UserError(f"--real: half of the pictures of {args.real} are black or all the same") from None
    # Real against real: a half of the layers to learn from is real, a quarter the other rain, a quarter fresh.
    half, quarter, rest = (select(learnt, count, range(i, count, step)) for i, step in ((0, 2), (1, 4), (3, 4)))
    known = replace(real, known=by_side(half, sides, 2 * number))
    judged = aucs(known, real_rain(made, quarter, rest), sides, args.steps, device)
    yield row(HALVES, real, judged, distances)
    if args.hold_out:
        yield row(TRAINING, real_rain(learnt, (), ()), [np.nan] * len(judged))
    for name, rain in others:
        yield row(name, rain, aucs(real, rain, sides, args.steps, device))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__ + "\n" + LEGEND, module=__spec__.name)
    parser.add_path("--real", required=True, help="folder of real rain on black")
    parser.add_netED(nargs="+")
    parser.add_path("--rain", nargs="+", help="folders of other rain on black")
    parser.add_argument(
        "--hold_out",
        type=cli.count,
        default=0,
        help="so many of --real, which training with the same --hold_out never sees, are what is compared",
    )
    parser.add_argument("--patch", type=cli.patch_size, default=64, help="side of what is compared, in px")
    parser.add_argument("--number", type=cli.number(int, 2, 2**20), default=1024, help="crops of each set")
    parser.add_argument(
        "--steps", type=cli.count, default=STEPS, help="of training of a classifier; 0: no classifiers, which is quick"
    )
    parser.add_argument("--seed", type=cli.seed, default=0, help="of codes and crops")
    parser.add_path("--csv", help="also write the table to this file")
    flags.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    p, device = args.patch, pick_device(args.use_gpu, args.gpu_id)
    layers = read_layers(Path(args.real), "--real", p)
    parts = layers, layers[::2], layers[1::2]
    if args.hold_out:
        try:
            learnt, kept_out = (part_of(layers, args.hold_out, part) for part in ("train", "held_out"))
        except ValueError as error:
            raise UserError(f"--hold_out: {error}") from None
        parts = kept_out, learnt, kept_out
    if len(parts[0]) < 2:
        raise UserError(f"--real: only one picture of {args.real} is compared; two halves of several are needed")
    nets, folders = {}, {}
    for name, path in zip(labels(args.netED or []), args.netED or [], strict=True):
        nets[name] = load_generator(path, "--netED").eval().requires_grad_(False).to(device)
        if nets[name].patch_size < p:
            raise UserError(f"--patch {p}: {path} makes patches of {nets[name].patch_size} px; give that or less")
    for name, folder in zip(labels(args.rain or []), args.rain or [], strict=True):
        folders[name] = read_layers(Path(folder), "--rain", p)
    sides = [p, 2 * p] if min(min(layer.shape) for layer in layers) >= 2 * p else [p]

    print_result(
        f"real rain: {len(parts[0])} layers; classifiers learn from {len(parts[1])}, measured on {len(parts[2])}"
    )
    levels = [f"{p >> level}_px" for level in range(p.bit_length() - SMALLEST.bit_length() + 1)]
    judges = [f"{kind}_{side}" for kind, side in product((SMALL, STRICT), sides)]
    columns = ["distance", *levels, *judges, "angles", "within", "bend"]
    table = [["rain", *columns]]
    width = max(map(len, [HALVES, *(f"{name}, whole pictures" for name in nets), *folders]))
    print_result(f"{'rain':<{width}} {' '.join(f'{column:>8}' for column in columns)}")
    rows = compare(args, device, sides, parts, make_sets(args, sides, nets, folders))
    for name, *values in progress_bar(rows, desc="comparing", unit="set", leave=False):  # a minute or two each
        texts = [
            "-" if np.isnan(value) else f"{value:.{3 if column in judges else 2}f}"
            for column, value in zip(columns, values, strict=True)
        ]
        print_result(f"{name:<{width}} {' '.join(f'{text:>8}' for text in texts)}")
        table.append([cell(name), *("" if np.isnan(value) else f"{value:.4f}" for value in values)])
    print_result(LEGEND.rstrip())
    if args.csv:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(table)
        write_bytes(Path(args.csv), out.getvalue().encode())
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
