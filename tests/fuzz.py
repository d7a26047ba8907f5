"""Bad input of every kind, thousands of times: nothing may end in a traceback, hang, or take the machine's memory.

    python -m tests.fuzz --cases 12000 --seed 1 --findings findings
    python -m tests.fuzz --seed 1 --only 4711 --findings findings

A case is made from (seed, number) alone: files in a folder of its own, then a call of the project's own code through
``cli.run``, as a script would end. Good ends are exit code 0; 2 with a message that names the file or flag; and 1
where some files of many were left out. Cases run in a forked process that is watched: 10 s and 1 GB above its start
are the most for one (16 bytes a pixel, if that is more, for pictures within the limit of what is read). What ends
otherwise is kept in the folder of --findings: the files and what was said.
"""

import argparse
import collections
import contextlib
import csv
import importlib
import io
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

from common import benchmark, cli
from common.data import compose, demo, pack
from common.data.images import has_alpha, image_format, read_image, write_image
from common.data.pairs import PairList
from common.errors import UserError
from common.evaluation import claims, curves, derain, distance, metrics, report
from common.files import FORMULA
from common.generation import export, knobs, rain
from common.generation.manifest import Manifest
from common.training import checkpoint
from common.training.log import Log
from common.training.run import open_run
from for_syn import generate_rain, test_syn_aug, train_syn_aug
from tests import mutate
from tests.conftest import photo, write_pairs
from tests.golden import ROOT, fill

SECONDS, MEGABYTES = 10, 1000  # for one case
STDERR_LINES = 20
SHARES = {  # of 100 cases
    "image": 32, "header": 12, "list": 7, "pack": 8, "checkpoint": 8, "generator": 4, "state": 4, "manifest": 6,
    "choice": 3, "table": 4, "names": 4, "command": 8,
}  # fmt: skip
SCRIPTS = sorted(str(p.relative_to(ROOT)).removesuffix(".py").replace("/", ".") for p in ROOT.glob("for_*/*.py"))
COMMANDS = (benchmark, claims, compose, curves, demo, distance, export, knobs, metrics, pack, report)


class Finding(Exception):
    """A case that ended as none should."""


# --- seeds -----------------------------------------------------------------------------------------------------------


