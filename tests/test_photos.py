"""generate_rain.py as a user meets it: exact pairs, repeatable, continued, and every refusal."""

import contextlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.data.images import read_image, read_stored, write_image
from common.data.pair_list import PairList
from common.errors import UserError
from common.generation import photos, rain
from common.generation.measures import measure
from for_spa import generate_rain as spa
from for_syn import generate_rain
from tests.conftest import begin, files, pairs_of, photo, rows_of

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def mine(tmp_path):
    """Photos as people have them: sub-folders, several formats, one twice by stem, a text file."""
    folder = tmp_path / "photos"
    for name, size in (("a.png", (20, 30)), ("a.jpg", (30, 20)), ("trip/b.webp", (40, 50)), ("trip/c.bmp", (1, 7))):
        write_image(folder / name, photo(*size, len(name)))
    (folder / "notes.txt").write_text("x")
    return folder


def run(mine, out, generator, *flags, script=generate_rain):
    flags = ["--data_path", mine, "--save_path", out, "--netED", generator, "--use_gpu", "false", *flags]
    return script.main([str(flag) for flag in flags])


@contextlib.contextmanager
def stopped_at(number, monkeypatch):
    """Ctrl-C instead of the picture of that number."""
    calls = []

    def stop(path, pixels, profile=None):
        calls.append(path)
        if len(calls) == number:
            raise KeyboardInterrupt
        write_image(path, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(photos, "write_image", stop)
        yield


@pytest.mark.parametrize("script", [generate_rain, spa])
def test_pairs(mine, tmp_path, generator, script, capsys):
    before = files(mine)
    assert run(mine, tmp_path / "out", generator, "--save_layer", script=script) == 0
    out = tmp_path / "out"
    names = {"a.jpg.png", "a.png.png", "trip/b.png", "trip/c.png"}
    expected = {f"{kind}/{name}" for kind in ("rain", "norain", "layer") for name in names}
    assert set(files(out)) == expected | {"manifest.csv", "real_world.txt", "contact_sheet.jpg", "report.html"}
    page = (out / "report.html").read_text()
    assert "4 of 4 pairs" in page and page.count("<figure") == 4 and "<table" not in page
    for name in names:
        rainy, clean, layer = (read_image(out / kind / name).astype(int) for kind in ("rain", "norain", "layer"))
        assert np.abs(rainy - np.minimum(clean + layer, 255)).max() == 0  # exact, and unchanged where there is no rain
        assert layer.max() > 0
    assert np.array_equal(read_image(out / "norain/trip/b.png"), read_image(mine / "trip/b.webp"))
    assert files(mine) == before
    rows = rows_of(out / "manifest.csv")
    assert [row["file"] for row in rows] == ["a.jpg.png", "a.png.png", "trip/b.png", "trip/c.png"]
    assert rows[2] | {"checkpoint": ""} == {
        "file": "trip/b.png", "photo": "trip/b.webp", "variant": "1", "drawn": "", "seed": "0", "num": "1",
        "intensity": "1.0", "coherence": "0.5", "grey": "False", "checkpoint": "",
        "version": str(rain.VERSION), "knobs": "",
    }  # fmt: skip
    assert len(rows[0]["checkpoint"]) == 12
    listed, found = ([(pair.rainy, pair.clean) for pair in pairs] for pairs in (PairList(out), pairs_of(out)))
    assert listed == [(out / "rain" / name, out / "norain" / name) for name in sorted(names)] == sorted(found)
    printed = capsys.readouterr().out
    assert "4 pairs made" in printed and "contact_sheet.jpg" in printed


def layers_of(folder, name="a.png"):
    return read_image(folder / "layer" / name).astype(int)


def test_variants_intensity_and_grey(mine, tmp_path, generator):
    assert run(mine / "a.png", tmp_path / "out", generator, "--num", "3", "--save_layer", "--grey") == 0
    layers = [layers_of(tmp_path / "out", f"a_v0{v}.png") for v in (1, 2, 3)]
    assert (layers[0] != layers[1]).any() and (layers[1] != layers[2]).any()
    assert all((layer == layer[..., :1]).all() for layer in layers)
    assert len({(tmp_path / f"out/norain/a_v0{v}.png").read_bytes() for v in (1, 2, 3)}) == 1
    for factor in ("0", "0.5", "1"):
        assert run(mine / "a.png", tmp_path / factor, generator, "--intensity", factor, "--save_layer") == 0
    assert np.array_equal(read_image(tmp_path / "0/rain/a.png"), read_image(mine / "a.png"))
    half, full = layers_of(tmp_path / "0.5"), layers_of(tmp_path / "1")
    assert np.abs(2 * half - full)[full < 255].max() <= 1


def test_knobs_and_scale(mine, tmp_path, generator, capsys):
    """They do what they say, are in the manifest, and are settings of a folder as others are."""
    image, out = mine / "trip" / "b.webp", tmp_path / "out"
    write_image(image, np.zeros((160, 200, 3), np.uint8))
    flags = ["--angle", "20", "--density", "0.3", "--brightness", "0.25", "--save_layer", "--scale", "2"]
    assert run(image, out, generator, *flags) == 0
    assert not capsys.readouterr().err
    found = measure(read_image(out / "layer/b.png").transpose(2, 0, 1).astype(np.float32) / 255)
    assert found.density == pytest.approx(0.3, abs=0.06)  # random weights make blots, not streaks
    assert found.brightness == pytest.approx(0.25, rel=0.1)
    (row,) = rows_of(out / "manifest.csv")
    assert row["knobs"] == "angle=20 density=0.3 brightness=0.25 scale=2"
    assert row["drawn"] == "angle=20 density=0.3 brightness=0.25"
    with pytest.raises(UserError, match="made with knobs angle=20 .*, now knobs scale=3; choose another"):
        run(image, out, generator, "--save_layer", "--scale", "3")
    with pytest.raises(UserError, match="--intensity: it scales what --density and --brightness set"):
        run(image, tmp_path / "two", generator, "--density", "0.2", "--intensity", "0.5")


def test_ranges_and_layers_are_drawn_for_each_picture(mine, tmp_path, generator):
    flags = ["--num", "3", "--save_layer", "--angle", "-40", "40", "--brightness", "0.1", "--layers", "1", "3"]
    assert run(mine / "a.png", tmp_path / "out", generator, *flags) == 0
    rows = rows_of(tmp_path / "out" / "manifest.csv")
    assert {row["knobs"] for row in rows} == {"angle=-40:40 brightness=0.1 layers=1:3"}
    showers = [row["drawn"].split("; ") for row in rows]
    assert {len(some) for some in showers} <= {1, 2, 3} and len({len(some) for some in showers}) > 1
    angles = [float(one.split()[0].removeprefix("angle=")) for some in showers for one in some]
    assert len(set(angles)) == len(angles) and -40 <= min(angles) < max(angles) <= 40
    layers = [layers_of(tmp_path / "out", f"a_v0{v}.png").mean() for v in (1, 2, 3)]
    assert np.argmax(layers) == np.argmax([len(some) for some in showers])  # more showers, more rain


def test_tint_colours_each_shower(mine, tmp_path, generator):
    write_image(mine / "b.png", np.zeros((60, 60, 3), np.uint8))
    for tint in ("0", "0.3"):
        assert run(mine / "b.png", tmp_path / tint, generator, "--tint", tint, "--save_layer") == 0
    plain, tinted = (layers_of(tmp_path / tint, "b.png") for tint in ("0", "0.3"))
    wet = plain.min(2) > 60
    shares = (tinted[wet] / plain[wet]).mean(0)
    assert np.sort(shares)[[0, 2]] == pytest.approx([0.7, 1], abs=0.02)


def test_the_rain_depends_on_seed_path_and_variant_alone(mine, tmp_path, generator):
    flags = ["--num", "2", "--save_layer"]
    run(mine, tmp_path / "whole", generator, *flags)
    run(mine, tmp_path / "again", generator, *flags)
    assert files(tmp_path / "whole") == files(tmp_path / "again")
    (mine / "a.jpg").unlink()  # other photos do not matter, only that the stem is free now
    run(mine, tmp_path / "fewer", generator, *flags)
    rainy = files(tmp_path / "fewer")["rain/trip/b_v02.png"]
    assert rainy == files(tmp_path / "whole")["rain/trip/b_v02.png"]
    assert files(tmp_path / "fewer")["rain/a_v01.png"] == files(tmp_path / "whole")["rain/a.png_v01.png"]
    run(mine, tmp_path / "other", generator, *flags, "--seed", "1")
    assert files(tmp_path / "other")["rain/trip/b_v02.png"] != rainy


def test_goes_on_where_it_stopped(mine, tmp_path, generator, monkeypatch, capsys):
    run(mine, tmp_path / "whole", generator, "--num", "2")
    with (
        stopped_at(8, monkeypatch),
        pytest.raises(KeyboardInterrupt, match=r"of 8 pairs are in .*; the same command goes on"),
    ):
        run(mine, tmp_path / "out", generator, "--num", "2")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "rain").rglob("*.png")}
    capsys.readouterr()
    assert run(mine, tmp_path / "out", generator, "--num", "2") == 0
    assert f"{8 - len(made)} pairs made" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in made.items())
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert run(mine, tmp_path / "out", generator, "--num", "2") == 0
    assert "0 pairs made" in capsys.readouterr().out and files(tmp_path / "out") == files(tmp_path / "whole")


