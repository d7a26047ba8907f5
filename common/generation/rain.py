"""A rain layer of any size from a generator of patches.

G makes patches of 64 px. The codes of a picture share a part, so that its rain is of one kind. Its patches are turned
into one wind and quilted (``quilt``). Turning and scaling the whole then sets the angle and the size of the streaks.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data.layers import warped
from ..errors import UserError
from ..models import EDNet
from .measures import direction
from .quilt import quilt

BATCH = 2**18  # px of patches at a time, whatever the picture, so that the same codes give the same bytes
VERSION = 2  # goes up when the same codes give another layer
POOL = 384  # patches that are drawn, of which the better half is used
TURN = 12.0  # degrees: by how much a patch is turned at most
JITTER = 0.5  # degrees: standard deviation of the angle within a picture
TILE = 1024  # px: side of the parts that are turned and scaled one by one
FULL_SIZE = 512  # px: pictures whose shorter side is longer get larger streaks, see auto_scale


@dataclass(frozen=True)
class Layer:
    """Rain for a picture, and how it is turned and scaled into it."""

    source: np.ndarray  # (H, W, nc) float16 >= 0, large enough for the picture turned and scaled back
    height: int  # of the picture in px
    width: int
    turn: float = 0.0  # degrees; positive: the lower ends of the streaks move to the right
    scale: float = 1.0  # factor of the size of the streaks
    gain: float = 1.0  # factor of the brightness

    def matrix(self) -> np.ndarray:
        """From a place (x, y) in the picture to the one in the source: (2, 3)."""
        sin, cos = np.sin(np.radians(self.turn)), np.cos(np.radians(self.turn))
        a = np.array([[cos, -sin], [sin, cos]]) / self.scale
        middle = np.array([self.width - 1, self.height - 1]) / 2
        return np.hstack([a, (np.array(self.source.shape[1::-1]) - 1)[:, None] / 2 - (a @ middle)[:, None]])

    def tile(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The rain of a part of the picture: (height, width, nc) float32 >= 0."""
        m = self.matrix()
        m[:, 2] += m[:, :2] @ (left, top)
        if np.array_equal(m[:, :2], np.eye(2)) and np.array_equal(m[:, 2], np.rint(m[:, 2])):
            x, y = m[:, 2].astype(int)
            return self.gain * self.source[y : y + height, x : x + width].astype(np.float32)
        corners = m[:, :2] @ [[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1]] + m[:, 2:]
        first = np.maximum(np.floor(corners.min(1)).astype(int) - 3, 0)
        last = np.ceil(corners.max(1)).astype(int) + 4
        part = np.ascontiguousarray(self.source[first[1] : last[1], first[0] : last[0]], np.float32)
        m[:, 2] -= first
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        made = cv2.warpAffine(part, m, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        return self.gain * np.maximum(made.reshape(height, width, -1), 0)

    def tiles(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Rows and columns of the picture, and the rain there, (rows, columns, nc), part by part to save memory."""
        for top in range(0, self.height, TILE):
            for left in range(0, self.width, TILE):
                height, width = min(TILE, self.height - top), min(TILE, self.width - left)
                yield slice(top, top + height), slice(left, left + width), self.tile(top, left, height, width)

    def pixels(self) -> np.ndarray:
        """The whole rain layer, (height, width, nc) float32 >= 0."""
        made = np.empty((self.height, self.width, self.source.shape[2]), np.float32)
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
        pool: (N, side, side, nc) patches, turned into the wind.
    """

    def __init__(self, netED: EDNet, coherence: float, rng: np.random.RandomState) -> None:
        self._netED, self._coherence, self._rng = netED, coherence, rng
        self._shared = rng.standard_normal(netED.nz)
        self.side, self.overlap = 3 * netED.patch_size // 4, netED.patch_size // 4  # px: of a patch that was turned
        patches = self._drawn(POOL)
        self.wind = next((float(a) for a in _angles(patches) if np.isfinite(a)), 0.0)
        self.pool = self._aligned(patches, POOL // 2)

    def layer(self, height: int, width: int, turn: float = 0.0, scale: float = 1.0, spare: float = 1.0) -> Layer:
        """A layer of this rain, turned and scaled; see ``Layer``. The source is ``spare`` times larger than needed."""
        layer = Layer(np.empty((0, 0, 0)), height, width, turn, scale / spare)
        room = 8 if turn or scale != 1 else 0  # px, for the interpolation
        w, h = (np.ceil(np.abs(layer.matrix()[:, :2]) @ (width, height)) + room).astype(int)
        layer = replace(layer, source=np.empty((h, w, 0)))
        back = cv2.invertAffineTransform(layer.matrix())

        def wanted(top: int, left: int) -> bool:
            """Whether a patch of the source reaches into the picture."""
            x, y = back @ (left + self.side / 2, top + self.side / 2, 1)
            reach = (self.side / 2**0.5 + room) * layer.scale
            return -reach < x < width + reach and -reach < y < height + reach

        def fresh(number: int) -> np.ndarray:
            return self._aligned(self._drawn(2 * number), number)

        pool = self.pool[self._rng.permutation(len(self.pool))]  # another beginning for each layer
        return replace(layer, source=quilt(h, w, pool, fresh, self.overlap, wanted), scale=scale)

    def _drawn(self, number: int) -> np.ndarray:
        codes = draw_codes(number, self._shared, self._coherence, self._rng)
        return sampled(self._netED, codes).permute(0, 2, 3, 1).cpu().numpy()

    def _aligned(self, patches: np.ndarray, number: int) -> np.ndarray:
        """The patches that need least turning, in the wind: (M, p, p, nc) -> (number, side, side, nc)."""
        off = np.nan_to_num((_angles(patches) - self.wind + 90) % 180 - 90)  # no rain: no direction
        chosen = np.sort(np.abs(off).argsort(kind="stable")[:number])
        cut = np.empty((number, self.side, self.side, patches.shape[3]), np.float32)
        for i, k in enumerate(chosen):
            turn = np.clip(JITTER * self._rng.standard_normal() - off[k], -TURN, TURN)
            turned = warped(patches[k], float(turn), 1.0)
            y, x = (self._rng.randint(0, size - self.side + 1) for size in turned.shape[:2])
            cut[i] = turned[y : y + self.side, x : x + self.side]
        return np.maximum(cut, 0)


class RainMaker:
    """Makes rain layers of any size with netED, on its device; sets it to eval mode and freezes it.

    Raises:
        UserError: it makes values that are not finite.
    """

    def __init__(self, netED: EDNet) -> None:
        self.netED = netED.eval().requires_grad_(False)
        if not torch.isfinite(sampled(self.netED, torch.zeros(1, netED.nz))).all():
            raise UserError("this generator makes values that are not finite; its training went wrong")

    def shower(self, coherence: float, rng: np.random.RandomState) -> Shower:
        """One kind of rain, see ``Shower``."""
        return Shower(self.netED, coherence, rng)

    def layer(self, height: int, width: int, coherence: float, rng: np.random.RandomState) -> Tensor:
        """The rain layer of a picture as a tensor, (nc, height, width) >= 0; see ``Shower``."""
        made = self.shower(coherence, rng).layer(height, width).pixels()
        return torch.from_numpy(made).permute(2, 0, 1)


def _angles(patches: np.ndarray) -> np.ndarray:
    return np.array([direction(patch.mean(2)) for patch in patches])


@torch.no_grad()
def sampled(netED: EDNet, codes: Tensor) -> Tensor:
    """Rain codes (N, nz), however many, to rain layers (N, nc, p, p) >= 0 on the generator's device."""
    parts = codes.to(next(netED.parameters()).device).split(max(1, BATCH // netED.patch_size**2))
    return torch.cat([netED.sample(part) for part in parts])


def draw_codes(number: int, shared: np.ndarray, coherence: float, rng: np.random.RandomState) -> Tensor:
    """(number, nz) float32 codes sqrt(coherence) * shared + sqrt(1 - coherence) * own; ``shared`` is (nz,)."""
    own = rng.standard_normal((number, len(shared)))
    return torch.from_numpy((coherence**0.5 * shared + (1 - coherence) ** 0.5 * own).astype(np.float32))


def fingerprint(netED: EDNet) -> str:
    """SHA-256 of the generator's weights, whatever file they came in."""
    digest = hashlib.sha256()
    for key, value in sorted(netED.state_dict().items()):
        if key.startswith("decoder."):
            digest.update(key.encode() + value.float().cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def auto_scale(height: int, width: int) -> float:
    """The size of streaks that suits a picture: 1 up to 512 px of its shorter side, growing with it beyond."""
    return max(1.0, min(height, width) / FULL_SIZE)
