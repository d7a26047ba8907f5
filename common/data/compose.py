"""Training pairs out of photos and rain streaks of your own: rainy = clip(clean + gain * streaks).

    python -m common.data.compose --clean PHOTOS --streaks STREAKS --out PAIRS --num 200 --seed 0
    python -m common.data.compose --clean PHOTOS --streaks STREAKS --out pairs.h5 --num 200 --seed 0

STREAKS is a folder of pictures of rain on black. A streak layer is cropped to the photo at random (and enlarged first
if it is too small), mirrored every second time, and made brighter or darker by --gain. --out is a pack (.h5), or a
folder, which gets rain/ and norain/ (PNG) and compose.json (what each pair is made of). For a folder, the same command
goes on after an interruption.

--hold_out 20 leaves 20 photos and 20 streak layers out, evenly by name; the same command with --part held_out makes
pairs of these alone, to test on.
"""

import argparse
import functools
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from .. import cli
from ..errors import UserError
from ..files import UNFINISHED, write_bytes
from ..terminal import printable, progress_bar
from . import pack
from .images import ImageError, image_size, images_in, read_image, size_text, to_eight_bits, write_image
from .pairs import Pair, fail

NAME = "compose.json"
FOLDERS = ("rain", "norain")
KEPT = 8  # decoded streak layers in memory
STEM = 100  # bytes of a photo's name in that of its pairs, short enough for every file system
PHOTO, STREAKS = 0, 1  # first number of a seed: the order of the photos, the rain on them

T = TypeVar("T")