class Seeds:
    """What is spoiled, made once; files that stay good lie in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = mutate.seed_images()
        self.nets = mutate.small_nets()
        self.ED = fill(self.nets["ED"], 1)
        self.pairs = write_pairs(folder / "data")
        (self.pairs / "real_world.txt").write_text("".join(f"rain/{i}.png norain/{i}.png\n" for i in (8, 9)))
        torch.save(self.ED.state_dict(), folder / "ED.pt")
        torch.save(self.nets["joint"].state_dict(), folder / "DerainNet_state_1.pt")
        torch.save(self.nets["augmented"].state_dict(), folder / "Aug_DerainNet_state_1.pt")
        self.pack = self._pack()
        self.state, self.log = self._trained()
        generate_rain.main(
            ["--data_path", f"{self.pairs}/norain", "--save_path", f"{folder}/made", "--netED", f"{folder}/ED.pt"]
        )
        self.manifest = [line.split(",") for line in (folder / "made" / "manifest.csv").read_text().splitlines()]
        self.composed = self._composed()
        write_image(folder / "photos" / "a.png", photo(20, 24, 0))

    def _pack(self) -> bytes:
        pack.main(
            ["--data_path", f"{self.pairs}/rain", "--gt_path", f"{self.pairs}/norain", "--out", f"{self.pairs}.h5"]
        )
        return Path(f"{self.pairs}.h5").read_bytes()

    def _trained(self) -> tuple[dict, list]:
        flags = [*self.pairs_flags(), "--niter", "1", "--iters_per_epoch", "1", "--batchSize", "2", "--patchSize", "16"]
        flags += ["--recurrent_iter", "1", "--fake_ratio", "0", "--use_gpu", "false", "--manualSeed", "1"]
        train_syn_aug.main([*flags, "--model_dir", f"{self.folder}/models", "--log_dir", f"{self.folder}/logs"])
        log = (self.folder / "logs" / "log.csv").read_text().splitlines()
        return torch.load(self.folder / "models" / "train_state_last.pt"), [line.split(",") for line in log]

    def _composed(self) -> dict:
        compose.main(self.compose_flags(self.folder / "composed"))
        return json.loads((self.folder / "composed" / compose.NAME).read_bytes())

    def pairs_flags(self) -> list[str]:
        """--data_path and --gt_path of good pairs."""
        return ["--data_path", f"{self.pairs}/rain", "--gt_path", f"{self.pairs}/norain"]

    def compose_flags(self, out: Path) -> list[str]:
        """Flags of a compose.py that makes two pairs."""
        return ["--clean", f"{self.pairs}/norain", "--streaks", f"{self.pairs}/rain", "--out", str(out), "--num", "2"]

    def image(self, rng: np.random.Generator) -> bytes:
        """A good image."""
        return self.images[rng.integers(len(self.images))]


# --- kinds of cases --------------------------------------------------------------------------------------------------
# Each writes files into an empty folder and returns what is to be called then.


def named(folder: Path, rng: np.random.Generator, ending: str, share: float = 0.3) -> Path:
    """A place for a file, now and then of an odd name."""
    stem = mutate.odd(rng) if rng.random() < share else "x"
    stem = "".join(
        c for c in stem if not "\ud800" <= c < "\udc80" and not "\udcff" < c <= "\udfff"
    )  # no file has these
    stem = f"{stem}x" if f"{stem}{ending}" in (".", "..") else stem
    while len(os.fsencode(stem)) > 200:
        stem = stem[:-1]
    path = folder / f"{stem}{ending}"
    return path if path.suffix == ending else folder / f"x{ending}"  # all dots


def image(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """A spoiled image, or a good one with a wrong ending."""
    data = seeds.image(rng)
    if rng.random() < 0.9:
        data = mutate.spoiled(data, rng, seeds.image(rng))
    return _looked_at(
        named(folder, rng, str(rng.choice([".png", ".jpg", ".bmp", ".webp", ".tif", ".PNG"])), 0.05), data
    )


def header(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """An image whose header lies."""
    data = mutate.liar(rng)
    return _looked_at(folder / "x.png", mutate.spoiled(data, rng) if rng.random() < 0.2 else data)


def _looked_at(path: Path, data: bytes) -> Callable[[], object]:
    path.write_bytes(data)

    def look() -> None:
        expected = None
        with contextlib.suppress(UserError):
            expected = image_format(path)
            has_alpha(path)
        if expected:
            look.megabytes = 16e-6 * expected[0] * expected[1]
        pixels = read_image(path)
        if expected != (*pixels.shape[:2], pixels.dtype.type) or pixels.shape[2] != 3:
            raise Finding(f"the header says {expected}, the pixels are {pixels.shape} {pixels.dtype}")

    return look


def listed(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """A real_world.txt."""
    (folder / "real_world.txt").write_bytes(mutate.spa_list(rng))

    def read() -> None:
        pairs, outside = PairList(folder), 0
        for pair in pairs:
            for path in (pair.rainy, pair.clean):
                outside += not Path(os.path.abspath(path)).is_relative_to(folder)
            with contextlib.suppress(UserError):
                pair.format()
        if outside:
            raise Finding(f"{outside} paths leave the folder")

    script = importlib.import_module("for_spa.train_spa_smallsample_noaug")
    flags = ["--data_path", str(folder), "--train_num", "1", "--patchSize", "16", "--dry_run", "--use_gpu", "false"]
    flags += ["--model_dir", f"{folder}_out/m", "--log_dir", f"{folder}_out/l"]
    return read if rng.random() < 0.7 else lambda: script.main(flags)


def packed(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """A spoiled pack, opened and read in full, or in the way of a new one."""
    data = seeds.pack
    if rng.random() < 0.3:
        data = mutate.rewritten(data, mutate.pack_changes(rng))
    if rng.random() < 0.8:
        data = mutate.spoiled(data, rng, seeds.pack)
    out = folder / "x.h5"
    make = ["--data_path", f"{seeds.pairs}/rain", "--gt_path", f"{seeds.pairs}/norain", "--out", str(out)]
    way = rng.integers(6)
    if way == 0:
        out.write_bytes(data)
        return lambda: pack.main([*make, "--overwrite"])
    if way == 1:
        out.with_name("x.h5.part").write_bytes(data)
        return lambda: pack.main([*make, "--overwrite"])
    out.write_bytes(data)
    if way == 2:
        return lambda: pack.main(["--verify", str(out)])

    def read() -> None:
        for pair in pack.Pack(out):
            pair.read()

    return read


def weights(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """A spoiled checkpoint of any kind."""
    kind = str(rng.choice(list(seeds.nets)))
    state = seeds.nets[kind].state_dict()
    path = folder / "x.pt"
    path.write_bytes(_saved(rng, mutate.odd_state(rng, state) if rng.random() < 0.5 else state))
    net = mutate.small_nets()[kind]
    return lambda: checkpoint.load_weights(net, path, kind, "--net")


def _saved(rng: np.random.Generator, value: object) -> bytes:
    data = mutate.saved(value, zipped=rng.random() < 0.6)
    return mutate.spoiled(data, rng, data) if rng.random() < 0.6 else data


def generator(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """A generator whose sizes lie."""
    state = seeds.ED.state_dict()
    for _ in range(int(rng.integers(0, 3))):
        key = list(state)[rng.integers(len(state))]
        shape = [int(s) for s in state[key].shape]
        shape[rng.integers(len(shape))] = int(rng.choice([0, 1, 2, 3, 16, 1000, 10**5, 10**9]))
        state = mutate.expanded(state, tuple(shape), key) if np.prod(shape, dtype=float) < 2**60 else state
    if rng.random() < 0.3:
        at = int(rng.integers(1, 12))
        state |= {f"encoder.main.{20 + 2 * k}.weight": torch.zeros(1, 1, 1, 1) for k in range(at)}
    path = folder / "x.pt"
    path.write_bytes(_saved(rng, mutate.odd_state(rng, state) if rng.random() < 0.3 else state))
    return lambda: checkpoint.load_generator(path, "--netED")


def state(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """A train_state_last.pt that a run is to go on from."""
    value = _changed_state(seeds.state, rng)
    (folder / "m").mkdir()
    (folder / "m" / "train_state_last.pt").write_bytes(
        _saved(rng, value) if rng.random() < 0.2 else mutate.saved(value)
    )
    words = [*seeds.pairs_flags(), "--model_dir", f"{folder}/m", "--log_dir", f"{folder}/l", "--resume", "-1"]
    args = train_syn_aug.parse_args([*words, "--niter", "2", "--use_gpu", "false", "--dry_run"])

    def resume() -> None:
        with open_run(args, train_syn_aug.__file__, lambda args: ("Aug_DerainNet",)) as run:
            net = mutate.PReNet(1)
            net.train()
            run.restore({"Aug_DerainNet": net}, {"Aug_DerainNet": torch.optim.Adam(net.parameters())}, "data")

    return resume if rng.random() < 0.6 else lambda: train_syn_aug.main([*words, "--niter", "2", "--dry_run"])


def _changed_state(value: object, rng: np.random.Generator) -> object:
    """A train state with one thing in it replaced by another kind of thing."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: _changed_state(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = int(rng.integers(len(value)))
        return [*value[:at], _changed_state(value[at], rng), *value[at + 1 :]]
    others = [
        torch.ones(2),
        torch.tensor(float("nan")),
        None,
        "x",
        "\x1b[31m",
        -1,
        0,
        10**30,
        1.5,
        [],
        {},
        (1,),
        b"x",
        True,
    ]
    return others[rng.integers(len(others))]


