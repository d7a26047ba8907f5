"""Every input that ever broke a command ends well, and so does a small run of fuzz.py.

corpus/KIND/END/FILE: inputs that fuzz.py reported, by the code that reads them and how that has to end.
"""

import csv
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common import cli, derainer
from common.data.images import ImageError, image_format, read_image, write_image
from common.data.pairs import PairList
from common.errors import UserError
from common.evaluation import metrics
from common.generation.manifest import Manifest
from common.training import checkpoint
from for_syn import generate_rain, test_syn_aug, train_syn_aug
from tests.conftest import photo
from tests.golden import ROOT
from tests.robustness import fuzz, judge, mutate

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """The good files that cases are made of."""
    with fuzz.little_work():
        return fuzz.Seeds(tmp_path_factory.mktemp("seeds"))


# --- the corpus ------------------------------------------------------------------------------------------------------


def reader_of(kind, path, folder, seeds):
    """The call that reads an input of the corpus."""
    if kind == "image":
        return fuzz.look_at(path)
    if kind == "critic":
        return lambda: checkpoint.load_weights(mutate.small_nets()["D"], path, "D", "--net")
    if kind == "generator":
        return lambda: checkpoint.load_generator(path, "--netED")
    if kind == "list":
        shutil.copy(path, folder / "real_world.txt")
        return lambda: [pair.name for pair in PairList(folder)]
    if kind == "manifest":
        shutil.copy(path, folder / "manifest.csv")
        return lambda: Manifest(folder).mend()
    assert kind == "resumed_log"
    shutil.copytree(seeds.folder / "models", folder / "m")
    (folder / "l").mkdir()
    shutil.copy(path, folder / "l" / "log.csv")
    return lambda: train_syn_aug.main(seeds.resume_flags(folder))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORPUS)))
def test_inputs_that_once_broke_a_command_end_well(path, tmp_path, seeds):
    kind, end = path.relative_to(CORPUS).parts[:2]
    megabytes = 1500 if "large" in path.name else 200
    assert judge.watched(lambda: reader_of(kind, path, tmp_path, seeds), megabytes) == (end, "")


def fail():
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: time.sleep(60), "it hung for 1 s"),
        (lambda: os._exit(0), "its process died"),
        (lambda: len(bytearray(300 * 2**20)), "MB (handled)"),
        (fail, "ZeroDivisionError"),
        (lambda: print("\x1b[31m", file=sys.stderr), "control a terminal"),
        (lambda: exec("raise UserError('no')", {"UserError": UserError}), "no clear message"),
    ],
)
def test_bad_ends_are_noticed(call, text, monkeypatch):
    monkeypatch.setattr(judge, "SECONDS", 1 if "hung" in text else 20)
    end, told = judge.watched(lambda: call, 200)
    assert end == "finding" and text in told


# --- sizes, code, states, paths, names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "width, height, depth, message",
    [
        (30000, 30000, 8, r"too large to be a photo \(900 megapixels, up to 179 are read\); scale it down first"),
        (2**31 - 1, 2**31 - 1, 16, "too large to be a photo"),
    ],
)
def test_images_that_are_too_large_are_refused_before_they_are_decoded(width, height, depth, message, tmp_path):
    (tmp_path / "x.png").write_bytes(mutate.png_of_size(width, height, depth))
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("width, height", [(13000, 13700), (50000, 1000), (65536, 10)])
def test_images_of_allowed_sizes_are_opened(width, height, tmp_path):
    (tmp_path / "x.png").write_bytes(mutate.png_of_size(width, height))
    assert image_format(tmp_path / "x.png")[:2] == (height, width)


@pytest.mark.parametrize("name", mutate.code_pickles())
def test_code_in_checkpoints_is_never_run(name, tmp_path, capfd, seeds):
    content = mutate.code_pickles()[name]
    for file in ("x.pt", "train_state_last.pt", "Aug_DerainNet.json"):
        (tmp_path / file).write_bytes(content)
    for load in (checkpoint.load, checkpoint.load_generator):
        with pytest.raises(UserError, match="holds code or objects|damaged"):
            load(tmp_path / "x.pt", "--netED")
    assert derainer.stored(tmp_path / "Aug_DerainNet_state_1.pt") is None
    with pytest.raises(UserError, match="holds no full training state"):
        train_syn_aug.main([*seeds.pairing, "--model_dir", str(tmp_path), "--resume", "-1", "--dry_run"])
    assert "ran" not in [line.strip() for line in capfd.readouterr().out.splitlines()]


