"""Rain of any size: what the windows keep, seams, statistics, sizes, repeatability."""

import os

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.generation.rain import (
    RAINY,
    RainMaker,
    central_half,
    draw_codes,
    grey_of,
    leaning,
    room,
    sampled,
    wavering,
)
from common.models import EDNet
from common.training.checkpoint import load_generator
from tests.golden import fill


def uneven():
    """A generator whose rain is three times stronger on one side of the patch than on the other."""
    net = fill(EDNet(nz=16, nef=8), 4)
    with torch.no_grad():
        net.decoder.main[3].weight *= torch.linspace(0.4, 1.4, 4)[:, None] * torch.linspace(0.6, 1.2, 4)
    return net


def user_generator():
    path = os.environ.get("VRGNET_ED")
    if not path:
        pytest.skip("VRGNET_ED does not name the file of a trained generator")
    return load_generator(path, "VRGNET_ED")


GENERATORS = {
    "random weights": lambda: fill(EDNet(nz=16, nef=8), 4),
    "uneven": uneven,
    "256 px": lambda: fill(EDNet(nz=16, nef=4, patch_size=256), 5),
    "trained": user_generator,
}


@pytest.fixture(scope="module", params=GENERATORS)
def maker(request):
    made = RainMaker(GENERATORS[request.param]())
    made.name = request.param
    return made


@pytest.fixture(scope="module")
def small():
    return RainMaker(fill(EDNet(nz=8, nef=4, patch_size=16), 6))


def rng(seed=0):
    return np.random.RandomState(seed)


