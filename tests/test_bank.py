"""The bank of layers from which RainAugment and trainings cut their rain."""

import numpy as np
import pytest

from common.generation import bank
from common.generation.bank import LAYERS, RainBank
from common.generation.measures import direction
from common.generation.rain import RainMaker
from tests.drawn import Drawer

pytestmark = pytest.mark.usefixtures("quick")


def made(seed=1, **knobs):
    return RainBank(RainMaker(Drawer(spread=25)), 120, [seed], knobs)


def crop(of, crops=0, seed=0, side=40):
    return of.crop(side, side, crops, np.random.RandomState(seed))


def test_what_it_holds_depends_on_the_number_of_crops_alone(monkeypatch):
    monkeypatch.setattr(bank, "EARLY", 2)
    monkeypatch.setattr(bank, "LATE", 3)
    numbers = [RainBank.number(crops) for crops in range(60)]
    assert numbers[:5] == [2, 2, 3, 3, 4] and numbers[44:50] == [24, 24, 24, 25, 25, 25]
    old, new = made(), made()
    for crops in range(0, 71, 7):
        found = crop(old, crops, seed=crops)
    assert np.array_equal(found, crop(new, 70, seed=70)) and len(new._layers) == 1  # made when it is wanted
    assert max(old._layers) - min(old._layers) < LAYERS
    assert not np.array_equal(found, crop(made(seed=2), 70, seed=70))


def test_showers_add_up_and_none_leaves_it_dry():
    dry, one, three = (made(layers=(layers, layers)) for layers in (0, 1, 3))
    mean, sum_ = (np.mean([crop(bank, seed=k) for k in range(40)]) for bank in (one, three))
    assert crop(dry).max() == 0 and sum_ == pytest.approx(3 * mean, rel=0.35)


def test_knobs_of_a_crop():
    turned = made(angle=(20, 30), tint=(0.5, 0.5))
    crops = [crop(turned, seed=k, side=64) for k in range(20)]
    angles = [direction(one.mean(2)) for one in crops]
    assert min(angles) > 17 and max(angles) < 33
    for one in crops:
        tops = np.sort(one.max((0, 1)))
        assert tops[0] / tops[2] == pytest.approx(0.5, rel=0.05)
