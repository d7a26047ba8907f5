"""Angle, density, thickness and brightness of a rain layer, set on the layer itself.

The angle is set by turning, the thickness by scaling, the brightness by a gain, the density by leaving streaks out or
by adding those of a further layer. What is not set keeps the value that the layer has by itself.
experiments/knobs_report.py measures how well that works.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from .measures import RAINY, Measures, measure
from .rain import Layer, Shower, exposed

# What a knob can be set to: degrees from vertical, share of rainy pixels, px at --scale 1, mean of rainy pixels.
REACH = {"angle": (-60, 60), "density": (0.01, 0.6), "thickness": (1.2, 6), "brightness": (0.03, 0.25)}
ROUNDS = 4  # density and brightness depend on each other
MOST_LAYERS = 6  # layers in a dense rain
SPARE = 1.15  # factor of the size of a source whose streaks are changed: their thickness may shrink a little
PROBE, WIDE = 192, 1.5  # px and factor of the same, of the small layer that tells how much rain is enlarged
ALONG = 31  # px: length over which a streak is smoothed along itself
DIP = 0.75  # a place that is darker than this share of both its neighbours separates two streaks
SEEN = 384  # px: side of the part of a picture that is measured
Knobs = dict[str, float]  # what a rain is set to, by the names of Measures, and its tint
MISSED = 0.25, 0.03  # a knob missed by more than this share of its value, and of its reach, is worth a warning


def missed(reached: Sequence[tuple[Knobs, Measures]]) -> list[str]:
    """A warning about each knob that pictures miss in the median over them; it gives the value that was reached.

    Args:
        reached: what each rain was set to, and what it measures.
    """
    texts = []
    for name in ("density", "thickness", "brightness"):  # nothing hinders a turn
        misses = []
        for wanted, found in reached:
            value = getattr(found, name)
            if name in wanted and np.isfinite(value):
                near = max(MISSED[0] * wanted[name], MISSED[1] * float(np.ptp(REACH[name])))
                text = f"{name} {wanted[name]:.3g} is missed, the rain has {value:.2g}"
                misses.append((abs(value - wanted[name]) / near, text))
        if misses and (median := sorted(misses)[len(misses) // 2])[0] > 1:
            texts.append(median[1])
    return texts


class _Streaks:
    """A source (H, W, nc) float32 whose streaks, along ``wind``, can be left out one by one in a random order."""

    def __init__(self, source: np.ndarray, wind: float, inside: np.ndarray, rng: np.random.RandomState) -> None:
        """``inside``: whether a pixel belongs to the picture."""
        self.source, self.top, self.inside, self._wind, self._rng = source, source.max(2), inside, wind, rng

    @functools.cached_property
    def turns(self) -> np.ndarray:
        """When each pixel of the source is left out: (H, W) whole numbers, one for each streak."""
        from skimage.measure import label  # takes a second to import
        from skimage.morphology import h_maxima
        from skimage.segmentation import watershed

        line = cv2.getRotationMatrix2D((ALONG // 2, ALONG // 2), self._wind, 1)
        kernel = np.zeros((ALONG, ALONG), np.float32)
        kernel[:, ALONG // 2] = 1
        kernel = cv2.warpAffine(kernel, line, (ALONG, ALONG))
        smooth = cv2.filter2D(self.top, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)[::2]
        height = np.log(np.maximum(smooth, 0) + 1e-3)  # every second row: it is smooth along the streaks
        markers, number = label(h_maxima(height, -np.log(DIP)), return_num=True)
        turns = np.append(0, 1 + self._rng.permutation(number))
        found = turns[watershed(-height, markers)]
        return np.repeat(found, 2, axis=0)[: len(self.top)]

    def kept(self, threshold: float, density: float, other: np.ndarray) -> tuple[np.ndarray, bool]:
        """As many streaks as make the density together with ``other``; whether the source has so many."""
        wet = self.inside & (other.max(2) > threshold)
        new = self.inside & (self.top > threshold) & ~wet
        lacking = density * np.count_nonzero(self.inside) - np.count_nonzero(wet)
        if np.count_nonzero(new) < lacking:
            return self.source, False
        counts = np.cumsum(np.bincount(self.turns[new], minlength=self.turns.max() + 1))
        return self.source * (self.turns <= np.abs(counts - lacking).argmin())[..., None], True


def set_knobs(
    shower: Shower, height: int, width: int, values: dict[str, float], scale: float = 1.0, stretch: float = 1.0
) -> Layer:
    """A layer of a rain with given angle, density, thickness or brightness.

    Args:
        height, width: of the picture in px.
        values: by the names of ``Measures``, within REACH; none leaves the rain as it is.
        scale: factor of the size of the streaks, on top of the thickness.
        stretch: a further factor of their length.
    """
    turn = values["angle"] - shower.wind if "angle" in values else 0.0
    if not values.keys() & {"density", "thickness", "brightness"}:
        return shower.layer(height, width, turn, scale, stretch=stretch)
    zoom, natural = 1.0, None
    if "thickness" in values:  # how much the rain is enlarged for it, is tried on a small layer
        probe = shower.layer(PROBE, PROBE, turn, 1.0, WIDE)
        natural = measured(probe, 1.0)  # what is not set stays as it is without the zoom
        zoom = _solved(probe, shower, natural, values, 1.0).scale
    layer = shower.layer(height, width, turn, scale * zoom, SPARE, stretch)
    return _solved(layer, shower, natural or measured(layer, scale), values, scale)


def _solved(layer: Layer, shower: Shower, natural: Measures, values: dict[str, float], scale: float) -> Layer:
    """The layer with the values, and those that are natural where none is given."""
    target = natural._replace(**{name: value for name, value in values.items() if name in REACH})
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


def _with_density(layer: Layer, shower: Shower, target: Measures) -> Layer:
    """Streaks left out or added, and a gain: density and brightness in turns, since each moves the other a little."""
    white = np.full((layer.height, layer.width), 255, np.uint8)
    inside = cv2.warpAffine(white, layer.matrix(), layer.source.shape[1::-1]) > 0
    sources: list[_Streaks] = []
    gain = 1.0
    for _ in range(ROUNDS):
        threshold = RAINY / gain
        made = np.zeros(layer.source.shape, np.float32)
        for k in range(MOST_LAYERS):
            if k == len(sources):
                more = shower.source(replace(layer, scale=layer.least_scale())) if k else layer.source
                sources.append(_Streaks(more.astype(np.float32), shower.wind, inside, np.random.RandomState(k)))
            kept, enough = sources[k].kept(threshold, target.density, made)
            made = np.maximum(made, kept)
            if enough or (made.max(2) > threshold)[inside].mean() > 0.98 * target.density:
                break
        before, gain = gain, _gain(made[inside][::4], target.brightness)
        if abs(gain / before - 1) < 0.01:
            break
    return replace(layer, source=made.astype(np.float16), gain=gain)


def _with_thickness(layer: Layer, target: float, scale: float) -> Layer:
    """The nearest of three scales: the thickness moves with the scale, but not quite in proportion."""
    tried, least = [], layer.least_scale()
    for _ in range(3):
        thickness = measured(layer, scale).thickness
        if not np.isfinite(thickness):
            break
        tried.append((abs(np.log(thickness / target)), layer))
        layer = replace(layer, scale=max(least, layer.scale * target / thickness))
    return min(tried, key=lambda pair: pair[0])[1] if tried else layer


def _gain(rain: np.ndarray, brightness: float) -> float:
    """The factor with which rain (N, C) has a mean brightness over its rainy pixels, see ``exposed``."""
    low, high = 1e-2, 1e2
    rain = rain[rain.max(1) > RAINY / high]
    top = rain.max(1)
    for _ in range(25):
        gain = (low * high) ** 0.5
        rainy = gain * top > RAINY
        if rainy.any() and exposed(rain[rainy], gain).mean() > brightness:
            high = gain
        else:
            low = gain
    return gain