def energy(layer, period, axis):
    """Mean squared difference of neighbours by their place modulo the period; the last place is the seam."""
    squares = np.moveaxis((np.diff(layer, axis=axis) ** 2).mean(0), axis - 1, 0).mean(1)
    return squares[: len(squares) // period * period].reshape(-1, period).mean(0)


@pytest.mark.parametrize("height, width", [(321, 481), (1080, 1920), (2000, 3000)])
def test_no_seams(maker, height, width):
    number = max(1, 5_000_000 // (height * width))  # small pictures tell less each
    layers = [maker.layer(height, width, 0.5, rng(k)).numpy() for k in range(number)]
    for axis in (1, 2):
        place = np.mean([energy(layer, maker.netED.patch_size, axis) for layer in layers], 0)
        seam, others = place[-1], place[:-1]
        if maker.netED.patch_size > 64:  # a picture holds too few of them to tell more
            assert others.min() < seam < others.max()
        else:
            assert 0.9 < seam / others.mean() < 1.1
        pitch = np.mean([energy(layer, maker.pitch, axis) for layer in layers], 0)  # windows meet at some of these
        if maker.name in ("random weights", "uneven"):  # rain of others may be finer at the rim, though as bright
            assert pitch.min() / pitch.mean() > 0.75 and pitch.max() / pitch.mean() < 1.3


def test_statistics_are_those_of_the_centre_of_patches(maker):
    codes = draw_codes(2048 if maker.netED.patch_size < 256 else 512, np.zeros(maker.netED.nz), 0, rng(1))
    centre = central_half(sampled(maker.netED, codes)).numpy()
    layers = np.concatenate([maker.layer(1000, 1000, 0, rng(k)).numpy().reshape(3, -1) for k in (2, 3, 4)], 1)
    assert layers.mean() == pytest.approx(centre.mean(), rel=0.05)
    assert layers.std() == pytest.approx(centre.std(), rel=0.05)
    assert (layers.max(0) > RAINY).mean() == pytest.approx((centre.max(1) > RAINY).mean(), rel=0.05)


def test_windows_keep_the_mean_and_the_variance_about_it(small):
    # Noise in place of patches: what comes out must be as strong everywhere.
    number, size = 4000, small.side
    parts = torch.from_numpy(rng().standard_normal((number, 1, size, small.overlap)).astype(np.float32))
    for band in (small._faded(parts, parts.flip(0), size, rng(1)), parts):
        variance = band.pow(2).mean((0, 1))
        assert variance.mean() == pytest.approx(1, abs=0.01) and variance.min() > 0.9 and variance.max() < 1.1
        assert band.mean().abs() < 0.01
    waves = wavering(50, 100, 3, 8, rng())
    assert np.abs(waves).max() <= 3 and waves.std() > 1 and np.abs(np.diff(waves)).max() < 2


def test_a_picture_within_a_patch_is_the_patch(maker):
    p = maker.netED.patch_size
    for height, width in ((p, p), (p - 1, 5), (1, 1)):
        draw = rng(3)
        shared = draw.standard_normal(maker.netED.nz)
        with torch.no_grad():
            patch = maker.netED.sample(draw_codes(1, shared, 0.5, draw))[0, :, :height, :width]
        assert torch.allclose(maker.layer(height, width, 0.5, rng(3)), patch, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (63, 65), (64, 64), (17, 16), (481, 321), (24, 25)])
def test_sizes(small, size):
    layer = small.layer(*size, 0.5, rng(1))
    assert layer.shape == (3, *size) and layer.min() >= 0 and torch.isfinite(layer).all()
    assert torch.equal(layer, small.layer(*size, 0.5, rng(1)))
    if min(size) > 20:
        assert not torch.equal(layer, small.layer(*size, 0.5, rng(2)))


def test_tiles_cover_the_picture_once_and_are_small(small):
    for height, width in ((90, 40), (40, 90), (64, 64)):
        seen = np.zeros((height, width), int)
        for rows, columns, tile in small.tiles(height, width, 0.5, rng()):
            seen[rows, columns] += 1
            assert tile.shape == (3, *seen[rows, columns].shape) and min(tile.shape[1:]) <= small.side
        assert (seen == 1).all()


def test_rain_falls_the_same_way_in_upright_and_lying_pictures():
    net = fill(EDNet(nz=8, nef=4, patch_size=16), 6)
    with torch.no_grad():
        net.decoder.main[-2].weight[:] = net.decoder.main[-2].weight.abs().mean((2, 3), keepdim=True)
        net.decoder.main[-2].weight[..., 0::2] *= 0.1  # vertical stripes
    striped = RainMaker(net)
    for size in ((60, 200), (200, 60), (16, 16)):
        layer = striped.layer(*size, 0, rng()).numpy()
        along, across = (np.mean(np.diff(layer, axis=axis) ** 2) for axis in (1, 2))
        assert across > 1.5 * along, size


def test_coherence_makes_one_rain_out_of_many_codes():
    shared = rng(5).standard_normal(4000)
    for coherence in (0, 0.5, 1):
        codes = draw_codes(30, shared, coherence, rng(6)).numpy()
        assert codes.std() == pytest.approx(1, abs=0.03)
        assert np.corrcoef(codes)[np.triu_indices(30, 1)].mean() == pytest.approx(coherence, abs=0.03)


def test_a_generator_that_makes_no_rain_makes_no_rain():
    net = EDNet(nz=8, nef=4, patch_size=16)
    for parameter in net.decoder.parameters():
        parameter.data.zero_()
    assert RainMaker(net).layer(100, 60, 0.5, rng()).abs().max() == 0


def test_a_generator_that_overflows_is_refused():
    net = EDNet(nz=8, nef=4, patch_size=16)
    for parameter in net.decoder.parameters():
        parameter.data.fill_(1e20)
    with pytest.raises(UserError, match="not finite"):
        RainMaker(net)


def test_grey_is_the_strongest_channel():
    layer = torch.rand(3, 4, 5)
    assert torch.equal(grey_of(layer), torch.stack([layer.amax(0)] * 3))


@pytest.mark.parametrize("lean", [1.0, -1.0, 0.25, -0.6])
def test_a_sheared_layer_is_its_rows_moved(small, lean):
    height, width = 50, 33
    wide = torch.arange(float(width + room(lean, height))).expand(3, height, -1)  # each pixel says its column
    moved = leaning(wide, 0, height, width, lean)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    start = lean * (height - 1 - y) if lean > 0 else -lean * y
    assert moved.shape == (3, height, width) and torch.allclose(moved[0], x + start, atol=1e-4)
    parts = torch.cat([leaning(wide[:, a : a + 10], a, height, width, lean) for a in range(0, height, 10)], 1)
    assert torch.equal(parts, moved)  # band by band as at once


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (70, 3), (16, 16), (90, 200)])
def test_sheared_layers_of_any_size(small, size):
    layer = small.layer(*size, 0.5, rng(1), lean=0.4)
    assert layer.shape == (3, *size) and layer.min() >= 0 and torch.isfinite(layer).all()
    assert torch.equal(layer, small.layer(*size, 0.5, rng(1), lean=0.4))