def test_what_is_there_is_not_overwritten(mine, tmp_path, generator):
    out = tmp_path / "out"
    run(mine, out, generator)
    first = files(out)
    for more, told in ((["--seed", "1"], "seed 0, now seed 1"), (["--num", "2"], "num 1, now num 2")):
        with pytest.raises(UserError, match=rf"holds rain/a.jpg.png, made with {told}; .* --overwrite"):
            run(mine, out, generator, *more)
    assert files(out) == first
    assert run(mine, out, generator, "--num", "2", "--overwrite") == 0
    run(mine, tmp_path / "whole", generator, "--num", "2")
    assert files(out) == files(tmp_path / "whole")
    (mine / "trip/c.bmp").unlink()
    for kind in ("rain", "norain"):  # what was deleted is made again, if its photo is there
        (out / kind / "trip/c_v01.png").unlink()
        (out / kind / "trip/b_v01.png").unlink()
    run(mine, out, generator, "--num", "2")
    listed = (out / "real_world.txt").read_text()
    assert "c_v01" not in listed and "c_v02" in listed and "b_v01" in listed


def test_pictures_and_lists_of_others_are_not_replaced(mine, tmp_path, generator):
    write_image(tmp_path / "new/rain/a.jpg.png", photo(5, 5, 0))
    (tmp_path / "spa").mkdir()
    (tmp_path / "spa" / "real_world.txt").write_text("rain/1.png norain/1.png\n")
    for there in ("new/rain", "spa/real_world.txt"):
        for more in ([], ["--overwrite"]):
            with pytest.raises(UserError, match=f"{there} is there, but no manifest.csv; choose another folder"):
                run(mine, (tmp_path / there).parent, generator, *more)
    assert files(tmp_path / "new").keys() == {"rain/a.jpg.png"}


