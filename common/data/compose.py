"""Training pairs out of photos and rain streaks of your own: rainy = clip(clean + gain * streaks).

    python -m common.data.compose --clean PHOTOS --streaks STREAKS --out PAIRS --num 200 --seed 0

STREAKS is a folder of pictures of rain on black. A streak layer is cropped to the photo at random (and enlarged first
if it is too small), mirrored every second time, and made brighter or darker by --gain. --out is a folder, which gets
rain/ and norain/ (PNG) and compose.json (what each pair is made of). The same command goes on after an interruption.

--hold_out 20 leaves 20 photos and 20 streak layers out, evenly by name; the same command with --part held_out makes
pairs of these alone, to test on.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from .. import cli, flags
from ..errors import UserError
from ..files import write_bytes
from ..lock import locked
from ..terminal import progress_bar
from .images import BLACK, images_in, read_image, require_outside, to_eight_bits, write_image
from .pairs import spread

NAME = "compose.json"
FOLDERS = ("rain", "norain")
LOOKED_AT, DARK = 12, 64  # pictures of rain on black; grey level above which black ends
KEPT = 8  # decoded streak layers in memory
PHOTO, STREAKS = 0, 1  # first number of a seed: the order of the photos, the rain on them

T = TypeVar("T")


def part_of(files: Sequence[T], hold_out: int, part: str) -> list[T]:
    """What of a folder is used: of part 'held_out' so many files, spread evenly in natural order; of 'train' the rest.

    Raises:
        UserError: nothing is left.
    """
    number = min(hold_out, len(files))
    kept_out = {k * len(files) // number for k in range(number)}
    chosen = [path for i, path in enumerate(files) if (i in kept_out) == (part == "held_out")]
    if not chosen:
        remedy = "give a larger number" if part == "held_out" else "give a smaller number"
        raise UserError(f"--hold_out: {hold_out} of {len(files)} files leaves none to use; {remedy}")
    return chosen


def fitted(streaks: np.ndarray, height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
    """A crop of a streak layer, mirrored every second time; enlarged before where it is smaller than the picture.

    Args:
        streaks: (H, W, 3) uint8, rain on black.
        height, width: of the picture, in px.

    Returns:
        (height, width, 3) uint8.
    """
    scale = max(height / streaks.shape[0], width / streaks.shape[1])
    if scale > 1:
        least = zip(streaks.shape[:2], (height, width), strict=True)
        size = [max(int(np.ceil(side * scale - 1e-6)), enough) for side, enough in least]
        streaks = cv2.resize(streaks, size[::-1], interpolation=cv2.INTER_CUBIC)
    top = rng.randint(streaks.shape[0] - height + 1)
    left = rng.randint(streaks.shape[1] - width + 1)
    crop = streaks[top : top + height, left : left + width]
    return crop[:, ::-1] if rng.randint(2) else crop


def composed(clean: np.ndarray, layers: Sequence[np.ndarray], gains: Sequence[float]) -> np.ndarray:
    """O = clip(B + sum of gain * R), rounded: (H, W, 3) uint8 and streak layers of that kind -> (H, W, 3) uint8."""
    rain = sum(gain * layer.astype(np.float32) for gain, layer in zip(gains, layers, strict=True))
    return np.rint(np.clip(clean + rain, 0, 255)).astype(np.uint8)


@functools.lru_cache(KEPT)
def _streaks(path: Path) -> np.ndarray:
    return to_eight_bits(read_image(path, BLACK))


def rain_pictures(folder: Path, flag: str) -> list[Path]:
    """The pictures of rain on black in a folder that a flag names, in natural order.

    Raises:
        UserError: see ``images_in``; or in most of those looked at half of the pixels are bright, as in photos.
    """
    files = [
        Path(folder, name) for name in images_in(Path(folder), flag, "Name a folder of pictures of rain on black.")
    ]
    some = spread(files, LOOKED_AT)
    if np.median([np.median(_streaks(path)) for path in some]) > DARK:
        raise UserError(
            f"{flag}: {folder} has no pictures of rain on black; half of the pixels of {some[0].name} and others are "
            f"brighter than {DARK} of 255. Name the folder of rain, not that of photos"
        )
    return files


def planned(args: argparse.Namespace, photos: Sequence[Path], streaks: Sequence[Path]) -> list[dict]:
    """What each pair is made of, as compose.json lists it; it depends on the seed and the number of the pair alone."""
    rows = []
    for number in range(args.num):
        turn, place = divmod(number, len(photos))
        if place == 0:  # each turn goes through all photos, in an order of its own
            order = np.random.RandomState([PHOTO, args.seed, turn]).permutation(len(photos))
        photo, rng = photos[order[place]], np.random.RandomState([STREAKS, args.seed, number])
        chosen = rng.choice(len(streaks), args.layers, replace=args.layers > len(streaks))
        gains = [round(float(rng.uniform(*args.gain)), 4) for _ in chosen]
        name = f"{number + 1:05d}_{photo.stem}.png"
        rows.append({"file": name, "photo": str(photo), "streaks": [str(streaks[i]) for i in chosen], "gains": gains})
    return rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, cli.typed("data.compose"))
    flags.add_path(parser, "--clean", required=True, help="folder of clean photos")
    flags.add_path(parser, "--streaks", required=True, help="folder of rain streaks on black")
    flags.add_path(parser, "--out", required=True, help="folder for the pairs")
    parser.add_argument("--num", type=cli.number(int, 1, 1_000_000), required=True, help="pairs to make")
    parser.add_argument("--seed", type=cli.seed, default=0, help="another one gives other pairs")
    parser.add_argument("--layers", type=cli.number(int, 1, 16), default=1, help="streak layers on one photo")
    gain = {"type": cli.number(float, 0, 10), "nargs": 2, "default": [0.8, 1.2], "metavar": ("LOW", "HIGH")}
    parser.add_argument("--gain", **gain, help="range of the factor of a layer")
    kept_out = "photos, and as many streak layers, that --part train leaves out"
    parser.add_argument("--hold_out", type=cli.count, default=0, help=kept_out)
    which = "which part of photos and streaks to use"
    parser.add_argument("--part", choices=("train", "held_out"), default="train", help=which)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    out, sources = Path(args.out), {"--clean": Path(args.clean), "--streaks": Path(args.streaks)}
    require_outside("--out", out, sources)
    names = images_in(args.clean, "--clean", "Name a folder of photos without rain.")
    clean = [Path(args.clean, name) for name in names]
    streaks = rain_pictures(args.streaks, "--streaks")
    photos, streaks = (part_of(files, args.hold_out, args.part) for files in (clean, streaks))
    settings = {
        "clean": [str(path) for path in photos],
        "streaks": [str(path) for path in streaks],
        **{key: getattr(args, key) for key in ("num", "seed", "layers", "gain")},
    }
    print(f"{len(photos)} photos, {len(streaks)} streak layers")
    rows = planned(args, photos, streaks)
    table = json.dumps({"settings": settings, "pairs": rows}, indent=1).encode("utf-8", "replace")
    with locked(out, "--out"):
        listed = (out / NAME).read_bytes() if (out / NAME).is_file() else None
        if any((out / folder).exists() for folder in FOLDERS) and listed != table:
            raise UserError(
                f"--out: {out} holds rain/ or norain/ of another command; choose another folder, or delete it"
            )
        write_bytes(out / NAME, table)
        for number, row in enumerate(progress_bar(rows, desc="composing", unit="pair")):
            files = [out / folder / row["file"] for folder in FOLDERS]
            if all(file.exists() for file in files):  # they appear whole
                continue
            clean, rng = to_eight_bits(read_image(row["photo"])), np.random.RandomState([STREAKS, args.seed, number, 1])
            layers = [fitted(_streaks(path), *clean.shape[:2], rng) for path in row["streaks"]]
            write_image(files[0], composed(clean, layers, row["gains"]))
            write_image(files[1], clean)
    print(f"{len(rows)} pairs are in {out}; train with --data_path {out / 'rain'} --gt_path {out / 'norain'}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
