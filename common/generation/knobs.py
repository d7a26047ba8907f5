"""Angle, density, thickness and brightness of a rain layer, set on the layer itself.

The angle is set by turning, the thickness by scaling, the brightness by a gain, the density by leaving streaks out or
by adding those of a further layer. What is not set keeps the value that the layer has by itself.

    python -m common.generation.knobs --netED ED_state_N.pt --out REPORT

measures how well that works, and draws it.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from .. import cli, flags
from ..data.images import to_uint8, write_image
from ..data.pictures import row, sheet, write_gif
from ..files import write_bytes
from ..terminal import print_result, progress_bar
from ..training.checkpoint import load_generator
from ..training.device import pick_device
from .measures import RAINY, Measures, measure
from .rain import Layer, RainMaker, Shower

# What a knob can be set to: degrees from vertical, share of rainy pixels, px at --scale 1, mean of rainy pixels.
REACH = {"angle": (-60.0, 60.0), "density": (0.01, 0.6), "thickness": (1.2, 8.0), "brightness": (0.03, 0.5)}
ROUNDS = 4  # density and brightness depend on each other
MOST_LAYERS = 6  # layers that are put over each other for a dense rain, at most
ALONG = 31  # px: over which a streak is smoothed along itself to find it
DIP = 0.75  # where it is darker than this share of what lies on both sides, one streak ends and another begins
SEEN = 384  # px: side of the part on which thickness is measured


def clamped(wanted: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Values within reach of the knobs, and a warning for each that was not."""
    found = {name: float(np.clip(value, *REACH[name])) for name, value in wanted.items()}
    warnings = [
        f"{name} {wanted[name]:g} is out of reach, {REACH[name][0]:g} to {REACH[name][1]:g}; {found[name]:g} is taken"
        for name in wanted
        if found[name] != wanted[name]
    ]
    return found, warnings


class _Streaks:
    """A source layer whose streaks can be left out one by one, in a random order.

    Args:
        source: (H, W, nc) float32.
        wind: degrees, of the streaks.
        inside: (H, W), whether a pixel belongs to the picture.
    """

    def __init__(self, source: np.ndarray, wind: float, inside: np.ndarray, rng: np.random.RandomState) -> None:
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

    def kept(self, threshold: float, density: float, beside: np.ndarray) -> tuple[np.ndarray, bool]:
        """The layer with as many streaks as make ``beside`` and it together have a density; whether it has enough."""
        new = self.inside & (self.top > threshold) & (beside.max(2) <= threshold)
        counts = np.cumsum(np.bincount(self.turns[new], minlength=self.turns.max() + 1))
        there = np.count_nonzero(self.inside & (beside.max(2) > threshold))
        wanted = density * np.count_nonzero(self.inside) - there
        if counts[-1] < wanted:
            return self.source, False
        return self.source * (self.turns <= np.abs(counts - wanted).argmin())[..., None], True


def set_knobs(shower: Shower, height: int, width: int, values: dict[str, float], scale: float = 1.0) -> Layer:
    """A layer of a rain with given angle, density, thickness or brightness.

    Args:
        height, width: of the picture in px.
        values: by the names of ``Measures``, within REACH; none leaves the rain as it is.
        scale: factor of the size of the streaks, on top of the thickness.
    """
    turn = values["angle"] - shower.wind if "angle" in values else 0.0
    zoom = 1.0
    if "thickness" in values:
        some = [measure(patch.transpose(2, 0, 1)).thickness for patch in shower.pool[:32]]
        zoom = values["thickness"] / (np.nanmedian(some) if np.isfinite(some).any() else values["thickness"])
    spare = 1.15 if values.keys() & {"density", "thickness", "brightness"} else 1.0
    layer = shower.layer(height, width, turn, scale * zoom, spare)
    if spare == 1:
        return layer
    if zoom == 1:
        natural = _measured(layer, scale)
    else:  # that of the rain before it is zoomed
        high, wide = (min(side, round(SEEN * scale)) for side in (height, width))
        natural = _measured(shower.layer(high, wide, turn, scale), scale)
    return _solved(layer, shower, natural._asdict() | values, scale, zoom)


def _middle(layer: Layer, scale: float) -> np.ndarray:
    """Of a picture, as it would be at --scale 1: (h, w, nc)."""
    height, width = (max(1, min(SEEN, round(side / scale))) for side in (layer.height, layer.width))
    return replace(layer, height=height, width=width, scale=layer.scale / scale).pixels()


def _measured(layer: Layer, scale: float) -> Measures:
    return measure(np.minimum(_middle(layer, scale), 1).transpose(2, 0, 1))


def _solved(layer: Layer, shower: Shower, target: dict[str, float], scale: float, zoom: float) -> Layer:
    """Density and brightness in turns, since each moves the other a little; then the thickness."""
    if not np.isfinite(list(target.values())).all():  # there is no rain that could be changed
        return layer
    ones = np.ones((layer.height, layer.width), np.uint8)
    inside = cv2.warpAffine(ones, layer.matrix(), layer.source.shape[1::-1]) > 0
    streaks = [_Streaks(layer.source.astype(np.float32), shower.wind, inside, np.random.RandomState(0))]
    gain, made = 1.0, streaks[0].source
    for _ in range(ROUNDS):
        threshold = RAINY / gain
        made = np.zeros_like(made)
        for k in range(MOST_LAYERS):
            if k == len(streaks):
                more = shower.layer(layer.height, layer.width, layer.turn, scale * zoom, 1.15).source
                streaks.append(_Streaks(more.astype(np.float32), shower.wind, inside, np.random.RandomState(k)))
            kept, enough = streaks[k].kept(threshold, target["density"], made)
            made = np.maximum(made, kept)
            if enough or (made.max(2) > threshold)[inside].mean() > 0.98 * target["density"]:
                break
        gain = _gain(made[inside], target["brightness"])
    layer = replace(layer, source=made.astype(np.float16), gain=gain)
    tried = []  # the thickness moves with the scale, but not quite in proportion
    for _ in range(3):
        thickness = _measured(layer, scale).thickness
        if not np.isfinite(thickness):
            break
        tried.append((abs(np.log(thickness / target["thickness"])), layer))
        layer = replace(layer, scale=layer.scale * target["thickness"] / thickness)
    layer = min(tried, key=lambda pair: pair[0])[1] if tried else layer
    rain = _middle(replace(layer, gain=1.0), scale)
    return replace(layer, gain=_gain(rain.reshape(-1, rain.shape[2]), target["brightness"])) if rain.any() else layer


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


