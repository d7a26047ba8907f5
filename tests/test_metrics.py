import math

import numpy as np
import pytest

from common.data import pictures
from common.data.images import read_image, write_image
from common.errors import UserError
from common.evaluation import metrics
from tests.conftest import photo
from tests.golden import SHARED, golden_json, needs_data


@needs_data
@pytest.mark.parametrize("case", range(3))
def test_values_of_the_matlab_scripts(case):
    case = golden_json("metrics.json")["cases"][case]
    scores = metrics.score(read_image(SHARED / case["pred"]), read_image(SHARED / case["gt"]))
    assert scores.psnr_y == pytest.approx(case["psnr"], abs=1e-4)
    assert scores.ssim_y == pytest.approx(case["ssim"], abs=1e-6)


def test_closed_forms():
    grey = np.full((30, 40, 3), 100, np.uint8)
    brighter = metrics.score(grey + 51, grey)  # 0.2 of the range; Y has 219/255 of it
    assert brighter.psnr_rgb == pytest.approx(20 * math.log10(5))
    assert brighter.psnr_y == pytest.approx(20 * math.log10(5 * 255 / 219))
    same = metrics.score(grey, grey)
    assert math.isinf(same.psnr_y) and math.isinf(same.psnr_rgb) and same.ssim_y == pytest.approx(1)
    deep = (grey.astype(np.uint16) * 257).astype(np.uint16)
    assert math.isinf(metrics.score(deep, grey).psnr_rgb)


def test_a_colour_cast_is_seen_by_rgb_and_not_by_y():
    rng = np.random.RandomState(0)
    clean = rng.randint(60, 190, (32, 32, 3)).astype(np.uint8)
    cast = clean.astype(int) + np.array([-20, 0, 52])  # Y moves by (-20 * 65.481 + 52 * 24.966) / 255 < 0.1
    scores = metrics.score(cast.astype(np.uint8), clean)
    assert scores.psnr_y > 60 and scores.psnr_rgb < 25


@pytest.mark.parametrize("f, first", [(2, [0, 1]), (3, [0, 0, 1]), (4, [0, 0, 1, 2])])
def test_box_of_the_automatic_downsampling(f, first):
    side = 256 * f
    y = np.random.RandomState(f).rand(side, side)
    expected = np.mean([[y[r, c] for c in first] for r in first])  # symmetric border: -1 is 0 again
    assert metrics._downsample(y)[0, 0] == pytest.approx(expected)
    assert metrics._downsample(y).shape == (256, 256)


def test_small_images_have_no_ssim():
    image = np.zeros((10, 40, 3), np.uint8)
    assert math.isnan(metrics.score(image, image + 1).ssim_y)
    with pytest.raises(ValueError, match="sizes differ"):
        metrics.score(image, image[:, :5])


def save(folder, name, value, size=(16, 20)):
    write_image(folder / name, np.full((*size, 3), value, np.uint8))


