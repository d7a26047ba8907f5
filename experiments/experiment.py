"""Pieces of the experiments: run a script of the project, train a derainer, measure it, write tables."""

import argparse
import contextlib
import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.errors import Stopped, UserError
from common.files import write_bytes

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 10  # of a training: so many points has its curve
SCORES = ("psnr_y", "ssim_y", "psnr_rgb")


def device_flags(args: argparse.Namespace) -> list:
    """The flags of ``flags.add_device`` for a script."""
    return ["--use_gpu", str(args.use_gpu).lower(), "--gpu_id", args.gpu_id]


@contextlib.contextmanager
def one_setting(out: Path, settings: dict) -> Iterator[None]:
    """Raise UserError if a folder has results of other settings; keep these, once what is done within it went well.

    Args:
        settings: flags without -- and their values; one that an older folder lacks is fine.
    """
    path = Path(out, "settings.json")
    stored = json.loads(path.read_bytes()) if path.exists() else {}
    differ = [f"--{flag} {stored[flag]}, not {now}" for flag, now in settings.items() if stored.get(flag, now) != now]
    if differ:
        raise UserError(f"--out: {out} has results of {'; '.join(differ)}. Give the same flags or another --out")
    yield
    write_bytes(path, json.dumps(stored | settings, indent=2).encode())


def call(words: list, log: Path) -> None:
    """Run a script of the project to its end; what it prints goes to a file. Stopped: it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise Stopped(f"{words[0]} ended with exit code {done.returncode}; see {log}")


def read_log(folder: Path) -> dict[str, np.ndarray]:
    """The columns of the log.csv in a training's --log_dir, a value for each epoch; nan where there is none."""
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def train(script: str, model: Path, last: str, flags: list) -> float:
    """Run a training script to its end, from where it was; returns its minutes, those of earlier calls included.

    Args:
        model: the folder of the model; the logs lie beside it.
        last: name of the file that it writes in the end.
    """
    logs, log = model.with_name(f"{model.name}_logs"), model.with_name(f"{model.name}.txt")
    if not (model / last).exists():
        begun = (model / "train_state_last.pt").exists()
        paths = ["--model_dir", model, "--log_dir", logs, *([] if begun else ["--overwrite"])]
        call([script, *flags, *paths], log)
    return float(read_log(logs)["seconds"].sum()) / 60


def train_derainer(model: Path, iters: int, fake_ratio: float, flags: list) -> tuple[Path, float]:
    """PReNet by train_syn_aug.py, the learning rate falls at 6/10 and 8/10; returns its file and minutes.

    Args:
        iters: --iters_per_epoch, which ``augment.steps_per_epoch`` turns into steps.
    """
    last = f"Aug_DerainNet_state_{EPOCHS}.pt"
    words = ["--fake_ratio", fake_ratio, "--niter", EPOCHS, "--iters_per_epoch", iters, "--milestone", 6, 8]
    words += ["--dark_rain"]  # as some libraries draw it
    return model / last, train("for_syn/train_syn_aug.py", model, last, [*flags, *words])


def measure(net: Path, pairs: Path, out: Path, flags: list) -> dict[str, dict[str, float]]:
    """Derain rain/ of a folder by test_syn_aug.py; the mean scores of 'rainy' and 'derained' images, see SCORES."""
    if not out.exists():
        part = out.with_name(f"{out.name}.part")  # a run that fails leaves this one
        paths = ["--data_path", pairs / "rain", "--gt_path", pairs / "norain", "--save_path", part]
        call(["for_syn/test_syn_aug.py", "--model_dir", net, *paths, "--dark_rain", *flags], out.with_suffix(".txt"))
        part.rename(out)
    *_, row = csv.DictReader(io.StringIO((out / "metrics.csv").read_text(errors="surrogateescape"), newline=""))
    return {which: {key: float(row[f"{which}_{key}"]) for key in SCORES} for which in ("rainy", "derained")}


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write rows of equal keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_bytes(path, text.getvalue().encode())


def spread(values: Sequence[float], digits: int = 2) -> str:
    """'mean ± standard deviation' of several values."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"
