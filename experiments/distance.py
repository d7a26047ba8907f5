"""How far generated rain is from real rain: a distance, a classifier's judgement, angles and straightness.

    python experiments/distance.py --real STREAKS --hold_out 20 --netED ED_state_N.pt

STREAKS is a folder of pictures of rain on black. Give the --hold_out of the generator's training: what was held out is
what rain is compared with; classifiers learn from the other layers. Rows to read the generator's by: real rain against
real rain, and procedural rain, which a generator should beat. Columns:

distance  sliced Wasserstein distance (Karras et al., ICLR 2018), mean of the levels of a Laplacian pyramid that follow,
          in % of the real deviation on a level; two halves of few layers may differ much
auc_N     how well a small classifier tells N px crops from real ones that it never saw, the largest AUC of three: 0.5
          chance (less is chance, too), 1 always; N is that of G's patches, and twice that for whole pictures
strict_N  the same with a stronger classifier, which finds far smaller differences; two_sample.py
angles    deviation of the angles of patches, in degrees: as large as that of real rain, it is as varied
within    the same among the patches of a picture, median of pictures: as small as that of real rain, it has one wind
bend      by how many degrees streaks change their direction along themselves: as small as that of real rain; streaks.py
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags
from common.data.compose import part_of, rain_pictures
from common.data.demo import PLAIN, rain_layer
from common.data.images import BLACK, read_image, size_text, to_float
from common.data.layers import variant
from common.errors import UserError
from common.files import write_bytes
from common.generation.latent import base_code
from common.generation.rain import RainMaker, sampled
from common.models import EDNet
from common.terminal import print_result, progress_bar
from common.training.checkpoint import load_generator
from common.training.device import pick_device
from experiments.streaks import median_bend, spread_over, spread_within
from experiments.two_sample import SMALL, STEPS, STRICT, largest_auc

Layers = Sequence[np.ndarray]  # each (H, W) float32 in [0, 1]

PATCH = 7  # px: side of the patches that are compared
LINES = 128  # random directions
PER_LAYER = 32  # patches of a level of a layer
SMALLEST = 16  # px: side of the coarsest level
HALVINGS = 5  # ways of halving the real layers, over which the floor is averaged
NUMBER = 1024  # crops of each set
BIG = 256  # px: side of the layers of whole pictures, of which crops are compared; or twice the generator's patch
SHARE = 16  # crops from a whole picture
VARIANTS = 200  # of the real layers together, at least one of each
SEED = 0  # of codes and crops
HALVES, TRAINING = "two halves of the real rain", "real rain of the training"  # rows

# Procedural rain, drawn for each layer over about the range that learned rain has to cover; the demo's is PLAIN.
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
    """
    rng, distances = np.random.RandomState(seed), []
    for level_a, level_b in zip(pyramid(a), pyramid(b), strict=True):
        lines = rng.standard_normal((PATCH**2, LINES)).astype(np.float32)
        lines /= np.linalg.norm(lines, axis=0)
        ours, theirs = (np.sort(patches(level, rng) @ lines, axis=0) for level in (level_a, level_b))
        distances.append(float(100 * np.abs(ours - theirs).mean() / level_a.std()))
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


def vary(layers: Layers, smallest: int) -> list[np.ndarray]:
    """Variants of real layers as G learns from, see ``layers.variant``: (H, W) in [0, 1] to about that size."""
    made = []
    for k in range(max(VARIANTS, len(layers))):
        turn, i = divmod(k, len(layers))
        changed = variant(eight_bits(layers[i])[..., None], np.random.RandomState([SEED, i, turn]), smallest)
        made.append(to_float(changed)[..., 0])
    return made


def read_layers(folder: Path, smallest: int) -> list[np.ndarray]:
    """All pictures of a folder as grey layers.

    Raises:
        UserError: see ``rain_pictures``; or a picture can't be read or is too small.
    """
    layers = []
    for path in rain_pictures(folder, "--real"):
        pixels = read_image(path, BLACK)
        if min(pixels.shape[:2]) < smallest:
            text = f"{path} is {size_text(pixels.shape)}, smaller than the {smallest} px that are compared"
            raise UserError(f"--real: {text}")
        layers.append(to_float(pixels).mean(2))
    return layers