def test_command_prints_the_table(tmp_path, capsys):
    for name, value in (("a.png", 10), ("sub/b.png", 20), ("c.png", 30)):
        save(tmp_path / "gt", name, value)
        save(tmp_path / "pred", name, 20)
    save(tmp_path / "pred", "tiny.png", 9, (4, 5))
    save(tmp_path / "gt", "tiny.png", 7, (4, 5))
    target = tmp_path / "out" / "table.csv"
    assert metrics.main(["--pred", f"{tmp_path}/pred", "--gt", f"{tmp_path}/gt", "--csv", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "inf" in printed and "1 identical" in printed and "1 with a side below 11 px" in printed and "n/a" in printed
    lines = target.read_text().splitlines()
    assert lines[0] == "image,result_psnr_y,result_ssim_y,result_psnr_rgb"
    assert [line.split(",")[0] for line in lines[1:]] == ["a.png", "c.png", "sub/b.png", "tiny.png", "mean"]
    finite = [float(line.split(",")[3]) for line in lines[1:5] if "inf" not in line]
    assert float(lines[-1].split(",")[3]) == pytest.approx(np.mean(finite), abs=1e-5)


def test_the_sheet(tmp_path, capsys):
    for name, value in (("gt", 100), ("rain", 50), ("derained", 90)):
        save(tmp_path / name, "a.png", value)
    flags = ["--pred", tmp_path / "rain", tmp_path / "derained", "--gt", tmp_path / "gt", "--sheet", tmp_path / "s.png"]
    assert metrics.main(list(map(str, flags))) == 0 and f"picture: {tmp_path / 's.png'}" in capsys.readouterr().out
    line = read_image(tmp_path / "s.png")[pictures.LABEL + 8, :, 0]
    assert [int(line[pictures.GAP + 10 + k * (20 + pictures.GAP)]) for k in range(3)] == [50, 90, 100]


def test_mismatches_are_named_before_any_work(tmp_path, capsys):
    arguments = ["--pred", f"{tmp_path}/pred", "--gt", f"{tmp_path}/gt"]
    with pytest.raises(UserError, match="--pred: .*pred is not a folder"):
        metrics.main(arguments)
    (tmp_path / "pred").mkdir()
    with pytest.raises(UserError, match="--pred: no image"):
        metrics.main(arguments)
    save(tmp_path / "pred", "a.png", 1)
    save(tmp_path / "pred", "b.png", 1)
    save(tmp_path / "gt", "a.png", 1, (17, 20))
    save(tmp_path / "gt", "b.png", 1)
    with pytest.raises(UserError, match="1 of 2 .*(.|\n)*a.png is 20x16, its clean partner a.png 20x17"):
        metrics.main(arguments)
    save(tmp_path / "gt", "a.png", 1)
    save(tmp_path / "gt", "more.png", 1)
    assert metrics.main(arguments) == 0
    assert "over the 2 images that all folders have (--gt 3, result 2)" in capsys.readouterr().out
    whole = (tmp_path / "gt" / "b.png").read_bytes()
    (tmp_path / "gt" / "b.png").write_bytes(whole[:-30])  # the header is whole
    assert metrics.main(arguments) == 1
    out, err = capsys.readouterr()
    assert "a.png" in out and "b.png: can't be read" in err
    (tmp_path / "gt" / "b.png").write_text("no image")
    with pytest.raises(UserError, match="1 of 2(.|\n)*b.png: can't be read as an image"):
        metrics.main(arguments)


def test_several_folders_give_one_table(tmp_path, capsys):
    def put(name, value, size=16):
        write_image(tmp_path / name, np.full((size, size, 3), value, np.uint8))

    for name, value in (("gt/norain-1.png", 100), ("gt/norain-2.png", 100), ("a/x/norain-1.png", 110)):
        put(name, value)
    for name in ("a/rain-1.png", "a/rain-2.png", "b/norain-1.png"):
        put(name, 120 if name.startswith("a") else 101)
    (tmp_path / "a" / "x" / "norain-1.png").unlink()
    flags = ["--pred", str(tmp_path / "a"), str(tmp_path / "b"), "--gt", str(tmp_path / "gt")]
    assert metrics.main([*flags, "--csv", str(tmp_path / "t.csv")]) == 0
    printed = capsys.readouterr().out
    assert "a by the rule: equal but for words like rain and norain (rain-1.png with norain-1.png)" in printed
    assert f"1 pairs in {tmp_path / 'b'} by the rule: equal names" in printed
    assert "note: the table is over the 1 images that all folders have (--gt 2, a 2, b 1)" in printed
    rows = (tmp_path / "t.csv").read_text().splitlines()
    assert rows[0].startswith("image,a_psnr_y") and "b_psnr_rgb" in rows[0] and len(rows) == 3
    values = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    assert float(values["a_psnr_rgb"]) == pytest.approx(20 * math.log10(255 / 20), abs=1e-5)
    assert float(values["b_psnr_rgb"]) == pytest.approx(20 * math.log10(255), abs=1e-5)
    (tmp_path / "b" / "norain-1.png").rename(tmp_path / "b" / "norain-2.png")
    (tmp_path / "a" / "rain-2.png").unlink()
    with pytest.raises(UserError, match="no result for the same image"):
        metrics.main(flags)


def test_labels():
    assert metrics.labels(["/x/a", "/x/b"]) == ["a", "b"]
    assert metrics.labels(["/x/a", "/y/a"]) == ["/x/a", "/y/a"]


def test_results_of_images_that_hold_both_halves(tmp_path, capsys):
    rainy, clean = (np.full((16, 16, 3), value, np.uint8) for value in (100, 110))
    write_image(tmp_path / "set" / "1.png", np.concatenate((clean, rainy), 1))
    write_image(tmp_path / "derained" / "1.png", clean - 1)
    flags = ["--pred", str(tmp_path / "derained"), "--gt", str(tmp_path / "set"), "--report", str(tmp_path / "t.html")]
    with pytest.raises(UserError, match="1.png is 16x16, its clean partner 1.png 32x16"):
        metrics.main(flags)
    assert metrics.main([*flags, "--side_by_side", "right"]) == 0
    assert f"{20 * math.log10(255):.4f}" in capsys.readouterr().out and (tmp_path / "t.html").exists()
    with pytest.raises(UserError, match=r"--pred, --gt: each rainy image is its own|both are .*/set"):
        metrics.main(["--pred", str(tmp_path / "set"), "--gt", str(tmp_path / "set")])


@pytest.fixture
def measured(tmp_path, capsys):
    """Runs metrics on three pairs; returns what it printed."""
    for k in range(3):
        write_image(tmp_path / "gt" / f"{k}.png", photo(20, 30, k))
        for method in ("mine", "other/clean"):
            write_image(tmp_path / method / f"{k}.png", photo(20, 30, k + len(method)))

    def run(*words):
        assert metrics.main([*map(str, words), "--gt", str(tmp_path / "gt")]) == 0
        return capsys.readouterr().out

    return run


def test_two_results_for_one_image_are_an_error(tmp_path, measured):
    write_image(tmp_path / "mine" / "1.jpg", photo(20, 30, 9))  # of an older version of a program, say
    with pytest.raises(UserError, match=r"--pred: \S+1\.\w+ and \S+1\.\w+ are results for one image; remove one"):
        measured("--pred", tmp_path / "mine")


def test_a_method_called_clean_keeps_its_pictures(tmp_path, measured):
    measured("--pred", tmp_path / "mine", tmp_path / "other" / "clean", "--report", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert text.count("<img ") == 3 * 3 and f'alt="{tmp_path / "other" / "clean"}"' in text


@pytest.mark.parametrize("flag, ending", [("--csv", ".csv"), ("--report", ".html"), ("--sheet", ".png or .jpg")])
def test_results_are_not_written_over_images(tmp_path, measured, flag, ending):
    with pytest.raises(UserError, match=rf"{flag}: \S+2.bmp must end in {ending}"):
        measured("--pred", tmp_path / "mine", flag, tmp_path / "mine" / "2.bmp")
    with pytest.raises(UserError, match="--sheet: .* lies in the input folder --pred"):
        measured("--pred", tmp_path / "other" / "clean", tmp_path / "mine", "--sheet", tmp_path / "mine" / "2.png")
