"""The distance between sets of rain layers: closed forms, what must be near and what far, the command."""

import csv

import numpy as np
import pytest
import torch

from common import cli
from common.data.demo import rain_layer
from common.data.images import to_uint8, write_image
from common.evaluation import distance
from common.models import EDNet
from tests.golden import fill


def noise(number, p=32, seed=0, scale=0.1):
    return (0.5 + scale * np.random.RandomState(seed).standard_normal((number, p, p))).astype(np.float32)


def streaks(number, seed, p=64, **how):
    return np.stack([rain_layer((p, p), 1000 * seed + k, **how)[..., 0] for k in range(number)])


def test_the_pyramid_adds_up_to_the_layer():
    import cv2

    layers = noise(3, 64)
    fine, middle, coarse = distance.pyramid(layers)
    assert [level.shape[1] for level in (fine, middle, coarse)] == [64, 32, 16]
    up = middle + np.stack([cv2.pyrUp(x, borderType=cv2.BORDER_REFLECT_101) for x in coarse])
    whole = fine + np.stack([cv2.pyrUp(x, borderType=cv2.BORDER_REFLECT_101) for x in up])
    np.testing.assert_allclose(whole, layers, atol=1e-6)


def test_patches_are_those_of_the_layer():
    level = np.arange(9 * 9, dtype=np.float32).reshape(1, 9, 9).repeat(10, 0)
    found = distance.patches(level, np.random.RandomState(0))
    wanted = {tuple(level[0, y : y + 7, x : x + 7].ravel()) for y in range(3) for x in range(3)}
    assert set(map(tuple, found)) == wanted


def test_a_shift_moves_the_coarsest_level_alone_by_what_the_lines_say():
    a, c = noise(400), 0.03
    same, moved = (distance.sliced_wasserstein(a, noise(400, seed=1) + shift) for shift in (0, c))
    lines = np.random.RandomState(0)
    sums = []
    for level, level_a in enumerate(distance.pyramid(a)):
        directions = lines.standard_normal((49, distance.LINES)).astype(np.float32)
        sums.append(np.abs((directions / np.linalg.norm(directions, axis=0)).sum(0)).mean())
        for _ in range(2):  # the places of both sets' patches
            lines.randint(0, level_a.shape[1] - 6, (2, 400 * distance.PER_LAYER))
        if level == 1:
            expected = 100 * c * sums[1] / level_a.std()
    assert moved[0] == pytest.approx(same[0], abs=1e-3)
    assert moved[1] == pytest.approx(expected, rel=0.03) and same[1] < 0.1 * expected


def test_brightness_counts_and_so_does_sharpness():
    import cv2

    real = streaks(150, 1)
    near = np.mean(distance.sliced_wasserstein(real, streaks(150, 2)))
    darker = np.mean(distance.sliced_wasserstein(real, 0.7 * streaks(150, 2)))
    dead = np.mean(distance.sliced_wasserstein(real, np.zeros_like(real)))
    blurred = distance.sliced_wasserstein(real, np.stack([cv2.GaussianBlur(x, (0, 0), 2) for x in streaks(150, 2)]))
    turned = np.mean(distance.sliced_wasserstein(real, streaks(150, 2, angle=-60)))
    assert near < 5 < darker < dead and blurred[0] > 4 * near and turned > 4 * near
    assert dead == pytest.approx(np.mean([_spread(level) for level in distance.pyramid(real)]), rel=0.05)


def _spread(level):
    """Mean distance of the projections from 0, in % of the deviation: what an empty set is away."""
    rng = np.random.RandomState(5)
    lines = rng.standard_normal((49, 500)).astype(np.float32)
    return 100 * np.abs(distance.patches(level, rng) @ (lines / np.linalg.norm(lines, axis=0))).mean() / level.std()


def test_sets_of_different_size_and_black_ones_are_refused():
    with pytest.raises(ValueError, match="one size"):
        distance.sliced_wasserstein(noise(4), noise(5))
    with pytest.raises(ValueError, match="do not vary"):
        distance.sliced_wasserstein(np.zeros((4, 16, 16), np.float32), noise(4, 16))


