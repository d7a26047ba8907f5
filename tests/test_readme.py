"""Every command and every block of Python in the README and in docs runs, in small; files and links exist.

`make demo`, `make test` and pip do not run. A command runs as the page gives it, in a folder of the test; flags that it
does not set get small values.
"""

import importlib
import os
import re
import shlex
import shutil
import sys

import cv2
import pytest
import torch
from torch.distributed.run import parse_args

import common.models
from common import cli, commands
from common.data.images import write_image
from common.generation import rain
from common.models import Derain, PReNet
from experiments import distance, knobs_report, which_rain
from tests.conftest import drops, flags_of, photo, write_claim_sets
from tests.golden import ROOT, fill

PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
TEXT = "\n".join(PAGES.values())
# Small values of flags that a command has and does not set.
SMALL = {
    "use_gpu": "false",
    "manualSeed": "1",
    "batchSize": "3",
    "patchSize": "16",
    "stage": "1",
    "recurrent_iter": "1",
    "nz": "5",
    "nef": "4",
    "ndf": "4",
    "niter": "1",
    "train_num": "2",
    "iters_per_epoch": "1",
    "workers": "0",
    "samples": "300",
    "variants": "1",
    "pictures": "2",
    "netED": "ED.pt",
    "generator_steps": "2",
    "steps": "2",
    "seeds": "1",
    "cells": "heavy4",
}
OWN = {  # for single scripts; None leaves the default
    "test_syn_joint.py": {"stage": None},
    "test_spa_joint.py": {"stage": None},
    "test_syn_aug.py": {"recurrent_iter": None},
    "test_spa_aug.py": {"recurrent_iter": None},
    "train_syn_generator.py": {"niter": None, "iters_per_epoch": "1"},
    "train_syn_encoder.py": {"niter": None, "iters_per_epoch": "1"},
    "common.data.pack": {"workers": None},
    "which_rain.py": {"kinds": "procedural"},
}