def select(made: Layers, layers: int, chosen: Iterable[int]) -> list[np.ndarray]:
    """What ``vary`` made of the chosen ones of so many layers."""
    return [layer for i in chosen for layer in made[i::layers]]


def floor_distance(made: Layers, layers: int, p: int) -> np.ndarray:
    """Mean distance between two random halves of the real layers on each level; ``made``: their variants."""
    distances = []
    for k in range(HALVINGS):
        rng = np.random.RandomState(1000 + k)
        halves = np.split(rng.permutation(layers), [layers // 2])
        a, b = (crops(select(made, layers, half), NUMBER, p, rng) for half in halves)
        distances.append(sliced_wasserstein(a, b, seed=k))
    return np.mean(distances, 0)


class Rain(NamedTuple):
    """A set of rain that is measured."""

    crops: np.ndarray  # (NUMBER, p, p) float32 in [0, 1]
    pictures: Layers  # whole ones, each (H, W)
    known: dict[int, np.ndarray]  # crops that classifiers learn from, twice as many, by their side p: (N, p, p) uint8
    fresh: dict[int, np.ndarray]  # crops that classifiers are measured on


def eight_bits(crops: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8: as pictures hold rain, and in a quarter of the memory."""
    return np.rint(255 * crops).astype(np.uint8)


def by_side(layers: Layers, sides: Sequence[int], number: int) -> dict[int, np.ndarray]:
    """Crops of each side: {p: (number, p, p) uint8}; none without layers."""
    return {p: eight_bits(crops(layers, number, p, np.random.RandomState(p))) for p in sides if layers}


def of_layers(layers: Layers, known: Layers, fresh: Layers, p: int) -> Rain:
    """Real rain: layers that are compared, that classifiers learn from, and that they are measured on."""
    cut = crops(layers, NUMBER, p, np.random.RandomState(SEED))
    sides = p, 2 * p
    return Rain(cut, layers, by_side(known, sides, 2 * NUMBER), by_side(fresh, sides, NUMBER))


def of_pictures(layers: Layers, p: int) -> Rain:
    """Whole pictures, the first of which are measured; classifiers learn from the others."""
    count = max(2, NUMBER // SHARE)
    cut = crops(layers[:count], NUMBER, p, np.random.RandomState(SEED))
    known, fresh = by_side(layers[count:], [2 * p], 2 * NUMBER), by_side(layers[:count], [2 * p], NUMBER)
    return Rain(cut, layers[:count], known, fresh)


@torch.no_grad()
def other_rain(netED: EDNet, name: str, p: int) -> Iterator[tuple[str, Rain]]:
    """The names and sets of rain that are compared with real rain: of a generator, and procedural."""
    side, pictures = max(BIG, 2 * p), 3 * max(2, NUMBER // SHARE)
    made = sampled(netED, base_code(netED.nz, SEED, 3 * NUMBER)).clamp(0, 1).mean(1).cpu().numpy()
    own, rest = made[:NUMBER], made[NUMBER:]
    yield f"{name}, patches of G", Rain(own, (), {p: eight_bits(rest)}, {p: eight_bits(own)})
    maker, rng = RainMaker(netED), np.random.RandomState(SEED)
    layers = (maker.layer(side, side, 0.5, rng) for _ in range(pictures))
    yield f"{name}, whole pictures", of_pictures([layer.clamp(0, 1).mean(0).cpu().numpy() for layer in layers], p)
    for kind, ranges in (("plain", PLAIN), ("varied", VARIED)):
        made = draw_layers(3 * NUMBER, p, ranges, SEED)
        rain = of_pictures(list(draw_layers(pictures, side, ranges, [SEED, 1])), p)
        own, rest = made[:NUMBER], made[NUMBER:]
        known, fresh = rain.known | {p: eight_bits(rest)}, rain.fresh | {p: eight_bits(own)}
        yield f"procedural rain, {kind}", Rain(own, rain.pictures, known, fresh)


def aucs(real: Rain, rain: Rain, p: int, device: torch.device) -> list[float]:
    """See ``largest_auc``, of each kind for crops of p and 2 p px; nan where there are none."""
    values = []
    for kind, side in product((SMALL, STRICT), (p, 2 * p)):
        if side in rain.known and side in rain.fresh:
            known, fresh = (real.known[side], rain.known[side]), (real.fresh[side], rain.fresh[side])
            values.append(largest_auc(known, fresh, device, kind, STEPS))
        else:
            values.append(np.nan)
    return values


def compare(
    learnt: Layers, kept_out: Layers, others: Iterator[tuple[str, Rain]], p: int, device: torch.device
) -> Iterator[list]:
    """Rows of the table as they get ready: name, distance, distance by level, AUCs, angles, within, bend.

    Args:
        learnt, kept_out: real layers that the generator learned from, and those that rain is compared with.
        others: names and sets of what is compared with them.
    """
    known, made = vary(learnt, 2 * p), vary(kept_out, 2 * p)
    real, count = of_layers(made, known, made, p), len(learnt)

    def row(name: str, rain: Rain, distances: Sequence[float], judged: Sequence[float]) -> list:
        cut = [picture[:BIG, :BIG] for picture in rain.pictures]  # of one size, since angles drift across a picture
        seen = spread_over(rain.crops), spread_within(cut, p), median_bend(rain.crops)
        return [name, np.mean(distances), *distances, *judged, *seen]

    distances = floor_distance(made, len(kept_out), p)
    # Real against real: a half of the layers to learn from is real, a quarter the other rain, a quarter fresh.
    half, quarter, rest = (select(known, count, range(i, count, step)) for i, step in ((0, 2), (1, 4), (3, 4)))
    judged = aucs(of_layers(made, half, made, p), of_layers(made, quarter, rest, p), p, device)
    yield row(HALVES, real, distances, judged)
    for name, rain in [(TRAINING, of_layers(known, (), (), p)), *others]:
        yield row(name, rain, sliced_wasserstein(real.crops, rain.crops, SEED), aucs(real, rain, p, device))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, __file__)
    flags.add_path(parser, "--real", required=True, help="folder of real rain on black")
    flags.add_netED(parser, required=True)
    parser.add_argument("--hold_out", type=cli.number(int, 2), default=20, help="layers that were held out in training")
    flags.add_path(parser, "--csv", help="also write the table to this file")
    flags.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = pick_device(args.use_gpu, args.gpu_id)
    netED = load_generator(args.netED, "--netED").eval().requires_grad_(False).to(device)
    p, name = netED.patch_size, Path(args.netED).name
    layers = read_layers(Path(args.real), 2 * p)
    learnt, kept_out = (part_of(layers, args.hold_out, part) for part in ("train", "held_out"))
    print_result(f"real rain: {len(kept_out)} layers; classifiers learn from {len(learnt)} others")
    levels = [f"{p >> level}_px" for level in range(p.bit_length() - SMALLEST.bit_length() + 1)]
    judges = [f"{kind}_{side}" for kind, side in product((SMALL, STRICT), (p, 2 * p))]
    columns = ["distance", *levels, *judges, "angles", "within", "bend"]
    table, width = [["rain", *columns]], max(len(HALVES), len(name) + 16)
    print_result(f"{'rain':<{width}} {' '.join(f'{column:>10}' for column in columns)}")
    rows = compare(learnt, kept_out, other_rain(netED, name, p), p, device)
    for name, *values in progress_bar(rows, desc="comparing", unit="set", leave=False):  # a minute or two each
        texts = ["" if np.isnan(value) else f"{value:.4f}" for value in values]
        print_result(f"{name:<{width}} {' '.join((text or '-').rjust(10) for text in texts)}")
        table.append([name, *texts])
    if args.csv:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(table)
        write_bytes(Path(args.csv), out.getvalue().encode())
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
