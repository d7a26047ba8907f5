"""The paper's claim, measured: what does a derainer that has few pairs gain from generated rain?

    python experiments/claims.py --data DATA --out claims
    python experiments/claims.py --data DATA --out claims --cells heavy4 --ways without "shipped, free" --seeds 1

A cell is a kind of rain and a number of pairs. For each cell, seed and way PReNet is trained, with equal steps. Ways:

    without         real crops alone
    same pairs      a third of the crops has rain of a generator that saw the same few pairs and nothing else
    more data       the same, by a generator that saw more (the paper's protocol): --netED for light rain, the
                    generator of heavy12 for heavy4
    pasted          two thirds have rain of the same pairs (O - B, turned, scaled, brightened) on free photos
    adapted         two thirds have rain of --netED, adapted to the same pairs, on their clean images
    adapted, free   the same on free photos
    shipped, free   two thirds have rain of --netED as it is, on free photos

What more real pairs give is the row 'without' of light20 and of heavy12. One generator serves all seeds. The derainers
are tested on other pairs. Finished work is kept: to go on, run the same command again. A second one may run beside it
with other --cells; keep heavy4 and heavy12 in one, they share a generator. Writes results.csv, results.md, claims.png
(curves) and rain.png (real rain of each cell, and that of its generators).

DATA holds rain100H_train18/ and rain100L_more/ (rain/, norain/) and clean/, streaks/ (see common/data/compose.py). Free
photos are those of clean/ and, if it is there, clean_more/.
"""

import argparse
import contextlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags
from common.data import compose
from common.data.images import crop_at, list_images, read_image, write_image
from common.data.layers import on_photos, variants
from common.data.pairs import Pair
from common.data.pictures import grid, sheet
from common.files import write_bytes
from common.generation.latent import base_code, pixels
from common.generation.rain import sampled
from common.terminal import progress_bar
from common.training.checkpoint import load_generator
from experiments.experiment import (
    EPOCHS,
    device_flags,
    measure,
    one_setting,
    read_log,
    spread,
    train,
    train_derainer,
    write_rows,
)

HEAVY_TEST = tuple(f"norain-{k}.png" for k in (3, 6, 9, 12, 15, 18))  # of the 18 pairs of Rain100H's training set
HEAVY_TRAIN = tuple(f"norain-{k}.png" for k in (2, 4, 5, 7, 8, 11, 13, 14, 16, 17, 19, 20))
PASTED, VARIANTS = 600, 16  # pasted pairs of a cell, variants of each layer
PATCHES = 12  # of a kind of rain, to look at
SETTINGS = ("data", "netED", "steps", "batchSize", "recurrent_iter", "patchSize", "precision")  # of all cells
SETTINGS += ("generator_steps", "generator_batch", "adapting_steps")


class Way(NamedTuple):
    """Where the crops of a way come from that are not of real pairs."""

    generator: str = ""  # 'own': of the cell; 'more': see Cell; 'adapted': --netED, adapted to the cell; 'shipped'
    photos: str = ""  # 'free': they fall on free photos, not on the clean images of the pairs
    ratio: float = 2  # --fake_ratio


WAYS = {
    "without": Way(ratio=0),
    "same pairs": Way("own", ratio=0.5),
    "more data": Way("more", ratio=0.5),
    "pasted": Way(photos="free", ratio=0),
    "adapted": Way("adapted"),
    "adapted, free": Way("adapted", "free"),
    "shipped, free": Way("shipped", "free"),
}


class Cell(NamedTuple):
    """Few pairs of one kind of rain."""

    rain: str  # heavy: pairs of Rain100H; light: composed of photos and streaks
    pairs: int
    more: str  # the generator that saw more: of another cell, or --netED; '' if there is none


CELLS = {
    "light5": Cell("light", 5, "--netED"),
    "light20": Cell("light", 20, "--netED"),
    "heavy4": Cell("heavy", 4, "heavy12"),
    "heavy12": Cell("heavy", 12, ""),
}


# --- the pieces of a cell ------------------------------------------------------------------------------------------