def with_value(state, place, value):
    """A nested dict with one value replaced."""
    return state | {place[0]: with_value(state[place[0]], place[1:], value)} if place else value


@pytest.mark.parametrize(
    "place, value, message",
    [
        (["optimizers", "Aug_DerainNet"], {}, "damaged, or other parameters learn now; go on from bare weights"),
        (["rng", "torch"], None, "damaged, or other parameters learn now; go on from bare weights"),
    ],
)
def test_training_states_with_a_wrong_value(place, value, message, tmp_path, seeds):
    (tmp_path / "m").mkdir()
    torch.save(with_value(seeds.state, place, value), tmp_path / "m" / "train_state_last.pt")
    with pytest.raises(UserError, match=message):
        train_syn_aug.main(seeds.resume_flags(tmp_path))


def test_names_that_look_like_formulas(tmp_path, generator, quick, capsys):
    """No cell of a table starts a formula in a spreadsheet, and the names are still known to the next run."""
    names = ["=1+1.png", "+2.png", "-3.png", "@x.png", "\tx.png", "'=1.png", "plain.png"]
    for number, name in enumerate(names):
        for kind in ("rain", "norain"):
            write_image(tmp_path / kind / name, photo(20, 24, number))
    words = ["--pred", f"{tmp_path}/rain", "--gt", f"{tmp_path}/norain", "--csv", f"{tmp_path}/metrics.csv"]
    assert metrics.main(words) == 0
    words = ["--data_path", f"{tmp_path}/norain", "--save_path", f"{tmp_path}/out", "--netED", str(generator)]
    for message in ("7 pairs made", "0 pairs made"):
        assert generate_rain.main([*words, "--use_gpu", "false"]) == 0
        assert message in capsys.readouterr().out
    assert set(Manifest(tmp_path / "out").rows) == set(names)
    for path in (tmp_path / "metrics.csv", tmp_path / "out" / "manifest.csv"):
        cells = [row[0] for row in csv.reader(path.read_text().splitlines())]
        assert len(cells) >= 8 and not [cell for cell in cells if cell[:1] in set("=+-@\t\r")]


def test_no_name_controls_the_terminal(tmp_path, capsys):
    evil = "\x1b]0;title\x07\u202e\r\n\x85"
    for kind in ("rain", "norain"):
        write_image(tmp_path / kind / f"a{evil}.png", photo(20, 24, 0))
    (tmp_path / "rain" / f"b{evil}.png").write_bytes(b"x")
    (tmp_path / "real_world.txt").write_text("../\x1b[31m.png c.png\n")
    torch.save({f"k{evil}": torch.zeros(1)}, tmp_path / f"n{evil}.pt")
    for call in (
        lambda: read_image(tmp_path / "rain" / f"b{evil}.png"),
        lambda: metrics.main(["--pred", f"{tmp_path}/rain", "--gt", f"{tmp_path}/norain"]),
        lambda: PairList(tmp_path),
        lambda: test_syn_aug.main(["--model_dir", str(tmp_path), "--data_path", f"{tmp_path}/rain"]),
    ):
        assert cli.run(call) == 2
        printed = capsys.readouterr()
        assert judge.is_plain(printed.err + printed.out) and "error: " in printed.err
    with pytest.raises(SystemExit):
        test_syn_aug.parse_args([f"--x{evil}"])
    assert judge.is_plain(capsys.readouterr().err)


# --- a small run -----------------------------------------------------------------------------------------------------


def test_a_small_run_has_no_findings_and_writes_nowhere_else(tmp_path, seeds):
    before = {path for folder in ROOT.glob("for_*") for path in folder.rglob("*")}
    with fuzz.little_work():
        ends = {number: fuzz.run_case(3, number, seeds, tmp_path / "case") for number in range(150)}
    bad = [f"python -m tests.robustness.fuzz --seed 3 --only {n}: {text}" for n, (_, text) in ends.items() if text]
    assert not bad
    assert np.bincount([end == "handled" for end, _ in ends.values()]).min() > 20
    after = {path for folder in ROOT.glob("for_*") for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert after <= before
