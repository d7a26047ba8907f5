"""Bad input of every kind, thousands of times: no command may end in a traceback, hang, or take too much memory.

    python -m tests.robustness.fuzz --cases 12000
    python -m tests.robustness.fuzz --only 4711

A case depends on (seed, number) alone: files in an empty folder, then a call of the project's code through ``cli.run``,
as a script ends. Good ends are exit code 0; 2 with a message that names the file or flag; and 1 where some files of
many were left out. Each case runs in a forked process. The files and output of a bad end go to the folder --findings.
"""

import argparse
import collections
import contextlib
import csv
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from unittest import mock

import matplotlib.pyplot  # noqa: F401 (imported once, not by every forked process)
import numpy as np
import skimage.metrics  # noqa: F401
import torch
from tqdm import tqdm

from common.data import compose, pack
from common.data.images import image_format, read_image, write_image
from common.data.pairs import PairList
from common.errors import UserError
from common.evaluation import curves, metrics, report
from common.generation import export, rain
from common.training import checkpoint
from for_spa import train_spa_smallsample_noaug
from for_syn import generate_rain, train_syn_aug
from tests.conftest import flags_of, photo, write_pairs
from tests.golden import ROOT, fill
from tests.robustness import mutate
from tests.robustness.judge import MEGABYTES, Case, Finding, watched

PICTURE_MEGABYTES = 3000  # limit of a case that reads one image: up to 179 megapixels are allowed
SCRIPTS = sorted(str(p.relative_to(ROOT)).removesuffix(".py").replace("/", ".") for p in ROOT.glob("for_*/*.py"))
COMMANDS = (compose, curves, export, metrics, pack, report)


