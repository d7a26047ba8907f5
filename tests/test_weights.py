"""The generator that comes with the project: whole, small, found by its word, and better than procedural rain."""

import csv

import numpy as np
import pytest
import torch

from common import cli, weights
from common.data.images import read_image, write_image
from common.generation import RainAugment, controls
from common.generation.measures import measure
from common.generation.rain import RainMaker
from common.training.checkpoint import load_generator
from for_spa import generate_rain as spa
from for_syn import generate_rain, test_disentanglement, test_interpolation, train_syn_aug
from tests.conftest import photo

CARD = weights.GENERATOR.with_name("README.md")


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


def test_rain_without_naming_a_generator(tmp_path, quick):
    write_image(tmp_path / "photos" / "a.png", photo(321, 481, 0) // 2)
    words = ["--data_path", tmp_path / "photos", "--save_path", tmp_path / "pairs", "--use_gpu", "false"]
    assert cli.run(lambda: generate_rain.main(list(map(str, words)))) == 0
    rainy, clean = (read_image(tmp_path / "pairs" / kind / "a.png") for kind in ("rain", "norain"))
    assert (rainy >= clean).all() and 0.05 < (rainy.max(2) > clean.max(2) + 5).mean() < 0.6
    image = torch.full((3, 100, 120), 0.2)
    assert (RainAugment(p=1, seed=0)(image) > image).any()


def test_its_knobs_are_learned_and_turn_its_rain(default):
    learned = controls.load(controls.path_of(weights.GENERATOR), default)
    maker = RainMaker(default)
    for wanted in (-20.0, 20.0):
        asked, _ = controls.solved(maker, learned, {"angle": wanted})
        layers = controls.picture_layers(maker, controls.steered_to(learned, asked), 8, 5, asked["lean"])
        assert np.median([measure(layer).angle for layer in layers]) == pytest.approx(wanted, abs=3)
    for name in ("density", "brightness"):
        k, medians = controls.KNOBS.index(name), []
        low, high = learned.reach(k)
        for value in (low, high):
            layers = controls.picture_layers(maker, controls.steered_to(learned, {name: value}), 8, 5)
            medians.append(np.median([measure(layer)[k] for layer in layers]))
        assert medians[1] - medians[0] > 0.5 * (high - low), name


def test_its_card_says_what_was_measured():
    text = CARD.read_text()
    for word in ("research", "seed", "commit", "steps", "procedural", "two halves", "rank correlation", "cross-talk"):
        assert word in text.lower(), word
    rows = {row["rain"]: float(row["distance"]) for row in csv.DictReader((CARD.parent / "distance.csv").open())}
    ours = [value for name, value in rows.items() if name.startswith(weights.GENERATOR.name)]
    assert len(ours) == 2 and max(ours) < min(v for name, v in rows.items() if name.startswith("procedural"))
    assert all(f"{value:.1f}" in text for value in ours)
    for name in ("samples.png", "photos.jpg", "controls.png"):
        assert read_image(CARD.parent / name).std() > 5
