"""Angle, density, thickness and brightness of a rain layer (docs/rain.md)."""

from typing import NamedTuple

import cv2
import numpy as np

RAINY = 0.02  # a pixel is rainy where the maximum over the channels is above it (docs/rain.md)
SIGMA = 1.0  # px: of the Gaussian whose derivative finds the direction
REACH = 12  # px: how far to either side of its middle a streak is followed
STEP = 0.25  # px: between the samples across a streak
RIM = 3  # px: at the rim of a layer, where derivatives see the mirrored outside
MOST = 4000  # pixels at which the thickness is measured; the median needs no more


class Measures(NamedTuple):
    """Of one layer. Where there is no rain, density is 0 and the others are nan."""

    angle: float  # degrees from vertical, above -90 to 90, positive where the lower end lies to the right
    density: float  # share of rainy pixels: those whose maximum over the channels is above 0.02
    thickness: float  # px: median width of the streaks across their direction, at half of their height
    brightness: float  # mean of the layer over the rainy pixels


def direction(grey: np.ndarray) -> float:
    """Angle of the streaks by the structure tensor, in degrees, see ``Measures``; nan for a flat layer.

    Args:
        grey: (H, W) float32.
    """
    x = np.arange(-4, 5, dtype=np.float32)
    bell = np.exp(-(x**2) / (2 * SIGMA**2))
    bell /= bell.sum()
    slope = x * bell / (x**2 * bell).sum()  # derivatives of a Gaussian prefer no direction
    rim = min(RIM, (min(grey.shape) - 1) // 2)
    inner = np.s_[rim : grey.shape[0] - rim, rim : grey.shape[1] - rim]
    gx, gy = (
        cv2.sepFilter2D(grey, -1, *kernels, borderType=cv2.BORDER_REFLECT_101)[inner].astype(np.float64)
        for kernels in ((slope, bell), (bell, slope))
    )
    xx, yy, xy = (gx * gx).mean(), (gy * gy).mean(), (gx * gy).mean()
    if xx + yy < 1e-12:
        return float("nan")
    return float(np.degrees(np.arctan2(-2 * xy, xx - yy) / 2))  # along it, brightness changes least


def widths(grey: np.ndarray, angle: float) -> np.ndarray:
    """Widths in px of the streaks at their middles, at half of their height and across ``angle`` (degrees).

    A middle is a rainy pixel that is as bright as both neighbours across the streak. Streaks that are still above half
    of their height 12 px away, or that touch a brighter one, are left out.

    Args:
        grey: (H, W) float32.

    Returns:
        (number of middles,) float64, possibly empty.
    """
    turn = np.radians(angle)
    across = np.cos(turn), -np.sin(turn)  # unit vector (x, y) at a right angle to the streaks
    y, x = np.nonzero(grey > RAINY)
    if len(y) > MOST:
        some = np.random.RandomState(0).choice(len(y), MOST, replace=False)
        y, x = y[some], x[some]
    if not len(y):
        return np.empty(0)
    t = np.arange(-REACH, REACH + STEP, STEP)
    middle = len(t) // 2
    places = [(start[:, None] + t * step).astype(np.float32) for start, step in zip((x, y), across, strict=True)]
    lines = cv2.remap(grey, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    near = lines[:, middle - round(1 / STEP) : middle + round(1 / STEP) + 1]
    lines = lines[near.max(1) <= lines[:, middle] * (1 + 1e-3)]
    half = lines[:, middle, None] / 2
    sides = []
    for side in (lines[:, middle:], lines[:, middle::-1]):
        below = side < half
        end = below.argmax(1)
        rows = np.arange(len(side))
        outer, inner = side[rows, end], side[rows, end - 1]
        part = (inner - half[:, 0]) / np.maximum(inner - outer, 1e-9)
        higher = (np.where(np.arange(side.shape[1]) <= end[:, None], side, 0).max(1)) > 2.2 * half[:, 0]
        sides.append(np.where(below.any(1) & ~higher, (end - 1 + part) * STEP, np.nan))
    both = sides[0] + sides[1]
    return both[np.isfinite(both)].astype(np.float64)


def measure(layer: np.ndarray) -> Measures:
    """Angle, density, thickness and brightness of one layer.

    Args:
        layer: (H, W) or (C, H, W) float32, rain >= 0 on black.
    """
    layer = layer[None] if layer.ndim == 2 else layer
    rainy = layer.max(0) > RAINY
    if not rainy.any():
        return Measures(float("nan"), 0.0, float("nan"), float("nan"))
    grey = np.ascontiguousarray(layer.mean(0), np.float32)
    angle = direction(grey)
    across = widths(grey, angle) if np.isfinite(angle) else np.empty(0)
    thickness = float(np.median(across)) if len(across) else float("nan")
    return Measures(angle, float(rainy.mean()), thickness, float(layer.mean(0)[rainy].mean()))