class Seeds:
    """Good files, made once; the cases damage copies of them.

    Args:
        folder: for the files; a case must not change them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.pairs = folder, write_pairs(folder / "data")
        self.images, self.nets = mutate.good_images(), mutate.small_nets()
        self.pairing = ["--data_path", f"{self.pairs}/rain", "--gt_path", f"{self.pairs}/norain"]
        (self.pairs / "real_world.txt").write_text("".join(f"rain/{i}.png norain/{i}.png\n" for i in (8, 9)))
        torch.save(fill(self.nets["ED"], 1).state_dict(), folder / "ED.pt")
        torch.save(self.nets["joint"].state_dict(), folder / "DerainNet_state_1.pt")
        self.small = "--niter 1 --iters_per_epoch 1 --batchSize 2 --patchSize 16 --recurrent_iter 1 --fake_ratio 0"
        self.small += " --use_gpu false --manualSeed 1"
        train = [*self.pairing, *self.small.split()]
        train_syn_aug.main([*train, "--model_dir", f"{folder}/models", "--log_dir", f"{folder}/logs"])
        self.state = torch.load(folder / "models" / "train_state_last.pt")
        pack.main([*self.pairing, "--out", f"{folder}/x.h5"])
        generate_rain.main(self.rain_flags(folder / "made"))
        compose.main(self.compose_flags(folder / "composed"))
        self.log, self.manifest = self._table("logs/log.csv"), self._table("made/manifest.csv")

    def _table(self, name: str) -> list[list[str]]:
        return list(csv.reader((self.folder / name).read_text().splitlines()))

    def compose_flags(self, out: Path) -> list[str]:
        """Flags of compose.py that make two pairs."""
        return ["--clean", f"{self.pairs}/norain", "--streaks", f"{self.pairs}/rain", "--out", str(out), "--num", "2"]

    def rain_flags(self, out: Path) -> list[str]:
        """Flags of generate_rain.py that make four pairs."""
        flags = ["--data_path", f"{self.pairs}/norain", "--netED", f"{self.folder}/ED.pt", "--use_gpu", "false"]
        return [*flags, "--save_path", str(out)]

    def resume_flags(self, folder: Path) -> list[str]:
        """Flags that go on with the small training from a state in m, with the log in l."""
        words = [*self.pairing, "--model_dir", f"{folder}/m", "--log_dir", f"{folder}/l", *self.small.split()]
        return [*words, "--resume", "-1", "--niter", "2"]


# --- kinds of cases: each writes files into an empty folder and returns the call that reads them ---------------------


def odd_path(folder: Path, rng: np.random.Generator, ending: str, share: float = 0.3) -> Path:
    """A path in a folder, with an odd name in so many cases."""
    stem = mutate.odd(rng) if rng.random() < share else "x"
    stem = "".join(c for c in stem if not ("\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff"))  # allowed in no name
    while len(os.fsencode(stem)) > 200:
        stem = stem[:-1]
    path = folder / f"{stem}{ending}"
    return path if path.suffix == ending and stem not in ("", ".", "..") else folder / f"x{ending}"


def look_at(path: Path) -> Case:
    """Reads an image and compares its header with its pixels."""

    def look() -> None:
        header = None
        with contextlib.suppress(UserError):
            header = image_format(path)
        pixels = read_image(path)
        if header != (*pixels.shape[:2], pixels.dtype.type) or pixels.shape[2] != 3:
            raise Finding(f"the header says {header}, the pixels are {pixels.shape} {pixels.dtype}")

    return look


def image(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Case:
    """A damaged image, or a good one with a wrong ending."""
    data, other = (seeds.images[k] for k in rng.integers(len(seeds.images), size=2))
    path = odd_path(folder, rng, str(rng.choice([".png", ".jpg", ".bmp", ".webp", ".tif", ".PNG"])), 0.05)
    path.write_bytes(mutate.damaged(data, rng, other) if rng.random() < 0.95 else data)
    return look_at(path)


def spa_list(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Case:
    """A real_world.txt."""
    (folder / "real_world.txt").write_bytes(mutate.spa_list(rng))

    def read() -> None:
        for pair in PairList(folder):
            if any(not Path(os.path.abspath(path)).is_relative_to(folder) for path in (pair.rainy, pair.clean)):
                raise Finding(f"{pair.name} leaves the folder")

    flags = ["--data_path", str(folder), "--train_num", "1", "--patchSize", "16", "--dry_run", "--use_gpu", "false"]
    flags += ["--model_dir", f"{folder}/m", "--log_dir", f"{folder}/l"]
    return read if rng.random() < 0.7 else lambda: train_spa_smallsample_noaug.main(flags)


def packed(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Case:
    """A damaged pack that is read, verified, or replaced by a new one."""
    good, out = (seeds.folder / "x.h5").read_bytes(), folder / "x.h5"
    out.write_bytes(mutate.damaged(good, rng, good))
    way = rng.integers(4)
    if way < 2:
        return lambda: [pair.read() for pair in pack.Pack(out)]
    return lambda: pack.main(["--verify", str(out)] if way == 2 else [*seeds.pairing, "--out", str(out), "--overwrite"])


def weights(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Case:
    """A damaged or odd checkpoint of any network."""
    kind, path = str(rng.choice(list(seeds.nets))), folder / "x.pt"
    state = dict(seeds.nets[kind].state_dict())
    data = mutate.saved(
        mutate.changed(state, rng, mutate.ODD_TENSORS) if rng.random() < 0.5 else state, zipped=rng.random() < 0.6
    )
    path.write_bytes(mutate.damaged(data, rng, data) if rng.random() < 0.6 else data)
    if kind == "ED" and rng.random() < 0.7:
        return lambda: checkpoint.load_generator(path, "--netED")
    return lambda: checkpoint.load_weights(mutate.small_nets()[kind], path, kind, "--net")


def state(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Case:
    """A train_state_last.pt and a log.csv with which a training goes on."""
    value, part = dict(seeds.state), str(rng.choice(["options", "nets", "optimizers", "rng", "vrgnet_state"]))
    value[part] = mutate.changed(value[part], rng, [*mutate.VALUES, *mutate.ODD_TENSORS])
    data = mutate.saved(value)
    for name in ("m", "l"):
        (folder / name).mkdir()
    (folder / "m" / "train_state_last.pt").write_bytes(mutate.damaged(data, rng) if rng.random() < 0.1 else data)
    (folder / "l" / "log.csv").write_bytes(mutate.as_csv(seeds.log, rng))
    return lambda: train_syn_aug.main(seeds.resume_flags(folder))


def made(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Case:
    """The list of pairs of generate_rain.py or compose.py, which go on with it, or replace it with --overwrite."""
    (folder / "keep.png").write_bytes(b"x")
    if rng.random() < 0.6:
        name, module, flags, rows = "made", generate_rain, seeds.rain_flags, [list(row) for row in seeds.manifest]
        if rng.random() < 0.4:
            rows[-1][0] = str(rng.choice(["../../keep.png", "../keep.png", *mutate.PATHS, "8.png\0", "."]))
        data, file = mutate.as_csv(rows, rng), "manifest.csv"
    else:
        name, module, flags, file = "composed", compose, seeds.compose_flags, compose.NAME
        value = json.loads((seeds.folder / name / file).read_bytes())
        data = json.dumps(mutate.changed(value, rng)).encode()
    shutil.copytree(seeds.folder / name, folder / "out")
    (folder / "out" / file).write_bytes(data)
    more = ["--overwrite"] if rng.random() < 0.5 else []

    def goes_on() -> None:
        try:
            module.main([*flags(folder / "out"), *more])
        finally:
            if not (folder / "keep.png").exists():
                raise Finding("a file outside of its folder is gone")

    return goes_on


def good_flags(module: ModuleType, folder: Path, seeds: Seeds) -> dict[str, list[str]]:
    """By flag, words with which a script or command does next to nothing, and does it well; results go to a folder."""
    trains, spa = "train" in module.__name__, "spa" in module.__name__
    data, nets = seeds.pairs, seeds.folder
    rainy, clean = data / "rain", data / "norain"
    ending = {pack: ".h5", export: ".pt", compose: ""}.get(module, ".png")
    values = {
        "data_path": clean if module is generate_rain else data if trains and spa else rainy, "gt_path": clean,
        "netED": nets / "ED.pt", "netDerain": nets / "DerainNet_state_1.pt", "save_path": folder / "out",
        "model_dir": folder / "m" if trains else nets / "models", "log_dir": folder / "l" if trains else nets / "logs",
        "save_patch": folder / "p",
        "save_inputfake": folder / "i", "save_rainfake": folder / "r", "save_fake": folder / "f", "clean": clean,
        "streaks": rainy, "out": folder / f"o{ending}", "pred": rainy, "gt": clean, "rainy": rainy,
        "derained": clean, "csv": folder / "t.csv", "use_gpu": "false", "dry_run": "true", "cache": "none",
        "patchSize": 16, "nz": 4, "nef": 2, "ndf": 4, "stage": 1, "recurrent_iter": 1, "batchSize": 3,
        "niter": 1, "iters_per_epoch": 1, "num": 1, "number": 2, "steps": 1, "manualSeed": 1,
    }  # fmt: skip
    values |= {"workers": 1 if module in (compose, pack) else 0}
    values |= {"train_num": 1} if "small" in module.__name__ else {}
    flags = flags_of(module)
    words = {dest: [flags[dest].option_strings[0], str(value)] for dest, value in values.items() if dest in flags}
    return words | ({"show": ["--show", f"{seeds.pairs}/rain/8.png", "x"]} if module is report else {})


def command(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Case:
    """A command line with up to three odd flags, of any script or command."""
    module = [*map(importlib.import_module, SCRIPTS), *COMMANDS][rng.integers(len(SCRIPTS) + len(COMMANDS))]
    flags, words = flags_of(module), good_flags(module, folder, seeds)
    for _ in range(int(rng.integers(0, 4))):
        dest = list(flags)[rng.integers(len(flags))]
        if dest in ("dry_run", "steps"):  # they would train, or take minutes
            continue
        words[dest] = [flags[dest].option_strings[0], *_odd_values(rng, flags[dest], folder, seeds)]
    argv = [word for values in words.values() for word in values]
    if rng.random() < 0.05:
        argv.insert(int(rng.integers(len(argv) + 1)), mutate.odd(rng))
    return lambda: module.main(argv)


def _odd_values(rng: np.random.Generator, action: argparse.Action, folder: Path, seeds: Seeds) -> list[str]:
    if action.metavar == "PATH":
        path = odd_path(folder, rng, str(rng.choice(["", ".png", ".pt", ".h5", ".jpg"])), 0.8)
        way = rng.integers(5) if not path.exists() else 4  # another flag made it, or it stays missing
        if way == 0:
            path.write_bytes(mutate.damaged(seeds.images[rng.integers(len(seeds.images))], rng))
        elif way == 1:
            path.mkdir()
        elif way == 2:
            shutil.copytree(seeds.pairs / "rain", path)
            write_image(odd_path(path, rng, ".png", 1), photo(24, 20, 3))
        values = [str(path)]
    elif action.choices:
        values = [str(rng.choice([*map(str, action.choices), "x", ""]))]
    elif action.dest in ("derainer", "derainer_args"):
        values = [str(rng.choice(["json:loads", "torch.nn:Identity", "no.such:X", "x.py:Y", "a=b", "a=[1", ":", "=x"]))]
    else:
        values = [mutate.NUMBERS[k] for k in rng.integers(len(mutate.NUMBERS), size=int(rng.integers(1, 3)))]
        values = values if rng.random() < 0.8 else [mutate.odd(rng)]
    return values if rng.random() < 0.9 else values * 2


KINDS = {  # name -> (of 100 cases, function)
    "image": (36, image), "list": (8, spa_list), "pack": (8, packed), "checkpoint": (14, weights), "state": (6, state),
    "made": (9, made),
    "command": (11, command),
}  # fmt: skip


def kind_of(number: int) -> str:
    """The kind of a case; every hundred cases hold each kind as often as ``KINDS`` says."""
    kinds = [kind for kind, (share, _) in KINDS.items() for _ in range(share)]
    return kinds[number * 37 % len(kinds)]


# --- running the cases ------------------------------------------------------------------------------------------------


def run_case(seed: int, number: int, seeds: Seeds, folder: Path) -> tuple[str, str]:
    """Run the case of a number; see ``watched``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    kind = kind_of(number)
    make = KINDS[kind][1]
    megabytes = PICTURE_MEGABYTES if kind == "image" else MEGABYTES
    return watched(lambda: make(np.random.default_rng([seed, number]), folder, seeds), megabytes)


