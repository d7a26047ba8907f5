"""A rain layer of any size from a generator of patches.

G makes patches. The codes of a picture share a part, so that its rain is of one kind. Its patches are turned
into one wind and quilted (``quilt``). Turning and scaling the whole then sets the angle and the size of the streaks.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data.layers import inner_size, warped
from ..errors import UserError
from ..models import EDNet
from .measures import direction
from .quilt import quilt

BATCH = 2**18  # px of patches at a time, whatever the picture, so that the same codes give the same bytes
VERSION = 4  # goes up when the same codes give another layer
POOL = 240  # patches that are drawn,
KEPT = 0.5  # the share of them that is used: those that need least turning
CUTS = 3  # out of each patch
TURN = 12.0  # degrees: by how much a patch is turned at most
JITTER = 0.5  # degrees: standard deviation of the angle within a picture
TILE = 1024  # px: side of the parts that are turned and scaled one by one
FULL_SIZE = 512  # px: pictures whose shorter side is longer get larger streaks, see auto_scale
SHOULDER, CEILING = 0.4, 0.7  # brightness from which on brightened rain rises more slowly, and where it ends
ROOM = 8  # px around what a picture shows of its source, for the interpolation


@dataclass(frozen=True)
class Layer:
    """Rain for a picture, and how it is turned and scaled into it."""

    source: np.ndarray  # (H, W, 1 or nc) float16 >= 0, large enough for the picture turned and scaled back
    height: int  # of the picture in px
    width: int
    turn: float = 0.0  # degrees; positive: the lower ends of the streaks move to the right
    scale: float = 1.0  # factor of the size of the streaks
    gain: float = 1.0  # factor of the brightness, see exposed
    stretch: float = 1.0  # a further factor of their length,
    wind: float = 0.0  # along this angle of the streaks in the source, in degrees
    nc: int = 1  # channels of the picture, where the source has only one

    def matrix(self) -> np.ndarray:
        """From a place (x, y) in the picture to the one in the source: (2, 3)."""
        sin, cos = np.sin(np.radians(self.turn)), np.cos(np.radians(self.turn))
        along = np.array([np.sin(np.radians(self.wind)), np.cos(np.radians(self.wind))])
        shrink = np.eye(2) - (1 - 1 / self.stretch) * np.outer(along, along)
        a = shrink @ [[cos, -sin], [sin, cos]] / self.scale
        middle = np.array([self.width - 1, self.height - 1]) / 2
        return np.hstack([a, (np.array(self.source.shape[1::-1]) - 1)[:, None] / 2 - (a @ middle)[:, None]])

    def least_scale(self) -> float:
        """The smallest scale at which the source is large enough."""
        needed = np.abs(self.matrix()[:, :2]) @ (self.width, self.height)
        return float(self.scale * (needed / (np.array(self.source.shape[1::-1]) - ROOM)).max())

    def tile(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The rain of a part of the picture: (height, width, nc) float32 >= 0."""
        m = self.matrix()
        m[:, 2] += m[:, :2] @ (left, top)
        if np.array_equal(m[:, :2], np.eye(2)) and np.array_equal(m[:, 2], np.rint(m[:, 2])):
            x, y = m[:, 2].astype(int)
            made = self.source[y : y + height, x : x + width].astype(np.float32)
        else:
            corners = m[:, :2] @ [[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1]] + m[:, 2:]
            first = np.maximum(np.floor(corners.min(1)).astype(int) - 3, 0)
            last = np.ceil(corners.max(1)).astype(int) + 4
            part = np.ascontiguousarray(self.source[first[1] : last[1], first[0] : last[0]], np.float32)
            m[:, 2] -= first
            flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
            made = cv2.warpAffine(part, m, (width, height), flags=flags)  # nothing is ever mirrored into a picture
            made = np.maximum(made.reshape(height, width, -1), 0)
        return np.broadcast_to(exposed(made, self.gain), (height, width, max(self.nc, made.shape[2])))

    def tiles(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Rows and columns of the picture, and the rain there, (rows, columns, nc), part by part to save memory."""
        for top in range(0, self.height, TILE):
            for left in range(0, self.width, TILE):
                height, width = min(TILE, self.height - top), min(TILE, self.width - left)
                yield slice(top, top + height), slice(left, left + width), self.tile(top, left, height, width)

    def pixels(self) -> np.ndarray:
        """The whole rain layer, (height, width, nc) float32 >= 0."""
        made = np.empty((self.height, self.width, max(self.nc, self.source.shape[2])), np.float32)
        for rows, columns, tile in self.tiles():
            made[rows, columns] = tile
        return made


class Shower:
    """One kind of rain: codes with a part in common, and one wind.

    Args:
        coherence: correlation of any two codes, 0 (unrelated) to 1 (equal).
        rng: RandomState, whose stream is the same in all versions of NumPy.

    Attributes:
        wind: degrees from vertical, that of a random patch, so that winds are distributed as in the generator's rain.
        pool: (N, CUTS, side, side, nc or 1) patches, turned into the wind; 1 where all channels are the same.
    """

    def __init__(self, netED: EDNet, coherence: float, rng: np.random.RandomState) -> None:
        self._netED, self._coherence, self._rng = netED, coherence, rng
        self._shared = rng.standard_normal(netED.nz)
        self._grey: bool | None = None
        self.side = 2 * int((inner_size(netED.patch_size, netED.patch_size, TURN)[0] - 1) // 2)  # px: of a turned patch
        patches, angles = self._drawn()
        self.wind = next((float(a) for a in angles if np.isfinite(a)), 0.0)
        self.pool = self._aligned(patches, angles)

    def layer(
        self, height: int, width: int, turn: float = 0.0, scale: float = 1.0, spare: float = 1.0, stretch: float = 1.0
    ) -> Layer:
        """A layer of this rain, turned and scaled; see ``Layer``. The source is ``spare`` times larger than needed."""
        empty = np.empty((0, 0, self.pool.shape[-1]), np.float16)
        layer = Layer(empty, height, width, turn, scale / spare, 1.0, stretch, self.wind, self._netED.nc)
        room = 0 if turn == 0 and scale == spare == stretch == 1 else ROOM
        w, h = (np.ceil(np.abs(layer.matrix()[:, :2]) @ (width, height)) + room).astype(int)
        layer = replace(layer, source=np.empty((h, w, 0)))
        return replace(layer, source=self.source(layer), scale=scale)

    def source(self, layer: Layer) -> np.ndarray:
        """Another texture of this rain, as large as the source of a layer, where its picture needs it."""
        back = cv2.invertAffineTransform(layer.matrix())

        def wanted(tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
            """Whether patches of the source reach into the picture."""
            x, y = back @ (lefts + self.side / 2, tops + self.side / 2, np.ones(len(tops)))
            reach = (self.side / 2**0.5 + ROOM) * layer.scale * layer.stretch
            return (-reach < x) & (x < layer.width + reach) & (-reach < y) & (y < layer.height + reach)

        pools = itertools.chain([self.pool], (self._aligned(*self._drawn()) for _ in itertools.count()))
        return quilt(*layer.source.shape[:2], pools.__next__, self._rng, wanted)

    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Patches of one kind of rain, (POOL, p, p, nc), or of one channel where all are the same; and their angles."""
        codes = draw_codes(POOL, self._shared, self._coherence, self._rng)
        patches = sampled(self._netED, codes).permute(0, 2, 3, 1).cpu().numpy()
        if self._grey is None:
            self._grey = bool((patches == patches[..., :1]).all())
        patches = patches[..., :1] if self._grey else patches
        return patches, np.array([direction(patch.mean(2)) for patch in patches])

    def _aligned(self, patches: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """The patches that need least turning, in the wind, cut: (M, p, p, C) -> (N, CUTS, side, side, C)."""
        off = np.nan_to_num((angles - self.wind + 90) % 180 - 90)  # no rain: no direction
        chosen = np.sort(np.abs(off).argsort(kind="stable")[: round(KEPT * len(patches))])
        cut = np.empty((len(chosen), CUTS, self.side, self.side, patches.shape[3]), np.float32)
        for patch, k in zip(cut, chosen, strict=True):
            turn = np.clip(JITTER * self._rng.standard_normal() - off[k], -TURN, TURN)
            turned = warped(patches[k], float(turn), 1.0)
            turned = turned[..., None] if turned.ndim == 2 else turned
            for one in patch:
                y, x = (self._rng.randint(0, size - self.side + 1) for size in turned.shape[:2])
                one[:] = turned[y : y + self.side, x : x + self.side]
        return np.maximum(cut, 0)


class RainMaker:
    """Makes rain layers of any size with netED, on its device; sets it to eval mode and freezes it.

    Raises:
        UserError: it makes values that are not finite.
    """

    def __init__(self, netED: EDNet) -> None:
        # In this memory layout a CPU computes G in a tenth less time.
        self.netED = netED.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        if not torch.isfinite(sampled(self.netED, torch.zeros(1, netED.nz))).all():
            raise UserError("this generator makes values that are not finite; its training went wrong")

    def shower(self, coherence: float, rng: np.random.RandomState) -> Shower:
        """One kind of rain, see ``Shower``."""
        return Shower(self.netED, coherence, rng)

    def layer(self, height: int, width: int, coherence: float, rng: np.random.RandomState) -> Tensor:
        """The rain layer of a picture as a tensor, (nc, height, width) >= 0; see ``Shower``."""
        made = self.shower(coherence, rng).layer(height, width).pixels()
        return torch.from_numpy(made).permute(2, 0, 1)


@torch.no_grad()
def sampled(netED: EDNet, codes: Tensor) -> Tensor:
    """Rain codes (N, nz), however many, to rain layers (N, nc, p, p) >= 0 on the generator's device."""
    device = next(netED.parameters()).device
    parts = codes.float().to(device).split(max(1, BATCH // netED.patch_size**2))
    with torch.autocast(device.type, enabled=False):  # of a training that surrounds it
        return torch.cat([netED.sample(part) for part in parts])


def draw_codes(number: int, shared: np.ndarray, coherence: float, rng: np.random.RandomState) -> Tensor:
    """(number, nz) float32 codes sqrt(coherence) * shared + sqrt(1 - coherence) * own; ``shared`` is (nz,)."""
    own = rng.standard_normal((number, len(shared)))
    return torch.from_numpy((coherence**0.5 * shared + (1 - coherence) ** 0.5 * own).astype(np.float32))


def auto_scale(height: int, width: int) -> tuple[float, float]:
    """What suits a picture: factor of the size of the streaks, and a further one of their length.

    Both are 1 up to 512 px of the shorter side. Beyond, the length grows with the picture and the thickness with its
    root: streaks that grow in both directions get blurred. A streak is long because it moves while the shutter is open.
    """
    root = max(1.0, min(height, width) / FULL_SIZE) ** 0.5
    return root, root


def colour(tint: float, rng: np.random.RandomState) -> np.ndarray:
    """A random colour of rain: factors of the channels, (3,) float32, the largest 1, the smallest 1 - tint."""
    share = rng.uniform(size=3) if tint else np.zeros(3)
    share = (share - share.min()) / max(np.ptp(share), 1e-9)
    return np.float32(1 - tint * share)


def exposed(rain: np.ndarray, gain: float) -> np.ndarray:
    """Rain made brighter or darker: in proportion up to SHOULDER, then ever more slowly up to CEILING.

    So a bright streak keeps its profile and lets the photo shine through, where a cut at 1 would leave white strokes
    with hard edges. What was brighter than that before stays as it is.
    """
    if gain <= 1:
        return rain if gain == 1 else np.float32(gain) * rain
    more, room = np.float32(gain) * rain, CEILING - SHOULDER
    soft = SHOULDER + room * (1 - np.exp(np.minimum(SHOULDER - more, 0) / room))
    return np.maximum(rain, np.where(more > SHOULDER, soft, more))
