"""Pairs out of photos and streaks: exact sums, repeatable choices, a set that goes on, mistakes that are told."""

import json
from pathlib import Path

import numpy as np
import pytest

from common import cli
from common.data import compose
from common.data.images import read_image, write_image
from common.errors import UserError
from tests.conftest import photo


@pytest.fixture
def sources(tmp_path):
    """Six photos of two sizes, five streak layers, one of them smaller than the photos."""
    for i in range(6):
        write_image(tmp_path / "clean" / f"{i}.png", photo(24, 30 + i % 2, i))
    for i in range(5):
        rng = np.random.RandomState(i)
        drops = (rng.rand(20 if i == 4 else 40, 50, 1) > 0.8) * rng.randint(20, 120, (1, 1, 3))
        write_image(tmp_path / "streaks" / f"{i}.png", drops.astype(np.uint8))
    return tmp_path


def run(folder, *flags, out="set", num=7):
    words = ["--clean", folder / "clean", "--streaks", folder / "streaks", "--out", folder / out, "--num", num, *flags]
    return cli.run(lambda: compose.main(list(map(str, words))))


def read_set(folder):
    """name -> (rainy, clean)"""
    names = sorted(p.name for p in (folder / "rain").iterdir())
    return {name: [read_image(folder / kind / name) for kind in compose.FOLDERS] for name in names}


def test_rain_is_added_times_its_gain_and_clipped():
    clean = np.array([[[10, 100, 250]]], np.uint8)
    layers = [np.full((1, 1, 3), 20, np.uint8), np.full((1, 1, 3), 4, np.uint8)]
    assert compose.composed(clean, layers, [1.3, 0.5]).tolist() == [[[38, 128, 255]]]
    assert (compose.composed(clean, layers[:1], [0.0]) == clean).all()


def test_crops_reach_all_corners_and_both_mirrors_of_layers_that_are_large_enough():
    streaks = np.arange(9, dtype=np.uint8).reshape(3, 3, 1).repeat(3, 2)
    found = {tuple(compose.fitted(streaks, 2, 2, np.random.RandomState(k))[..., 0].ravel()) for k in range(200)}
    plain = {(a, a + 1, a + 3, a + 4) for a in (0, 1, 3, 4)}
    assert found == plain | {(b, a, d, c) for a, b, c, d in plain}
    for size in ((3, 3), (33, 2), (64, 90), (1, 1)):
        assert compose.fitted(streaks, *size, np.random.RandomState(3)).shape == (*size, 3)


def test_every_pair_is_what_its_list_says(sources):
    assert run(sources, "--layers", 2, "--gain", 0.5, 1.5) == 0
    table = json.loads((sources / "set" / compose.NAME).read_bytes())["pairs"]
    pairs = read_set(sources / "set")
    assert [entry["file"] for entry in table] == list(pairs) and len(pairs) == 7
    for entry in table:
        rainy, clean = pairs[entry["file"]]
        assert (clean == read_image(entry["photo"])).all()
        layers = [read_image(path) for path in entry["streaks"]]
        assert len(set(entry["streaks"])) == 2 and all(0.5 <= gain <= 1.5 for gain in entry["gains"])
        most = sum(gain * layer.max() for gain, layer in zip(entry["gains"], layers, strict=True))
        added = rainy.astype(int) - clean
        assert added.min() >= 0 and 0 < added.max() <= most + 1
    photos = [entry["photo"] for entry in table]
    assert len(set(photos[:6])) == 6  # all photos in turn, before one comes again


def test_the_same_seed_makes_the_same_pairs_and_fewer_are_the_first_of_many(sources):
    assert run(sources, "--seed", 5) == run(sources, "--seed", 5, out="again") == 0
    assert run(sources, "--seed", 6, out="other") == run(sources, "--seed", 5, out="few", num=3) == 0
    first, again, other, few = (read_set(sources / name) for name in ("set", "again", "other", "few"))
    assert str(first) == str(again) != str(other)
    assert str(few) == str(dict(list(first.items())[:3]))


def test_photos_and_streaks_that_are_exchanged_are_refused(sources, capsys):
    assert run(sources, "--clean", sources / "streaks", "--streaks", sources / "clean") == 2
    assert "--streaks: " in (told := capsys.readouterr().err) and "half of the pixels of 0.png" in told
    with pytest.raises(UserError, match="--real: .* has no pictures of rain on black"):
        compose.rain_pictures(sources / "clean", "--real")
    for i in range(4):
        write_image(sources / "streaks" / f"bright{i}.png", np.full((9, 9, 3), 200, np.uint8))
    assert run(sources) == 0  # most are dark


def test_an_interrupted_set_goes_on(sources, monkeypatch, capsys):
    assert run(sources, out="whole") == 0
    calls = []

    def interrupted(path, pixels):
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        write_image(path, pixels)

    monkeypatch.setattr(compose, "write_image", interrupted)
    assert run(sources) == 130
    assert run(sources) == 0 and len(calls) == 6 + 10  # two pairs of seven were there
    assert str(read_set(sources / "set")) == str(read_set(sources / "whole"))
    assert run(sources, num=9) == 2 and "holds rain/ or norain/ of another command" in capsys.readouterr().err
    assert run(sources, out="clean/in") == 2 and "lies in the input folder" in capsys.readouterr().err
    assert not (sources / "clean" / "in").exists()


def test_what_is_held_out_is_never_trained_on(sources):
    assert run(sources, "--hold_out", 2) == run(sources, "--hold_out", 2, "--part", "held_out", out="held") == 0
    used = []
    for name in ("set", "held"):
        settings = json.loads((sources / name / compose.NAME).read_bytes())["settings"]
        used.append((set(settings["clean"]), set(settings["streaks"])))
    (photos, streaks), (other_photos, other_streaks) = used
    assert len(other_photos) == len(other_streaks) == 2 and len(photos) == 4 and len(streaks) == 3
    assert not photos & other_photos and not streaks & other_streaks
    assert compose.part_of(range(120), 20, "held_out") == list(range(0, 120, 6))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--hold_out", 6], "--hold_out: 6 of 6 files leaves none to use; give a smaller number"),
        (["--part", "held_out"], "--hold_out: 0 of 6 files leaves none to use; give a larger number"),
        (["--clean", "nowhere"], "nowhere is not a folder. Name a folder of photos without rain"),
        (["--streaks", "empty"], "--streaks: no image"),
    ],
)
def test_mistakes(sources, tmp_path_factory, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    Path("empty").mkdir()
    assert run(sources, *flags) == 2
    assert message in capsys.readouterr().err
