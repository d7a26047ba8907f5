"""Augmented training: the reference's steps, which samples get generated rain, and its scripts as a user meets them."""

import numpy as np
import pytest
import torch
from torch.optim import Adam

from common.models import EDNet, PReNet
from common.training import augment
from tests.golden import fill, golden_json, needs_golden


def batch(step, n):
    rng = np.random.RandomState(200 + step)
    clean = rng.rand(n, 3, 64, 64) * 0.7
    rain = (rng.rand(n, 1, 64, 64) > 0.9) * 0.3
    return torch.from_numpy((clean + rain).astype(np.float32)), torch.from_numpy(clean.astype(np.float32))


@needs_golden
def test_four_steps_of_the_reference():
    net, netED = fill(PReNet(6), 31, 0.02), fill(EDNet(3, 128, 32), 32)
    optimizer = Adam(net.parameters(), 1e-3)
    torch.manual_seed(9)
    n_real = augment.real_samples(6, 0.5)
    assert n_real == 4
    for row in golden_json("aug.json")["rows"]:
        rainy, clean = batch(row["step"], 6)
        mixed = augment.rain_on(netED, rainy, clean, n_real, torch.randn(6 - n_real, 128))
        assert mixed[n_real:].mean().item() == pytest.approx(row["fake_mean"], rel=1e-5)
        losses, _ = augment.a_step(lambda x: net(x)[0], optimizer, mixed, clean)
        assert losses["loss"].item() == pytest.approx(row["loss"], rel=1e-5), row["step"]


@pytest.mark.parametrize(
    "size, ratio, n_real",
    [(18, 0.5, 12), (18, 0, 18), (18, 1, 9), (18, 0.2, 15), (18, 0.25, 15), (18, 3, 5), (2, 0.5, 2), (18, 100, 1)],
)
def test_share_of_real_samples(size, ratio, n_real):
    assert augment.real_samples(size, ratio) == n_real


def test_steps_of_an_epoch_and_digits_of_file_names():
    steps = [augment.steps_per_epoch(n, r) for n, r in ((3000, 0.5), (3000, 0.1), (3000, 0), (7, 0.5), (3, 0.3))]
    assert steps == [4500, 3300, 3000, 11, 4]  # in floats 3000 * 1.1 would be rounded up to 3301
    digits = [augment.ratio_digits(r) for r in (0.5, 0.25, 1.0, 1, 0, 0.05, 1e-5)]
    assert digits == ["05", "025", "10", "10", "00", "005", "000001"]


def test_generated_samples_are_exactly_those_from_n_real_on():
    torch.manual_seed(0)
    netED = EDNet(3, 4, 2, 16)
    netED.decoder.main[-2].weight.data *= 1e4  # rain that is seen, and clipped
    rainy, clean = torch.rand(2, 5, 3, 16, 16)
    z = torch.randn(2, 4)
    mixed = augment.rain_on(netED, rainy, clean, 3, z)
    assert torch.equal(mixed[:3], rainy[:3]) and not mixed.requires_grad
    assert torch.equal(mixed[3:], (clean[3:] + netED.sample(z)).clamp(0, 1))
    assert mixed.max() <= 1 and (mixed[3:] - clean[3:]).max() > 0.01 and mixed[3:].max() == 1
    assert torch.equal(augment.rain_on(netED, rainy, clean, 5, torch.randn(0, 4)), rainy)
