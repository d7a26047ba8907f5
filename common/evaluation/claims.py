"""The paper's claim tried: does a derainer that sees few pairs gain by rain of a generator that saw the same few?

    python -m common.evaluation.claims --data DATA --out claims
    python -m common.evaluation.claims --data DATA --out claims --cells heavy4 --seeds 1 --steps 300

For each cell (a kind of rain and a number of pairs) and seed: train a generator on the pairs (train_syn_generator.py,
or by --generator joint train_syn_joint.py), PReNet with and without its rain (train_syn_aug.py, as many steps), and
measure both on pairs that neither saw. What is done is kept: the same command goes on after an interruption, and more
seeds, cells and jobs may be asked for. Writes results.csv, results.md and claims.png.

DATA holds rain100H_train18/ and rain100L_more/ (rain/, norain/) and clean/, streaks/ (see common/data/compose.py).
"""

import argparse
import csv
import io
import json
import math
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import cli, flags
from ..data import compose
from ..data.images import write_image
from ..data.pairs import find_pairs
from ..errors import TrainingStopped, UserError
from ..files import write_bytes
from ..terminal import progress_bar
from .curves import panels, picture, read_log

ROOT = Path(__file__).resolve().parents[2]
HEAVY_TEST = tuple(f"norain-{k}.png" for k in (3, 6, 9, 12, 15, 18))  # of the 18 pairs of Rain100H's training set
HEAVY_TRAIN = tuple(f"norain-{k}.png" for k in (2, 4, 5, 7, 8, 11, 13, 14, 16, 17, 19, 20))
EPOCHS = 10  # of a training: so many points has its curve
FAKE_RATIO = 0.5
WAYS = ("without", "with")
DONE = "rows.json"


class Cell(NamedTuple):
    """Few pairs of one kind of rain."""

    rain: str  # heavy: pairs of Rain100H; light: composed of photos and streaks
    pairs: int


CELLS = {f"{rain}{n}": Cell(rain, n) for rain, numbers in (("heavy", (4, 12)), ("light", (5, 20))) for n in numbers}


class Plan(NamedTuple):
    """What is the same for all cells."""

    data: Path
    out: Path
    steps: int  # of each derainer
    generator_steps: int
    generator: str  # 'alone' or 'joint'
    crops: tuple[str, ...]  # flags of all trainings
    derainer: tuple[str, ...]  # flags of PReNet
    device: tuple[str, ...]  # flags of all scripts


# --- the pieces of a cell ------------------------------------------------------------------------------------------


def make_data(plan: Plan, name: str) -> None:
    """Copy or compose the pairs of a cell: data/train/ and data/test/ with rain/ and norain/ each.

    Raises:
        UserError: a file of --data is missing, or can't be read.
    """
    cell, folder = CELLS[name], plan.out / name / "data"
    if folder.is_dir():  # made aside and renamed, so it is whole
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".data-", dir=folder.parent) as aside:
        part = Path(aside, "data")
        if cell.rain == "heavy":
            source = plan.data / "rain100H_train18"
            _copy(source, part / "train", HEAVY_TRAIN[: cell.pairs])
            _copy(source, part / "test", HEAVY_TEST)
        else:
            source = plan.data / "rain100L_more"
            _copy(source, part / "test", [path.name for path in sorted((source / "rain").glob("*.png"))])
            words = ["--clean", plan.data / "clean", "--streaks", plan.data / "streaks", "--out", part / "train"]
            compose.main(list(map(str, [*words, "--num", cell.pairs, "--seed", 0])))
        for split in ("train", "test"):
            find_pairs(part / split / "rain", part / split / "norain", "--data, --data")
        part.rename(folder)


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    if not names:
        raise UserError(f"--data: there are no pairs in {source}; it needs rain/ and norain/")
    for kind in ("rain", "norain"):
        (target / kind).mkdir(parents=True)
        for name in names:
            try:
                shutil.copyfile(source / kind / name, target / kind / name)
            except FileNotFoundError:
                raise UserError(f"--data: there is no {source / kind / name}; see --help") from None


