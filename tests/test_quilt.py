"""Quilting: the cheapest border, every pixel covered, as much rain as in the pool, streaks without bands."""

import itertools

import numpy as np
import pytest

from common.generation.quilt import USES, path, places, quilt, shares_of_new, visible
from tests.drawn import streaks

SIDE = 52


def pool_of(number, rng, fewest=2, most=14):
    """Patches of vertical streaks, of which some have seven times as many as others: (number, 1, SIDE, SIDE, 1)."""
    made = [streaks(SIDE, 0, rng.randint(fewest, most), 2, 40, 0.3, rng) for _ in range(number)]
    return np.stack(made)[:, None, ..., None]


def rng(seed=0):
    return np.random.RandomState(seed)


@pytest.fixture(scope="module")
def made():
    """A pool, and a texture of it."""
    chance = rng()
    pool = pool_of(128, chance)
    return pool, quilt(600, 600, lambda: pool, chance)[..., 0].astype(np.float32)


def comb(layer, axis, period):
    """How alike sums over an axis are a period apart, more than half a period apart; a grid has 0.3 to 1."""
    sums = layer.sum(axis, dtype=np.float64)
    sums -= np.convolve(np.pad(sums, 64, mode="edge"), np.ones(129) / 129, "valid")

    def alike(shift):
        return (sums[:-shift] * sums[shift:]).mean() / (sums**2).mean()

    return np.mean([alike(period * k) - alike(period * k - period // 2) for k in range(1, 9)])


@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_cheapest_one(seed):
    costs = rng(seed).rand(3, 6, 4).astype(np.float32)
    ways = np.array(list(itertools.product(range(4), repeat=6)))
    ways = ways[(np.abs(np.diff(ways)) <= 1).all(1)]
    for cost, found in zip(costs, path(costs), strict=True):
        assert np.array_equal(found, ways[cost[np.arange(6), ways].sum(1).argmin()])


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (48, 48), (49, 80), (100, 131)])
def test_every_pixel_is_covered(size):
    pool = np.linspace(0.2, 0.6, 64, dtype=np.float32)[:, None, None, None, None] * np.ones((2, SIDE, SIDE, 2), "f4")
    for seed in range(20):
        texture = quilt(*size, lambda: pool, rng(seed))
        assert texture.shape == (*size, 2) and texture.dtype == np.float16
        assert texture.min() >= 0.199 and texture.max() <= 0.601  # never black, never the sum of two


def test_a_border_lies_within_the_overlap_and_leaves_no_edge():
    old, new = visible(pool_of(8, rng(1)))[:, 0].reshape(2, 4, SIDE, SIDE)
    overlaps = np.array([[16, 16], [28, 0], [0, 12], [0, 0]])
    for share, (above, beside) in zip(shares_of_new(old, new, *overlaps.T, rng()), overlaps, strict=True):
        assert (share[above:, beside:] == 1).all() and share.min() >= 0
        assert not (above and share[0].any()) and not (beside and share[:, 0].any())
        assert np.abs(np.diff(share, axis=0)).max() < 0.5 and np.abs(np.diff(share, axis=1)).max() < 0.5


def test_groups_of_patches_do_not_touch_and_come_after_their_neighbours():
    """In each place, whatever is to its left or above and touches it is there before."""
    for seed in range(5):
        groups = list(places(400, 300, SIDE, rng(seed)))
        order = np.concatenate([np.full(len(group), k) for k, group in enumerate(groups)])
        tops, lefts, above, beside = np.concatenate(groups).T
        for k, (top, left) in enumerate(zip(tops, lefts, strict=True)):
            touch = (np.abs(tops - top) < SIDE) & (np.abs(lefts - left) < SIDE)
            touch[k] = False
            earlier = (tops + SIDE // 5 < top) | (np.abs(tops - top) <= SIDE // 5) & (lefts < left)
            assert (order[touch & earlier] < order[k]).all() and (order[touch & ~earlier] > order[k]).all()
        assert above.max() <= 29 and beside.max() <= 28 and len(set(beside)) > 5


def test_as_much_rain_as_in_the_pool(made):
    """Plain squared differences would choose patches of little rain: 20 % less."""
    pool, texture = made
    assert texture.mean() == pytest.approx(pool.mean(), rel=0.08)
    assert (texture > 0.02).mean() == pytest.approx((pool > 0.02).mean(), rel=0.08)
    assert texture.std() == pytest.approx(pool.std(), rel=0.08)


def test_no_grid_and_no_bands():
    """Patches whose rain is denser in the middle: the grid of a fixed distance would show."""
    chance = rng(2)
    pool = pool_of(64, chance) * (0.5 + np.hanning(SIDE))[:, None, None].astype(np.float32)
    found = []
    for seed in range(4):
        texture = quilt(600, 600, lambda: pool, rng(seed))[..., 0].astype(np.float32)
        found.append([comb(texture, axis, period) for period in (26, 32, 36) for axis in (0, 1)])
    assert np.abs(np.mean(found, 0)).max() < 0.08  # with a fixed distance of 32 px: 0.5


@pytest.mark.parametrize("angle", [0, 14])
def test_streaks_run_across_borders(angle):
    """Stripes without ends, at any place: one patch always goes on, and no stripe of the texture has an end."""
    lean = np.tan(np.radians(angle))
    y, x = np.mgrid[:SIDE, :SIDE]
    phases = rng(3).permutation(96) / 8
    pool = np.stack([0.3 * (1 + np.sin((x - lean * y - phase) * np.pi / 6)) / 2 for phase in phases])
    pool = pool[:, None, ..., None].astype(np.float32)
    texture = quilt(160, SIDE, lambda: pool, rng(4))[..., 0].astype(np.float32)
    phase = np.angle(texture[:, :36] @ np.exp(-1j * np.arange(36) * np.pi / 6))  # of each row
    off = np.angle(np.exp(1j * (phase - phase[0] + lean * np.arange(len(phase)) * np.pi / 6)))
    assert np.abs(off).max() * 6 / np.pi < 1  # px


def test_patches_that_nobody_wants_stay_black():
    pool = np.full((64, 1, SIDE, SIDE, 1), 0.5, np.float32)
    texture = quilt(150, 250, lambda: pool, rng(), lambda tops, lefts: lefts >= 100)[..., 0]
    assert (texture[:, :100] == 0).all() and (texture[:, 100 + SIDE :] == 0.5).all()


def test_a_large_texture_asks_for_new_patches(monkeypatch):
    """No patch comes again soon, none more than USES times."""
    monkeypatch.setattr("common.generation.quilt.SOFT", 1e-3)
    count, brought = itertools.count(1), []

    def fresh():
        brought.append([np.full((1, SIDE, SIDE, 1), 0.05 * next(count), np.float32) for _ in range(16)])
        return np.stack(brought[-1])

    texture = quilt(600, 400, fresh, rng(5))[..., 0]
    values, share = np.unique(texture, return_counts=True)
    used = values[share > 300]  # not those of a blend across a border
    assert len(brought) >= 3 and 14 * (len(brought) - 1) <= len(used) <= 16 * len(brought)
    assert share.max() < 2 * USES * 36**2
