"""Curves of one or several trainings as a picture, out of the log.csv in their --log_dir.

python experiments/curves.py --log_dir syn100llogs other_logs --out curves.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags
from experiments.experiment import read_log

COLUMNS = 3  # panels side by side


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, __file__)
    flags.add_path(parser, "--log_dir", required=True, nargs="+", help="that of a training, or of several to compare")
    flags.add_path(parser, "--out", required=True, help="the picture to write, .png or .jpg")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logs = {folder: read_log(Path(folder)) for folder in args.log_dir}
    names = dict.fromkeys(name for log in logs.values() for name in log)
    drawn = [name for name in names if name not in ("epoch", "step", "seconds")]
    rows = -(-len(drawn) // COLUMNS)
    figure = Figure((4.2 * COLUMNS, 2.8 * rows), layout="tight")
    for axis, name in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, drawn, strict=False):
        for folder, log in logs.items():
            if name in log:
                known = np.isfinite(log[name])  # a validation comes with some epochs only
                axis.plot(log["step"][known], log[name][known], label=Path(folder).name)
        axis.set_title(name, fontsize=9)
        axis.legend(fontsize=6)
    figure.savefig(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