def test_pairs_never_land_on_photos(tmp_path, generator):
    for kind in ("rain", "norain"):
        write_image(tmp_path / f"x/{kind}/a.png", photo(20, 30, 0))
    before = files(tmp_path)
    for data in ("x/rain", "x/norain", "x/rain/a.png", "x"):
        with pytest.raises(UserError, match="--save_path: .*(would be mixed with the photos|lies in the input folder)"):
            run(tmp_path / data, tmp_path / "x", generator, "--overwrite")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rain").symlink_to(tmp_path / "x" / "rain")
    with pytest.raises(UserError, match="would be mixed with the photos"):
        run(tmp_path / "x" / "rain", tmp_path / "out", generator)
    assert {name: data for name, data in files(tmp_path).items() if name.startswith("x")} == before


def test_an_interrupted_overwrite_leaves_nothing_mixed(mine, tmp_path, generator, monkeypatch):
    out = tmp_path / "out"
    run(mine, out, generator, "--save_layer", "--num", "2")
    with (
        stopped_at(3, monkeypatch),
        pytest.raises(KeyboardInterrupt, match="0 of 4 pairs .*; the same command without --overwrite goes on"),
    ):  # norain and layer are written, rain is not
        run(mine, out, generator, "--save_layer", "--overwrite", "--seed", "1")
    assert set(files(out)) == {"norain/a.jpg.png", "layer/a.jpg.png", "manifest.csv"}  # the pairs of before are gone
    with pytest.raises(UserError, match="made with seed 1, now seed 0"):
        run(mine, out, generator, "--save_layer")
    assert run(mine, out, generator, "--save_layer", "--seed", "1") == 0
    run(mine, tmp_path / "whole", generator, "--save_layer", "--seed", "1")
    assert files(out) == files(tmp_path / "whole")


