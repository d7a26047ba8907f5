"""Directions of streaks: how much they vary between patches, and whether streaks are straight."""

from collections.abc import Sequence

import cv2
import numpy as np

from common.generation.measures import RAINY, direction

ENOUGH = 0.02  # share of rainy pixels from which on a crop has a direction
ALONG = (4, 8, 12)  # px: how far along a streak its direction is compared
BLUR = 3.5  # px: of the Gaussian over which a direction is taken


def has_rain(crop: np.ndarray) -> bool:
    """Whether a crop (p, p) in [0, 1] holds enough rain to be measured."""
    return bool((crop > RAINY).mean() >= ENOUGH)


def spread(degrees: Sequence[float]) -> float:
    """Robust deviation of angles in degrees, of which 90 and -90 are the same: half of what the middle 68.3 % span.

    nan for fewer than four angles; those that are nan do not count.
    """
    turns = np.radians(2 * np.array(degrees, np.float64))
    turns = turns[np.isfinite(turns)]
    if len(turns) < 4:
        return float("nan")
    middle = np.angle(np.exp(1j * turns).mean())
    low, high = np.percentile(np.angle(np.exp(1j * (turns - middle))), (15.87, 84.13))
    return float(np.degrees(high - low) / 4)


def spread_over(crops: np.ndarray) -> float:
    """Deviation of the angles of the crops (N, p, p) with enough rain, in degrees."""
    return spread([direction(crop) for crop in crops if has_rain(crop)])


def spread_within(pictures: Sequence[np.ndarray], p: int) -> float:
    """Deviation of the angles of a picture's p x p crops side by side, in degrees; the median of pictures (H, W)."""
    spreads = []
    for picture in pictures:
        rows, columns = (range(0, side - p + 1, p) for side in picture.shape)
        spreads.append(spread_over(np.stack([picture[y : y + p, x : x + p] for y in rows for x in columns])))
    return _median(spreads)


def bend(crop: np.ndarray) -> float:
    """By how many degrees a streak changes its direction within 4 to 12 px of its length; 0: it is straight.

    At each pixel the structure tensor around it has a direction. It is compared with that of the pixel 4, 8 and 12 px
    further along it. Pairs of pixels weigh by how strong and clear both directions are; so gaps between streaks do not
    count, nor does the angle of the rain. The bend is the root mean square of the differences, as long as it is small.
    nan where nothing changes.

    Args:
        crop: (p, p) float32 in [0, 1]; its root is measured, so that faint streaks count.
    """
    smooth = cv2.GaussianBlur(np.sqrt(crop + np.float32(RAINY)), (0, 0), 1)
    gy, gx = np.gradient(smooth)
    tensor = cv2.merge([gx * gx - gy * gy, -2 * gx * gy])  # energy * (cos, sin) of twice the angle from vertical
    tensor = cv2.GaussianBlur(tensor, (0, 0), BLUR)
    own = tensor[..., 0] + 1j * tensor[..., 1]
    angle = np.angle(own) / 2
    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]]
    alike = clear = 0.0
    for step in ALONG:
        place = (x + step * np.sin(angle)).astype(np.float32), (y + step * np.cos(angle)).astype(np.float32)
        other = cv2.remap(tensor, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT) @ np.array([1, 1j])
        alike += (own * other.conj()).real.sum()
        clear += np.abs(own * other).sum()
    return float(np.degrees(np.arccos(np.clip(alike / clear, -1, 1)) / 2)) if clear > 1e-12 else float("nan")


def median_bend(crops: np.ndarray) -> float:
    """The median ``bend`` of the crops (N, p, p) with enough rain, in degrees; nan if there are none."""
    return _median([bend(crop) for crop in crops if has_rain(crop)])


def _median(values: list[float]) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")
