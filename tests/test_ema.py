"""The moving average of a generator's weights: its formula, its files, and that training does not feel it."""

import pytest
import torch
from torch import nn

from common.training.checkpoint import load_generator
from common.training.ema import EMA
from tests.runs import load, same, train


@pytest.mark.parametrize("ramp", [False, True])
def test_the_formula(ramp):
    net = nn.Linear(2, 1)
    expected = net.weight.detach().clone()
    ema = EMA(net, 0.5, every=2, ramp=ramp)
    for index in range(9):
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[index, -1.0]]))
        if index % 2 == 0:
            decay = min(0.5, (1 + index) / (10 + index)) if ramp else 0.5
            expected = decay * expected + (1 - decay) * net.weight.detach()
        ema.update(index)
    torch.testing.assert_close(ema.net.weight, expected)
    assert not ema.net.weight.requires_grad and not ema.net.training


def test_training_with_an_average_is_the_same_training(pairs_folder, tmp_path):
    train(pairs_folder, tmp_path / "a", "--niter", 1)
    train(pairs_folder, tmp_path / "b", "--niter", 1, "--ema", 0.5)
    for name in ("DerainNet", "ED", "D"):
        assert same(load(tmp_path / "a" / f"{name}_state_1.pt"), load(tmp_path / "b" / f"{name}_state_1.pt"))
    assert not (tmp_path / "a" / "ED_ema_state_1.pt").exists()
    weights, average = load(tmp_path / "b" / "ED_state_1.pt"), load(tmp_path / "b" / "ED_ema_state_1.pt")
    assert weights.keys() == average.keys() and not same(weights, average)
    assert load_generator(tmp_path / "b" / "ED_ema_state_1.pt", "--netED").nz == 4