def sections(text):
    """(heading, text) of a page."""
    parts = re.split(r"^## (.*)$", text, flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def commands_in(text):
    """Lines of shell commands: those of fenced blocks, each of which begins at the root, then those within the text."""
    lines = []
    for block in re.findall(r"^```sh\n(.*?)^```$", text, flags=re.M | re.S):
        lines += ["cd /", *(line for line in block.replace("\\\n", " ").splitlines() if line.strip())]
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    inline = re.findall(r"`((?:python|torchrun)\s[^`]*)`", outside)
    return lines + ["cd /"] * bool(inline) + [" ".join(line.split()) for line in inline]


COMMANDS = {
    f"{path.stem}: {heading}": commands_in(text)
    for path, page in PAGES.items()
    for heading, text in sections(page)
    if commands_in(text)
}


@pytest.fixture
def world(tmp_path, monkeypatch, generator):
    """A folder with tiny versions of all that the commands name."""
    for k in range(2):
        clean = photo(130, 140, k)
        pictures = {"RAINY": cv2.add(clean, drops(130, 140, k)), "CLEAN": clean}
        for folder, pixels in (pictures | {"DERAINED": clean // 2, "OTHERS": clean // 2}).items():
            write_image(tmp_path / folder / f"{k}.png", pixels)
    for name in pictures:
        shutil.copytree(tmp_path / name, tmp_path / f"VAL_{name}", ignore=shutil.ignore_patterns("1.png"))
        shutil.copytree(tmp_path / name, tmp_path / "SPA_DATA" / name)
    (tmp_path / "SPA_DATA" / "real_world.txt").write_text("RAINY/0.png CLEAN/0.png\nRAINY/1.png CLEAN/1.png\n")
    for k in range(24):
        write_image(tmp_path / "PHOTOS" / f"{k}.png", photo(70, 80, k))
        write_image(tmp_path / "STREAKS" / f"{k}.png", drops(60, 80, k))
    for name in ("LOGS", "OTHER_LOGS"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text("epoch,step,seconds,loss\n1,9,1.0,-0.5\n2,18,2.0,-0.6\n")
    write_claim_sets(tmp_path / "DATA")
    nets = {"DerainNet_state_700": Derain(6), "DerainNet_state_800": Derain(6), "Aug_DerainNet_state_200": PReNet(6)}
    for name, net in nets.items():
        torch.save(fill(net, 1).state_dict(), tmp_path / f"{name}.pt")
    for name in ("ED_state_700", "ED_state_800", "ED"):
        shutil.copy(generator, tmp_path / f"{name}.pt")
    (block,) = (code for code in python_in(TEXT) if "class Small" in code)
    (tmp_path / "small.py").write_text(block)
    for module, name, value in (  # generators and knobs are measured on little
        (rain, "POOL", 32),
        (distance, "BIG", 64),
        (distance, "NUMBER", 16),
        (distance, "STEPS", 2),
        (distance, "VARIANTS", 30),
        (which_rain, "VARIANTS", 1),
        (which_rain, "STAGES", 1),
        (which_rain, "PATCH", 16),
        (knobs_report, "SIDE", 48),
        (knobs_report, "PLACES", 2),
        (knobs_report, "RANGES", {"angle": (-45, 45)}),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_in(text):
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)


def smaller(module, name, words):
    """The words of a command, and small values for the flags that it does not set."""
    flags, values = flags_of(module), {**SMALL, **OWN.get(name, {})}
    if "--resume" in words:
        values = dict.fromkeys(values) | {"niter": "2"}
    if "--derainer" in words:
        values["recurrent_iter"] = None
    if "--fake_ratio" in words:  # 0: no sample of a batch has generated rain
        values["batchSize"] = "1"
    if "default" in words:  # the generator of the project has its own sizes
        values |= {"nz": None, "nef": None, "patchSize": None}
    more = {flag: value for flag, value in values.items() if value and flag in flags and f"--{flag}" not in words}
    return [*words, *(word for flag, value in more.items() for word in (f"--{flag}", value))]


def run(line, world, names):
    """One line of a shell, with small values; returns its exit code."""
    words = shlex.split(line, comments=True)
    for name, value in names.items():
        words = [word.replace(f"${name}", value) for word in words]
    if re.fullmatch(r"\w+=\S+", words[0]):
        names.update([words[0].split("=", 1)])
        return 0
    if words[0] == "cd":
        os.chdir(world / words[1].lstrip("/"))
        return 0
    if words[0] == "torchrun":  # which takes its flags; tests/test_distributed.py runs jobs
        job = parse_args(words[1:])
        words = ["python", job.training_script, *job.training_script_args]
    if words[0] == "vrgnet":
        return commands.main([*words[1:], "--use_gpu", "false"])
    assert words[0] == "python", line
    if words[1] == "-m":
        name, words = words[2], words[3:]
        module = importlib.import_module(name)
    else:
        family, name = words[1].split("/")
        words = words[2:]
        module = importlib.import_module(f"{family}.{name.removesuffix('.py')}")
    return cli.run(lambda: module.main(smaller(module, name, words)))


def rename_weights(world):
    """Give the weights of one epoch the number of the paper's last one, which other scripts look for."""
    for path in world.glob("*models/*_state_1.pt"):
        last = 200 if "Aug" in path.name else 700 if "syn" in path.parts[-2] else 800
        path.rename(path.with_name(path.name.replace("_state_1.", f"_state_{last}.")))


@pytest.mark.parametrize("heading", COMMANDS)
def test_commands_run_in_small(heading, world, capsys, calls):
    names = {}
    # Two photos are enough, where none are left out.
    if "--hold_out" not in " ".join(COMMANDS[heading]):
        for k in range(2, 24):
            (world / "PHOTOS" / f"{k}.png").unlink()
    for line in COMMANDS[heading]:
        for folder in ("OUT", "OUT_AUG", "PAIRS", "derained_results", "aug_derained_results"):
            shutil.rmtree(folder, ignore_errors=True)
        code = run(line, world, names)
        said = capsys.readouterr()
        assert code == 0, f"{line}\n{said.out}\n{said.err}"
        found = "derainer of the project" not in said.out  # a training of the command before
        assert found or heading == "README: Remove rain" or line.startswith("vrgnet")
        rename_weights(world)


def test_every_script_and_module_has_a_command():
    said = "\n".join(line for lines in COMMANDS.values() for line in lines)
    paths = [path for folder in ("common", "experiments", "for_*") for path in ROOT.glob(f"{folder}/**/*.py")]
    commands = [path.relative_to(ROOT) for path in paths if 'if __name__ == "__main__"' in path.read_text()]
    names = {".".join(p.with_suffix("").parts) if p.parts[0] == "common" else p.name for p in commands}
    of_make = {"common.data.demo"}  # `make demo` calls it
    assert not [name for name in names - of_make if name not in said]


@pytest.mark.parametrize("number", range(len(python_in(TEXT))))
def test_python_runs(number, world, monkeypatch):
    for name, module in (("vrgnet", common), ("vrgnet.models", common.models)):  # as installed: tests/test_package.py
        monkeypatch.setitem(sys.modules, name, module)
    exec(compile(python_in(TEXT)[number], f"block {number} of the pages", "exec"), {"__name__": "readme"})


def test_make_targets_and_files_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"\bmake ([a-z]+)\b", " ".join(re.findall("`[^`]*`", TEXT)))) <= targets
    files = re.findall(r"`((?:common|tests|for_\w+|docs)/[\w./]+)`", TEXT)
    assert files and not [name for name in files if not (ROOT / name).exists() and not re.search("models/|_N.pt", name)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]*)(#[^)]*)?\)", PAGES[path])
    assert not [name for name, _ in links if name and not name.startswith("http") and not (path.parent / name).exists()]
    headings = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading, _ in sections(PAGES[path])}
    assert {anchor[1:] for name, anchor in links if anchor and not name} <= headings
