"""Measures of rain layers: closed forms, what must be near and what far, straight and wavy streaks, the command."""

import csv

import cv2
import numpy as np
import pytest
import torch

from common import cli
from common.data.demo import rain_layer
from common.data.images import to_uint8, write_image
from common.evaluation import distance, streaks, two_sample


def noise(number, p=32, seed=0, scale=0.1):
    return (0.5 + scale * np.random.RandomState(seed).standard_normal((number, p, p))).astype(np.float32)


def drawn(number, seed, p=64, **how):
    return np.stack([rain_layer((p, p), 1000 * seed + k, **how)[..., 0] for k in range(number)])


def test_the_pyramid_adds_up_to_the_layer():
    layers = noise(3, 64)
    fine, middle, coarse = distance.pyramid(layers)
    assert [level.shape[1] for level in (fine, middle, coarse)] == [64, 32, 16]
    up = middle + np.stack([cv2.pyrUp(x, borderType=cv2.BORDER_REFLECT_101) for x in coarse])
    whole = fine + np.stack([cv2.pyrUp(x, borderType=cv2.BORDER_REFLECT_101) for x in up])
    np.testing.assert_allclose(whole, layers, atol=1e-6)


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
    real = drawn(150, 1)
    near = np.mean(distance.sliced_wasserstein(real, drawn(150, 2)))
    darker = np.mean(distance.sliced_wasserstein(real, 0.7 * drawn(150, 2)))
    dead = np.mean(distance.sliced_wasserstein(real, np.zeros_like(real)))
    blurred = distance.sliced_wasserstein(real, np.stack([cv2.GaussianBlur(x, (0, 0), 2) for x in drawn(150, 2)]))
    turned = np.mean(distance.sliced_wasserstein(real, drawn(150, 2, angle=-60)))
    assert near < 5 < darker < dead and blurred[0] > 4 * near and turned > 4 * near
    assert dead == pytest.approx(np.mean([_spread(level) for level in distance.pyramid(real)]), rel=0.05)


def _spread(level):
    """Mean distance of the projections from 0, in % of the deviation: what an empty set is away."""
    rng = np.random.RandomState(5)
    lines = rng.standard_normal((49, 500)).astype(np.float32)
    return 100 * np.abs(distance.patches(level, rng) @ (lines / np.linalg.norm(lines, axis=0))).mean() / level.std()


def test_crops_are_mirrored():
    layer = np.linspace(0, 1, 40 * 50, dtype=np.float32).reshape(40, 50)
    found = distance.crops([layer], 50, 16, np.random.RandomState(0))
    rising = [crop[0, -1] > crop[0, 0] for crop in found]
    assert found.shape == (50, 16, 16)
    assert any(rising) and not all(rising)


def wavy(layers, angle, height=2, period=24):
    """Layers (N, p, p) whose streaks at an angle (degrees) wave by so many px to either side."""
    y, x = np.mgrid[: layers.shape[1], : layers.shape[2]].astype(np.float32)
    sin, cos = np.float32(np.sin(np.radians(angle))), np.float32(np.cos(np.radians(angle)))
    aside = height * np.sin(2 * np.pi * (x * sin + y * cos) / period)
    moved = x + aside * cos, y - aside * sin
    return np.stack([cv2.remap(layer, *moved, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT) for layer in layers])


@pytest.mark.parametrize("angle", [-70, 0, 45])
def test_straight_streaks_bend_less_than_wavy_ones_whatever_their_angle(angle):
    straight = drawn(20, 1, 96, angle=angle, length=30)
    at = slice(16, 80)  # without the rim, where waves are mirrored
    bends = [
        streaks.median_bend(layers[:, at, at])
        for layers in (straight, wavy(straight, angle, 1), wavy(straight, angle, 3), wavy(straight, angle, 2, 40))
    ]
    assert bends[0] < 4 and min(bends[1:]) > 2 * bends[0] and bends[2] > bends[1]
    thinner = drawn(20, 1, 96, angle=angle, length=30, density=0.04, brightness=0.2)
    assert streaks.median_bend(thinner[:, at, at]) < 4


def test_bend_of_arcs_is_the_closed_form():
    """Along a circle of radius r, the direction turns by s / r on a length s."""
    y, x = np.mgrid[:64, :64].astype(np.float32)
    for centre in ((-100, 32), (32, -100), (-40, -40)):
        r = np.hypot(x - centre[0], y - centre[1])
        rings = (0.5 + 0.5 * np.cos(2 * np.pi * r / 8)).astype(np.float32)
        expected = np.degrees(np.sqrt(np.mean([(s / r.mean()) ** 2 for s in streaks.ALONG])))
        assert streaks.bend(rings) == pytest.approx(expected, rel=0.15)
    assert np.isnan(streaks.bend(np.zeros((64, 64), np.float32)))