def test_odd_names(tmp_path, generator, capsys):
    folder = tmp_path / "photos"
    names = ["a b.png", "=1+1.png", "-rf.png", '"q",x.png', os.fsdecode(b"\xff\xfe.png")]
    names += ["n" * 251 + ".png"]
    for name in names:
        write_image(folder / name, photo(9, 8, 0))
    assert run(folder, tmp_path / "out", generator) == 0
    made = files(tmp_path / "out")
    assert run(folder, tmp_path / "out", generator) == 0 and files(tmp_path / "out") == made
    assert "0 pairs made in" in capsys.readouterr().out.split("contact_sheet.jpg")[1]
    assert {f"rain/{name}" for name in names} <= set(made)


def test_unreadable_photos_are_named_at_the_end(mine, tmp_path, generator, capsys):
    (mine / "broken.jpg").write_bytes((mine / "a.jpg").read_bytes()[:200])
    assert run(mine, tmp_path / "out", generator) == 1
    done = capsys.readouterr()
    assert "1 of 5 photos can't be used" in done.err and "broken.jpg" in done.err and "4 pairs made" in done.out
    assert "broken" not in (tmp_path / "out" / "manifest.csv").read_text()


def test_pairs_keep_the_colours_of_their_photo(tmp_path, generator, profile):
    write_image(tmp_path / "photos/a.png", photo(20, 30, 0), profile)
    assert run(tmp_path / "photos", tmp_path / "out", generator) == 0
    stored = [read_stored(tmp_path / folder / "a.png") for folder in ("photos", "out/norain", "out/rain")]
    assert [kept for _, kept in stored] == [profile] * 3
    (mine, _), (clean, _), (rainy, _) = stored
    assert np.array_equal(mine, clean) and (rainy >= clean).all()
    assert run(tmp_path / "photos", tmp_path / "out", generator, "--num", "1") == 0  # it is known to be the same


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data_path", "{}/none"], "--data_path: there is no .*none. Name a folder of clean photos"),
        (["--save_path", "{}/photos/out"], "--save_path: .* lies in the input folder"),
        (["--netED", "{}/none.pt"], "--netED: there is no"),
        (["--save_path", "{}/table"], "manifest.csv: is in the way, its first line is not file,photo"),
    ],
)
def test_refused(mine, tmp_path, generator, flags, message):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "manifest.csv").write_text("name,price\n")
    with pytest.raises(UserError, match=message):
        run(mine, tmp_path / "out", generator, *[flag.format(tmp_path) for flag in flags])
    assert not (tmp_path / "out").exists() and not (tmp_path / "photos" / "out").exists()


def test_names_are_free_of_clashes():
    files = ["a.jpg", "a.png", "a.png.png", "b/a.jpg", "B.png", "b.jpg", "c.jpg.png", "c.jpg", "c.jpg.png.webp"]
    names = photos.output_names([Path(file) for file in files])
    assert len({name.casefold() for name in names.values()}) == len(files)
    assert names[Path("b/a.jpg")] == "b/a" and names[Path("B.png")] == "B.png"
    assert names[Path("a.png")] == "a.png" and names[Path("a.png.png")] == "a.png.png"


def test_killed_and_continued(mine, tmp_path, generator, monkeypatch):
    monkeypatch.undo()  # the process that is killed takes as many patches as ever
    for i in range(5):
        write_image(mine / f"many/{i}.png", photo(60, 80, i))
    flags = ["--data_path", mine, "--netED", generator, "--save_path", tmp_path / "out", "--use_gpu", "false"]
    process = begin(sys.executable, "for_syn/generate_rain.py", *flags, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not list((tmp_path / "out" / "rain").rglob("*.png")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert run(mine, tmp_path / "out", generator) == 0
    run(mine, tmp_path / "whole", generator)
    made = {name: data for name, data in files(tmp_path / "out").items() if ".writing-" not in name}
    assert made == files(tmp_path / "whole") and len(photos.read_manifest(tmp_path / "out")) == 9