def make_data(args: argparse.Namespace, name: str) -> Path:
    """Copy or compose the pairs of a cell: a folder with train/ and test/, each with rain/ and norain/."""
    cell, source, folder = CELLS[name], Path(args.data), Path(args.out, name, "data")
    if folder.is_dir():  # made aside and renamed, so it is whole
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".data-", dir=folder.parent) as aside:
        part = Path(aside, "data")
        if cell.rain == "heavy":
            _copy(source / "rain100H_train18", part / "train", HEAVY_TRAIN[: cell.pairs])
            _copy(source / "rain100H_train18", part / "test", HEAVY_TEST)
        else:
            light = source / "rain100L_more"
            _copy(light, part / "test", [path.name for path in sorted((light / "rain").glob("*.png"))])
            words = ["--clean", source / "clean", "--streaks", source / "streaks", "--out", part / "train"]
            compose.main(list(map(str, [*words, "--num", cell.pairs, "--seed", 0])))
        part.rename(folder)
    return folder


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for kind in ("rain", "norain"):
        (target / kind).mkdir(parents=True)
        for name in names:
            shutil.copyfile(source / kind / name, target / kind / name)


def free_photos(args: argparse.Namespace) -> Path:
    """A folder of links to clean/ and clean_more/; none of their photos is in a test here."""
    folder = Path(args.out, "photos")
    folder.mkdir(parents=True, exist_ok=True)
    for source in ("clean", "clean_more"):
        if Path(args.data, source).is_dir():
            with contextlib.suppress(FileExistsError):  # of an earlier run, or of one beside
                (folder / source).symlink_to(Path(args.data, source).resolve())
    return folder


