"""The knobs: learned directions against known ones, values that come out as asked, files, refusals."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from common import cli
from common.data.images import read_image, write_image
from common.errors import UserError
from common.generation import controls as c
from common.generation import rain, transform
from common.generation.measures import measure
from common.generation.photos import rain_on_photos
from common.generation.rain import RainMaker
from common.models import EDNet
from tests.conftest import photo
from tests.golden import fill
from tests.standin import DrawnRain


@pytest.fixture(scope="module", autouse=True)
def quick_makers():
    """The stand-in draws slowly; its rain is measured on little."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LEVELLING": 2**16, "SAMPLES": 2**19, "TRIAL": 256}.items():
            patch.setattr(rain, name, value)
        yield


@pytest.fixture(scope="module")
def learned(quick_makers):
    """The stand-in, what was learned of it, what pictures measured, their deviations, what makes its pictures."""
    net = DrawnRain()
    maker = RainMaker(net)
    return net, *c.learn_controls(maker, 1500, 5, 0, tries=3), maker


@pytest.fixture(scope="module")
def maker(learned):
    return learned[-1]


def test_the_directions_are_the_known_ones(learned):
    net, controls, _, _, _ = learned
    cosines = controls.scores @ net.directions.T
    assert (np.diag(cosines)[:2] > 0.98).all() and (np.diag(cosines) > 0.9).all()
    assert all(share > 0.5 for share in controls.explained[:2])


def test_every_knob_turns_its_own_measure_up(learned):
    _, controls, found, _, _ = learned
    ranks = np.diag(c.rank_correlations(found))
    assert ranks[0] > 0.95 and ranks[1] > 0.9 and ranks[2:].min() > 0.8
    low, high = controls.reach(0)
    assert low < -20 and high > 20
    assert all(low < high for low, high in map(controls.reach, range(4)))


def test_knobs_leave_the_other_measures_alone(learned):
    _, _, found, spread, _ = learned
    talk = c.cross_talk(found, spread)
    others = talk[~np.eye(4, dtype=bool)]
    assert np.abs(others).max() < 0.5 * np.diag(talk).min()


@pytest.mark.parametrize(
    "wanted",
    [
        {"angle": 15},
        {"angle": -20},
        {"angle": 45},
        {"density": 0.15},
        {"thickness": 3},
        {"brightness": 0.25},
        {"angle": 10, "density": 0.15},
    ],
)
def test_pictures_get_what_is_asked_for(learned, maker, wanted):
    _, controls, _, _, _ = learned
    asked, reached = c.solved(maker, controls, wanted)
    layers = c.picture_layers(maker, c.steered_to(controls, asked), 8, 77, asked.get("lean", 0.0))
    values = np.array([measure(layer) for layer in layers])
    for name, value in wanted.items():
        k = c.KNOBS.index(name)
        median, most = controls.tolerance[k]
        error = np.abs(values[:, k] - value)
        assert np.median(error) <= 2 * most and median <= most  # the tolerance is of twelve pictures only
        assert abs(reached[name] - value) <= len(wanted) * most


def test_tolerances_are_small_against_the_reach(learned):
    _, controls, _, _, _ = learned
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
    falling = c.Controls(np.eye(4, 5), [1] * 4, curves[:, ::-1].copy(), [1] * 4, [(0, 0)] * 4, "")
    assert falling.place(0, 10) == c.PLACES[0] and falling.place(0, 0) == c.PLACES[-1] and falling.place(0, 5) == 0


def test_beyond_the_reach_is_clamped_with_a_warning(learned):
    _, controls, _, _, _ = learned
    low, high = controls.reach(0)
    values, warnings = c.clamped(controls, {"angle": 80, "density": 0.15})
    assert values == {"angle": high, "density": 0.15} and len(warnings) == 1
    assert "angle 80 is beyond what this generator can do" in warnings[0]
    assert c.clamped(controls, {"angle": low - 1})[0]["angle"] == low


def test_the_reach_is_what_the_monotone_curve_can_give():
    curves = np.tile(np.array([0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0.5]), (4, 1))
    hump = c.Controls(np.eye(4, 5), [1] * 4, curves, [0.1] * 4, [(0, 0)] * 4, "")
    high = hump.reach(1)[1]
    assert high < 3 and c.PLACES[0] <= hump.place(1, high) <= c.PLACES[-1]
    assert hump.reach(0)[1] == high + c.LEAN  # angles are sheared beyond
    values, warnings = c.clamped(hump, {"density": 5.0})
    assert values["density"] == high and len(warnings) == 2 and "hardly learned" in warnings[0]


