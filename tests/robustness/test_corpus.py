"""Damaged files end a command with one message and no traceback, and code in checkpoints never runs.

corpus/KIND/END/FILE: files that once broke a command, by the code that reads them and how that has to end.
"""

import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common import cli
from common.data import pack
from common.data.images import image_format, read_image, write_image
from common.data.pair_list import PairList
from common.errors import UserError
from common.training import checkpoint
from for_syn import train_syn_aug
from tests.conftest import folders, pairs_of, photo
from tests.golden import ROOT

CORPUS = ROOT / "tests" / "robustness" / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


def look_at(path):
    """Read an image and compare its header with its pixels."""
    height, width, kind = image_format(path)
    pixels = read_image(path)
    assert pixels.shape == (height, width, 3) and pixels.dtype == kind


READERS = {
    ".png": look_at,
    ".jpg": look_at,
    ".tif": look_at,
    ".h5": lambda path: [pair.read() for pair in pack.load(path)],
    ".pt": lambda path: checkpoint.load_generator(path, "--netED"),
}


def end_of(call, capsys):
    """'handled', or 'refused' with a message that names a file; a traceback fails the test."""
    code = cli.run(lambda: call() and None)
    told = capsys.readouterr().err
    assert code in (0, 2) and (code == 0 or "/" in told.partition("error: ")[2])
    return "refused" if code else "handled"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORPUS)))
def test_files_that_once_broke_a_command_end_well(path, tmp_path, capsys):
    kind, end = path.relative_to(CORPUS).parts[:2]
    if kind == "image":
        assert end_of(lambda: look_at(path), capsys) == end
    else:
        shutil.copy(path, tmp_path / "real_world.txt")
        assert end_of(lambda: [pair.name for pair in PairList(tmp_path)], capsys) == end


def damaged(data, rng):
    """A file with flipped bits, random bytes near its start, a cut or a hole."""
    buffer, way = bytearray(data), rng.randint(4)
    at, near = rng.randint(len(buffer)), rng.randint(len(buffer), size=3).min()
    if way == 0:
        buffer[at] ^= 1 << rng.randint(8)
    elif way == 1:
        buffer[near : near + 8] = rng.bytes(8)
    elif way == 2:
        del buffer[at:]
    else:
        del buffer[at : at + 20]
    return bytes(buffer)


@pytest.mark.parametrize("ending", READERS)
def test_damaged_files_end_well(ending, tmp_path, pairs_folder, generator, capsys):
    good = Path(generator) if ending == ".pt" else tmp_path / f"good{ending}"
    if ending == ".h5":
        pack.write(pairs_of(pairs_folder), good, 1)
    elif ending != ".pt":
        write_image(good, photo(20, 24, 0))
    ends, path = set(), tmp_path / f"x{ending}"
    for seed in range(25):
        path.write_bytes(damaged(good.read_bytes(), np.random.RandomState(seed)))
        ends.add(end_of(lambda: READERS[ending](path), capsys))
    assert "refused" in ends


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def code_pickles():
    """Checkpoints that would print 'ran' when Python unpickles them, in every form that torch.load knows."""
    attack = Runs(os.system, "echo ran")
    files = {"bare": pickle.dumps(attack)}
    for name, value in (("plain", attack), ("nested", {"state": [{"deep": (attack,)}], "x": torch.zeros(2)})):
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(value, out, _use_new_zipfile_serialization=zipped)
            files[f"{name} {'zip' if zipped else 'old'}"] = out.getvalue()
    return files


@pytest.mark.parametrize("name", code_pickles())
def test_code_in_checkpoints_is_never_run(name, tmp_path, pairs_folder, capfd):  # T11
    for file in ("x.pt", "train_state_last.pt"):
        (tmp_path / file).write_bytes(code_pickles()[name])
    for load in (checkpoint.load, checkpoint.load_generator):
        with pytest.raises(UserError, match="holds code or objects|damaged"):
            load(tmp_path / "x.pt", "--netED")
    with pytest.raises(UserError, match="holds weights, but no full state"):
        train_syn_aug.main([*folders(pairs_folder, tmp_path), "--dry_run"])
    assert "ran" not in [line.strip() for line in capfd.readouterr().out.splitlines()]
