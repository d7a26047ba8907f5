"""One large texture of small patches, whose streaks run on across the borders.

Image quilting (Efros and Freeman, SIGGRAPH 2001): the next patch is the one of a pool that agrees best with its
neighbours beside and above; the border runs where both agree best. Patches lie at random distances, so that no grid
shows. Those that do not touch each other are placed together, which is quicker.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np

ABOVE, BESIDE = 2.0, 1.0  # weights of the two overlaps: streaks fall, so they cross the upper border
PITCH, FALL = (0.46, 0.77), (0.62, 0.7)  # least and most distance of patches, and of rows, as shares of their side
SLOPE = 0.06, 0.1  # of rows, up or down: level ones would show as bands
ROWS = 4  # rows of a patch, of a sixth of its side at most, that are compared as one: streaks are long
USES = 6  # of a patch in a texture, on average, before new ones are made
APART = 0.6  # share of the patches of a pool that are placed before one is used again
SOFT = 1.0  # px: standard deviation of the blend across a border
RIM = 3  # px: borders keep away from the ends of the overlap, so that the blend fits into it


def visible(rain: np.ndarray) -> np.ndarray:
    """Rain on the scale on which patches are compared: (..., C) >= 0 -> (...); faint streaks count."""
    return np.sqrt(rain.mean(-1) + 0.02, dtype=np.float32) - np.float32(0.02**0.5)


def path(cost: np.ndarray) -> np.ndarray:
    """The cheapest ways from the first to the last row, one column a row, to neighbours: (B, n, o) -> (B, n)."""
    number, rows, columns = cost.shape
    total = np.full((rows, number, columns + 2), np.inf)  # a rim on both sides
    total[:, :, 1:-1] = cost.transpose(1, 0, 2)
    for i in range(1, rows):
        before = total[i - 1]
        total[i, :, 1:-1] += np.minimum(np.minimum(before[:, :-2], before[:, 1:-1]), before[:, 2:])
    way, every, near = np.empty((rows, number), int), np.arange(number)[:, None], np.array((-1, 0, 1))
    way[-1] = 1 + total[-1, :, 1:-1].argmin(1)
    for i in range(rows - 2, -1, -1):
        way[i] = way[i + 1] - 1 + total[i][every, way[i + 1][:, None] + near].argmin(1)
    return way.T - 1


def shares_of_new(
    old: np.ndarray, new: np.ndarray, above: np.ndarray, beside: np.ndarray, rng: np.random.RandomState
) -> np.ndarray:
    """The shares of new patches in each pixel.

    Args:
        old, new: (B, w, w), visible rain of what is there and of the patches; w is even.
        above, beside: (B,), px of the two overlaps of each; 0 for none.

    Returns:
        (B, w, w) float32 in [0, 1].
    """
    at = np.arange(old.shape[1])
    # A streak that must end costs the same at all heights: without chance all would end at one.
    error = ((old - new) ** 2 + np.float32(1e-4)) * rng.uniform(0.5, 1.5, old.shape).astype(np.float32)
    error = np.concatenate([error, error.transpose(0, 2, 1)])  # the borders run down, then across
    overlap = np.concatenate([beside, above])
    most, rim = max(int(overlap.max()), 1), np.minimum(RIM, overlap // 4)[:, None]
    allowed = (at[:most] >= rim) & (at[:most] < overlap[:, None] - rim)
    steps = error[:, ::2, :most] + error[:, 1::2, :most]  # two rows at a time are smooth enough
    border = np.repeat(path(np.where(allowed[:, None], steps, 1e6)), 2, axis=1)
    down, across = np.split((at >= border[..., None]) | (overlap == 0)[:, None, None], 2)
    share = (down & across.transpose(0, 2, 1)).astype(np.float32)
    share = np.stack([cv2.GaussianBlur(one, (0, 0), SOFT, borderType=cv2.BORDER_REPLICATE) for one in share])
    y, x = at[:, None], at[None]
    above, beside = above[:, None, None], beside[:, None, None]
    share[(y >= above) & (x >= beside)] = 1  # here nothing is old
    share[(y == 0) & (above > 0) | (x == 0) & (beside > 0)] = 0
    return share


def places(height: int, width: int, side: int, rng: np.random.RandomState) -> Iterator[np.ndarray]:
    """Patches that cover a texture, in groups that do not touch: (B, 4) of top, left, overlap above, overlap beside.

    A patch comes after those above and beside it. They begin at random, up to a side outside of the texture.
    """
    least, most, lowest, highest = (round(share * side) for share in (*PITCH, *FALL))
    slope = rng.uniform(*SLOPE) * rng.choice((-1, 1))
    lag = int(np.ceil(abs(slope) * side))  # px: by how much a patch is at most higher than one that it touches
    groups: dict[int, list[tuple[int, int, int, int]]] = {}
    row, above = 0, 0
    start = -lag - rng.randint(lowest) - max(0, slope * width)
    while start + min(0, slope * width) < height:
        left, beside = -rng.randint(most), 0
        while left < width:
            top = round(start + slope * max(left, 0))
            if -side < top < height:
                # Each row lags behind the one above: when it is a patch's turn, all that it touches there is placed.
                key = (left + (side + least) * row + most) // least
                groups.setdefault(key, []).append((top, left, max(0, above - lag), beside))
            pitch = rng.randint(least, most + 1)
            left, beside = left + pitch, side - pitch
        pitch = rng.randint(lowest, highest + 1)
        start, above, row = start + pitch, side - pitch, row + 1
    for key in sorted(groups):
        yield np.array(groups[key])


def quilt(
    height: int,
    width: int,
    fresh: Callable[[], np.ndarray],
    rng: np.random.RandomState,
    wanted: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """A texture (height, width, C) float16 of patches.

    Args:
        fresh: makes a pool of patches, (N, K, w, w, C) float32, where K are cut out of one patch of the generator;
            it is called again in large textures.
        rng: of places, borders.
        wanted: whether patches at (tops, lefts) are needed, (B,), (B,) -> (B,); the others stay black.
    """
    pool = _Pool(fresh())
    side = pool.pixels.shape[1]
    made = np.zeros((height + 2 * side, width + 2 * side, pool.pixels.shape[3]), np.float16)
    placed = 0
    for group in places(height, width, side, rng):
        if wanted is not None:
            group = group[wanted(group[:, 0], group[:, 1])]
        if not len(group):
            continue
        if placed > USES * pool.patches:
            pool, placed = _Pool(fresh()), 0
        tops, lefts, above, beside = group.T
        areas = [np.s_[y : y + side, x : x + side] for y, x in zip(tops + side, lefts + side, strict=True)]
        old = np.stack([made[area] for area in areas]).astype(np.float32)
        seen = visible(old)
        chosen = pool.choose(seen, above, beside)
        new = pool.pixels[chosen]
        share = shares_of_new(seen, pool.visible[chosen], above, beside, rng)[..., None]
        for area, pixels in zip(areas, share * new + (1 - share) * old, strict=True):
            made[area] = pixels
        placed += len(group)
    return made[side : side + height, side : side + width]


class _Pool:
    """Patches to choose from; see ``quilt``."""

    def __init__(self, patches: np.ndarray) -> None:
        self.patches, self._cuts = patches.shape[:2]
        self.pixels = patches.reshape(-1, *patches.shape[2:])  # (N K, w, w, C)
        self.visible = visible(self.pixels)
        self._features = _features(self.visible)
        self._squares = self._features**2
        self._last = np.full(self.patches, -self.patches)  # when each was placed
        self._count = 0

    def choose(self, old: np.ndarray, above: np.ndarray, beside: np.ndarray) -> list[int]:
        """The best patches for places, each another one: (B, w, w) visible rain, (B,), (B,) px of overlaps."""
        at, rows = np.arange(old.shape[1]), _rows(old.shape[1])
        lines = at[::rows]
        cost = np.zeros((len(self.pixels), len(old)))
        for weight, overlap, mask in (
            (ABOVE, above, lines[:, None] + rows <= above[:, None, None]),
            (BESIDE, beside, at < beside[:, None, None]),
        ):
            mask = np.broadcast_to(mask, (len(old), len(lines), len(at))).reshape(len(old), -1).astype(np.float32)
            wanted = _features(old) * mask
            # Plain differences would prefer patches with little rain.
            energy = self._squares @ mask.T + (wanted**2).sum(1)
            likeness = 2 * self._features @ wanted.T / np.maximum(energy, 1e-9)
            cost += weight * (1 - likeness) * (overlap > 0)
        chosen = []
        for one in cost.T:
            one[np.repeat(self._last > self._count - APART * self.patches, self._cuts)] = np.inf
            chosen.append(int(one.argmin()))
            self._last[chosen[-1] // self._cuts] = self._count
            self._count += 1
        return chosen


def _rows(side: int) -> int:
    return min(ROWS, side // 6)


def _features(seen: np.ndarray) -> np.ndarray:
    """What of patches is compared: (B, w, w) -> (B, features)."""
    number, side = seen.shape[:2]
    starts = np.arange(0, side, _rows(side))
    return (np.add.reduceat(seen, starts, 1) / _rows(side)).reshape(number, -1)