def steps_of(total: int, ratio: float) -> tuple[int, int]:
    """--iters_per_epoch with --fake_ratio, and without, so that both trainings have as many steps.

    Args:
        total: steps of a training, about; rounded up so that both fit.
    """
    iters = math.ceil(total / EPOCHS / (1 + ratio))
    return iters, math.ceil(iters * (1 + ratio))


def train(script: str, model: Path, last: str, flags: list, running: "Running") -> float:
    """Run a training script to its end, from where it was; returns its minutes, those of earlier calls included.

    Args:
        last: name of the file that it writes in the end.

    Raises:
        TrainingStopped: it ended without that file.
    """
    logs, log = model.with_name(f"{model.name}_logs"), model.with_name(f"{model.name}.txt")
    if not (model / last).exists():
        paths = ["--model_dir", model, "--log_dir", logs]
        begun = (model / "train_state_last.pt").exists()
        running.call([script, *flags, *paths, *([] if begun else ["--overwrite"])], log)
    if not (model / last).exists():
        raise TrainingStopped(f"{script}: ended without {model / last}; see {log}")
    return float(read_log(logs)["seconds"].sum()) / 60


def run_cell(plan: Plan, name: str, seed: int, running: "Running") -> None:
    """One cell with one seed: a row of results for each way, in its folder."""
    data, folder = plan.out / name / "data", plan.out / name / f"seed{seed}"
    if (folder / DONE).exists():
        return
    pairs = ["--data_path", data / "train" / "rain", "--gt_path", data / "train" / "norain"]
    test = ["--val_data_path", data / "test" / "rain", "--val_gt_path", data / "test" / "norain"]
    common = [*plan.crops, *plan.device, "--manualSeed", seed, "--workers", 0]
    iters = math.ceil(plan.generator_steps / EPOCHS)
    script = {"alone": "for_syn/train_syn_generator.py", "joint": "for_syn/train_syn_joint.py"}[plan.generator]
    flags = [*pairs, *common, "--niter", EPOCHS, "--iters_per_epoch", iters, "--milestone", 7, 9, "--ema", 0.998]
    ED = f"ED_ema_state_{EPOCHS}.pt"
    minutes = {"generator": train(script, folder / "generator", ED, flags, running)}
    with_, without = steps_of(plan.steps, FAKE_RATIO)
    rows = []
    for way in WAYS:
        ratio, iters = (FAKE_RATIO, with_) if way == "with" else (0, without)
        flags = [*pairs, *test, *common, *plan.derainer, "--fake_ratio", ratio, "--iters_per_epoch", iters]
        flags += ["--niter", EPOCHS, "--milestone", 5, 8, "--netED", folder / "generator" / ED]
        last = f"Aug_DerainNet_state_{EPOCHS}.pt"
        minutes[way] = train("for_syn/train_syn_aug.py", folder / way, last, flags, running)
        derained = folder / f"{way}_derained"
        if not (derained / "metrics.csv").exists():
            words = ["--data_path", data / "test" / "rain", "--gt_path", data / "test" / "norain"]
            words += ["--model_dir", folder / way / last, "--save_path", derained, *plan.derainer, *plan.device]
            running.call(["for_syn/test_syn_aug.py", *words], folder / f"{way}_derained.txt")
        psnr, ssim = means(derained, "derained")
        rows.append(
            {"cell": name, "seed": seed, "way": way, "psnr_y": psnr, "ssim_y": ssim, "steps": EPOCHS * without}
            | {"generator_minutes": minutes["generator"] * (way == "with"), "minutes": minutes[way]}
        )
    write_bytes(folder / DONE, json.dumps(rows).encode())


def finished(out: Path) -> list[dict]:
    """The rows of all cells and seeds that are done, whatever was asked for this time."""
    rows = [row for path in out.glob(f"*/seed*/{DONE}") for row in json.loads(path.read_bytes())]
    names = list(CELLS)
    return sorted(rows, key=lambda row: (names.index(row["cell"]), row["seed"], WAYS.index(row["way"])))


