"""Rain of any size: parts and the whole, turn and scale, sizes, repeatability, one wind."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.generation import rain
from common.generation.measures import direction, measure
from common.generation.rain import Layer, RainMaker, auto_scale, draw_codes
from common.models import EDNet
from tests.drawn import Drawer, streaks
from tests.golden import fill

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def small():
    return RainMaker(fill(EDNet(nz=8, nef=4, patch_size=16), 6))


@pytest.fixture(scope="module")
def source():
    """Streaks on black: (260, 300, 1) float16."""
    return streaks(300, 10, 80, 3, 60, 0.5, np.random.RandomState(0))[:260, :, None].astype(np.float16)


def rng(seed=0):
    return np.random.RandomState(seed)


def angle_of(layer):
    return direction(np.ascontiguousarray(layer.mean(2), np.float32))


def far(a, b):
    """Degrees between two lines."""
    return np.abs((np.asarray(a) - b + 90) % 180 - 90)


@pytest.mark.parametrize("turn, scale, gain", [(0, 1, 0.5), (25, 1, 1), (-8, 1.7, 2), (0, 0.8, 1)])
def test_parts_are_those_of_the_whole(source, turn, scale, gain, monkeypatch):
    layer = Layer(source, 120, 140, turn, scale, gain)
    whole = layer.tile(0, 0, 120, 140)
    assert whole.max() > 0.2 and whole.min() >= 0
    for top, left, height, width in ((0, 0, 1, 1), (37, 51, 40, 30), (119, 139, 1, 1), (60, 0, 60, 140)):
        part = layer.tile(top, left, height, width)
        # OpenCV samples at places of 1/32 px; where two are as near, a part may take the other one
        assert np.abs(part - whole[top : top + height, left : left + width]).max() <= (
            0.03 if turn or scale != 1 else 0
        )
    monkeypatch.setattr(rain, "TILE", 50)
    seen = np.zeros((120, 140), int)
    for rows, columns, tile in layer.tiles():
        seen[rows, columns] += 1
        assert tile.shape[:2] == seen[rows, columns].shape and max(tile.shape) <= 50
    assert (seen == 1).all() and np.abs(layer.pixels() - whole).max() <= (0.03 if turn or scale != 1 else 0)


def test_a_layer_that_is_neither_turned_nor_scaled_is_its_source(source):
    assert np.array_equal(Layer(source, 260, 300).pixels(), source.astype(np.float32))
    assert np.array_equal(Layer(source, 200, 240, gain=0.5).pixels(), source[30:230, 30:270].astype(np.float32) / 2)


@pytest.mark.parametrize("turn", [-40, 15])
@pytest.mark.parametrize("scale", [1, 2])
def test_turn_and_scale(source, turn, scale):
    """A positive turn moves the lower ends of the streaks, which lean by 10 degrees, to the right."""
    before, after = (
        measure(Layer(source, 150, 150, t, s).pixels().transpose(2, 0, 1)) for t, s in ((0, 1), (turn, scale))
    )
    assert after.angle == pytest.approx(before.angle + turn, abs=2)
    assert after.thickness == pytest.approx(before.thickness * scale, rel=0.05)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (63, 65), (16, 16), (110, 130), (3, 400)])
@pytest.mark.parametrize("turn, scale", [(0, 1), (33, 1), (-80, 2.5)])
def test_sizes(small, size, turn, scale):
    layer = small.shower(0.5, rng(1)).layer(*size, turn, scale).pixels()
    assert layer.shape == (*size, 3) and layer.min() >= 0 and np.isfinite(layer).all()
    if min(size) > 20:
        edges = [layer[0], layer[-1], layer[:, 0], layer[:, -1]]
        inside = layer.mean()
        assert all(0.6 < edge.mean() / inside < 1.6 for edge in edges)  # no empty corners


def test_the_same_seed_gives_the_same_bytes(small):
    one, again, other = (small.layer(70, 50, 0.5, rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (3, 70, 50) and torch.equal(one, again) and not torch.equal(one, other)
    shower = small.shower(0.5, rng(1))
    first, second = shower.layer(70, 50).pixels(), shower.layer(70, 50).pixels()
    assert torch.equal(torch.from_numpy(first).permute(2, 0, 1), one)
    assert not np.array_equal(first, second)  # two layers of one rain


def test_one_picture_has_one_wind_and_pictures_differ():
    """Streaks of G lean by 20 degrees more or less (standard deviation), within a picture as well."""
    maker, winds, within, natural = RainMaker(Drawer(spread=20)), [], [], []
    for seed in range(12):
        shower = maker.shower(0.5, rng(seed))
        layer = shower.layer(192, 192).pixels()
        crops = [angle_of(layer[y : y + 64, x : x + 64]) for y in range(0, 192, 64) for x in range(0, 192, 64)]
        within += list(far(crops, shower.wind))
        winds.append(angle_of(layer))
        assert far(winds[-1], shower.wind) < 3.5
        drawn, _ = shower._drawn()
        natural += list(far([angle_of(patch) for patch in drawn], shower.wind))
    assert np.median(within) < 2 and np.quantile(within, 0.9) < 5
    assert np.median(natural) > 8  # what it would be without being turned
    assert np.std(winds) > 12


def test_the_rain_is_as_strong_as_that_of_the_generator(monkeypatch):
    monkeypatch.setattr(rain, "POOL", 256)  # a choice of few would be another rain
    maker, found = RainMaker(Drawer(spread=10)), []
    for seed in range(5):
        shower = maker.shower(0.5, rng(seed))
        layer = shower.layer(256, 256).pixels()
        found.append((layer.mean() / shower.pool.mean(), (layer > 0.02).mean() / (shower.pool > 0.02).mean()))
    assert np.mean(found, 0) == pytest.approx([1, 1], abs=0.08) and np.abs(np.array(found) - 1).max() < 0.3


def test_streaks_of_large_pictures_are_larger():
    assert [auto_scale(*size) for size in ((1, 1), (321, 481), (512, 900), (3000, 4000))] == [(1, 1)] * 3 + [
        ((3000 / 512) ** 0.5,) * 2
    ]
    shower = RainMaker(Drawer(spread=0)).shower(1, rng(3))
    once, twice = (measure(shower.layer(200, 200, scale=s).pixels().transpose(2, 0, 1)).thickness for s in (1, 2))
    assert twice == pytest.approx(2 * once, rel=0.05)


def test_stretch_makes_streaks_longer_and_not_wider():
    """Along the wind, whichever it is; the source is large enough."""
    y, x = np.mgrid[:600, :600].astype(np.float32)
    for wind in (0, 25):
        turn = np.radians(wind)
        across = (x - 300) * np.cos(turn) - (y - 300) * np.sin(turn)
        along = (x - 300) * np.sin(turn) + (y - 300) * np.cos(turn)
        one = (np.exp2(-((across / 2) ** 2)) * (np.abs(along) < 30))[..., None].astype(np.float16)
        for stretch in (1, 3):
            layer = Layer(one, 300, 300, scale=1.5, stretch=stretch, wind=wind)
            assert layer.least_scale() < 1.5
            made = layer.pixels()[..., 0]
            assert direction(made) == pytest.approx(wind, abs=1)
            assert made.sum() / one.sum(dtype=float) == pytest.approx(1.5**2 * stretch, rel=0.03)
            assert measure(made).thickness == pytest.approx(6, rel=0.06)


def test_coherence_makes_one_rain_out_of_many_codes():
    shared = rng(5).standard_normal(4000)
    for coherence in (0, 0.5, 1):
        codes = draw_codes(30, shared, coherence, rng(6)).numpy()
        assert codes.std() == pytest.approx(1, abs=0.03)
        assert np.corrcoef(codes)[np.triu_indices(30, 1)].mean() == pytest.approx(coherence, abs=0.03)


def test_a_generator_that_overflows_is_refused():
    net = EDNet(nz=8, nef=4, patch_size=16)
    for parameter in net.decoder.parameters():
        parameter.data.fill_(1e20)
    with pytest.raises(UserError, match="not finite"):
        RainMaker(net)
