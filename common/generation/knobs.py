"""Angle, density, thickness and brightness of a rain layer, set on the layer itself.

The angle is set by turning, the thickness by scaling, the brightness by a gain, the density by leaving streaks out or
by adding those of a further layer. What is not set keeps the value that the layer has by itself.
experiments/knobs_report.py measures how well that works.
"""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from .measures import RAINY, Measures, measure
from .rain import Layer, Shower

# What a knob can be set to: degrees from vertical, share of rainy pixels, px at --scale 1, mean of rainy pixels.
REACH = {"angle": (-60.0, 60.0), "density": (0.01, 0.6), "thickness": (1.2, 8.0), "brightness": (0.03, 0.5)}
ROUNDS = 4  # density and brightness depend on each other
MOST_LAYERS = 6  # layers in a dense rain
SPARE = 1.15  # factor of the size of a source whose streaks are changed: its thickness may shrink a little
ALONG = 31  # px: length over which a streak is smoothed along itself
DIP = 0.75  # a place that is darker than this share of both its neighbours separates two streaks
SEEN = 384  # px: side of the part of a picture that is measured
MISSED = 0.25, 0.03  # a knob missed by more than this share of its value, and of its reach, is worth a warning


def clamped(wanted: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Values within reach of the knobs, and a warning for each that was not."""
    taken = {name: float(np.clip(value, *REACH[name])) for name, value in wanted.items()}
    warnings = [
        f"{name} {wanted[name]:g} is out of reach, {REACH[name][0]:g} to {REACH[name][1]:g}; {taken[name]:g} is taken"
        for name in wanted
        if taken[name] != wanted[name]
    ]
    return taken, warnings


def missed(wanted: dict[str, float], reached: Sequence[Measures]) -> list[str]:
    """A warning about the knob that pictures miss most, in the median over them; none where all are near."""
    worst, text = 1.0, ""
    for name in (name for name in wanted if name != "angle"):  # nothing hinders a turn
        values = [value for value in (getattr(one, name) for one in reached) if np.isfinite(value)]
        median = float(np.median(values)) if values else wanted[name]
        near = max(MISSED[0] * wanted[name], MISSED[1] * float(np.ptp(REACH[name])))
        if abs(median - wanted[name]) > worst * near:
            worst = abs(median - wanted[name]) / near
            others = ", ".join(f"--{other} {value:g}" for other, value in wanted.items() if other != name)
            text = f"{name} {wanted[name]:g} is missed, the rain has {median:.2g}; "
            text += f"it does not go together with {others}" if others else "this rain can't reach it"
    return [text] if text else []


class _Streaks:
    """A source (H, W, nc) float32 whose streaks, along ``wind``, can be left out one by one in a random order."""

    def __init__(self, source: np.ndarray, wind: float, inside: np.ndarray, rng: np.random.RandomState) -> None:
        """``inside``: whether a pixel belongs to the picture."""
        from skimage.measure import label  # takes a second to import
        from skimage.morphology import h_maxima
        from skimage.segmentation import watershed

        self.source, self.top, self.inside = source, source.max(2), inside
        line = cv2.getRotationMatrix2D((ALONG // 2, ALONG // 2), wind, 1)
        kernel = np.zeros((ALONG, ALONG), np.float32)
        kernel[:, ALONG // 2] = 1
        kernel = cv2.warpAffine(kernel, line, (ALONG, ALONG))
        smooth = cv2.filter2D(self.top, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)
        height = np.log(np.maximum(smooth, 0) + 1e-3)
        markers, number = label(h_maxima(height, -np.log(DIP)), return_num=True)
        turns = np.append(0, 1 + rng.permutation(number))  # a streak's number is its turn to be left out
        self.turns = watershed(-height, turns[markers])

    def kept(self, threshold: float, density: float, other: np.ndarray) -> tuple[np.ndarray, bool]:
        """As many streaks as make the density together with ``other``; whether the source has so many."""
        wet = self.inside & (other.max(2) > threshold)
        new = self.inside & (self.top > threshold) & ~wet
        counts = np.cumsum(np.bincount(self.turns[new], minlength=self.turns.max() + 1))
        lacking = density * np.count_nonzero(self.inside) - np.count_nonzero(wet)
        if counts[-1] < lacking:
            return self.source, False
        return self.source * (self.turns <= np.abs(counts - lacking).argmin())[..., None], True


def set_knobs(shower: Shower, height: int, width: int, values: dict[str, float], scale: float = 1.0) -> Layer:
    """A layer of a rain with given angle, density, thickness or brightness.

    Args:
        height, width: of the picture in px.
        values: by the names of ``Measures``, within REACH; none leaves the rain as it is.
        scale: factor of the size of the streaks, on top of the thickness.
    """
    turn = values["angle"] - shower.wind if "angle" in values else 0.0
    if not values.keys() & {"density", "thickness", "brightness"}:
        return shower.layer(height, width, turn, scale)
    zoom = _zoom(shower, values["thickness"]) if "thickness" in values else 1.0
    layer = shower.layer(height, width, turn, scale * zoom, SPARE)
    if zoom == 1:
        natural = measured(layer, scale)
    else:  # what is not set stays as it is without the zoom
        high, wide = (min(side, round(SEEN * scale)) for side in (height, width))
        natural = measured(shower.layer(high, wide, turn, scale), scale)
    target = Measures(**(natural._asdict() | values))
    if not np.isfinite(target).all():  # there is no rain that could be changed
        return layer
    layer = _with_density(layer, shower, target)
    layer = _with_thickness(layer, target.thickness, scale)
    rain = _middle(replace(layer, gain=1.0), scale)
    return replace(layer, gain=_gain(rain.reshape(-1, rain.shape[2]), target.brightness)) if rain.any() else layer


def measured(layer: Layer, scale: float) -> Measures:
    """Of the middle of a picture, as it would be at --scale 1."""
    return measure(np.minimum(_middle(layer, scale), 1).transpose(2, 0, 1))


def _middle(layer: Layer, scale: float) -> np.ndarray:
    """(h, w, nc) of a picture, as it would be at --scale 1."""
    height, width = (max(1, min(SEEN, round(side / scale))) for side in (layer.height, layer.width))
    return replace(layer, height=height, width=width, scale=layer.scale / scale).pixels()


def _zoom(shower: Shower, thickness: float) -> float:
    """The factor of the size that brings the patches of a rain to a thickness."""
    some = [measure(patch.transpose(2, 0, 1)).thickness for patch in shower.pool[:32]]
    return thickness / (np.nanmedian(some) if np.isfinite(some).any() else thickness)


def _with_density(layer: Layer, shower: Shower, target: Measures) -> Layer:
    """Streaks left out or added, and a gain: density and brightness in turns, since each moves the other a little."""
    ones = np.ones((layer.height, layer.width), np.uint8)
    inside = cv2.warpAffine(ones, layer.matrix(), layer.source.shape[1::-1]) > 0
    sources: list[_Streaks] = []
    gain = 1.0
    for _ in range(ROUNDS):
        threshold = RAINY / gain
        made = np.zeros(layer.source.shape, np.float32)
        for k in range(MOST_LAYERS):
            if k == len(sources):
                more = shower.layer(layer.height, layer.width, layer.turn, layer.scale, SPARE) if k else layer
                sources.append(_Streaks(more.source.astype(np.float32), shower.wind, inside, np.random.RandomState(k)))
            kept, enough = sources[k].kept(threshold, target.density, made)
            made = np.maximum(made, kept)
            if enough or (made.max(2) > threshold)[inside].mean() > 0.98 * target.density:
                break
        gain = _gain(made[inside], target.brightness)
    return replace(layer, source=made.astype(np.float16), gain=gain)


def _with_thickness(layer: Layer, target: float, scale: float) -> Layer:
    """The nearest of three scales: the thickness moves with the scale, but not quite in proportion."""
    tried = []
    for _ in range(3):
        thickness = measured(layer, scale).thickness
        if not np.isfinite(thickness):
            break
        tried.append((abs(np.log(thickness / target)), layer))
        layer = replace(layer, scale=layer.scale * target / thickness)
    return min(tried, key=lambda pair: pair[0])[1] if tried else layer


def _gain(rain: np.ndarray, brightness: float) -> float:
    """The factor with which rain (N, nc) has a mean brightness over its rainy pixels."""
    low, high = 1e-2, 1e2
    top = rain.max(1)
    for _ in range(25):
        gain = (low * high) ** 0.5
        rainy = gain * top > RAINY
        if rainy.any() and np.minimum(gain * rain[rainy], 1).mean() > brightness:
            high = gain
        else:
            low = gain
    return gain
