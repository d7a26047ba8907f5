"""A free data set for the demo: photos that ship inside scikit-image, with procedural rain (no download).

    python -m common.data.demo --out demo/data
    python -m common.data.demo --out demo_results --show PICTURE SENTENCE ...

The second command writes the page of the demo, index.html with copies of its pictures. The first one writes
train/{rain,norain} and test/{rain,norain}. Drops at random places become streaks of one direction, which are added to
the photo and clipped. This streak model is a toy for the demo, not a substitute for data.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from .. import cli, flags
from ..files import write_bytes
from .images import to_float, to_uint8, write_image
from .page import render

TRAIN = ("astronaut", "rocket", "motorcycle", "camera", "grass", "gravel")
TEST = ("chelsea", "coffee")
PLAIN = {"angle": (6, 14), "length": (16, 24), "width": (1.4, 2), "density": (0.08, 0.14), "brightness": (0.35, 0.45)}
BLUR = 0.6  # see streak_kernel
LONG_SIDE = {"train": 240, "test": 384}  # px; small, so that decoding costs little


def streak_kernel(angle: float, length: float, width: float, blur: float) -> np.ndarray:
    """One streak with peak 1, as a square float32 array of odd side.

    Args:
        angle: degrees from vertical, positive where the lower end lies to the right.
        length, width: in px.
        blur: share of the length over which the ends fade out (motion blur), 0 to 1.
    """
    half = int(np.ceil(length / 2 + width))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    direction = np.deg2rad(angle)
    along = np.abs(x * np.sin(direction) + y * np.cos(direction))
    across = np.abs(x * np.cos(direction) - y * np.sin(direction))
    fade = np.maximum(blur * length / 2, 1)
    kernel = np.clip((length / 2 - along) / fade, 0, 1) * np.clip(width / 2 + 0.5 - across, 0, 1)
    return (kernel / kernel.max()).astype(np.float32)


def rain_layer(
    shape: tuple[int, int],
    seed: int,
    angle: float = 10,
    length: float = 18,
    width: float = 1.5,
    density: float = 0.1,
    brightness: float = 0.4,
) -> np.ndarray:
    """A layer of procedural rain.

    Args:
        shape: (H, W).
        seed: the same numbers give the same layer.
        angle, length, width: of the streaks, see ``streak_kernel``.
        density: about the share of the picture that streaks cover, 0 to 1.
        brightness: mean peak of a streak in [0, 1]; single ones vary by a third.

    Returns:
        (H, W, 1) float32 in [0, 1].
    """
    rng = np.random.default_rng(seed)
    kernel = streak_kernel(angle, length, width, BLUR)
    margin = kernel.shape[0] // 2
    height, width_px = shape[0] + 2 * margin, shape[1] + 2 * margin
    drops = rng.random((height, width_px)) < density / (length * width)
    peaks = brightness * rng.uniform(2 / 3, 4 / 3, (height, width_px)) * drops
    layer = cv2.filter2D(peaks.astype(np.float32), -1, kernel, borderType=cv2.BORDER_CONSTANT)
    return np.clip(layer[margin : margin + shape[0], margin : margin + shape[1], None], 0, 1)


def add_rain(clean: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """O = B + R, clipped: (H, W, 3) uint8 and (H, W, 1) floats -> (H, W, 3) uint8."""
    return to_uint8(to_float(clean) + layer, "nearest")


def photos(names: tuple[str, ...], long_side: int) -> dict[str, np.ndarray]:
    """Photos out of scikit-image as (H, W, 3) uint8 with a long side of so many px; grey ones are repeated."""
    from skimage import data

    images = {}
    for name in names:
        image = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
        scale = long_side / max(image.shape[:2])
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        images[name] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return images


def make_set(out: Path, seed: int = 0, rains: int = 4) -> None:
    """Write train/ and test/, split by photo; light to medium rain, in so many versions of each training photo."""
    for split, names, versions in (("train", TRAIN, rains), ("test", TEST, 1)):
        for i, (name, clean) in enumerate(photos(names, LONG_SIDE[split]).items()):
            for version in range(versions):
                rng = np.random.default_rng([seed, split == "test", i, version])
                layer_seed = int(rng.integers(2**31))
                how = {key: rng.uniform(*ends) for key, ends in PLAIN.items()}
                file = f"{name}_v{version + 1:02d}.png" if versions > 1 else f"{name}.png"
                rainy = add_rain(clean, rain_layer(clean.shape[:2], layer_seed, **how))
                write_image(out / split / "rain" / file, rainy)
                write_image(out / split / "norain" / file, clean)


def show(out: Path, shown: list[str]) -> None:
    """Write a page that shows each picture with its sentence; ``shown`` has both in turn."""
    figures = []
    for number, (picture, sentence) in enumerate(zip(shown[::2], shown[1::2], strict=True), 1):
        figures.append((f"{number:02d}{Path(picture).suffix}", sentence))
        write_bytes(out / figures[-1][0], Path(picture).read_bytes())
    page = render("gallery.html", title="VRGNet: what two minutes show", figures=figures)
    write_bytes(out / "index.html", page.encode())


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, cli.typed("data.demo"))
    flags.add_path(parser, "--out", required=True, help="folder for train/ and test/, or of the page")
    parser.add_argument("--show", nargs="+", metavar="PICTURE SENTENCE", help="of a page, in turn")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of the rain")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.show:
        show(Path(args.out), args.show)
        print(f"page: {Path(args.out, 'index.html')}")
        return 0
    make_set(Path(args.out), args.seed)
    print(f"{len(TRAIN)} training photos, {len(TEST)} test photos of scikit-image with procedural rain in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
