"""The knobs: learned directions against known ones, values that come out as asked, files, refusals."""

import json

import numpy as np
import pytest
import torch

from common import cli
from common.data.images import read_image
from common.errors import UserError
from common.generation import controls as c
from common.generation.measures import measure
from common.generation.rain import RainMaker
from common.models import EDNet
from tests.golden import fill
from tests.standin import DrawnRain


@pytest.fixture(scope="module")
def learned():
    """The stand-in, what was learned of it, what pictures measured, their deviations."""
    net = DrawnRain()
    return net, *c.learn_controls(net, 1500, 6, 0, tries=3)


@pytest.fixture(scope="module")
def maker(learned):
    return RainMaker(learned[0])


def test_the_directions_are_the_known_ones(learned):
    net, controls, _, _ = learned
    cosines = controls.scores @ net.directions.T
    assert (np.diag(cosines)[:2] > 0.98).all() and (np.diag(cosines) > 0.9).all()
    assert all(share > 0.5 for share in controls.explained[:2])


def test_every_knob_turns_its_own_measure_up(learned):
    _, controls, found, _ = learned
    ranks = np.diag(c.rank_correlations(found))
    assert ranks[0] > 0.95 and ranks[1] > 0.9 and ranks[2:].min() > 0.8
    low, high = controls.reach(0)
    assert low < -20 and high > 20
    assert all(low < high for low, high in map(controls.reach, range(4)))


def test_knobs_leave_the_other_measures_alone(learned):
    _, _, found, spread = learned
    talk = c.cross_talk(found, spread)
    others = talk[~np.eye(4, dtype=bool)]
    assert np.abs(others).max() < 0.5 * np.diag(talk).min()


@pytest.mark.parametrize(
    "wanted",
    [
        {"angle": 15},
        {"angle": -20},
        {"density": 0.2},
        {"thickness": 3},
        {"brightness": 0.25},
        {"angle": 10, "density": 0.15},
    ],
)
def test_pictures_get_what_is_asked_for(learned, maker, wanted):
    _, controls, _, _ = learned
    steer, reached = c.solved(maker, controls, wanted)
    values = np.array([measure(layer) for layer in c.picture_layers(maker, steer, 8, 77)])
    for name, value in wanted.items():
        k = c.KNOBS.index(name)
        median, most = controls.tolerance[k]
        error = np.abs(values[:, k] - value)
        assert np.median(error) <= most + 1e-9 and median <= most
        assert abs(reached[name] - value) <= max(most, 0.02 * abs(value))


def test_tolerances_are_small_against_the_reach(learned):
    _, controls, _, _ = learned
    for k, share in ((0, 0.1), (1, 0.2), (2, 0.3), (3, 0.3)):
        low, high = controls.reach(k)
        assert 0 < controls.tolerance[k][0] < share * (high - low), c.KNOBS[k]


