"""The flags that set the knobs of generated rain."""

import argparse
from collections.abc import Iterable

from ..cli import Parser, number
from ..errors import UserError
from .knobs import REACH

KNOBS = {
    "angle": (*REACH["angle"], "degrees from vertical, lower end to the right"),
    "density": (*REACH["density"], "share of rainy pixels"),
    "thickness": (*REACH["thickness"], "median width of streaks in px, at --scale 1"),
    "brightness": (*REACH["brightness"], "mean of the rain over rainy pixels"),
    "tint": (0, 1, "colour of the streaks, which takes some light: 0 leaves it, 1 takes a channel away"),
    "layers": (0, 8, "showers in a picture, each with its own wind and kind of rain; the knobs are those of each"),
}  # by name: lowest and highest number that is taken, help
PRESETS = {
    "light": {"angle": (-20, 20), "density": (0.03, 0.15), "brightness": (0.05, 0.15)},
    "heavy": {"angle": (-30, 30), "density": (0.15, 0.4), "brightness": (0.1, 0.25), "layers": (2, 3)},
    "any": {
        "angle": (-45, 45),
        "density": (0.03, 0.4),
        "thickness": (1.5, 4),
        "brightness": (0.05, 0.25),
        "tint": (0, 0.3),
        "layers": (1, 3),
    },
}


def add_knobs(parser: Parser) -> None:
    """The knobs and --preset, in a group of their own."""
    group = parser.add_argument_group(
        "knobs: one number, or two numbers, between which each picture draws its own; without them chance decides"
    )
    for name, (low, high, help) in KNOBS.items():
        kind = number(int if name == "layers" else float, low, high)
        group.add_argument(f"--{name}", type=kind, nargs="+", metavar=("LOW", "HIGH"), help=help)
    help = "; ".join(f"{name}: {_as_flags(preset)}" for name, preset in PRESETS.items())
    group.add_argument("--preset", choices=PRESETS, help=f"ranges of the knobs that are not set. {help}")


def knobs(args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """The ranges of the knobs of ``add_knobs`` that were set, or that --preset sets; 'layers' among them.

    Raises:
        UserError: more than two numbers, or the first one is the larger one.
    """
    ranges, preset = {}, PRESETS.get(args.preset, {})
    for name in KNOBS:
        if values := getattr(args, name):
            if len(values) > 2 or values[0] > values[-1]:
                raise UserError(f"--{name}: give a number, or a lower and a higher one; got {_text(values)}")
            ranges[name] = values[0], values[-1]
        elif name in preset:
            ranges[name] = preset[name]
    if preset:
        print(f"--preset {args.preset}: {_as_flags({name: ranges[name] for name in preset})}")
    return ranges


def _text(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _as_flags(ranges: dict[str, tuple[float, float]]) -> str:
    return " ".join(f"--{name} {_text(dict.fromkeys(ends))}" for name, ends in ranges.items())
