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


def command(folder, *pred, gt="gt", **flags):
    words = ["--pred", *(folder / name for name in pred), "--gt", folder / gt]
    words += [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    return metrics.main(list(map(str, words)))


def test_command_prints_the_table(tmp_path, capsys):
    for name, value in (("a.png", 10), ("sub/b.png", 20), ("c.png", 30)):
        save(tmp_path / "gt", name, value)
        save(tmp_path / "pred", name, 20)
    save(tmp_path / "pred", "tiny.png", 9, (4, 5))
    save(tmp_path / "gt", "tiny.png", 7, (4, 5))
    assert command(tmp_path, "pred", csv=tmp_path / "out" / "table.csv") == 0
    printed = capsys.readouterr().out
    assert "inf" in printed and "1 identical" in printed and "1 with a side below 11 px" in printed and "n/a" in printed
    lines = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert lines[0] == "image,result_psnr_y,result_ssim_y,result_psnr_rgb"
    assert [line.split(",")[0] for line in lines[1:]] == ["a.png", "c.png", "sub/b.png", "tiny.png", "mean"]
    finite = [float(line.split(",")[3]) for line in lines[1:5] if "inf" not in line]
    assert float(lines[-1].split(",")[3]) == pytest.approx(np.mean(finite), abs=1e-5)


def test_the_sheet(tmp_path):
    for name, value in (("gt", 100), ("rain", 50), ("derained", 90)):
        save(tmp_path / name, "a.png", value)
    assert command(tmp_path, "rain", "derained", sheet=tmp_path / "s.png") == 0
    line = read_image(tmp_path / "s.png")[pictures.LABEL + 8, :, 0]
    assert [int(line[pictures.GAP + 10 + k * (20 + pictures.GAP)]) for k in range(3)] == [50, 90, 100]


def test_mismatches_are_named_before_any_work(tmp_path, capsys):
    with pytest.raises(UserError, match="--pred: .*pred is not a folder"):
        command(tmp_path, "pred")
    for name in ("a.png", "b.png"):
        save(tmp_path / "pred", name, 1)
        save(tmp_path / "gt", name, 1, (17 if name == "a.png" else 16, 20))
    with pytest.raises(UserError, match="1 of 2 .*(.|\n)*a.png is 20x16, its clean partner a.png 20x17"):
        command(tmp_path, "pred")
    save(tmp_path / "gt", "a.png", 1)
    whole = (tmp_path / "gt" / "b.png").read_bytes()
    (tmp_path / "gt" / "b.png").write_bytes(whole[:-30])  # the header is whole
    assert command(tmp_path, "pred") == 1
    out, err = capsys.readouterr()
    assert "a.png" in out and "b.png: can't be read" in err
    (tmp_path / "gt" / "b.png").write_text("no image")
    with pytest.raises(UserError, match="1 of 2(.|\n)*b.png: can't be read as an image"):
        command(tmp_path, "pred")


def test_several_folders_give_one_table(tmp_path, capsys):
    for folder, name, value in (("gt", "norain-1", 100), ("gt", "norain-2", 100), ("a", "rain-1", 120)):
        save(tmp_path / folder, f"{name}.png", value)
    save(tmp_path / "a", "rain-2.png", 120)
    save(tmp_path / "b", "norain-1.png", 101)
    assert command(tmp_path, "a", "b", csv=tmp_path / "t.csv") == 0
    printed = capsys.readouterr().out
    assert "a by the rule: equal but for words like rain and norain (rain-1.png with norain-1.png)" in printed
    assert f"1 pairs in {tmp_path / 'b'} by the rule: equal names" in printed
    assert "note: the table is over the 1 images that all folders have (--gt 2, a 2, b 1)" in printed
    head, row, _ = (line.split(",") for line in (tmp_path / "t.csv").read_text().splitlines())
    values = dict(zip(head, row, strict=True))
    assert float(values["a_psnr_rgb"]) == pytest.approx(20 * math.log10(255 / 20), abs=1e-5)
    assert float(values["b_psnr_rgb"]) == pytest.approx(20 * math.log10(255), abs=1e-5)
    (tmp_path / "a" / "rain-1.png").unlink()
    with pytest.raises(UserError, match="no result for the same image"):
        command(tmp_path, "a", "b")


def test_results_of_images_that_hold_both_halves(tmp_path, capsys):
    both = np.full((16, 32, 3), 110, np.uint8)
    both[:, 16:] = 100
    write_image(tmp_path / "set" / "1.png", both)
    save(tmp_path / "derained", "1.png", 109, (16, 16))
    with pytest.raises(UserError, match="1.png is 16x16, its clean partner 1.png 32x16"):
        command(tmp_path, "derained", gt="set")
    assert command(tmp_path, "derained", gt="set", side_by_side="right", report=tmp_path / "t.html") == 0
    assert f"{20 * math.log10(255):.4f}" in capsys.readouterr().out and (tmp_path / "t.html").exists()


@pytest.fixture
def three(tmp_path):
    """Three pairs, and results of two methods, one of which is called clean."""
    for k in range(3):
        for folder in ("gt", "mine", "other/clean"):
            write_image(tmp_path / folder / f"{k}.png", photo(20, 30, k + len(folder)))
    return tmp_path


def test_two_results_for_one_image_are_an_error(three):
    write_image(three / "mine" / "1.jpg", photo(20, 30, 9))  # of an older version of a program, say
    with pytest.raises(UserError, match=r"--pred: \S+1\.\w+ and \S+1\.\w+ are results for one image; remove one"):
        command(three, "mine")


def test_a_method_called_clean_keeps_its_pictures(three):
    assert metrics.labels(["/x/a", "/x/b"]) == ["a", "b"]
    assert metrics.labels(["/x/a", "/y/a"]) == ["/x/a", "/y/a"]
    command(three, "mine", "other/clean", report=three / "r.html")
    text = (three / "r.html").read_text()
    assert "clean beside the ground truth: 3 images<" in text
    assert text.count("<img ") == 3 * 3 and f'alt="{three / "other" / "clean"}"' in text


@pytest.mark.parametrize("flag, ending", [("csv", ".csv"), ("report", ".html"), ("sheet", ".png or .jpg")])
def test_results_are_not_written_over_images(three, flag, ending):
    with pytest.raises(UserError, match=rf"--{flag}: \S+2.bmp must end in {ending}"):
        command(three, "mine", **{flag: three / "mine" / "2.bmp"})
    with pytest.raises(UserError, match="--sheet: .* lies in the input folder --pred"):
        command(three, "other/clean", "mine", sheet=three / "mine" / "2.png")