def test_steering_moves_its_own_score_alone():
    scores = np.random.RandomState(0).standard_normal((4, 9))
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    codes = torch.randn(50, 9)
    moved = c.steering(scores, [2, 0], [1.5, -2.0])(codes)
    b = torch.from_numpy(scores.astype(np.float32))
    before, after = codes @ b.T, moved @ b.T
    torch.testing.assert_close(after[:, [1, 3]], before[:, [1, 3]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[:, [2, 0]], torch.tensor([[1.5, -2.0]]).expand(50, 2), rtol=1e-4, atol=1e-4)


def test_regression_finds_a_known_direction_through_any_rising_curve():
    rng = np.random.RandomState(0)
    codes, known = rng.standard_normal((2000, 12)), rng.standard_normal(12)
    known /= np.linalg.norm(known)
    values = np.exp(3 * codes @ known)
    values[::7] = np.nan
    direction, share = c.regress(codes, values)
    assert direction @ known > 0.99 and share > 0.97
    assert c.regress(codes, rng.standard_normal(2000))[1] < 0.05


def test_curves_are_made_monotone_and_gaps_filled():
    found = np.full((4, len(c.PLACES), 3, 4), np.nan)
    found[..., :] = np.arange(len(c.PLACES), dtype=float)[None, :, None, None]
    found[0, 3:5] = np.nan
    found[1, 4, :, 1] = 9
    curves = c.curves_of(found)
    assert curves[0].tolist() == list(range(len(c.PLACES)))
    rising = c._rising(curves[1])
    assert (np.diff(rising) >= 0).all() and rising[0] == 0 and rising[-1] == 10
    falling = c.Controls(np.eye(4, 5), [1] * 4, curves[:, ::-1].copy(), [(0, 0)] * 4, "")
    assert falling.place(0, 10) == c.PLACES[0] and falling.place(0, 0) == c.PLACES[-1] and falling.place(0, 5) == 0


def test_beyond_the_reach_is_clamped_with_a_warning(learned):
    _, controls, _, _ = learned
    low, high = controls.reach(0)
    values, warnings = c.clamped(controls, {"angle": 80, "density": 0.15})
    assert values == {"angle": high, "density": 0.15} and len(warnings) == 1
    assert "angle 80 is beyond what this generator can do" in warnings[0]
    assert c.clamped(controls, {"angle": low - 1})[0]["angle"] == low


def test_files_of_controls(learned, tmp_path):
    net, controls, _, _ = learned
    path = c.path_of(tmp_path / "ED_state_7.pt")
    assert path.name == "ED_state_7.controls.json"
    with pytest.raises(UserError, match="python -m common.generation.controls --netED .*ED_state_7.pt"):
        c.load(path, net)
    c.save(controls, path)
    again = c.load(path, net)
    np.testing.assert_allclose(again.scores, controls.scores, atol=1e-5)
    assert again.tolerance == [tuple(round(v, 20) for v in pair) for pair in controls.tolerance]
    content = json.loads(path.read_text())
    for change in (
        {"fingerprint": "0" * 64},
        {"scores": [[0.0] * 8] * 4},
        {"curves": [[1, 2]] * 4},
        {"tolerance": "x"},
        {"knobs": ["angle"]},
        {"vrgnet_controls": 99},
        {"scores": [["a"] * 8] * 4},
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match="learn it by"):
            c.load(path, net)
    for text in ("", "[]", "{", "3"):
        path.write_text(text)
        with pytest.raises(UserError, match="learn it by"):
            c.load(path, net)


def test_the_command_writes_controls_report_picture_and_gifs(tmp_path, monkeypatch, quick, capsys):
    net = DrawnRain()
    monkeypatch.setattr(c, "load_generator", lambda path, flag: net)
    words = ["--netED", tmp_path / "ED.pt", "--samples", 400, "--pictures", 2, "--use_gpu", "false"]
    assert cli.run(lambda: c.main(list(map(str, words)))) == 0
    assert c.load(tmp_path / "ED.controls.json", net).scores.shape == (4, 8)
    printed, text = capsys.readouterr().out, (tmp_path / "ED_controls" / "report.md").read_text()
    assert text in printed and all(f"| {knob} |" in text for knob in c.KNOBS)
    assert read_image(tmp_path / "ED_controls" / "controls.png").std() > 10
    assert all((tmp_path / "ED_controls" / f"{knob}.gif").stat().st_size > 5000 for knob in c.KNOBS)


def test_a_generator_without_rain_is_refused(tmp_path, capsys):
    net = fill(EDNet(nz=5, nef=4, patch_size=16), 1)
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
    torch.save(net.state_dict(), tmp_path / "dead.pt")
    words = ["--netED", tmp_path / "dead.pt", "--samples", 200, "--use_gpu", "false"]
    assert cli.run(lambda: c.main(list(map(str, words)))) == 2
    assert "can't be learned" in capsys.readouterr().err and not (tmp_path / "dead.controls.json").exists()