def test_the_spread_of_angles_is_that_which_was_drawn():
    rng = np.random.RandomState(0)
    for middle in (0, 85):  # beyond 90 degrees comes -90
        assert streaks.spread((rng.normal(middle, 8, 4000) + 90) % 180 - 90) == pytest.approx(8, rel=0.05)
    angles = rng.normal(5, 8, 60)
    crops = np.concatenate([drawn(1, k, angle=angle, length=30) for k, angle in enumerate(angles)])
    assert streaks.spread_over(crops) == pytest.approx(streaks.spread(angles), rel=0.1)
    assert np.isnan(streaks.spread_over(np.zeros_like(crops)))  # without rain
    pictures = drawn(4, 3, 192, angle=-12, length=30)  # of one angle each
    assert streaks.spread_within([*pictures, *drawn(4, 4, 192, angle=30, length=30)], 64) < 1.5


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.RandomState(0)
    a, b = rng.randint(0, 5, 40), rng.randint(1, 6, 30)
    expected = np.mean([(y > x) + 0.5 * (y == x) for x in a for y in b])
    assert two_sample.auc(a, b) == pytest.approx(expected)
    assert two_sample.auc(np.zeros(3), np.zeros(4)) == 0.5


def test_classifiers_tell_wavy_from_straight_and_not_like_from_like(monkeypatch):
    monkeypatch.setattr(two_sample, "SEEDS", (0, 1))
    cpu, global_state = torch.device("cpu"), torch.get_rng_state()
    real, fresh, other, more = (drawn(300, seed, 32) for seed in (1, 2, 3, 4))
    eight = distance.eight_bits
    waves = [eight(wavy(layers, 10, 1.5, 12)) for layers in (other, more)]
    pair = (eight(real), waves[0]), (eight(fresh), waves[1])
    for kind, steps in ((two_sample.SMALL, 120), (two_sample.STRICT, 60)):
        like = two_sample.largest_auc((eight(real), eight(other)), (eight(fresh), eight(more)), cpu, kind, steps)
        unlike = two_sample.largest_auc(*pair, cpu, kind, steps)
        assert abs(like - 0.5) < 0.08 and unlike > 0.97
    few = [two_sample.largest_auc(*pair, cpu, kind, 5) for _ in range(2)]
    assert few[0] == few[1]  # repeatable
    assert (torch.get_rng_state() == global_state).all()


@pytest.fixture
def real(tmp_path, monkeypatch):
    for name, value in (("BIG", 64), ("NUMBER", 32), ("STEPS", 2)):
        monkeypatch.setattr(distance, name, value)
    for k in range(6):
        write_image(tmp_path / "real" / f"{k}.png", to_uint8(rain_layer((48, 60), k).repeat(3, 2), "nearest"))
    return tmp_path


def run(real, generator, *flags):
    words = ["--real", real / "real", "--netED", generator, "--hold_out", 2, "--use_gpu", "false", *flags]
    return cli.run(lambda: distance.main(list(map(str, words))))


def table(path):
    with open(path, newline="") as file:
        return {row.pop("rain"): {name: float(x or "nan") for name, x in row.items()} for row in csv.DictReader(file)}


def test_the_command_compares_a_generator_floor_and_procedural_rain(real, generator, quick, capsys):
    assert run(real, generator, "--csv", real / "d.csv") == 0
    printed = capsys.readouterr().out
    assert "real rain: 2 layers; classifiers learn from 4 others" in printed
    rows = table(real / "d.csv")
    columns = ["distance", "16_px", "auc_16", "auc_32", "strict_16", "strict_32", "angles", "within", "bend"]
    assert all(list(row) == columns for row in rows.values()) and all(name in printed for name in [*rows, *columns[4:]])
    left_out = {  # AUCs that there are none of
        "two halves of the real rain": [],
        "real rain of the training": ["auc_16", "auc_32", "strict_16", "strict_32"],
        "ED.pt, patches of G": ["auc_32", "strict_32"],
        "ED.pt, whole pictures": ["auc_16", "strict_16"],
        "procedural rain, plain": [],
        "procedural rain, varied": [],
    }
    assert {name: [k for k in columns[2:6] if np.isnan(row[k])] for name, row in rows.items()} == left_out
    assert run(real, generator, "--csv", real / "again.csv") == 0
    assert (real / "again.csv").read_bytes() == (real / "d.csv").read_bytes()  # repeatable


@pytest.mark.parametrize("what, message", [("few", "leaves none"), ("missing", "--real"), ("small", "smaller")])
def test_mistakes(real, generator, capsys, what, message):
    paths = sorted((real / "real").iterdir())
    if what == "small":
        write_image(paths[0], np.zeros((31, 60, 3), np.uint8))
    else:
        for path in paths[2 * (what == "few") :]:
            path.unlink()
    assert run(real, generator) == 2
    assert message in capsys.readouterr().err
