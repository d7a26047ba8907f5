"""The generator that comes with the project: whole, small, found by its word, and better than procedural rain."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common import RainAugment, cli, weights
from common.data.demo import rain_layer
from common.data.images import read_image, to_float, write_image
from common.evaluation.metrics import psnr
from common.generation.knobs import set_knobs
from common.generation.measures import direction, measure
from common.generation.rain import RainMaker
from common.training.checkpoint import load_generator
from for_spa import generate_rain as spa
from for_spa import test_spa_aug
from for_syn import generate_rain, test_disentanglement, test_interpolation, test_syn_aug, train_syn_aug
from tests.conftest import photo


@pytest.fixture(scope="module")
def default():
    return load_generator(weights.GENERATOR, "--netED").eval()


def test_it_is_small_half_precision_and_nothing_but_weights(default):
    assert weights.GENERATOR.stat().st_size < 12e6
    state = torch.load(weights.GENERATOR, weights_only=True)
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert (default.nz, default.nef, default.patch_size) == (128, 32, 64)


def test_its_rain_is_alive_varied_and_grey(default):
    with torch.no_grad():
        rain = default.sample(torch.randn(200, 128, generator=torch.Generator().manual_seed(1)))
    found = np.array([measure(layer) for layer in rain.numpy()])
    assert 0.1 < np.nanmean(found[:, 1]) < 0.4 and np.isfinite(found[:, 0]).mean() > 0.98
    assert (rain.amax(1) - rain.amin(1)).mean() < 0.3 * rain.mean()
    shapes = rain.mean(1).flatten(1)
    shapes = shapes / shapes.norm(dim=1, keepdim=True)
    alike = (shapes @ shapes.T)[~torch.eye(200, dtype=bool)]
    assert alike.mean() < 0.4  # streaks at other places: unlike rains overlap little


def test_the_word_default_names_it_wherever_a_generator_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for script in (generate_rain, spa):
        assert script.parse_args(["--data_path", "x"]).netED == str(weights.GENERATOR)
    for script in (train_syn_aug, test_disentanglement, test_interpolation):
        args = script.parse_args(["--netED", "default"])
        assert args.netED == str(weights.GENERATOR) and "netED" in args.given
        assert script.parse_args(["--netED", "./default"]).netED == str(tmp_path / "default")
        assert script.parse_args([]).netED.endswith("syn100lmodels/ED_state_700.pt")
    assert test_syn_aug.parse_args(["--model_dir", "default"]).model_dir == str(weights.DERAINER)


def test_rain_without_naming_a_generator(tmp_path, quick):
    write_image(tmp_path / "photos" / "a.png", photo(321, 481, 0) // 2)
    words = ["--data_path", tmp_path / "photos", "--save_path", tmp_path / "pairs", "--use_gpu", "false"]
    assert cli.run(lambda: generate_rain.main(list(map(str, words)))) == 0
    rainy, clean = (read_image(tmp_path / "pairs" / kind / "a.png") for kind in ("rain", "norain"))
    assert (rainy >= clean).all() and 0.05 < (rainy.max(2) > clean.max(2) + 5).mean() < 0.6
    image = torch.full((3, 100, 120), 0.2)
    assert (RainAugment(p=1, seed=0)(image) > image).any()


@pytest.mark.parametrize(
    "name, values, near",
    [
        ("angle", (-40, 40), {"abs": 3}),
        ("density", (0.05, 0.4), {"rel": 0.1, "abs": 0.01}),
        ("thickness", (1.5, 5), {"rel": 0.1}),
        ("brightness", (0.06, 0.3), {"rel": 0.1}),
    ],
)
def test_its_knobs(default, quick, name, values, near):
    shower = RainMaker(default).shower(0.5, np.random.RandomState(5))
    for value in values:
        layer = np.minimum(set_knobs(shower, 256, 256, {name: value}).pixels(), 1)
        assert getattr(measure(layer.transpose(2, 0, 1)), name) == pytest.approx(value, **near)


def test_its_pictures_have_one_wind_each(default, quick):
    winds, within = [], []
    for seed in range(6):
        layer = RainMaker(default).layer(256, 256, 0.5, np.random.RandomState(seed)).mean(0).numpy()
        crops = [direction(np.ascontiguousarray(layer[y : y + 128, x : x + 128])) for y in (0, 128) for x in (0, 128)]
        winds.append(direction(layer))
        within += [(angle - winds[-1] + 90) % 180 - 90 for angle in crops]
    assert np.median(np.abs(within)) < 5 and np.std(winds) > 2 * np.median(np.abs(within))


@pytest.mark.parametrize("script", [test_syn_aug, test_spa_aug], ids=["syn", "spa"])
def test_rain_is_removed_without_naming_a_derainer(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clean = photo(120, 160, 0)
    layer = 255 * rain_layer((120, 160), 1, angle=8, length=14, density=0.1)
    write_image(tmp_path / "norain" / "a.png", clean)
    write_image(tmp_path / "rain" / "a.png", (clean + layer).clip(0, 255).astype(np.uint8))
    words = ["--data_path", tmp_path / "rain", "--gt_path", tmp_path / "norain", "--save_path", tmp_path / "out"]
    assert cli.run(lambda: script.main([*map(str, words), "--use_gpu", "false"])) == 0
    assert "derainer_default" in capsys.readouterr().out
    rainy, out = (psnr(to_float(read_image(tmp_path / name / "a.png")), clean / 255) for name in ("rain", "out"))
    assert out > rainy + 3
    folder = Path(script.parse_args([]).model_dir).parent
    folder.mkdir()  # of a training that is not done
    assert folder.parent == tmp_path and cli.run(lambda: script.main([*map(str, words), "--use_gpu", "false"])) == 2
    assert "there is no" in capsys.readouterr().err
