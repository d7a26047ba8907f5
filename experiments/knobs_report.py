"""How well the knobs of generate_rain.py work, measured and drawn.

    python experiments/knobs_report.py --netED ED_state_N.pt --out REPORT

Writes knobs.md, knobs.png and a GIF of each knob.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags
from common.data.images import to_uint8, write_image
from common.data.pictures import row, sheet, write_gif
from common.files import write_bytes
from common.generation.knobs import measured, set_knobs
from common.generation.measures import Measures
from common.generation.rain import RainMaker
from common.terminal import print_result, progress_bar
from common.training.checkpoint import load_generator
from common.training.device import pick_device

RANGES = {"angle": (-45, 45), "density": (0.02, 0.5), "thickness": (1.5, 6), "brightness": (0.05, 0.25)}  # reported
PLACES = 9  # values of a knob that are measured
SIDE = 256  # px: of the pictures


def response(maker: RainMaker, pictures: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """``Measures`` while one knob goes through its range, (PLACES, pictures, 4), and of free rain, (4 pictures, 4)."""
    swept = {name: np.full((PLACES, pictures, 4), np.nan) for name in RANGES}
    alone = []
    for k in progress_bar(range(4 * pictures), desc="measuring rain", unit="picture", leave=False):
        shower = maker.shower(0.5, np.random.RandomState([seed, k]))
        alone.append(measured(shower.layer(SIDE, SIDE), 1.0))
        for name, ends in RANGES.items() if k < pictures else ():
            for place, value in enumerate(np.linspace(*ends, PLACES)):
                swept[name][place, k] = measured(set_knobs(shower, SIDE, SIDE, {name: value}), 1.0)
    return swept, np.array(alone)


def report(swept: dict[str, np.ndarray], alone: np.ndarray, name: str) -> str:
    """What the knobs do, as Markdown; see ``response``."""
    from scipy.stats import spearmanr  # takes a second to import

    errors, talk = [], []
    for knob, values in swept.items():
        own, ends = values[:, :, Measures._fields.index(knob)], RANGES[knob]
        target = np.broadcast_to(np.linspace(*ends, PLACES)[:, None], own.shape)
        half, most = np.nanquantile(np.abs(own - target), (0.5, 0.9))
        rank = spearmanr(target.ravel(), own.ravel(), nan_policy="omit").statistic
        most_of_all = f"{most:.2g} ({most / np.ptp(ends):.1%})"
        errors.append(f"| {knob} | {ends[0]} | {ends[1]} | {rank:.3f} | {half:.2g} | {most_of_all} |")
        moved = np.nanmedian(values[-1] - values[0], axis=0) / np.nanstd(alone, axis=0)
        talk.append(f"| {knob} | {' | '.join(f'{value:+.2f}' for value in moved)} |")
    return f"""# What the knobs do to the rain of {name}

Measured on pictures of {SIDE} px, {len(alone) // 4} rains, one knob at a time. Error: of what was
measured against what was set; in brackets, as a share of the range.

| knob | from | to | rank correlation | median error | 9 of 10 within |
|---|---|---|---|---|---|
{chr(10).join(errors)}

Cross-talk: how far a measure moves while a knob goes from one end of its range to the other (median
over the rains), in standard deviations of that measure over rain whose knobs are left alone.

| knob | {" | ".join(Measures._fields)} |
|---|---|---|---|---|
{chr(10).join(talk)}
"""


def picture(maker: RainMaker, name: str, seed: int) -> tuple[list[np.ndarray], list[str]]:
    """Pictures of one knob, (192, 192, 3) uint8, brightened alike, and what is written above them."""
    values = np.linspace(*RANGES[name], 7)
    showers = [maker.shower(0.5, np.random.RandomState(seed)) for _ in values]
    made = [set_knobs(shower, 192, 192, {name: v}).pixels() for shower, v in zip(showers, values, strict=True)]
    gain = float(np.clip(1 / max(max(np.quantile(layer, 0.995) for layer in made), 1e-6), 1, 3))
    grey = [np.repeat(layer.max(2, keepdims=True), 3, 2) for layer in made]
    return [to_uint8(gain * layer, "nearest") for layer in grey], [f"{name} {value:.3g}" for value in values]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, __file__)
    flags.add_netED(parser, "default")
    flags.add_path(parser, "--out", required=True, help="folder of the report")
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
    for name in RANGES:
        images, labels = picture(maker, name, args.seed)
        rows.append((images, labels))
        frames = [row([image], [label], image.shape[1]) for image, label in zip(images, labels, strict=True)]
        write_gif(out / f"{name}.gif", frames + frames[-2:0:-1], 250)
    write_image(out / "knobs.png", sheet(rows))
    print_result(text)
    print(f"report: {out / 'knobs.md'}\npicture: {out / 'knobs.png'}, and a GIF of each knob")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