def manifest(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """A manifest.csv that is read, mended, or in the way of generate_rain.py."""
    shutil.copytree(seeds.folder / "made", folder / "out")
    rows = [[cell.strip('"') for cell in row] for row in seeds.manifest]
    if rng.random() < 0.4:
        rows[-1][0] = str(rng.choice(["../../x.png", "/etc/hostname", "a/../../../b.png", "n" * 300, "8.png\0", "."]))
    (folder / "out" / "manifest.csv").write_bytes(mutate.as_csv(rows, rng))
    flags = ["--data_path", f"{seeds.pairs}/norain", "--save_path", f"{folder}/out", "--netED", f"{seeds.folder}/ED.pt"]

    def read() -> None:
        found = Manifest(folder / "out")
        found.mend()
        with found.finished() as there:
            outside = [row.file for row in there if row.file.startswith("/") or ".." in Path(row.file).parts]
        if outside:
            raise Finding(f"{outside} leaves the folder")

    more = ["--overwrite"] if rng.random() < 0.5 else []
    return read if rng.random() < 0.75 else lambda: generate_rain.main([*flags, *more, "--use_gpu", "false"])


def choice(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """The .json beside a derainer's weights."""
    shutil.copy(seeds.folder / "Aug_DerainNet_state_1.pt", folder)
    good = {"derainer": "prenet", "derainer_args": [], "recurrent_iter": 1, "pad_to": 1, "pad_square": False}
    value = mutate.changed(good, rng)
    data = mutate.as_json(mutate.changed(value, rng), rng)
    if rng.random() < 0.1:
        data = mutate.code_pickles()["nested_zip"]
    (folder / "Aug_DerainNet.json").write_bytes(data)
    flags = ["--data_path", f"{seeds.pairs}/rain/8.png", "--save_path", f"{folder}/out", "--use_gpu", "false"]
    return lambda: test_syn_aug.main([*flags, "--model_dir", str(folder)])


def table(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """A log.csv, a table of a page, a compose.json."""
    data = mutate.as_csv(seeds.log * int(rng.integers(1, 3)), rng)
    (folder / "log.csv").write_bytes(data)
    way = rng.integers(4)
    if way == 0:
        return lambda: curves.main(["--log_dir", str(folder), "--out", f"{folder}/c.png"])
    if way == 1:

        def goes_on() -> None:
            Log(str(folder), {}, 1, 1, False).epoch({"epoch": 2, "step": 2, "seconds": 0.1})

        return goes_on
    if way == 2:
        flags = ["--out", f"{folder}/out", "--show", f"{seeds.pairs}/rain/8.png", mutate.odd(rng)]
        return lambda: report.main([*flags, "--table", f"{folder}/log.csv", "--title", mutate.odd(rng)])
    shutil.copytree(seeds.folder / "composed", folder / "out")
    (folder / "out" / compose.NAME).write_bytes(mutate.as_json(mutate.changed(seeds.composed, rng), rng))
    flags = seeds.compose_flags(folder / "out") + (["--overwrite"] if rng.random() < 0.5 else [])
    return lambda: compose.main(flags)


def names(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """Good images of odd names in what derains, measures, rains, composes, packs and shows them."""
    taken = set()
    for number in range(int(rng.integers(1, 4))):
        stem = named(folder, rng, "", 1).name
        inside = Path(named(folder, rng, "", 1).name if rng.random() < 0.3 else "", f"{stem}{'.png' * (number % 2)}")
        if str(inside).casefold() in taken or inside.name.startswith("."):
            continue
        taken.add(str(inside).casefold())
        ending = str(rng.choice([".png", ".PNG", ".bmp"]))
        for kind in ("rain", "norain"):
            with contextlib.suppress(UserError):  # a folder where the other one has a file
                write_image(folder / "data" / kind / f"{inside}{ending}", photo(24, 20, number + len(kind)))
    rainy, clean, out = folder / "data" / "rain", folder / "data" / "norain", folder / "out"
    rain_flags, ED = ["--data_path", str(rainy), "--gt_path", str(clean)], ["--netED", f"{seeds.folder}/ED.pt"]
    cpu = ["--use_gpu", "false"]
    save = ["--save_patch", f"{out}/p", "--save_inputfake", f"{out}/i", "--save_rainfake", f"{out}/r"]
    derained = ["--netDerain", f"{seeds.folder}/DerainNet_state_1.pt", "--stage", "1", "--save_path", f"{out}/d"]
    commands = [
        ("for_syn.test_syn_joint", [*rain_flags, *derained, *cpu]),
        ("for_syn.generate_rain", [*rain_flags[:2], *ED, "--save_path", f"{out}/g", *cpu, "--num", "2"]),
        ("for_syn.test_interpolation", [*rain_flags, *ED, *save, *cpu]),
        ("common.evaluation.metrics", ["--pred", str(rainy), "--gt", str(clean), "--csv", f"{out}/metrics.csv"]),
        ("common.evaluation.report", ["--rainy", str(rainy), "--derained", str(rainy), "--clean", str(clean), "--out",
                                      f"{out}/s.png"]),
        ("common.data.pack", [*rain_flags, "--out", f"{out}/p.h5"]),
        ("common.data.compose", ["--clean", str(clean), "--streaks", str(rainy), "--num", "3", "--out", f"{out}/c"]),
    ]  # fmt: skip

    def all_of_them() -> None:
        for name, flags in commands:
            code = cli.run(lambda name=name, flags=flags: importlib.import_module(name).main(flags))
            if code not in (0, 1, 2):
                raise Finding(f"{name} ended with {code}")
        shown = [text for path in sorted(rainy.rglob("*")) if path.is_file() for text in (str(path), path.name)]
        if shown:
            table = ["--table", f"{out}/metrics.csv"] if (out / "metrics.csv").exists() else []
            report.main(["--out", f"{out}/page", "--show", *shown, *table, "--title", out.name])
        for path in out.rglob("*.csv"):
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                cells = [cell for row in csv.reader(file) for cell in row if cell.startswith(FORMULA)]
            if wrong := [cell for cell in cells if not re.fullmatch(r"-?[\d.]+|-?inf", cell)]:
                raise Finding(f"{path.name} has formulas: {wrong}")

    return all_of_them


class _Captured(Exception):
    pass


def flags_of(module: ModuleType) -> list[argparse.Action]:
    """The flags of a script."""

    def stop(parser: cli.Parser, argv: list[str] | None = None) -> None:
        raise _Captured(parser)

    with mock.patch.object(cli.Parser, "parse_args", stop):
        try:
            (getattr(module, "parse_args", None) or module.main)([])
        except _Captured as found:
            return [action for action in found.args[0]._actions if action.option_strings and action.dest != "help"]
    return []


def good_flags(module: ModuleType, folder: Path, seeds: Seeds) -> dict[str, list[str]]:
    """Values of the flags of a script with which it does next to nothing, and would do it well."""
    name = module.__name__
    data = seeds.pairs if "spa" in name and "train" in name else seeds.pairs / "rain"
    known = {
        "data_path": [data], "gt_path": [seeds.pairs / "norain"], "save_path": [folder / "out"],
        "netED": [seeds.folder / "ED.pt"], "netDerain": [seeds.folder / "DerainNet_state_1.pt"],
        "model_dir": [folder / "m" if "train" in name else seeds.folder / "Aug_DerainNet_state_1.pt"],
        "log_dir": [folder / "l" if "train" in name else seeds.folder / "logs"], "patchSize": [16], "patch_size": [16],
        "nz": [4], "nef": [2], "ndf": [4], "stage": [1], "recurrent_iter": [1], "use_gpu": ["false"], "batchSize": [3],
        "train_num": [1], "dry_run": ["true"], "workers": [0], "niter": [1], "iters_per_epoch": [1], "cache": ["none"],
        "save_patch": [folder / "p"], "save_inputfake": [folder / "i"], "save_rainfake": [folder / "r"],
        "save_fake": [folder / "f"], "manualSeed": [1], "clean": [seeds.pairs / "norain"],
        "streaks": [seeds.pairs / "rain"], "out": [folder / "o.png"], "num": [1], "real": [seeds.pairs / "rain"],
        "number": [2], "patch": [16], "pred": [seeds.pairs / "rain"], "gt": [seeds.pairs / "norain"],
        "rainy": [seeds.pairs / "rain"], "derained": [seeds.pairs / "norain"], "data": [folder / "d"], "turns": [1],
        "show": [seeds.pairs / "rain" / "8.png", "text"],
    }  # fmt: skip
    if module in (compose, claims, demo):
        known["out"] = [folder / "o"]
    if module in (pack, export):
        known["out"] = [folder / ("o.h5" if module is pack else "o.pt")]
    if module is report:
        known |= {"clean": known["gt"]}
    if module is pack or "small" not in name:
        known.pop("train_num")
    optional = {"patch", "number"} - {action.dest for action in flags_of(module)}
    return {flag: list(map(str, values)) for flag, values in known.items() if flag not in optional}


def command(rng: np.random.Generator, folder: Path, seeds: Seeds) -> Callable[[], object]:
    """A command line with odd flags, of any script or command."""
    module = [*map(importlib.import_module, SCRIPTS), *COMMANDS][rng.integers(len(SCRIPTS) + len(COMMANDS))]
    actions = {action.dest: action for action in flags_of(module)}
    good = good_flags(module, folder, seeds)
    if module is claims:
        (folder / "d").mkdir()
    needed = {dest for dest, action in actions.items() if isinstance(action, cli._UserPath) or dest == "dry_run"}
    words = {dest: good[dest] for dest in actions if dest in good and (dest in needed or rng.random() < 0.97)}
    for _ in range(int(rng.integers(0, 4))):
        dest = list(actions)[rng.integers(len(actions))]
        if dest in ("compile", "dry_run"):  # takes minutes; trains
            continue
        words[dest] = _odd_values(rng, actions[dest], folder, seeds)
    argv = [word for dest, values in words.items() for word in (actions[dest].option_strings[0], *values)]
    if rng.random() < 0.05:
        argv.insert(int(rng.integers(len(argv) + 1)), mutate.odd(rng))
    return lambda: module.main(argv)


def _odd_values(rng: np.random.Generator, action: argparse.Action, folder: Path, seeds: Seeds) -> list[str]:
    if isinstance(action, cli._UserPath):
        way = rng.integers(7)
        path = named(folder, rng, str(rng.choice(["", ".png", ".pt", ".h5", ".jpg"])), 0.8)
        way = way if not path.exists() else 5  # that of another flag
        if way == 0:
            path.write_bytes(mutate.spoiled(seeds.image(rng), rng))
        elif way == 1:
            path.mkdir()
        elif way == 2:
            shutil.copytree(seeds.pairs / "rain", path, dirs_exist_ok=True)
            write_image(named(path, rng, ".png", 1), photo(24, 20, 3))
        elif way == 3:
            path = Path(str(rng.choice(["/dev/null", "/dev/zero", "/proc/self/mem", "/", ".", "~nobody/x", "/no/x"])))
            if action.dest not in ("data_path", "gt_path", "netED", "netDerain", "pred", "gt", "real", "rain", "clean"):
                return [str(path)] if str(path).startswith("/dev") else [f"{folder}/x"]  # never write there
        elif way == 4:
            os.mkfifo(path)
        values = [str(path)]
    elif action.choices:
        values = [str(rng.choice([*map(str, action.choices), "x", ""]))]
    elif action.dest in ("derainer", "derainer_args"):
        values = [str(rng.choice(["json:loads", "torch.nn:Identity", "no.such:X", "x.py:Y", "a=b", "a=[1", ":", "=x"]))]
    elif rng.random() < 0.2:
        values = [mutate.odd(rng)]
    else:
        values = [str(rng.choice(np.array(mutate.NUMBERS, object))) for _ in range(int(rng.integers(1, 3)))]
    return values if rng.random() < 0.9 else values * 2


KINDS = {
    "image": image, "header": header, "list": listed, "pack": packed, "checkpoint": weights, "generator": generator,
    "state": state, "manifest": manifest, "choice": choice, "table": table, "names": names,
    "command": command,
}  # fmt: skip


# --- judging ---------------------------------------------------------------------------------------------------------


def is_plain(text: str) -> bool:
    """Whether a terminal shows a text as it is: line breaks aside, nothing that controls it."""
    return all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def judge(call: Callable[[], object]) -> str:
    """Run a call as a script runs its main: 'handled' or 'refused'.

    Raises:
        Finding: it ended as nothing should.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True) for _ in range(2))
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.run(lambda: call() and None)
        except SystemExit as end:
            code = end.code
        except Finding:
            raise
        except BaseException:
            raise Finding(traceback.format_exc()) from None
    said, complained = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err))
    if "Traceback" in complained or re.search(r"Warning: ", complained):
        raise Finding(f"exit code {code}: {complained}")
    if not is_plain(said + complained):
        raise Finding(f"characters that control a terminal: {said + complained!r}")
    if code == 0:
        return "handled"  # of several commands each may have refused
    if code == 1 and "out of memory" not in complained and re.search(r"\d+ of \d+|not measured|damaged", complained):
        return "handled"
    text = complained.partition("error: ")[2]
    if code != 2 or not re.search(r"/|--\w|arguments?", text):
        raise Finding(f"exit code {code}, and no clear message: {complained!r}")
    if len(text) > 4000 or text.count("\n") > STDERR_LINES:
        raise Finding(f"a message of {len(text)} characters: {text[:2000]!r}")
    return "refused"


def kind_of(number: int) -> str:
    """Which kind of case has a number; each kind has its share of every hundred."""
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    return kinds[number * 37 % len(kinds)]


def peak() -> float:
    """The most memory since ``forget_peak``, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def forget_peak() -> None:
    """Begin to measure anew."""
    Path("/proc/self/clear_refs").write_text("5")


def run_case(seed: int, number: int, seeds: Seeds, folder: Path) -> str:
    """Make a case and judge it.

    Raises:
        Finding: see ``judge``; or it took too much memory.
    """
    for place in (folder, Path(f"{folder}_out")):
        shutil.rmtree(place, ignore_errors=True)
    folder.mkdir()
    call = KINDS[kind_of(number)](np.random.default_rng([seed, number]), folder, seeds)
    forget_peak()
    before = peak()
    end = judge(call)
    if (more := peak() - before) > max(MEGABYTES, getattr(call, "megabytes", 0)):
        raise Finding(f"it took {more:.0f} MB ({end})")
    return end


@contextlib.contextmanager
def stubs() -> Iterator[None]:
    """Where real work would begin that takes seconds, a message; generators are measured on little."""

    def reached(*args, **kwargs) -> None:
        raise UserError("--stub: real work would begin here")

    with contextlib.ExitStack() as stack:
        for module, name in ((demo, "make_set"), (benchmark, "measure"), (knobs, "response")):
            stack.enter_context(mock.patch.object(module, name, reached))
        stack.enter_context(mock.patch.object(claims.Running, "call", reached))
        stack.enter_context(mock.patch.object(rain, "POOL", 16))
        stack.enter_context(mock.patch.object(distance, "HALVINGS", 1))
        stack.enter_context(mock.patch.object(derain, "MEMORY_LIMIT", 8e9))
        yield


# --- the watched process ---------------------------------------------------------------------------------------------


def child(seed: int, numbers: list[int], seeds: Seeds, folder: Path, pipe: int) -> None:
    """Run cases and say through a pipe how each begins and ends."""
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 8 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # for the machine's sake; 1 GB is measured
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries of C write there
    with os.fdopen(pipe, "w") as report, stubs():
        for number in numbers:
            print(json.dumps([number, "begins", ""]), file=report, flush=True)
            try:
                end, text = run_case(seed, number, seeds, folder), ""
            except Finding as finding:
                end, text = "finding", str(finding)
            except BaseException:
                end, text = "finding", f"the fuzz run itself: {traceback.format_exc()}"
            print(json.dumps([number, end, text]), file=report, flush=True)


def watched(seed: int, numbers: list[int], seeds: Seeds, folder: Path) -> Iterator[tuple[int, str, str]]:
    """(number, 'handled' 'refused' or 'finding', text) of each case; a process that hangs or dies is begun anew."""
    while numbers:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            child(seed, numbers, seeds, folder, writing)
            os._exit(0)
        os.close(writing)
        now, why = numbers[0], "it died"
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            rest = b""
            while True:
                if not select.select([pipe], [], [], SECONDS)[0]:
                    os.kill(process, signal.SIGKILL)
                    why = f"it hung for {SECONDS} s"
                    break
                data = pipe.read(65536)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                for number, end, text in map(json.loads, lines):
                    now = number
                    if end != "begins":
                        yield number, end, text
                        numbers = numbers[numbers.index(number) + 1 :]
        status = os.waitpid(process, 0)[1]
        if numbers and now == numbers[0]:
            yield now, "finding", f"{why} (status {status})"
            numbers = numbers[1:]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases")
    parser.add_argument("--kinds", nargs="+", choices=list(SHARES), help="of all cases, those of these kinds")
    parser.add_argument("--findings", default="fuzz_findings", help="folder for what was found")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    ends: dict[str, collections.Counter] = {kind: collections.Counter() for kind in SHARES}
    numbers = args.only or [n for n in range(args.cases) if not args.kinds or kind_of(n) in args.kinds]
    with tempfile.TemporaryDirectory() as temporary:
        with contextlib.redirect_stdout(io.StringIO()), stubs():
            seeds = Seeds(Path(temporary, "seeds"))
        folder = Path(temporary, "case")
        for number, end, text in tqdm(
            watched(args.seed, numbers, seeds, folder), total=len(numbers), unit="case", disable=None
        ):
            ends[kind_of(number)][end] += 1
            if end == "finding":
                kept = Path(args.findings, f"{number}_{kind_of(number)}")
                shutil.rmtree(kept, ignore_errors=True)
                kept.mkdir(parents=True)
                (kept / "finding.txt").write_text(text, errors="backslashreplace")
                with contextlib.suppress(OSError, shutil.Error):
                    run = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size < 10**7]
                    for path in run:
                        place = kept / "files" / path.relative_to(folder)
                        place.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, place)
    print(f"{'kind':<12}{'cases':>8}{'handled':>9}{'refused':>9}{'findings':>10}")
    total = collections.Counter()
    for kind, counted in ends.items():
        if counted:
            total += counted
            print(f"{kind:<12}{counted.total():>8}" + _cells(counted))
    print(f"{'all':<12}{total.total():>8}" + _cells(total))
    return 1 if total["finding"] else 0


def _cells(counted: collections.Counter) -> str:
    return f"{counted['handled']:>9}{counted['refused']:>9}{counted['finding']:>10}"


if __name__ == "__main__":
    sys.exit(main())