def paste(args: argparse.Namespace, name: str) -> Path:
    """The real pairs of a cell again and again, and twice as many with their rain on free photos: rain/ and norain/."""
    folder = Path(args.out, name, "pasted")
    if folder.is_dir():
        return folder
    train, rng = make_data(args, name) / "train", np.random.default_rng(0)
    pairs = [Pair(file, train / "rain" / file, train / "norain" / file) for file in list_images(train / "rain")]
    side = min(2 * args.patchSize, *(min(pair.read()[0].shape[:2]) for pair in pairs))
    photos = free_photos(args)
    layers = on_photos(list(variants(pairs, VARIANTS, 0, side)), [photos / file for file in list_images(photos)], side)
    with tempfile.TemporaryDirectory(prefix=".pasted-", dir=folder.parent) as aside:
        for k in progress_bar(range(PASTED), desc="pasting", unit="pair", leave=False):
            both = layers[rng.integers(len(layers))].crop(tuple(rng.random(2)), side)  # (6, side, side)
            for kind, planes in (("rain", both[:3]), ("norain", both[3:])):
                write_image(
                    Path(aside, "new", kind, f"pasted_{k}.png"), np.ascontiguousarray(planes.transpose(1, 2, 0))
                )
        for k in range(PASTED // 2):
            pair = pairs[k % len(pairs)]
            for kind, path in (("rain", pair.rainy), ("norain", pair.clean)):
                shutil.copyfile(path, Path(aside, "new", kind, f"real_{k}{path.suffix}"))
        Path(aside, "new").rename(folder)
    return folder


def iters_of(total: int, ratio: float) -> int:
    """--iters_per_epoch for ``total`` steps of a training at least, as many for all ratios."""
    return round(3 * math.ceil(total / EPOCHS / 3) / (1 + ratio))


def _flags(args: argparse.Namespace, pairs: Path, seed: int) -> list:
    """Flags of all trainings on these pairs."""
    words = ["--data_path", pairs / "rain", "--gt_path", pairs / "norain", "--manualSeed", seed, "--workers", 0]
    return [*words, "--patchSize", args.patchSize, *device_flags(args)]


def generator(args: argparse.Namespace, name: str, way: Way) -> Path | None:
    """The file of the generator that a way takes in a cell, None if it takes none."""
    kind, cell = ("own", CELLS[name].more) if way.generator == "more" else (way.generator, name)
    if kind == "shipped" or cell == "--netED":
        return Path(args.netED)
    folders = {"own": ("generator", EPOCHS), "adapted": ("adapted", 1)}  # and the last epoch
    if kind not in folders or not cell:
        return None
    folder, last = folders[kind]
    return Path(args.out, cell, folder, f"ED_ema_state_{last}.pt")


def train_generator(args: argparse.Namespace, file: Path) -> None:
    """Train G on the pairs of the cell in whose folder ``file`` lies, or adapt --netED to them."""
    words = _flags(args, make_data(args, file.parts[-3]) / "train", 1)
    if file.parts[-2] == "adapted":  # as docs/rain.md does, "Your rain from a few pairs"
        shipped, steps = load_generator(args.netED, "--netED"), args.adapting_steps
        words += ["--init_ED", args.netED, "--nz", shipped.nz, "--nef", shipped.nef]
        words += ["--patchSize", shipped.patch_size, "--lr", 1e-4, "--batchSize", 24]
        words += ["--variants", VARIANTS, "--niter", 1, "--iters_per_epoch", steps, "--critic_first", 3 * steps // 10]
    else:
        words += ["--niter", EPOCHS, "--iters_per_epoch", math.ceil(args.generator_steps / EPOCHS), "--milestone", 7, 9]
        words += ["--batchSize", args.generator_batch]
    train("for_syn/train_syn_generator.py", file.parent, file.name, [*words, "--ema", 0.998])


def run(args: argparse.Namespace, name: str, seed: int, which: str) -> dict:
    """Train and test one derainer; returns a row of the results, which is kept in its folder."""
    folder = Path(args.out, name, f"seed{seed}", which.replace(",", "").replace(" ", "_"))
    done = folder.with_suffix(".json")
    if done.exists():
        return json.loads(done.read_bytes())
    data, stages, way = make_data(args, name), ["--recurrent_iter", args.recurrent_iter], WAYS[which]
    test, file = data / "test", generator(args, name, way)
    pairs = paste(args, name) if way.photos and not file else data / "train"
    words = [*_flags(args, pairs, seed), *stages, "--batchSize", args.batchSize]
    words += ["--val_data_path", test / "rain", "--val_gt_path", test / "norain", "--precision", args.precision]
    if file:
        if file != Path(args.netED):
            train_generator(args, file)
        words += ["--netED", file, *(["--clean_path", free_photos(args)] if way.photos else [])]
    net, minutes = train_derainer(folder, iters_of(args.steps, way.ratio), way.ratio, words)
    scores = measure(net, test, folder.with_name(f"{folder.name}_derained"), [*stages, *device_flags(args)])
    log = read_log(folder.with_name(f"{folder.name}_logs"))
    curve = [log["step"].tolist(), log["val_psnr_y"].tolist()]
    row = {"cell": name, "seed": seed, "way": which, **scores["derained"], "minutes": minutes}
    row |= {"rainy": scores["rainy"], "curve": curve}
    write_bytes(done, json.dumps(row).encode())
    return row


# --- results -------------------------------------------------------------------------------------------------------


def _rows(args: argparse.Namespace) -> list[dict]:
    """All finished rows in the folder, in order."""
    rows = [json.loads(path.read_bytes()) for path in Path(args.out).glob("*/seed*/*.json")]
    return sorted(rows, key=lambda row: (list(CELLS).index(row["cell"]), row["seed"], list(WAYS).index(row["way"])))


def table(args: argparse.Namespace, rows: list[dict]) -> str:
    """The results as Markdown: mean and deviation over the seeds, and the gain of each seed over 'without'."""
    head = ["pairs", "generated rain", "PSNR / SSIM", "gain in dB (smallest to largest)", "seeds", "minutes"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in dict.fromkeys(row["cell"] for row in rows):
        plain = {row["seed"]: row["psnr_y"] for row in rows if (row["cell"], row["way"]) == (name, "without")}
        for way in WAYS:
            own = [row for row in rows if (row["cell"], row["way"]) == (name, way)]
            if not own:
                continue
            scores = f"{spread([row['psnr_y'] for row in own])} / {spread([row['ssim_y'] for row in own], 4)}"
            gains = [row["psnr_y"] - plain[row["seed"]] for row in own if row["seed"] in plain]
            gain = (
                f"{np.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})" if gains and way != "without" else ""
            )
            minutes = f"{sum(row['minutes'] for row in own):.0f}"
            cells = [f"{CELLS[name].rain}, {CELLS[name].pairs}", way, scores, gain, str(len(own)), minutes]
            lines.append(f"| {' | '.join(cells)} |")
    rainy = {CELLS[row["cell"]].rain: row["rainy"] for row in rows}
    before = "; ".join(f"{kind} {v['psnr_y']:.2f} / {v['ssim_y']:.4f}" for kind, v in rainy.items())
    net = f"PReNet of {args.recurrent_iter} stages, {args.steps} steps of {args.batchSize} crops"
    how = f"{net}, {args.precision}; generators of cells: {args.generator_steps} steps of {args.generator_batch}"
    how += f", adapted ones {args.adapting_steps} of 24"
    return "\n".join([*lines, "", f"On Y, in dB, mean and deviation over the seeds. Rainy: {before}. {how}."]) + "\n"


def draw_curves(rows: list[dict], path: Path) -> None:
    """The curves of all trainings on the test pairs, a panel for each cell."""
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    figure = Figure((4.2 * len(cells), 3.4), layout="tight")
    axes = figure.subplots(1, len(cells), squeeze=False)[0]
    colors = dict(zip(WAYS, ("C7", "C0", "C1", "C2", "C3", "C4", "C5"), strict=True))
    for name, axis in zip(cells, axes, strict=True):
        labels = set()
        for row in (row for row in rows if row["cell"] == name):
            label = None if row["way"] in labels else row["way"]
            axis.plot(*row["curve"], color=colors[row["way"]], marker=".", label=label)
            labels.add(row["way"])
        axis.set_title(f"{CELLS[name].rain} rain, {CELLS[name].pairs} pairs: PSNR on Y, dB", fontsize=9)
        axis.set_xlabel("steps", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path)


def rain(args: argparse.Namespace, rows: list[dict]) -> np.ndarray:
    """A row for each cell, crops of its real rain and patches of its generators: (H, W, 3) uint8."""
    lines = []
    for name in dict.fromkeys(row["cell"] for row in rows):
        folder, rng, p = make_data(args, name) / "train", np.random.RandomState(0), args.patchSize
        names, crops = list_images(folder / "rain"), []
        for k in range(PATCHES):
            rainy, clean = (read_image(folder / kind / names[k % len(names)]) for kind in ("rain", "norain"))
            crops.append(cv2.subtract(rainy, clean)[crop_at(rng.rand(2), *rainy.shape[:2], p)])
        images = {f"real: {CELLS[name].rain}, {CELLS[name].pairs} pairs": crops}
        ways = [WAYS[row["way"]] for row in rows if row["cell"] == name]
        for file, kind in {generator(args, name, way): way.generator for way in ways}.items():
            if file:
                netED = load_generator(file, "--netED").eval()
                images[f"generator: {kind}"] = pixels(sampled(netED, base_code(netED.nz, 0, PATCHES)), "nearest")
        lines.append(([grid(patches, PATCHES // 2, 2) for patches in images.values()], list(images)))
    return sheet(lines)


# --- the command ---------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, __file__)
    flags.add_path(parser, "--data", required=True, help="folder of the data sets, see above")
    flags.add_path(parser, "--out", required=True, help="folder for everything; the same one goes on")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS), help="kind of rain and pairs")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="of training, see above")
    parser.add_argument("--seeds", nargs="+", type=cli.seed, default=[1, 2, 3], help="of the derainers")
    flags.add_netED(parser, "default")
    parser.add_argument("--steps", type=cli.positive_int, default=1200, help="of each derainer")
    parser.add_argument("--batchSize", type=cli.number(int, 3), default=3, help="crops in a step of a derainer")
    parser.add_argument("--generator_steps", type=cli.positive_int, default=4000, help="of each generator")
    parser.add_argument("--generator_batch", type=cli.positive_int, default=16, help="crops in a step of a generator")
    parser.add_argument("--adapting_steps", type=cli.positive_int, default=1000, help="of --netED on a cell's pairs")
    parser.add_argument("--recurrent_iter", type=cli.stages, default=3, help="stages of PReNet")
    parser.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px")
    flags.add_speed(parser)
    flags.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    out, cells, seeds = Path(args.out), dict.fromkeys(args.cells), dict.fromkeys(args.seeds)
    with one_setting(out, {name: getattr(args, name) for name in SETTINGS}):
        for name in cells:
            make_data(args, name)
    jobs = [(name, seed, way) for seed in seeds for name in cells for way in dict.fromkeys(args.ways)]
    jobs = [(name, seed, way) for name, seed, way in jobs if WAYS[way].generator != "more" or CELLS[name].more]
    for name, seed, way in progress_bar(jobs, desc="derainers", unit="derainer"):
        run(args, name, seed, way)
    rows = _rows(args)
    write_rows(out / "results.csv", [{k: v for k, v in row.items() if k not in ("rainy", "curve")} for row in rows])
    results = table(args, rows)
    write_bytes(out / "results.md", results.encode())
    print(results)
    draw_curves(rows, out / "claims.png")
    write_image(out / "rain.png", rain(args, rows))
    print(f"\nwritten: results.md, results.csv, claims.png and rain.png in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