def test_an_angle_that_codes_hardly_give_is_sheared_alone(learned):
    _, controls, _, _, maker = learned
    curves = controls.curves.copy()
    curves[0] = 0.0
    flat = dataclasses.replace(controls, curves=curves)
    assert flat.reach(0) == (-c.LEAN, c.LEAN)
    codes = torch.randn(5, 8)
    asked, reached = c.solved(maker, flat, {"angle": 20.0})
    assert torch.equal(c.steered_to(flat, asked)(codes), codes) and reached["angle"] == pytest.approx(20, abs=1)
    both = c.begun(flat, {"angle": 20.0, "density": 0.1})
    moved = c.steered_to(flat, both)(codes)
    torch.testing.assert_close(moved, c.steered_to(controls, {"density": 0.1})(codes))


def test_rain_that_vanishes_is_not_called_unchanged():
    found = np.ones((4, len(c.PLACES), 3, 4)) * np.arange(len(c.PLACES))[None, :, None, None]
    found[1, -1, :, 2] = np.nan
    talk = c.cross_talk(found, np.ones(4))
    assert np.isnan(talk[1, 2]) and talk[0, 0] == 10
    known = c.Controls(np.eye(4, 5), [1] * 4, np.ones((4, len(c.PLACES))), [1] * 4, [(0, 0)] * 4, "")
    assert "no rain" in c.report(known, found, np.ones(4), "ED.pt")


def test_files_of_controls(learned, tmp_path):
    net, controls, _, _, _ = learned
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
        {"scores": [[1e300] * 8] * 4},
        {"explained": [1]},
        {"ranks": None},
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match="learn it by"):
            c.load(path, net)
    for text in ("", "[]", "{", "3", "[" * 100000):
        path.write_text(text)
        with pytest.raises(UserError, match="learn it by"):
            c.load(path, net)


def test_the_command_writes_controls_report_picture_and_gifs(learned, tmp_path, monkeypatch, capsys):
    net, controls, found, spread, maker = learned
    monkeypatch.setattr(c, "load_generator", lambda path, flag: net)
    monkeypatch.setattr(c, "RainMaker", lambda netED: maker)
    monkeypatch.setattr(c, "learn_controls", lambda *_: (controls, found, spread))
    words = ["--netED", tmp_path / "ED.pt", "--use_gpu", "false"]
    assert cli.run(lambda: c.main(list(map(str, words)))) == 0
    assert c.load(tmp_path / "ED.controls.json", net).scores.shape == (4, 8)
    printed, text = capsys.readouterr().out, (tmp_path / "ED_controls" / "report.md").read_text()
    assert text in printed and all(f"| {knob} |" in text for knob in c.KNOBS)
    assert read_image(tmp_path / "ED_controls" / "controls.png").std() > 10
    assert all((tmp_path / "ED_controls" / f"{knob}.gif").stat().st_size > 5000 for knob in c.KNOBS)