def held_out(number: int, count: int) -> np.ndarray:
    """Places of ``number`` files, spread evenly over ``count`` files in natural order: (number,) whole numbers."""
    return (np.arange(number) * count // max(number, 1)).astype(int)


def part_of(files: Sequence[T], hold_out: int, part: str) -> list[T]:
    """What of a folder is used: 'train' is what ``held_out`` leaves, 'held_out' the rest.

    Raises:
        ValueError: nothing is left.
    """
    kept_out = set(held_out(min(hold_out, len(files)), len(files)).tolist())
    chosen = [path for i, path in enumerate(files) if (i in kept_out) == (part == "held_out")]
    if not chosen:
        raise ValueError(f"--hold_out {hold_out} of {len(files)} files leaves none for --part {part}")
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
    return to_eight_bits(read_image(path))


@functools.lru_cache(1)
def _order(seed: int, turn: int, number: int) -> np.ndarray:
    """In which order a turn goes through all photos."""
    return np.random.RandomState([PHOTO, seed, turn]).permutation(number)


class ComposedPair(Pair):
    """A pair that is composed when it is read; its photo, streaks and gains depend on the seed and its number alone.

    Args:
        number: of the pair, from 0 on.
        photos, streaks: all files to choose from.
        layers: streak layers on one photo.
        gain: lowest and highest factor of a layer.
        label: how its name begins.
    """

    layers: list[Path]
    gains: list[float]
    _seed: list[int]

    def __init__(
        self,
        number: int,
        photos: Sequence[Path],
        streaks: Sequence[Path],
        seed: int,
        layers: int,
        gain: tuple[float, float],
        label: str = "",
    ) -> None:
        turn, place = divmod(number, len(photos))
        photo = photos[_order(seed, turn, len(photos))[place]]
        rng = np.random.RandomState([STREAKS, seed, number])
        chosen = [streaks[i] for i in rng.choice(len(streaks), layers, replace=layers > len(streaks))]
        stem = os.fsencode(photo.stem)[:STEM].decode(errors="ignore")
        super().__init__(f"{label}{number + 1:05d}_{stem}.png", chosen[0], photo)
        object.__setattr__(self, "layers", chosen)
        object.__setattr__(self, "gains", [round(float(rng.uniform(*gain)), 4) for _ in chosen])
        object.__setattr__(self, "_seed", [STREAKS, seed, number, 1])

    def format(self) -> tuple[int, int, type]:
        """Height, width and pixel type: those of the photo, in 8 bits."""
        return *image_size(self.clean), np.uint8

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Rainy and clean, each (H, W, 3) uint8.

        Raises:
            ImageError: the photo or a streak layer can't be read.
        """
        clean, rng = to_eight_bits(read_image(self.clean)), np.random.RandomState(self._seed)
        height, width = clean.shape[:2]
        layers = [fitted(_streaks(path), height, width, rng) for path in self.layers]
        return composed(clean, layers, self.gains), clean


def _images(flag: str, folder: Path, hold_out: int, part: str, hint: str) -> list[Path]:
    """The images of a folder that take part, as whole paths; every header is read."""
    try:
        paths = part_of([folder / name for name in images_in(folder, flag, hint)], hold_out, part)
    except ValueError as error:
        raise UserError(f"{flag}: {error}; give a smaller --hold_out") from None
    problems = []
    for path in paths:
        try:
            image_size(path)
        except ImageError as error:
            problems.append(str(error))
    fail(problems, f"{flag}: {len(problems)} of {len(paths)} files can't be used:", "Mend or remove them.")
    return paths


def _write_folder(pairs: Sequence[ComposedPair], out: Path, settings: dict, overwrite: bool) -> int:
    """Write rain/, norain/ and the list; returns how many pairs an interrupted command had made."""
    _require_free(out, settings, overwrite)
    table = [
        {"file": pair.name, "photo": str(pair.clean), "streaks": [str(p) for p in pair.layers], "gains": pair.gains}
        for pair in pairs
    ]
    # The list comes first, so that nobody takes half of a set for another one.
    write_bytes(out / NAME, json.dumps({"settings": settings, "pairs": table}, indent=1).encode("utf-8", "replace"))
    before = 0
    for pair in progress_bar(pairs, desc="composing", unit="pair"):
        files = [out / folder / pair.name for folder in FOLDERS]
        if all(file.exists() for file in files):  # files appear whole
            before += 1
            continue
        for file, pixels in zip(files, pair.read(), strict=True):
            write_image(file, pixels)
    return before


def _require_free(out: Path, settings: dict, overwrite: bool) -> None:
    """Let a folder hold pairs of one command; --overwrite deletes those that its list names, and nothing else."""
    listed, old = out / NAME, set()
    if listed.is_file():
        try:
            before = json.loads(listed.read_bytes())
            old = {entry["file"] for entry in before["pairs"]}
            differ = [key for key in settings if before["settings"].get(key) != settings[key]]
            fewer = before["settings"]["num"] < settings["num"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"--out: {listed} is no list of composed pairs; choose another folder") from None
        if not overwrite:
            if not differ or (differ == ["num"] and fewer):
                return  # the first pairs of many are those of few
            remedy = "choose another folder, or delete them by --overwrite"
            raise UserError(f"--out: {out} holds pairs of other settings ({', '.join(differ)}); {remedy}")
    for folder in (out / name for name in FOLDERS):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name in old:
                path.unlink()
            elif not path.name.startswith(UNFINISHED):
                text = f"{folder} is not empty, and not all in it is of this command"
                raise UserError(f"--out: {text}; choose another folder")


def add_gain(parser: cli.Parser, help: str) -> None:
    """--gain LOW HIGH, see ``gain_of``."""
    kind, names = cli.number(float, 0, 10), ("LOW", "HIGH")
    parser.add_argument("--gain", type=kind, nargs=2, default=[0.8, 1.2], metavar=names, help=help)


def gain_of(args: argparse.Namespace) -> tuple[float, float]:
    """Lowest and highest factor of a streak layer.

    Raises:
        UserError: they are in the wrong order.
    """
    low, high = args.gain
    if low > high:
        raise UserError(f"--gain: the lower bound {low:g} is above the upper one {high:g}")
    return low, high


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_path("--clean", required=True, help="folder of clean photos")
    parser.add_path("--streaks", required=True, help="folder of rain streaks on black")
    parser.add_path("--out", required=True, help="folder for the pairs, or a pack, NAME.h5")
    parser.add_argument("--num", type=cli.number(int, 1, 1_000_000), required=True, help="pairs to make")
    parser.add_argument("--seed", type=cli.seed, default=0, help="another one gives other pairs")
    parser.add_argument("--layers", type=cli.number(int, 1, 16), default=1, help="streak layers on one photo")
    add_gain(parser, "range of the factor of a layer")
    kept_out = "photos, and as many streak layers, that --part train leaves out"
    parser.add_argument("--hold_out", type=cli.count, default=0, help=kept_out)
    which = "which part of photos and streaks to use"
    parser.add_argument("--part", choices=("train", "held_out"), default="train", help=which)
    parser.add_argument("--workers", type=cli.positive_int, default=2, help="threads that compose, for a pack")
    switch = {"type": cli.boolean, "nargs": "?", "const": True, "default": False}
    parser.add_argument("--overwrite", **switch, help="replace pairs that were made before")
    return parser.parse_args(argv)


def _require_apart(out: Path, sources: dict[str, Path]) -> None:
    """Raise UserError if the pairs would be written into an input folder, or over it."""
    for flag, folder in sources.items():
        for place in (out, *(out / kind for kind in FOLDERS)):
            if folder.is_dir() and place.resolve().is_relative_to(folder.resolve()):
                raise UserError(f"--out: {place} is in the input folder {flag} {folder}; choose another")
            if place != out and folder.resolve().is_relative_to(place.resolve()):
                raise UserError(f"--out: pairs would be written over {flag} {folder}; choose another folder")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    gain = gain_of(args)
    if args.part == "held_out" and not args.hold_out:
        raise UserError("--part held_out: say how many are held out, as for --part train: --hold_out N")
    out, sources = Path(args.out), {"--clean": Path(args.clean), "--streaks": Path(args.streaks)}
    _require_apart(out, sources)
    hints = {"--clean": "photos without rain", "--streaks": "pictures of rain streaks on black"}
    photos, streaks = (
        _images(flag, folder, args.hold_out, args.part, f"Name a folder of {hints[flag]}.")
        for flag, folder in sources.items()
    )
    settings = {
        "clean": [str(path) for path in photos],
        "streaks": [str(path) for path in streaks],
        **{key: getattr(args, key) for key in ("num", "seed", "layers", "gain")},
    }
    print(f"{len(photos)} photos, {len(streaks)} streak layers")
    packed, label = out.suffix.lower() in pack.ENDINGS, ""
    if packed:
        pack.require_free(out, args.overwrite)
        # A pack is known by the names in it.
        label = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8] + "_"
    pairs = [ComposedPair(k, photos, streaks, args.seed, args.layers, gain, label) for k in range(args.num)]
    if packed:
        pack.write(pairs, out, args.workers)
        return 0
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; name a folder, or a pack, NAME.h5")
    before = _write_folder(pairs, out, settings, args.overwrite)
    sizes = {pair.format()[:2] for pair in pairs[: len(photos)]}
    old = f", {before} were there already" if before else ""
    shown = ", ".join(sorted(map(size_text, sizes))[:4]) + ", ..." * (len(sizes) > 4)
    print(f"{len(pairs) - before} pairs made in {out}{old}; sizes {shown}")
    print(f"train with --data_path {printable(str(out / 'rain'))} --gt_path {printable(str(out / 'norain'))}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
