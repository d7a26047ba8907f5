"""Quilting: the cheapest border, every pixel covered, as much rain as in the pool, streaks without bands."""

import itertools

import numpy as np
import pytest

from common.generation.quilt import path, quilt, share_of_new, visible
from tests.drawn import streaks

SIDE, OVERLAP = 48, 16
PITCH = SIDE - OVERLAP


def pool_of(number, rng, fewest=2, most=14):
    """Patches of vertical streaks, of which some have seven times as many as others: (number, SIDE, SIDE, 1)."""
    made = [streaks(SIDE, 0, rng.randint(fewest, most), 2, 40, 0.3, rng) for _ in range(number)]
    return np.stack(made)[..., None]


@pytest.fixture(scope="module")
def made():
    """A pool, and a texture of it."""
    rng = np.random.RandomState(0)
    pool = pool_of(128, rng)
    return pool, quilt(600, 600, pool.copy(), lambda n: pool_of(n, rng), OVERLAP)[..., 0].astype(np.float32)


def never(number):
    raise AssertionError("new patches are asked for")


@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_cheapest_one(seed):
    cost = np.random.RandomState(seed).rand(6, 4).astype(np.float32)
    ways = np.array(list(itertools.product(range(4), repeat=6)))
    ways = ways[(np.abs(np.diff(ways)) <= 1).all(1)]
    sums = cost[np.arange(6), ways].sum(1)
    assert cost[np.arange(6), path(cost)].sum() == pytest.approx(sums.min(), rel=1e-6)
    assert np.array_equal(path(cost), ways[sums.argmin()])


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (48, 48), (49, 80), (100, 131)])
def test_every_pixel_is_covered(size):
    pool = np.linspace(0.2, 0.6, 64, dtype=np.float32)[:, None, None, None] * np.ones((SIDE, SIDE, 2), np.float32)
    texture = quilt(*size, pool, lambda n: np.full((n, SIDE, SIDE, 2), 0.4, np.float32), OVERLAP)
    assert texture.shape == (*size, 2) and texture.dtype == np.float16
    assert texture.min() >= 0.199 and texture.max() <= 0.601  # never black, never the sum of two


def test_a_border_lies_within_the_overlap_and_leaves_no_edge():
    rng = np.random.RandomState(1)
    old, new = (visible(patch) for patch in pool_of(2, rng))
    for above, beside in ((True, True), (True, False), (False, True), (False, False)):
        share = share_of_new(old, new, OVERLAP, above, beside, rng)
        assert (share[OVERLAP * above :, OVERLAP * beside :] == 1).all() and share.min() >= 0
        assert not (above and share[0].any()) and not (beside and share[:, 0].any())
        assert np.abs(np.diff(share, axis=0)).max() < 0.5 and np.abs(np.diff(share, axis=1)).max() < 0.5


def test_as_much_rain_as_in_the_pool(made):
    """Plain squared differences would choose patches of little rain: 20 % less."""
    pool, texture = made
    assert texture.mean() == pytest.approx(pool.mean(), rel=0.06)
    assert (texture > 0.02).mean() == pytest.approx((pool > 0.02).mean(), rel=0.06)
    assert texture.std() == pytest.approx(pool.std(), rel=0.06)


def test_no_bands(made):
    """Patches side by side have 25 times the mean change at a border, streaks that end at one height nine times."""
    for axis in (0, 1):
        change = (np.diff(made[1], axis=axis) ** 2).mean(1 - axis)
        change = change[: len(change) // PITCH * PITCH].reshape(-1, PITCH).mean(0)
        assert change.max() < 2.2 * change.mean()
    bright = made[1].mean(1)[: 600 // PITCH * PITCH].reshape(-1, PITCH).mean(0)
    assert np.abs(bright / bright.mean() - 1).max() < 0.1


@pytest.mark.parametrize("angle", [0, 14])
def test_streaks_run_across_borders(angle):
    """Stripes without ends, at any place: one patch always goes on, and no stripe of the texture has an end."""
    lean = np.tan(np.radians(angle))
    y, x = np.mgrid[:SIDE, :SIDE]
    phases = np.random.RandomState(3).permutation(96) / 8
    pool = np.stack([0.3 * (1 + np.sin((x - lean * y - phase) * np.pi / 6)) / 2 for phase in phases])
    pool = pool[..., None].astype(np.float32)
    texture = quilt(4 * PITCH, SIDE, pool, never, OVERLAP)[..., 0].astype(np.float32)
    phase = np.angle(texture[:, :36] @ np.exp(-1j * np.arange(36) * np.pi / 6))  # of each row
    off = np.angle(np.exp(1j * (phase - phase[0] + lean * np.arange(len(phase)) * np.pi / 6)))
    assert np.abs(off).max() * 6 / np.pi < 1  # px


def test_patches_that_nobody_wants_stay_black():
    pool, asked = np.full((64, SIDE, SIDE, 1), 0.5, np.float32), []

    def wanted(top, left):
        asked.append((top, left))
        return left >= 2 * PITCH

    texture = quilt(4 * PITCH + OVERLAP, 4 * PITCH + OVERLAP, pool, never, OVERLAP, wanted)[..., 0]
    assert (texture[:, : 2 * PITCH] == 0).all() and (texture[:, 2 * PITCH :] == 0.5).all()
    assert asked == [(i * PITCH, j * PITCH) for i in range(4) for j in range(4)]


def test_a_patch_is_used_once_and_replaced():
    count = itertools.count(1)
    pool = np.stack([np.full((SIDE, SIDE, 1), 2.0 ** -(k % 8) + 0.01 * k, np.float32) for k in range(16)])
    begun, brought = pool.copy(), []

    def fresh(number):
        brought.extend(range(number))
        return np.stack([np.full((SIDE, SIDE, 1), 3.0 + next(count), np.float32) for _ in range(number)])

    texture = quilt(OVERLAP + 5 * PITCH, OVERLAP + 4 * PITCH, pool, fresh, OVERLAP)[..., 0]
    middles = texture[OVERLAP + PITCH // 2 - 8 :: PITCH, OVERLAP + PITCH // 2 - 8 :: PITCH][:5, :4]
    assert len(np.unique(middles)) == 20  # each patch once
    assert len(brought) == 16 and (pool != begun).any((1, 2, 3)).sum() <= 16  # after every fourth one
