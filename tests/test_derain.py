"""Deraining as a user meets it: the published numbers, any size, any format, tiles, and every refusal."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.swa_utils import AveragedModel

from common.data.images import in_srgb, read_image, read_stored, to_float, to_uint8, write_image
from common.errors import UserError
from common.evaluation import derain as module
from common.evaluation.derain import derain, tile_size
from common.evaluation.derain_folder import result_names
from common.evaluation.metrics import score
from common.models import Derain, PReNet
from for_spa import test_spa_joint
from for_syn import test_syn_aug, test_syn_joint
from tests.conftest import photo, rows_of
from tests.golden import DATA, fill, golden_json, needs_data

CHECKPOINTS = DATA / "checkpoints"


def table(folder):
    return {row["image"]: row for row in rows_of(folder / "metrics.csv")}


@needs_data
def test_the_published_image_and_its_numbers(tmp_path, capsys, monkeypatch):
    data, made, real = DATA / "rain100L", [], module._pixels
    monkeypatch.setattr(module, "_pixels", lambda values, rounding: made.append(values) or real(values, rounding))
    for name in ("rain", "norain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "norain-1.png").symlink_to(data / name / "norain-1.png")
    arguments = ["--data_path", f"{tmp_path}/rain", "--gt_path", f"{tmp_path}/norain", "--use_gpu", "false"]
    arguments += ["--netDerain", str(CHECKPOINTS / "syn100l_DerainNet_state_700.pt")]
    assert test_syn_joint.main([*arguments, "--save_path", f"{tmp_path}/whole", "--tile", "0"]) == 0
    ours = read_image(tmp_path / "whole" / "norain-1.png").astype(int)
    published = read_image(DATA / "published" / "rain100L_derained_norain-1.png").astype(int)
    assert np.abs(ours - published).max() <= 1 and (ours == published).mean() > 0.999
    expected = golden_json("metrics.json")["derained"][0]
    row = table(tmp_path / "whole")["norain-1.png"]
    assert float(row["derained_psnr_y"]) == pytest.approx(expected["psnr"], abs=0.01)
    assert float(row["derained_ssim_y"]) == pytest.approx(expected["ssim"], abs=1e-4)
    assert float(row["rainy_psnr_y"]) == pytest.approx(27.300848, abs=1e-4)
    assert "average time per image" in capsys.readouterr().out
    nearest = real(made[0], "nearest")[0].numpy()
    gained = module.metrics.score(nearest, read_image(data / "norain" / "norain-1.png")).psnr_y
    assert 0.02 < gained - float(row["derained_psnr_y"]) < 0.16
    # T10: tiles of a crop give the same pixels, but for the halo at its cut edges
    write_image(tmp_path / "crop" / "a.png", read_image(data / "rain" / "norain-1.png")[:150, :180])
    arguments[1:4] = [f"{tmp_path}/crop"]
    test_syn_joint.main([*arguments, "--save_path", f"{tmp_path}/tiles", "--tile", "80", "--rounding", "nearest"])
    tiled = read_image(tmp_path / "tiles" / "a.png")[:72, :102].astype(int)
    assert set(np.unique(tiled - ours[:72, :102])) <= {0, 1}


@needs_data
def test_the_spa_checkpoint(tmp_path):
    expected = golden_json("metrics.json")["derained"][1]
    arguments = ["--data_path", str(DATA / expected["input"]), "--gt_path", str(DATA / "spa" / "norain")]
    arguments += ["--netDerain", str(DATA.parent / expected["checkpoint"]), "--save_path", str(tmp_path / "out")]
    assert test_spa_joint.main([*arguments, "--use_gpu", "false"]) == 0
    row = table(tmp_path / "out")["norain-438.png"]
    assert float(row["derained_psnr_y"]) == pytest.approx(expected["psnr"], abs=0.01)
    assert float(row["derained_ssim_y"]) == pytest.approx(expected["ssim"], abs=1e-4)


@pytest.mark.parametrize("net", [Derain(2), PReNet(2)], ids=["Derain", "PReNet"])
@pytest.mark.parametrize("size", [(70, 90), (1, 40), (1, 1)])
def test_tiles_give_the_result_of_the_whole_image(net, size):  # T10
    fill(net, 3)
    rainy = torch.rand(2, 3, *size)
    whole = derain(net, rainy, tile=0)
    for tile in (16, 33, 200):
        assert torch.allclose(derain(net, rainy, tile=tile), whole, rtol=0, atol=1e-6)
    assert whole.shape == rainy.shape


@pytest.mark.parametrize("wrap", [AveragedModel, functools.partial(torch.compile, backend="eager")])
def test_tiles_of_a_wrapped_network_have_its_halo(wrap):
    net, rainy = fill(PReNet(1), 3).eval(), torch.rand(1, 3, 30, 50)
    whole = derain(net, rainy, tile=0)
    assert torch.allclose(derain(wrap(net), rainy, tile=32), whole, rtol=0, atol=1e-6)
    assert torch.allclose(derain(torch.nn.DataParallel(wrap(net)), rainy, 32), whole, rtol=0, atol=1e-6)


def test_tiles_without_a_known_halo_are_refused():
    class Wider(PReNet):
        """It may see farther than its parent."""

    rainy = torch.rand(1, 3, 40, 50)
    for net in (fill(Wider(1), 3), torch.nn.Sequential(fill(PReNet(1), 3)), torch.nn.DataParallel(Wider(1))):
        for how in ({"tile": 32}, {"halo": 4}):
            with pytest.raises(UserError, match="tile, halo.*needs both"):
                derain(net, rainy, **how)
        assert derain(net, rainy, 32, halo=13).shape == derain(net, rainy).shape == rainy.shape


@pytest.mark.parametrize(
    "rainy, found",
    [
        (torch.rand(1, 3, 9, 9) * 255, r"got \S+ to 2\d\d"),
        (torch.rand(1, 3, 9, 9) * 2 - 1, r"got -\S+ to \S+"),
        (torch.full((1, 3, 9, 9), 200, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((1, 3, 9, 9), float("nan")), "got nan to nan"),
    ],
)
def test_other_values_than_from_0_to_1_are_refused(rainy, found):
    with pytest.raises(ValueError, match=rf"expected floats in \[0, 1\], {found}"):
        derain(torch.nn.Identity(), rainy)


def test_the_halo_is_as_small_as_it_can_be_and_large_enough():
    net = fill(PReNet(2).double(), 4).double()
    assert net.halo == 26 and Derain(6).halo == 78
    rainy = torch.rand(1, 3, 1, 80, dtype=torch.double)
    moved = rainy.clone()
    moved[..., 0] += 0.5
    with torch.no_grad():
        difference = (net(rainy)[0] - net(moved)[0]).abs().amax((0, 1, 2))
    assert difference[26] > 0 and difference[27:].max() == 0


def test_when_tiles_are_taken(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(module, "free_memory", lambda: 64e9)
    assert tile_size(-1, 321, 481, 78, cpu) == tile_size(-1, 512, 512, 78, cpu) == 0
    assert tile_size(-1, 3000, 4000, 78, cpu) == 340
    assert tile_size(-1, 3000, 4000, 13, cpu) == 470
    assert tile_size(0, 3000, 4000, 78, cpu) == 0 and tile_size(128, 10, 10, 78, cpu) == 128
    assert tile_size(-1, 500, 500, 78, cpu, 4) == 166  # four at once
    monkeypatch.setattr(module, "free_memory", lambda: 6e8)
    assert tile_size(-1, 321, 481, 78, cpu) == 197  # half of what is free
    monkeypatch.setattr(module, "free_memory", lambda: 0)
    assert tile_size(-1, 321, 481, 78, cpu) == 128  # as small as is worth it


def test_what_does_not_fit_is_derained_in_parts():
    """Memory for windows of 60 px alone: the result is that of the whole image. A net has 13 px of halo."""
    net, rainy, sides = fill(PReNet(1), 3), torch.rand(1, 3, 50, 90), []
    whole = derain(net, rainy, tile=0)

    def lack(net, inputs):
        sides.append(max(inputs[0].shape[2:]))
        if sides[-1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = net.register_forward_pre_hook(lack)
    for given in (net, torch.nn.DataParallel(net)):
        assert torch.allclose(derain(given, rainy, tile=0), whole, rtol=0, atol=1e-6)
    assert sides[0] == 90 and min(sides) < 60
    hook.remove()
    net.register_forward_pre_hook(lambda *_: lack(net, [rainy]))
    with pytest.raises(torch.OutOfMemoryError):
        derain(net, rainy)


@pytest.mark.parametrize("rounding", ["truncate", "nearest"])
def test_pixels_on_the_device_are_those_of_numpy(rounding):
    values = torch.linspace(-0.1, 1.1, 3 * 70 * 50).view(1, 3, 70, 50)
    expected = to_uint8(values[0].permute(1, 2, 0).numpy(), rounding)
    assert np.array_equal(module._pixels(values, rounding)[0].numpy(), expected)
    for kind in (np.uint8, np.uint16):
        pixels = np.random.RandomState(0).randint(0, np.iinfo(kind).max + 1, (1, 70, 50, 3)).astype(kind)
        assert np.array_equal(
            module.floats(torch.from_numpy(pixels).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy(), to_float(pixels)
        )


@pytest.mark.parametrize(
    "script, net, flags",
    [(test_syn_joint, Derain(1), "--stage 1 --netDerain"), (test_syn_aug, PReNet(1), "--recurrent_iter 1 --model_dir")],
)
def test_rounding_is_a_choice_of_the_scripts(tmp_path, monkeypatch, script, net, flags):
    real, made = module._pixels, []
    monkeypatch.setattr(module, "_pixels", lambda values, rounding: made.append(values) or real(values, rounding))
    write_image(tmp_path / "a.png", photo(20, 30, 0))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    given = ["--data_path", tmp_path / "a.png", *flags.split(), tmp_path / "net.pt", "--use_gpu", "false"]
    for rounding, more in (("truncate", []), ("nearest", ["--rounding", "nearest"])):
        script.main(list(map(str, [*given, "--save_path", tmp_path / rounding, *more])))
        expected = to_uint8(made.pop()[0].permute(1, 2, 0).numpy(), rounding)
        assert np.array_equal(read_image(tmp_path / rounding / "a.png"), expected)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "DerainNet_state_1.pt"
    torch.save(Derain(1).state_dict(), path)
    return path


@pytest.fixture
def run(tmp_path, checkpoint):
    def run(*more, script=test_syn_joint):
        given = ["--stage", 1, "--netDerain", checkpoint, "--use_gpu", "false", "--save_path", tmp_path / "out"]
        return script.main(list(map(str, [*given, *more])))

    return run


def test_real_photos_of_all_kinds(tmp_path, run, capsys):
    import cv2

    photos = tmp_path / "photos"
    write_image(photos / "a.png", photo(20, 30, 0))
    write_image(photos / "sub" / "deep" / "b.jpg", photo(31, 17, 1))
    write_image(photos / "one.BMP", photo(25, 1, 2))
    write_image(photos / "c.webp", photo(12, 9, 3))
    cv2.imwrite(str(photos / "deep.tif"), photo(10, 12, 4).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(photo(14, 40, 5)).save(photos / "turned.jpg", exif=exif)
    (photos / "notes.txt").write_text("x")
    (photos / ".DS_Store").write_text("x")
    assert run("--data_path", photos) == 0
    printed = capsys.readouterr().out
    assert "6 images derained" in printed
    out = tmp_path / "out"
    page = (out / "report.html").read_text()
    assert "Rain removed from 6 images" in page and page.count("<figure ") == 6 and "<table" not in page
    (out / "report.html").unlink()
    sizes = {p.relative_to(out).as_posix(): read_image(p).shape[:2] for p in out.rglob("*.*")}
    assert sizes == {
        "a.png": (20, 30),
        "sub/deep/b.png": (31, 17),
        "one.BMP": (25, 1),
        "c.webp": (12, 9),
        "deep.tif": (10, 12),
        "turned.png": (40, 14),
    }
    assert read_image(out / "deep.tif").dtype == np.uint8


def test_the_result_of_a_jpeg_is_a_png_and_pairs(tmp_path, run):
    """Pixels are those of the network, and metrics of the folder finds the same partners."""
    for k, name in enumerate(("one/a.jpg", "b.JPEG", "c.png")):
        write_image(tmp_path / "rain" / name.lower(), photo(24, 30, k))
        write_image(tmp_path / "clean" / Path(name).with_suffix(".jpg"), photo(24, 30, k + 5))
    (tmp_path / "rain" / "b.jpeg").rename(tmp_path / "rain" / "b.JPEG")
    assert run("--data_path", tmp_path / "rain", "--gt_path", tmp_path / "clean") == 0
    out = tmp_path / "out"
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == {"one/a.png", "b.png", "c.png"}
    rows = table(out)
    command = ["--pred", out, "--gt", tmp_path / "clean", "--csv", tmp_path / "again" / "metrics.csv"]
    assert module.metrics.main(list(map(str, command))) == 0
    again = table(tmp_path / "again")
    assert {row["derained_psnr_y"] for row in rows.values()} == {row["result_psnr_y"] for row in again.values()}
    assert "b.JPEG" in rows and not list(out.rglob("*.jp*"))
    run("--data_path", tmp_path / "rain", "--keep_format")
    assert (out / "b.JPEG").exists() and (out / "one" / "a.jpg").exists()


def test_results_of_equal_stems_get_names_of_their_own():
    names = ["a.jpg", "A.png", "a.jpeg", "a.jpg.png", "b/a.jpg", "b.bmp", "c.JFIF"]
    found = result_names(list(map(Path, names)), keep_format=False)
    assert list(map(str, (found[Path(name)] for name in names))) == [
        *("a.jpg.jpg.png", "A.png", "a.jpeg.png", "a.jpg.png", "b/a.png", "b.bmp", "c.png")
    ]
    assert result_names([Path("a.jpg")], keep_format=True) == {Path("a.jpg"): Path("a.jpg")}


def test_one_image_and_its_ground_truth(tmp_path, run, pairs_folder):
    assert run("--data_path", pairs_folder / "rain" / "9.png", "--gt_path", pairs_folder / "norain") == 0
    assert list(table(tmp_path / "out")) == ["9.png", "mean"]
    assert run("--data_path", pairs_folder / "rain" / "9.png", "--gt_path", pairs_folder / "norain" / "9.png") == 0
    assert run("--data_path", pairs_folder / "rain" / "9.png") == 0
    with pytest.raises(UserError, match="--save_path: .* is the folder of the input"):
        run("--data_path", pairs_folder / "rain" / "9.png", "--save_path", pairs_folder / "rain")


def test_deraining_that_makes_it_worse_is_warned_of(tmp_path, run, pairs_folder, capsys):
    data = ["--data_path", pairs_folder / "rain", "--gt_path", pairs_folder / "norain"]
    net = Derain(1)
    for value, worse in ((0, False), (0.5, True)):
        torch.nn.init.zeros_(net.derainet.convfinal[0].weight)
        torch.nn.init.constant_(net.derainet.convfinal[0].bias, value)  # mu_b = input + value
        torch.save(net.state_dict(), tmp_path / "w.pt")
        assert run(*data, "--netDerain", tmp_path / "w.pt") == 0
        warned = "farther from the ground truth than the rainy ones. Check the weights" in capsys.readouterr().err
        assert warned == worse


def test_what_is_left_of_earlier_results_is_named(tmp_path, run, pairs_folder, capsys):
    assert run("--data_path", pairs_folder / "rain", "--gt_path", pairs_folder / "norain") == 0
    assert "earlier" not in capsys.readouterr().err
    (pairs_folder / "rain" / "9.png").write_bytes(b"broken")
    assert run("--data_path", pairs_folder / "rain") == 1
    said = capsys.readouterr().err
    assert f"warning: {tmp_path / 'out' / 'metrics.csv'} is of earlier results" in said
    assert "replace or remove the file" in said and f"{tmp_path / 'out' / '9.png'} is an earlier result" in said


def test_metrics_come_from_the_saved_file(tmp_path, run, pairs_folder):
    assert run("--data_path", pairs_folder / "rain", "--gt_path", pairs_folder / "norain", "--tile", 8) == 0
    rows = table(tmp_path / "out")
    assert list(rows) == ["8.png", "9.png", "10.png", "11.png", "mean"]  # T12
    expected = score(read_image(tmp_path / "out" / "9.png"), read_image(pairs_folder / "norain" / "9.png"))
    assert float(rows["9.png"]["derained_psnr_y"]) == pytest.approx(expected.psnr_y, abs=1e-5)
    assert float(rows["9.png"]["derained_psnr_rgb"]) == pytest.approx(expected.psnr_rgb, abs=1e-5)
    mean = np.mean([float(rows[f"{i}.png"]["rainy_ssim_y"]) for i in range(8, 12)])
    assert float(rows["mean"]["rainy_ssim_y"]) == pytest.approx(mean, abs=1e-5)


def test_the_result_keeps_the_colours_of_its_image(tmp_path, run, profile):
    """Measured are the colours of sRGB, as a ground truth of another kind of file has them."""
    write_image(tmp_path / "rain" / "a.png", photo(24, 30, 0), profile)
    write_image(tmp_path / "norain" / "a.png", photo(24, 30, 0)[..., [1, 0, 2]])
    assert run("--data_path", tmp_path / "rain", "--gt_path", tmp_path / "norain") == 0
    derained, kept = read_stored(tmp_path / "out" / "a.png")
    assert kept == profile and table(tmp_path / "out")["a.png"]["rainy_psnr_rgb"] > "45"
    expected = score(in_srgb(derained, profile), read_image(tmp_path / "norain" / "a.png"))
    assert float(table(tmp_path / "out")["a.png"]["derained_psnr_rgb"]) == pytest.approx(expected.psnr_rgb, abs=1e-5)


def test_ground_truth_is_checked_before_any_work(tmp_path, run, pairs_folder):
    write_image(pairs_folder / "norain" / "9.png", photo(23, 21, 0))
    with pytest.raises(
        UserError, match=r"1 of 4 images can't be measured:\s+\S+9.png is 21x24, its clean partner 9.png 21x23"
    ):
        run("--data_path", pairs_folder / "rain", "--gt_path", pairs_folder / "norain")
    (pairs_folder / "norain" / "9.png").unlink()
    with pytest.raises(UserError, match=r"9.png: no clean partner"):
        run("--data_path", pairs_folder / "rain", "--gt_path", pairs_folder / "norain")
    assert not (tmp_path / "out").exists()


def test_paths_that_can_not_be(tmp_path, run, pairs_folder):
    rain, norain = pairs_folder / "rain", pairs_folder / "norain"
    for save in (rain, rain / "results", tmp_path / "link"):
        (tmp_path / "link").is_symlink() or (tmp_path / "link").symlink_to(rain)
        with pytest.raises(UserError, match="--save_path: .* lies in the input folder"):
            run("--data_path", rain, "--save_path", save)
    with pytest.raises(UserError, match="--save_path: .* lies in the input folder --gt_path"):
        run("--data_path", rain, "--gt_path", norain, "--save_path", norain)
    with pytest.raises(UserError, match=r"--data_path: there is no \S+nothing. Put the rainy test images of Rain100L"):
        run("--data_path", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--data_path: no image"):
        run("--data_path", tmp_path / "empty")
    with pytest.raises(UserError, match="is not an image"):
        run("--data_path", tmp_path / "DerainNet_state_1.pt")


def test_the_wrong_number_of_stages_still_loads_but_the_wrong_file_does_not(tmp_path, run, pairs_folder):
    torch.save(PReNet(1).state_dict(), tmp_path / "aug.pt")
    with pytest.raises(UserError, match="this is an augmented derainer; use test_syn_aug.py"):
        run("--data_path", pairs_folder / "rain", "--netDerain", tmp_path / "aug.pt")
    with pytest.raises(UserError, match="there is no .*Train one with train_spa_joint.py"):
        run("--data_path", pairs_folder / "rain", "--netDerain", tmp_path / "no.pt", script=test_spa_joint)
    assert run("--data_path", pairs_folder / "rain", "--stage", 2) == 0


def test_the_stored_number_of_stages_is_used(tmp_path, run, pairs_folder, checkpoint, capsys, monkeypatch):
    flags, stages = ["--data_path", pairs_folder / "rain" / "8.png"], []
    (tmp_path / "DerainNet.json").write_text('{"stage": 1}')  # as joint training leaves it
    run(*flags, "--stage", 2)
    assert "warning: --stage: 2, in the training it was 1" in capsys.readouterr().err
    forward = Derain.forward
    monkeypatch.setattr(Derain, "forward", lambda self, x: stages.append(self.derainet.stages) or forward(self, x))
    without = ["--netDerain", checkpoint, "--use_gpu", "false", "--save_path", tmp_path / "out"]
    test_syn_joint.main(list(map(str, [*without, *flags])))
    assert set(stages) == {1} and not capsys.readouterr().err


def test_images_that_hold_both_halves(tmp_path, run):
    rainy, clean = photo(20, 30, 0), photo(20, 30, 1)
    write_image(tmp_path / "set" / "1.png", np.concatenate((rainy, clean), 1))
    write_image(tmp_path / "set" / "2.png", np.concatenate((rainy, rainy), 1))
    write_image(tmp_path / "two" / "rain" / "1.png", rainy)
    assert run("--data_path", tmp_path / "two" / "rain") == 0
    expected = read_image(tmp_path / "out" / "1.png")
    assert run("--data_path", tmp_path / "set", "--side_by_side", "left") == 0
    assert np.array_equal(read_image(tmp_path / "out" / "1.png"), expected)
    row = table(tmp_path / "out")["1.png"]
    assert float(row["rainy_psnr_y"]) == pytest.approx(module.metrics.score(rainy, clean).psnr_y, abs=1e-4)
