"""One large texture of small patches, whose streaks run on across the borders.

Image quilting (Efros and Freeman, SIGGRAPH 2001): the next patch is the one of a pool that agrees best with its
neighbours beside and above; the border runs where both agree best.
"""

from collections.abc import Callable

import cv2
import numpy as np

ABOVE, BESIDE = 2.0, 1.0  # weights of the two overlaps: streaks fall, so they cross the upper border
SOFT = 1.0  # px: standard deviation of the blend across a border
RIM = 3  # px: borders keep away from the ends of the overlap, so that the blend fits into it


def visible(rain: np.ndarray) -> np.ndarray:
    """Rain on the scale on which patches are compared: (..., C) >= 0 -> (...); faint streaks count."""
    return np.sqrt(rain.mean(-1) + 0.02, dtype=np.float32) - np.float32(0.02**0.5)


def path(cost: np.ndarray) -> np.ndarray:
    """The cheapest way from the first to the last row, one column a row, to neighbours: (n, o) -> (n,) columns."""
    total = np.full((len(cost), cost.shape[1] + 2), np.inf)  # a rim on both sides
    total[:, 1:-1] = cost
    for i in range(1, len(total)):
        before = total[i - 1]
        total[i, 1:-1] += np.minimum(np.minimum(before[:-2], before[1:-1]), before[2:])
    columns = np.empty(len(total), int)
    columns[-1] = total[-1].argmin()
    for i in range(len(total) - 2, -1, -1):
        columns[i] = columns[i + 1] - 1 + total[i, columns[i + 1] - 1 : columns[i + 1] + 2].argmin()
    columns -= 1
    return columns


def share_of_new(
    old: np.ndarray, new: np.ndarray, overlap: int, above: bool, beside: bool, rng: np.random.RandomState
) -> np.ndarray:
    """The share of the new patch in each pixel: (w, w) visible rain of both -> (w, w) in [0, 1]."""
    width, rim = len(new), min(RIM, overlap // 4)
    share = np.ones((width, width), np.float32)
    # A streak that must end costs the same at all heights: without chance all would end at one.
    error = ((old - new) ** 2 + 1e-4) * rng.uniform(0.5, 1.5, old.shape)
    at = np.arange(overlap)
    if beside:
        share[:, :overlap] *= at >= rim + path(error[:, rim : overlap - rim])[:, None]
    if above:
        share[:overlap] *= (at >= rim + path(error[rim : overlap - rim].T)[:, None]).T
    share = cv2.GaussianBlur(share, (0, 0), SOFT, borderType=cv2.BORDER_REPLICATE)
    share[overlap if above else 0 :, overlap if beside else 0 :] = 1  # here nothing is old
    if above:
        share[0] = 0
    if beside:
        share[:, 0] = 0
    return share


def quilt(
    height: int,
    width: int,
    pool: np.ndarray,
    fresh: Callable[[int], np.ndarray],
    overlap: int,
    wanted: Callable[[int, int], bool] = lambda top, left: True,
) -> np.ndarray:
    """A texture (height, width, C) float16 of patches.

    Args:
        pool: (K, w, w, C) float32 patches to choose from; used ones are replaced in place.
        fresh: makes a number of new patches.
        overlap: px that neighbours share.
        wanted: whether the patch at (top, left) is needed; the others stay black.
    """
    side, pitch = pool.shape[1], pool.shape[1] - overlap
    rows, columns = (max(0, -(-(size - overlap) // pitch)) or 1 for size in (height, width))
    made = np.zeros((rows * pitch + overlap, columns * pitch + overlap, pool.shape[3]), np.float16)
    pool_visible = visible(pool)
    placed = np.zeros((rows + 1, columns + 1), bool)
    used: list[int] = []
    rng = np.random.RandomState(0)
    for i in range(rows):
        for j in range(columns):
            top, left = i * pitch, j * pitch
            if not wanted(top, left):
                continue
            if len(used) >= len(pool) // 4:
                pool[used] = fresh(len(used))
                pool_visible[used] = visible(pool[used])
                used = []
            above, beside = placed[i, j + 1], placed[i + 1, j]
            place = np.s_[top : top + side, left : left + side]
            old = made[place].astype(np.float32)
            old_visible = visible(old)
            cost = np.zeros(len(pool))
            if above:
                cost += ABOVE * _distance(pool_visible[:, :overlap], old_visible[:overlap])
            if beside:
                cost += BESIDE * _distance(pool_visible[:, :, :overlap], old_visible[:, :overlap])
            cost[used] = np.inf
            best = int(cost.argmin()) if above or beside else int(np.flatnonzero(np.isfinite(cost))[0])
            share = share_of_new(old_visible, pool_visible[best], overlap, above, beside, rng)[..., None]
            made[place] = share * pool[best] + (1 - share) * old
            placed[i + 1, j + 1] = True
            used.append(best)
    return made[:height, :width]


def _distance(pool: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Of (K, h, w) from (h, w), 0 to 1: (K,). Plain differences would prefer patches with little rain."""
    flat, one = pool.reshape(len(pool), -1), old.ravel()
    energy = np.einsum("ij,ij->i", flat, flat) + one @ one
    return 1 - 2 * flat @ one / np.maximum(energy, 1e-9)
