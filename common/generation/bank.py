"""Crops of generated rain at the price of a cut: from a few layers, turned, scaled, mirrored and added at random."""

import argparse
from collections.abc import Sequence

import cv2
import numpy as np

from ..models import EDNet
from .knobs import set_knobs
from .measures import direction
from .rain import ROOM, RainMaker, colour

FIRST, LAYERS = 2, 24  # layers of the bank: at the start, and at most
EARLY, LATE = 250, 1000  # crops from one new layer to the next, until the bank is full, and then
SIDE = 1.6  # side of a layer, as a multiple of the longest crop: room for one that is turned by 45 degrees
LEAST = 320  # px: side of a layer in a training, where larger ones cost little
TURN, ZOOM = 5.0, 0.1  # degrees and share by which a crop is turned and scaled where no knob sets that
Ends = tuple[float, float]  # a range from which a number is drawn


class Rain:
    """One rain for images: a layer (S, S, C) uint8, its colour, and how crops of it are turned, scaled, mirrored."""

    def __init__(
        self, layer: np.ndarray, gain: float | np.ndarray, turn: float = 0, zoom: float = 1, mirrored: bool = False
    ):
        self.layer, self.gain = layer, np.float32(gain / 255)
        sin, cos = np.sin(np.radians(turn)), np.cos(np.radians(turn))
        self.matrix = np.array([[cos, -sin], [sin, cos]]) / zoom  # from the crop to the layer
        if mirrored:
            self.matrix[:, 0] *= -1

    def crop(self, height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
        """(height, width, C) float32 >= 0 from a random place of the layer."""
        room = np.array(self.layer.shape[1::-1]) - (width, height)
        if np.array_equal(self.matrix, np.eye(2)):
            x, y = (rng.uniform(size=2) * (room + 1)).astype(int)
            return self.layer[y : y + height, x : x + width] * self.gain
        half = np.abs(self.matrix) @ (width - 1, height - 1) / 2
        room = np.array(self.layer.shape[1::-1]) - 1 - 2 * half
        shift = half + rng.uniform(size=2) * np.maximum(room, 0) - self.matrix @ ((width - 1) / 2, (height - 1) / 2)
        m, flags = np.hstack([self.matrix, shift[:, None]]), cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        made = cv2.warpAffine(self.layer, m, (width, height), flags=flags)
        return made.reshape(height, width, -1) * self.gain


def added(showers: Sequence[Rain], height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
    """The sum of showers, each at a random place, (height, width, C) float32 >= 0; black without any."""
    dry = np.zeros((height, width, 1), np.float32)
    return sum((rain.crop(height, width, rng) for rain in showers), dry)


class RainBank:
    """Square layers of rain: two at the start, up to 24 later, of which the oldest are replaced.

    What it holds after so many crops depends on its arguments and on that number alone, so that a training that goes
    on sees the rain that it would have seen. ``side`` is in px, ``coherence`` from 0 to 1 (see ``Shower``). Ranges are
    ``knobs`` (angle, density, thickness, brightness, tint of each shower; layers: their number) and ``intensity``, a
    factor of the rain.
    """

    def __init__(
        self,
        maker: RainMaker,
        side: int,
        seed: Sequence[int],
        knobs: dict[str, Ends],
        intensity: Ends = (1, 1),
        coherence: float = 0.5,
        grey: bool = False,
    ) -> None:
        self.maker, self.side, self.seed, self.knobs = maker, side, tuple(seed), knobs
        self.intensity, self.coherence, self.grey = intensity, coherence, grey
        self._layers: dict[int, tuple[np.ndarray, float]] = {}  # the layers and their angles, by number

    @staticmethod
    def number(crops: int) -> int:
        """How many layers there have been after so many crops."""
        early = min(crops // EARLY, LAYERS - FIRST)
        return FIRST + early + max(0, crops - EARLY * (LAYERS - FIRST)) // LATE

    def showers(self, crops: int, rng: np.random.RandomState, large: tuple | None = None) -> list[Rain]:
        """The rain of an image after so many crops: no shower, one or more; see ``added``.

        Args:
            large: of an image that is larger than what the bank is for, and gets layers of its own: their height and
                width, ``scale`` and ``stretch``, see ``set_knobs``.
        """
        oldest = self.number(crops) - LAYERS
        self._layers = {k: layer for k, layer in self._layers.items() if k >= oldest}
        low, high = self.knobs.get("layers", (1, 1))
        places = rng.permutation(LAYERS)[: rng.randint(low, high + 1)]
        return [self._shower(crops, int(place), rng, large) for place in places]

    def crop(self, height: int, width: int, crops: int, rng: np.random.RandomState) -> np.ndarray:
        """The rain of an image, (height, width, C) float32 >= 0, C of 1 or that of the generator."""
        return added(self.showers(crops, rng), height, width, rng)

    def layer(self, number: int) -> tuple[np.ndarray, float]:
        """A layer (side, side, C) uint8 and its angle in degrees."""
        if number not in self._layers:
            made = self._made(self.side, self.side, np.random.RandomState([*self.seed, number]))
            angle = direction(made.mean(2, dtype=np.float32))
            self._layers[number] = made, angle if np.isfinite(angle) else 0.0
        return self._layers[number]

    def _shower(self, crops: int, place: int, rng: np.random.RandomState, large: tuple | None) -> Rain:
        """A shower, of a layer at this place in the bank."""
        angle = {"angle": rng.uniform(*self.knobs["angle"])} if "angle" in self.knobs else {}
        gain = rng.uniform(*self.intensity)
        if "tint" in self.knobs and not self.grey:
            gain = gain * colour(rng.uniform(*self.knobs["tint"]), rng)
        if large:
            height, width, scale, stretch = large
            return Rain(self._made(height, width, rng, scale, stretch, **angle), gain)
        number = self.number(crops)
        layer, own = self.layer(number - 1 - place % min(number, LAYERS))
        zoom = 1.0 if "thickness" in self.knobs else float(np.exp(rng.uniform(-ZOOM, ZOOM)))
        if angle:
            return Rain(layer, gain, angle["angle"] - own, zoom)
        return Rain(layer, gain, rng.uniform(-TURN, TURN), zoom, rng.uniform() < 0.5)

    def _made(
        self, height: int, width: int, rng: np.random.RandomState, scale: float = 1, stretch: float = 1, **more: float
    ) -> np.ndarray:
        """A layer (height, width, C) uint8 with knobs from their ranges, but for the angle; C is 1 for grey rain."""
        ranges = {name: ends for name, ends in self.knobs.items() if name not in ("angle", "tint", "layers")}
        knobs = {name: rng.uniform(*ends) for name, ends in ranges.items()} | more
        layer = set_knobs(self.maker.shower(self.coherence, rng), height, width, knobs, scale, stretch)
        rain = np.rint(255 * np.minimum(layer.pixels(), 1)).astype(np.uint8)
        return rain.max(2, keepdims=True) if self.grey or (rain == rain[..., :1]).all() else rain


def bank_of(args: argparse.Namespace, netED: EDNet | None, ranges: dict[str, Ends]) -> RainBank | None:
    """A bank for the crops of a training whose flags set knobs, see ``knob_flags.knobs``; else None: G makes each crop.

    Raises:
        UserError: see ``RainMaker``.
    """
    if not ranges:
        return None
    return RainBank(RainMaker(netED), max(LEAST, round(SIDE * args.patchSize)) + ROOM, [args.manualSeed], ranges)
