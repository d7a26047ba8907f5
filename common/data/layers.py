"""Rain layers to learn from: rain on black, or O - B of pairs, and variants of them."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError
from ..terminal import progress_bar
from . import pack
from .compose import composed, part_of, rain_pictures
from .images import BLACK, crop_at, images_in, planes, read_image, to_eight_bits
from .pairs import Pair, pairs_of
from .patches import PatchDataset

TURN, SCALE, GAIN = 15, (0.8, 1.25), (0.8, 1.2)  # ranges of a variant: degrees to either side, factors
COLOUR = 0.05  # of the rain of a pair, by which the channels differ from their mean; SPA-Data: 0.02
LOST, TRIES = 0.02, 20  # share of a crop whose rain may be unknown; other places that are tried


@dataclass(frozen=True)
class RainLayer(Pair):
    """A rain layer in memory, on black or on photos, as a pair for ``PatchDataset``."""

    pixels: np.ndarray = field(default=None, compare=False, repr=False)  # (H, W, 1 or 3) uint8
    photos: Sequence[np.ndarray] = field(default=(), compare=False, repr=False)  # (H, W, 3) uint8, of any sizes
    lost: np.ndarray | None = field(default=None, compare=False, repr=False)  # (H, W, 1), not 0 where rain is unknown

    def crop(self, place: tuple[float, float], p: int) -> np.ndarray:
        """See ``Pair.crop``; on a photo rainy = clip(clean + layer). The place seeds which photo, and where in it.

        Where too much of the rain is unknown there, it seeds other places, of which the first good one is taken.
        """
        rng = np.random.default_rng(np.array(place).view(np.uint32))
        if self.lost is not None:
            places, shares = [place, *rng.random((TRIES, 2))], []
            for one in places:
                shares.append(np.count_nonzero(_cut(self.lost, one, p)) / p**2)
                if shares[-1] <= LOST:
                    break
            place = places[int(np.argmin(shares))]
        rain = _cut(self.pixels, place, p)
        if not self.photos:
            return planes(rain, np.zeros_like(rain))
        clean = _cut(self.photos[rng.integers(len(self.photos))], rng.random(2), p)
        return planes(composed(clean, [rain], [1]), clean)


def _cut(image: np.ndarray, place: Sequence[float], p: int) -> np.ndarray:
    return image[crop_at(place, *image.shape[:2], p)]


def inner_size(height: int, width: int, degrees: float) -> tuple[float, float]:
    """Height and width of the largest upright rectangle within a turned one."""
    sin, cos = abs(np.sin(np.radians(degrees))), abs(np.cos(np.radians(degrees)))
    long, short = max(height, width), min(height, width)
    if short <= 2 * sin * cos * long:  # two corners touch the longer sides
        across, along = short / 2 / cos, short / 2 / sin
        return (across, along) if height < width else (along, across)
    both = cos**2 - sin**2
    return (height * cos - width * sin) / both, (width * cos - height * sin) / both


def warped(layer: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    """A layer turned (positive: the lower ends of streaks go to the right) and scaled, without the empty corners.

    Args:
        layer: (H, W) or (H, W, 3) uint8 or float32.
    """
    height, width = layer.shape[:2]
    inside = np.array(inner_size(height, width, degrees)) * scale
    h, w = (max(1, int(side)) for side in inside - 1)
    matrix = cv2.getRotationMatrix2D((0, 0), degrees, scale)
    matrix[:, 2] = np.array([w - 1, h - 1]) / 2 - matrix[:, :2] @ np.array([width - 1, height - 1]) / 2
    return cv2.warpAffine(layer, matrix, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def variant(layer: np.ndarray, rng: np.random.RandomState, smallest: int, turn: float = TURN) -> np.ndarray:
    """A random variant of a layer: turned, scaled, mirrored, brighter or darker.

    Args:
        layer: (H, W, 1 or 3) uint8.
        smallest: px that each side keeps at least; where turning would leave less, the layer is scaled alone.
        turn: degrees to either side at most.
    """
    degrees, scale = rng.uniform(-turn, turn), np.exp(rng.uniform(*np.log(SCALE)))
    mirrored, gain = rng.randint(2), rng.uniform(*GAIN)
    height, width = layer.shape[:2]
    if min(inner_size(height, width, degrees)) * scale - 2 < smallest:
        degrees, scale = 0.0, max(scale, (smallest + 2) / min(height, width))
    other = warped(layer, degrees, scale)
    other = other[..., None] if other.ndim == 2 else other
    other = other[:, ::-1] if mirrored else other
    return np.ascontiguousarray(np.rint(np.clip(gain * other.astype(np.float32), 0, 255)).astype(np.uint8))


def read_layer(path: Path) -> np.ndarray:
    """(H, W, 1) uint8 where all channels are the same, else (H, W, 3)."""
    return _slim(to_eight_bits(read_image(path, BLACK)))


def rain_of(pair: Pair) -> tuple[np.ndarray, np.ndarray | None]:
    """O - B of a pair, not below 0, (H, W, 1 or 3) uint8; and where that is less than the rain, since O is cut at 255.

    Rain is grey if its channels differ by no more than the noise of a camera makes them differ. Grey rain is the mean
    of the channels, or the brightest one where one is cut: it is unknown only where all are cut. The second array is
    (H, W, 1) uint8, 255 there, or None where nothing is cut.
    """
    rainy, clean = (to_eight_bits(image) for image in pair.read())
    rain, cut = cv2.subtract(rainy, clean), rainy == 255
    part = cut.any(2, keepdims=True)
    whole = rain[~part[..., 0]].astype(np.float32)
    if np.abs(whole - whole.mean(1, keepdims=True)).sum() <= COLOUR * whole.sum():
        mean = np.rint(rain.mean(2, keepdims=True)).astype(np.uint8)
        rain, lost = np.where(part, rain.max(2, keepdims=True), mean), cut.all(2, keepdims=True)
    else:
        lost = part
    return np.ascontiguousarray(rain), 255 * lost.astype(np.uint8) if lost.any() else None


def _slim(pixels: np.ndarray) -> np.ndarray:
    grey = (pixels == pixels[..., :1]).all()
    return np.ascontiguousarray(pixels[..., :1]) if grey else pixels


def variants(
    sources: Sequence[Path | Pair], number: int, seed: int, patch: int, turn: float = TURN
) -> Iterator[RainLayer]:
    """``number`` variants of each layer; which ones depends on the seed and the place in the list alone.

    Args:
        sources: files of rain on black, or pairs, of which O - B is taken.
        number: 0 for the layers as they are.
        patch: px that each side has at least.
        turn: degrees that a variant is turned at most.

    Raises:
        UserError: a file can't be read, or is smaller than a patch.
    """
    for i, source in enumerate(progress_bar(sources, desc="turning and scaling layers", unit="layer", leave=False)):
        path = source.rainy if isinstance(source, Pair) else source
        pixels, lost = rain_of(source) if isinstance(source, Pair) else (read_layer(source), None)
        layer = RainLayer(source.name, path, path, pixels=pixels, lost=lost)
        layer.require_patch(pixels, patch)
        for k in range(number):
            changed, also = (
                None if part is None else variant(part, np.random.RandomState([seed, i, k]), patch, turn)
                for part in (pixels, lost)
            )
            yield replace(layer, name=f"{k}_{source.name}", pixels=changed, lost=also)
        if not number:
            yield layer


def on_photos(layers: Sequence[RainLayer], photos: Sequence[Path | Pair], patch: int) -> list[RainLayer]:
    """Layers that fall on any of the photos; of pairs these are the clean images. Raises as ``variants``."""
    clean = []
    for source in progress_bar(photos, desc="reading photos", unit="photo", leave=False):
        path = source.clean if isinstance(source, Pair) else source
        clean.append(to_eight_bits(source.read()[1] if isinstance(source, Pair) else read_image(path)))
        Pair(path.name, path, path).require_patch(clean[-1], patch)
    return [replace(layer, photos=clean) for layer in layers]


def layer_set(args: argparse.Namespace, hint: str, part: str = "train") -> tuple[PatchDataset, str]:
    """Variants of the layers of --streaks, or of O - B of --data_path and --gt_path, as a data set of rain and black.

    In a script with --clean they fall on its photos, or on the clean images of the pairs. Raises as ``rain_pictures``,
    ``images_in``, ``pairs_of``, ``pack.load``, ``part_of``, ``variants`` and ``on_photos``.

    Args:
        hint: what belongs into the folders of pairs, for the message when they are missing.
        part: 'train', or 'held_out' for what --hold_out leaves out; those layers stay as they are.

    Returns:
        The data set, and where its layers come from, in words.
    """
    photos = getattr(args, "clean", None)
    if "clean" in args and bool(photos) != bool(args.streaks):
        raise UserError("--streaks, --clean: give both, or pairs (--data_path, --gt_path) in their place")

    sources: Sequence[Path | Pair]
    if args.streaks:
        sources, rule = rain_pictures(args.streaks, "--streaks"), "rain on black"
    elif pack.is_pack(args.data_path):
        sources, rule = pack.load(Path(args.data_path)), "O - B of a pack"
    else:
        sources, rule = pairs_of(args, hint)
    number = args.variants if part == "train" else 0
    chosen = part_of(sources, args.hold_out, part)
    layers = list(variants(chosen, number, args.manualSeed, args.patchSize, args.turn))
    if "clean" in args:
        hint = "Name a folder of photos without rain."
        photos = [Path(photos, name) for name in images_in(photos, "--clean", hint)] if photos else sources
        layers = on_photos(layers, part_of(photos, args.hold_out, part), args.patchSize)
    return PatchDataset(layers, args.patchSize, args.manualSeed), rule