def test_crops_are_mirrored_scaled_and_clipped():
    layer = np.linspace(0, 1, 40 * 50, dtype=np.float32).reshape(40, 50)
    found = distance.crops([layer], 50, 16, (0.5, 2), np.random.RandomState(0))
    assert found.shape == (50, 16, 16) and found.max() == 1 and found.min() >= 0
    rising = [crop[0, -1] > crop[0, 0] for crop in found if crop.max() < 1]
    assert any(rising) and not all(rising)


@pytest.fixture
def real(tmp_path):
    for k in range(6):
        write_image(tmp_path / "real" / f"{k}.png", to_uint8(rain_layer((48, 60), k).repeat(3, 2), "nearest"))
    return tmp_path


def run(real, *flags):
    words = ["--real", real / "real", "--number", 64, "--patch", 16, "--use_gpu", "false", *flags]
    return cli.run(lambda: distance.main(list(map(str, words))))


def test_the_command_compares_generators_folders_floor_and_procedural_rain(real, generator, quick, capsys):
    assert run(real, "--netED", generator, "--rain", real / "real", "--csv", real / "d.csv") == 0
    printed = capsys.readouterr().out
    with open(real / "d.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {row["rain"]: float(row["distance"]) for row in rows}
    assert set(rows[0]) == {"rain", "distance", "16_px"} and all(name in printed for name in found)
    assert list(found) == [
        "two halves of the real rain",
        "ED.pt, patches of G",
        "ED.pt, whole pictures",
        "real",
        "procedural rain, plain",
        "procedural rain, varied",
    ]
    assert found["real"] < found["two halves of the real rain"] < found["ED.pt, patches of G"]
    run(real, "--netED", generator, "--csv", real / "again.csv")
    assert (real / "again.csv").read_text().splitlines()[2] in (real / "d.csv").read_text()  # repeatable


def test_only_what_was_held_out_is_compared(real, capsys):
    assert run(real, "--hold_out", 2) == 0 and "real rain: 2 layers" in capsys.readouterr().out
    for k in (0, 3):  # those that compose.py --hold_out 2 leaves out of six
        (real / "real" / f"{k}.png").unlink()
        write_image(real / "real" / f"{k}.png", np.zeros((48, 60, 3), np.uint8))
    assert run(real, "--hold_out", 2) == 2 and "are black" in capsys.readouterr().err


def test_larger_patches_of_a_generator_are_cropped(real, quick, capsys):
    torch.save(fill(EDNet(nz=5, nef=4, patch_size=32), 1).state_dict(), real / "ED32.pt")
    assert run(real, "--netED", real / "ED32.pt") == 0
    assert run(real, "--netED", real / "ED32.pt", "--patch", 64) == 2
    assert "smaller than the 64 px" in capsys.readouterr().err


def test_folders_of_one_name_are_two_rows(real, capsys):
    for kind in ("a", "b"):
        write_image(real / kind / "layer" / "0.png", to_uint8(rain_layer((48, 60), 9).repeat(3, 2), "nearest"))
    assert run(real, "--rain", real / "a" / "layer", real / "b" / "layer") == 0
    printed = capsys.readouterr().out
    assert "a/layer" in printed and "b/layer" in printed


@pytest.mark.parametrize("what", ["black", "one", "missing", "empty", "small", "flat", "half"])
def test_mistakes(real, capsys, what):
    folder = real / "real"
    if what == "black":
        for path in folder.iterdir():
            write_image(path, np.zeros((48, 60, 3), np.uint8))
    elif what in ("flat", "half"):  # all of one grey, or all but one black
        for path in sorted(folder.iterdir())[what == "half" :]:
            write_image(path, np.full((48, 60, 3), 90 * (what == "flat"), np.uint8))
    elif what == "small":
        write_image(folder / "0.png", np.zeros((15, 60, 3), np.uint8))
    elif what == "one":
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    else:
        for path in folder.iterdir():
            path.unlink()
        if what == "missing":
            folder.rmdir()
    assert run(real, *(["--gain", 1, 1] if what == "flat" else [])) == 2
    assert "--real" in capsys.readouterr().err