def means(derained: Path, which: str) -> tuple[float, float]:
    """PSNR and SSIM on Y of 'rainy' or 'derained' images, means out of a metrics.csv."""
    *_, row = csv.DictReader(io.StringIO((derained / "metrics.csv").read_text(errors="surrogateescape"), newline=""))
    return float(row[f"{which}_psnr_y"]), float(row[f"{which}_ssim_y"])


class Running:
    """The scripts that run, so that all of them can be ended."""

    def __init__(self) -> None:
        self._lock, self._processes, self.stopped = threading.Lock(), set(), False

    def call(self, words: list, log: Path) -> None:
        """Run a script of the project to its end; what it prints goes to a file.

        Raises:
            TrainingStopped: it failed; names the file and its last line.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        # In a session of its own: at Ctrl-C it is told once, by stop(), and saves its state.
        how = {"cwd": ROOT, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "start_new_session": True}
        with open(log, "ab") as file:
            with self._lock:
                if self.stopped:
                    raise TrainingStopped("stopped")
                process = subprocess.Popen([sys.executable, *map(str, words)], stdout=file, **how)
                self._processes.add(process)
            code = process.wait()
            with self._lock:
                self._processes.discard(process)
        if code:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise TrainingStopped(f"{words[0]} ended with exit code {code}: {lines[-1] if lines else ''} (all: {log})")

    def stop(self) -> None:
        """End all scripts; trainings save their state."""
        with self._lock:
            self.stopped = True
            running = list(self._processes)
            for process in running:
                process.terminate()
        for process in running:
            process.wait()


# --- results -------------------------------------------------------------------------------------------------------


def table(rows: list[dict], rainy: dict[str, tuple[float, float]], plan: Plan) -> str:
    """The results as Markdown: mean and spread over the seeds of each cell, and what the generator's rain changed."""
    head = ["pairs", "rainy", "without", "with generated rain", "difference", "seeds", "minutes"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in rainy:
        ways = {way: [row for row in rows if row["cell"] == name and row["way"] == way] for way in WAYS}
        paired = [a["psnr_y"] - b["psnr_y"] for a, b in zip(ways["with"], ways["without"], strict=True)]
        cells = [f"{CELLS[name].rain} rain, {CELLS[name].pairs}", "{:.2f} / {:.4f}".format(*rainy[name])]
        cells += [" / ".join(_spread(ways[way], key) for key in ("psnr_y", "ssim_y")) for way in WAYS]
        cells += [f"{np.mean(paired):+.2f} dB ({min(paired):+.2f} to {max(paired):+.2f})", str(len(paired))]
        spent = sum(row["minutes"] + row["generator_minutes"] for way in WAYS for row in ways[way])
        lines.append(f"| {' | '.join([*cells, f'{spent:.0f}'])} |")
    how = f"PReNet, {rows[0]['steps']} steps each way, generator ({plan.generator}) {plan.generator_steps} steps"
    return "\n".join([*lines, "", f"PSNR in dB / SSIM on Y, mean and standard deviation over the seeds; {how}."]) + "\n"


def _spread(rows: list[dict], key: str) -> str:
    values, digits = [row[key] for row in rows], 2 if key == "psnr_y" else 4
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def figure(plan: Plan, rows: list[dict], rainy: dict[str, tuple[float, float]]) -> np.ndarray:
    """The curves of all trainings on the test pairs, a panel for each cell: (H, W, 3) uint8."""
    drawing, axes = panels(1, len(rainy), 4.2, 3.4)
    for name, axis in zip(rainy, axes, strict=True):
        for way, color in zip(WAYS, ("C7", "C0"), strict=True):
            for k, row in enumerate(row for row in rows if row["cell"] == name and row["way"] == way):
                log = read_log(plan.out / name / f"seed{row['seed']}" / f"{way}_logs")
                label = f"{way} generated rain" if k == 0 else None
                axis.plot(log["step"], log["val_psnr_y"], color=color, marker=".", label=label)
        axis.axhline(rainy[name][0], color="black", linestyle=":", label="rainy")
        axis.set_title(f"{CELLS[name].rain} rain, {CELLS[name].pairs} pairs: PSNR on Y, dB", fontsize=9)
        axis.set_xlabel("steps", fontsize=8)
        axis.legend(fontsize=7)
    return picture(drawing)


def write_results(plan: Plan, rows: list[dict]) -> None:
    """results.csv, results.md and claims.png, of what is done."""
    folders = {row["cell"]: plan.out / row["cell"] / f"seed{row['seed']}" for row in rows}
    rainy = {name: means(folder / f"{WAYS[0]}_derained", "rainy") for name, folder in folders.items()}
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    results = table(rows, rainy, plan)
    write_bytes(plan.out / "results.csv", text.getvalue().encode())
    write_bytes(plan.out / "results.md", results.encode())
    write_image(plan.out / "claims.png", figure(plan, rows, rainy))
    print(f"{results}\nwritten: results.md, results.csv and claims.png in {plan.out}")


# --- the command ---------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_path("--data", required=True, help="folder of the data sets, see above")
    parser.add_path("--out", required=True, help="folder for everything; the same one goes on")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS), help="kind of rain and pairs")
    parser.add_argument("--seeds", nargs="+", type=cli.seed, default=[1, 2, 3], help="of all trainings")
    parser.add_argument("--steps", type=cli.positive_int, default=6000, help="of each derainer")
    parser.add_argument("--generator_steps", type=cli.positive_int, default=15000, help="of each generator")
    parser.add_argument("--generator", choices=("alone", "joint"), default="alone", help="how it is trained")
    parser.add_argument("--jobs", type=cli.positive_int, default=1, help="cells at a time, on one GPU as well")
    parser.add_argument("--batchSize", type=cli.number(int, 3), default=18, help="crops in a step")
    parser.add_argument("--recurrent_iter", type=cli.stages, default=6, help="stages of PReNet")
    parser.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px")
    flags.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    plan = Plan(
        data=Path(args.data),
        out=Path(args.out),
        steps=args.steps,
        generator_steps=args.generator_steps,
        generator=args.generator,
        crops=("--batchSize", str(args.batchSize), "--patchSize", str(args.patchSize)),
        derainer=("--recurrent_iter", str(args.recurrent_iter)),
        device=("--use_gpu", str(args.use_gpu).lower(), "--gpu_id", args.gpu_id),
    )
    cells, seeds = list(dict.fromkeys(args.cells)), list(dict.fromkeys(args.seeds))
    for name in cells:
        make_data(plan, name)
    _same_plan(plan)
    jobs = [(name, seed) for seed in seeds for name in cells]
    running, problems, began = Running(), [], time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as with Ctrl-C
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(run_cell, plan, *job, running): job for job in jobs}
        try:
            for future in progress_bar(as_completed(futures), total=len(jobs), desc="cells", unit="cell"):
                try:
                    future.result()
                except (UserError, OSError) as error:
                    problems.append(f"{futures[future][0]}, seed {futures[future][1]}: {error}")
                    print(problems[-1], file=sys.stderr)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()
            if isinstance(error, KeyboardInterrupt):
                text = f"stopped; what is done is in {plan.out}, the same command goes on"
                raise KeyboardInterrupt(text) from None
            raise
    rows = finished(plan.out)
    if rows:
        write_results(plan, rows)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(jobs) - len(problems)} of {len(jobs)} cells and seeds done, {minutes:.1f} minutes now")
    return 1 if problems else 0


def _same_plan(plan: Plan) -> None:
    """Keep the settings beside the results.

    Raises:
        UserError: the folder holds results of other settings.
    """
    path, text = plan.out / "plan.txt", f"{plan._replace(data=plan.data.resolve(), out=Path(), device=())}\n"
    if path.exists() and path.read_text(errors="replace") != text:
        raise UserError(f"--out: {plan.out} holds results of other settings ({path}); choose another folder")
    write_bytes(path, text.encode())


if __name__ == "__main__":
    sys.exit(cli.run(main))
