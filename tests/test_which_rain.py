"""Which rain is worth training on, in small: kinds make pairs, derainers learn from them, what is done is kept."""

import argparse
import csv

import numpy as np
import pytest

from common import cli
from common.data.images import read_image, write_image
from common.evaluation import which_rain
from tests.conftest import photo


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, value in (("VARIANTS", 2), ("STAGES", 1), ("PATCH", 16)):
        monkeypatch.setattr(which_rain, name, value)
    for k in range(3):
        write_image(tmp_path / "clean" / f"{k}.png", photo(40, 50, k))
        drops = 90 * (np.random.RandomState(k).rand(50, 60, 1) > 0.9)
        write_image(tmp_path / "streaks" / f"{k}.png", drops.repeat(3, 2).astype(np.uint8))
    write_image(tmp_path / "set" / "norain" / "0.png", photo(40, 50, 9))
    write_image(tmp_path / "set" / "rain" / "0.png", photo(40, 50, 9) // 2 + 60)
    return tmp_path


def run(folder, *more):
    words = ["--clean", folder / "clean", "--streaks", folder / "streaks", "--test", f"light={folder / 'set'}"]
    words += ["--out", folder / "out", "--hold_out", 1, "--steps", 10, "--batchSize", 2, "--seeds", 1]
    words += ["--use_gpu", "false", *more]
    return cli.run(lambda: which_rain.main(list(map(str, words))))


def test_kinds_come_out_and_are_kept(folder, calls, capsys):
    assert run(folder, "--kinds", "real", "procedural") == 0
    rows = list(csv.DictReader((folder / "out" / "results.csv").open()))
    assert [(row["kind"], row["seed"], row["test"]) for row in rows] == [
        ("real", "1", "light"),
        ("procedural", "1", "light"),
    ]
    assert all(float(row["psnr_y"]) > 5 for row in rows) and rows[0]["psnr_y"] != rows[1]["psnr_y"]
    for kind in ("real", "procedural"):
        for k in range(3):
            for v in range(2):
                rainy, clean = (
                    read_image(folder / "out" / kind / part / f"{k}.png_v{v}.png") for part in ("rain", "norain")
                )
                assert (rainy >= clean).all() and (rainy > clean).any()
    assert not np.array_equal(*(read_image(folder / "out" / "real" / "rain" / f"0.png_v{v}.png") for v in (0, 1)))
    assert "| procedural |" in (printed := capsys.readouterr().out) and "(rainy)" in printed
    before = len(calls)
    assert run(folder, "--kinds", "real", "procedural") == 0 and len(calls) == before
    assert run(folder, "--kinds", "real", "--steps", 20) == 2
    assert "has results of --steps 10, not 20" in capsys.readouterr().err
    trained = [flags for script, flags in calls if "train" in script]
    assert all(flags[flags.index("--fake_ratio") + 1] == "0" for flags in trained)


def test_every_photo_has_pairs_of_its_own(folder):
    for name in ("a_b.png", "a/b.png"):
        write_image(folder / "some" / name, photo(40, 50, len(name)))
    args = argparse.Namespace(clean=str(folder / "some"), out=str(folder / "out"))
    which_rain.make_pairs(args, "procedural", which_rain.procedural)
    assert len(list((folder / "out" / "procedural" / "rain").rglob("*.png"))) == 4


def test_rain_of_the_libraries_is_repeatable(folder):
    clean = photo(40, 50, 1)
    for name, rain in (("albumentations", which_rain.by_albumentations), ("kornia", which_rain.by_kornia)):
        pytest.importorskip(name)
        a, b, c = (rain(clean, np.random.RandomState(seed)) for seed in (1, 1, 2))
        assert a.shape == clean.shape and np.array_equal(a, b) and not np.array_equal(a, c)


def test_mistakes_are_told(folder, capsys):
    assert run(folder, "--test", "light") == 2 and "NAME=FOLDER" in capsys.readouterr().err
    words = ["--clean", folder / "clean", "--test", f"light={folder / 'set'}", "--out", folder / "out"]
    assert cli.run(lambda: which_rain.main(list(map(str, words)))) == 2
    assert "--streaks" in capsys.readouterr().err