def test_a_report_of_somebody_else_is_kept(learned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(c, "load_generator", lambda path, flag: learned[0])
    monkeypatch.setattr(c, "RainMaker", lambda netED: learned[-1])
    (tmp_path / "report.md").write_text("my thesis")
    words = ["--netED", str(tmp_path / "ED.pt"), "--out", str(tmp_path), "--use_gpu", "false"]
    assert cli.run(lambda: c.main(words)) == 2
    assert "holds something else" in capsys.readouterr().err and (tmp_path / "report.md").read_text() == "my thesis"


def test_a_generator_without_rain_is_refused(tmp_path, capsys):
    net = fill(EDNet(nz=5, nef=4, patch_size=16), 1)
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
    torch.save(net.state_dict(), tmp_path / "dead.pt")
    words = ["--netED", tmp_path / "dead.pt", "--samples", 200, "--use_gpu", "false"]
    assert cli.run(lambda: c.main(list(map(str, words)))) == 2
    assert "can't be learned" in capsys.readouterr().err and not (tmp_path / "dead.controls.json").exists()


@pytest.fixture
def set_up(learned, tmp_path):
    """A folder with two photos and the controls of the stand-in; and the stand-in."""
    net, controls, _, _, _ = learned
    for k in range(2):
        write_image(tmp_path / "photos" / f"{k}.png", photo(200, 260, k) // 3)
    c.save(controls, tmp_path / "ED.controls.json")
    return tmp_path, net


def rained(folder, net, knobs, out="pairs", **more):
    how = {"num": 1, "seed": 3, "intensity": 1.0, "coherence": 0.5, "grey": False, "save_layer": True}
    how |= {"shard": (1, 1), "overwrite": False, "strict": True} | more
    paths = {"data_path": str(folder / "photos"), "save_path": str(folder / out)}
    return rain_on_photos(netED=net, knobs=knobs, controls=folder / "ED.controls.json", **paths, **how)


def layers_in(folder):
    return [read_image(path).astype(np.float32).transpose(2, 0, 1) / 255 for path in sorted(folder.glob("*.png"))]


def test_photos_get_the_rain_that_is_asked_for(set_up, capsys):
    folder, net = set_up
    assert rained(folder, net, {"angle": 18.0, "density": 0.2}, num=3) == 0
    assert "knobs: pictures of this generator then have angle 1" in capsys.readouterr().out
    values = np.array([measure(layer) for layer in layers_in(folder / "pairs" / "layer")])
    assert np.median(values[:, 0]) == pytest.approx(18, abs=3) and np.median(values[:, 1]) == pytest.approx(
        0.2, abs=0.04
    )
    assert rained(folder, net, {}, "plain", num=3) == 0
    plain = np.array([measure(layer) for layer in layers_in(folder / "plain" / "layer")])
    assert np.ptp(plain[:, 0]) > 2 * np.ptp(values[:, 0])


def test_pairs_of_other_knobs_are_not_mixed(set_up):
    folder, net = set_up
    assert rained(folder, net, {"angle": 18.0}) == 0
    assert rained(folder, net, {"angle": 18.0}) == 0  # goes on
    with pytest.raises(UserError, match="knobs"):
        rained(folder, net, {"angle": 17.0})
    with pytest.raises(UserError, match="knobs"):
        rained(folder, net, {})
    path = folder / "ED.controls.json"  # learned anew: other rain for the same wish
    content = json.loads(path.read_text())
    content["curves"][0][0] -= 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="knobs"):
        rained(folder, net, {"angle": 18.0})
    assert "angle=18" in (folder / "pairs" / "manifest.csv").read_text()


def test_manifests_from_before_the_knobs_are_read(set_up):
    folder, net = set_up
    assert rained(folder, net, {}) == 0
    path = folder / "pairs" / "manifest.csv"
    new = path.read_text()
    path.write_text("\n".join(line.rpartition(",")[0] for line in new.splitlines()) + "\n")
    assert rained(folder, net, {}) == 0
    assert path.read_text() == new


def test_knobs_beyond_reach_warn_and_clamp_and_unknown_ones_say_what_to_do(set_up, capsys):
    folder, net = set_up
    assert rained(folder, net, {"angle": 85.0}) == 0
    assert "warning: --angle 85 is beyond what this generator can do" in capsys.readouterr().err
    with pytest.raises(UserError, match="--intensity: it scales"):
        rained(folder, net, {"density": 0.1}, "scaled", intensity=0.5)
    (folder / "ED.controls.json").unlink()
    with pytest.raises(UserError, match="learn it by: python -m common.generation.controls"):
        rained(folder, net, {"angle": 5.0}, "other")
    assert not (folder / "other").exists()


@pytest.fixture
def augment(set_up, monkeypatch):
    folder, net = set_up
    monkeypatch.setattr(transform, "load_generator", lambda path, flag: net)
    return lambda **how: transform.RainAugment(folder / "ED.pt", p=1, intensity=1, seed=1, **how)


def test_the_transform_turns_the_same_knobs(augment):
    dark = torch.zeros(6, 3, 160, 160)
    angles = np.array([measure(layer).angle for layer in augment(angle=-15, density=0.15)(dark).numpy()])
    assert np.median(angles) == pytest.approx(-15, abs=4)
    ranged = [measure(layer).angle for layer in augment(angle=(-25, 25))(dark.repeat(3, 1, 1, 1)).numpy()]
    assert min(ranged) < -10 and max(ranged) > 10 and min(ranged) > -35 and max(ranged) < 35


def test_the_transform_warns_and_clamps(augment):
    with pytest.warns(UserWarning, match="angle 80 is beyond"):
        assert augment(angle=(0, 80)).knobs["angle"][1] <= c.LEANEST


@pytest.mark.parametrize("how", [{"angle": 91}, {"density": (0.2, 0.1)}, {"thickness": -1}, {"brightness": "x"}])
def test_the_transform_refuses_what_no_rain_has(augment, how):
    with pytest.raises(ValueError, match=f"{next(iter(how))} must be a number from"):
        augment(**how)