# --- what the knobs do ---------------------------------------------------------------------------------------------

RANGES = {"angle": (-45, 45), "density": (0.02, 0.5), "thickness": (1.5, 6), "brightness": (0.05, 0.4)}  # reported
PLACES = 9  # values of a knob that are measured
SIDE = 256  # px: of the pictures


def response(maker: RainMaker, pictures: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What pictures measure while one knob goes through its range, and while all are left alone.

    Returns:
        For each knob (PLACES, pictures, 4), see ``Measures``; and (4 pictures, 4).
    """
    wanted = [(name, value) for name, ends in RANGES.items() for value in np.linspace(*ends, PLACES)]
    found = {name: np.full((PLACES, pictures, 4), np.nan) for name in RANGES}
    alone = []
    for k in progress_bar(range(4 * pictures), desc="measuring rain", unit="picture", leave=False):
        shower = maker.shower(0.5, np.random.RandomState([seed, k]))
        alone.append(_measured(shower.layer(SIDE, SIDE), 1.0))
        for i, (name, value) in enumerate(wanted if k < pictures else ()):
            found[name][i % PLACES, k] = _measured(set_knobs(shower, SIDE, SIDE, {name: value}), 1.0)
    return found, np.array(alone)


def report(found: dict[str, np.ndarray], alone: np.ndarray, name: str) -> str:
    """What the knobs do, as Markdown; see ``response``."""
    from scipy.stats import spearmanr  # takes a second to import

    lines = [f"# What the knobs do to the rain of {name}", ""]
    lines += [f"Measured on pictures of {SIDE} px, {alone.shape[0] // 4} rains, one knob at a time. Error: of what was"]
    lines += ["measured against what was set; in brackets, as a share of the range.", ""]
    lines += ["| knob | from | to | rank correlation | median error | 9 of 10 within |", "|---|---|---|---|---|---|"]
    talk = []
    for knob, values in found.items():
        own, ends = values[:, :, Measures._fields.index(knob)], RANGES[knob]
        target = np.broadcast_to(np.linspace(*ends, PLACES)[:, None], own.shape)
        error = np.abs(own - target)
        half, most = np.nanmedian(error), np.nanquantile(error, 0.9)
        rank = spearmanr(target.ravel(), own.ravel(), nan_policy="omit").statistic
        lines.append(
            f"| {knob} | {ends[0]} | {ends[1]} | {rank:.3f} | {half:.2g} | {most:.2g} ({most / np.ptp(ends):.1%}) |"
        )
        moved = np.nanmedian(values[-1] - values[0], axis=0) / np.nanstd(alone, axis=0)
        talk.append(f"| {knob} | {' | '.join(f'{value:+.2f}' for value in moved)} |")
    lines += [
        "",
        "Cross-talk: how far a measure moves while a knob goes from one end of its range to the other (median",
    ]
    lines += ["over the rains), in standard deviations of that measure over rain whose knobs are left alone.", ""]
    lines += [f"| knob | {' | '.join(Measures._fields)} |", "|---|---|---|---|---|", *talk]
    return "\n".join(lines) + "\n"


def picture(maker: RainMaker, seed: int) -> Iterator[tuple[str, list[np.ndarray], list[str]]]:
    """For each knob its pictures, (H, W, 3) uint8, brightened alike, and what is written above them."""
    for name, ends in RANGES.items():
        values = np.linspace(*ends, 7)
        made = [
            set_knobs(maker.shower(0.5, np.random.RandomState(seed)), 192, 192, {name: value}).pixels()
            for value in values
        ]
        gain = float(np.clip(1 / max(max(np.quantile(layer, 0.995) for layer in made), 1e-6), 1, 3))
        shown = [
            to_uint8(np.minimum(gain * np.repeat(layer.max(2, keepdims=True), 3, 2), 1), "nearest") for layer in made
        ]
        yield name, shown, [f"{name} {value:.3g}" for value in values]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_netED("default")
    parser.add_path("--out", required=True, help="folder of the report")
    parser.add_argument("--pictures", type=cli.number(int, 2, 1000), default=8, help="rains at each value of a knob")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of the rains")
    flags.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    netED = load_generator(Path(args.netED), "--netED").to(pick_device(args.use_gpu, args.gpu_id))
    maker, out = RainMaker(netED), Path(args.out)
    text = report(*response(maker, args.pictures, args.seed), Path(args.netED).name)
    write_bytes(out / "knobs.md", text.encode(errors="replace"))
    rows = []
    for name, images, labels in picture(maker, args.seed):
        rows.append((images, labels))
        frames = [row([image], [label], image.shape[1]) for image, label in zip(images, labels, strict=True)]
        write_gif(out / f"{name}.gif", frames + frames[-2:0:-1], 250)
    write_image(out / "knobs.png", sheet(rows))
    print_result(text)
    print(f"report: {out / 'knobs.md'}\npicture: {out / 'knobs.png'}, and a GIF of each knob")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
