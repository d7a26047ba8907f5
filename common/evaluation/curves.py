"""Curves of one or several trainings as a picture, out of the log.csv in their --log_dir.

python -m common.evaluation.curves --log_dir syn100llogs other_logs --out curves.png
"""

import argparse
import csv
import math
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .. import cli, flags
from ..data.images import write_image
from ..errors import UserError
from .metrics import labels

COLUMNS = 3
PANEL = 4.2, 2.8  # inches, at 100 dots each


def read_log(folder: Path) -> dict[str, np.ndarray]:
    """The columns of a training's log.csv, a value for each epoch; nan where there is none.

    Raises:
        UserError: there is none, or it is not of a training.
    """
    path = folder / "log.csv" if folder.is_dir() else folder
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    except FileNotFoundError:
        raise UserError(f"{folder} holds no log.csv; name the --log_dir of a training") from None
    except (OSError, ValueError, TypeError, IndexError):
        columns = {}
    if "step" not in columns:
        raise UserError(f"{path} is not the log of a training, or no epoch of it is done; name another --log_dir")
    return columns


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with panels, row by row; ``width`` and ``height`` of a panel are in inches, at 100 px each."""
    figure = Figure((width * columns, height * rows), dpi=100)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    return figure, axes


def picture(figure: Figure) -> np.ndarray:
    """A figure as (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    figure.tight_layout()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw(logs: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """A panel for each kind of value, a line in it for each training.

    Args:
        logs: columns by the name of a training, see ``read_log``.

    Returns:
        (H, W, 3) uint8.
    """
    names = dict.fromkeys(name for log in logs.values() for name in log if name not in ("epoch", "step", "seconds"))
    drawn = {name: [name] for name in names if not name.startswith("lr/")}
    if rates := [name for name in names if name.startswith("lr/")]:
        drawn["learning rates"] = rates
    columns = min(COLUMNS, len(drawn))
    figure, axes = panels(math.ceil(len(drawn) / columns), columns, *PANEL)
    for axis, (title, lines) in zip(axes, drawn.items(), strict=False):
        for number, (label, log) in enumerate(logs.items()):
            for kind, name in enumerate(name for name in lines if name in log):
                known = np.isfinite(log[name])
                text = label if len(lines) == 1 else f"{label} {name.removeprefix('lr/')}"
                style = {"color": f"C{number}", "linestyle": ("-", "--", ":")[kind % 3], "label": text}
                axis.plot(log["step"][known], log[name][known], **style)
        low, high = axis.dataLim.intervaly
        if 0 < 30 * low < high:
            axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("steps", fontsize=8)
        axis.legend(fontsize=6)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    return picture(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_path("--log_dir", required=True, nargs="+", help="that of a training, or of several to compare")
    flags.add_picture(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    out = flags.picture(args)
    logs = {name: read_log(Path(folder)) for name, folder in zip(labels(args.log_dir), args.log_dir, strict=True)}
    write_image(out, draw(logs))
    print(f"picture: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