@contextlib.contextmanager
def little_work():
    """Generators are measured on little."""
    with mock.patch.object(rain, "POOL", 16):
        yield


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of cases to run")
    parser.add_argument("--findings", type=Path, default="fuzz_findings", help="folder for the bad ends")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    ends = {kind: collections.Counter() for kind in args.kinds}
    numbers = [n for n in args.only or range(args.cases) if kind_of(n) in args.kinds]
    with tempfile.TemporaryDirectory() as temporary, little_work():
        with contextlib.redirect_stdout(io.StringIO()):
            seeds = Seeds(Path(temporary, "seeds"))
        for number in tqdm(numbers, unit="case", disable=None):
            kind, folder = kind_of(number), Path(temporary, "case")
            end, text = run_case(args.seed, number, seeds, folder)
            ends[kind][end] += 1
            if end == "finding":
                kept = args.findings / f"{number}_{kind}"
                shutil.rmtree(kept, ignore_errors=True)
                kept.mkdir(parents=True)
                (kept / "finding.txt").write_text(text, errors="backslashreplace")
                with contextlib.suppress(OSError, shutil.Error):
                    shutil.copytree(folder, kept / "files", symlinks=True)
    columns = ("handled", "refused", "finding")
    print(f"{'kind':<12}" + "".join(f"{name:>9}" for name in columns))
    for kind, counts in (ends | {"all": sum(ends.values(), collections.Counter())}).items():
        print(f"{kind:<12}" + "".join(f"{counts[name]:>9}" for name in columns))
    return int(any(counts["finding"] for counts in ends.values()))


if __name__ == "__main__":
    sys.exit(main())
