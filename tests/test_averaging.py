"""The moving average of a generator's weights: its formula, its files, and that training does not feel it."""

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.training.averaging import Average
from common.training.checkpoint import load_generator
from tests.test_training import load, resume, same, train


def test_the_average_is_what_the_formula_says():
    net = nn.Linear(2, 1)
    wanted = net.weight.detach().clone()
    average = Average(net, 0.9)
    for k in range(3):
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[k, -1.0]]))
        wanted = 0.9 * wanted + 0.1 * net.weight.detach()
        average.update()
    torch.testing.assert_close(average.net.weight, wanted)
    assert not average.net.weight.requires_grad and not average.net.training


def test_training_with_an_average_is_the_same_training(pairs_folder, tmp_path):
    train(pairs_folder, tmp_path / "a", "--niter", 2)
    train(pairs_folder, tmp_path / "b", "--niter", 2, "--ema", 0.5)
    for name in ("DerainNet", "ED", "D"):
        assert same(load(tmp_path / "a" / f"{name}_state_2.pt"), load(tmp_path / "b" / f"{name}_state_2.pt"))
    assert not (tmp_path / "a" / "ED_ema_state_2.pt").exists()
    weights, average = load(tmp_path / "b" / "ED_state_2.pt"), load(tmp_path / "b" / "ED_ema_state_2.pt")
    assert weights.keys() == average.keys() and not same(weights, average)
    assert load_generator(tmp_path / "b" / "ED_ema_state_2.pt", "--netED").nz == 4


def test_a_resumed_average_equals_an_uninterrupted_one(pairs_folder, tmp_path):
    train(pairs_folder, tmp_path / "a", "--niter", 4, "--ema", 0.8)
    train(pairs_folder, tmp_path / "b", "--niter", 2, "--ema", 0.8)
    resume(tmp_path / "b", "--resume", -1, "--niter", 4)
    for name in ("ED", "ED_ema"):
        assert same(load(tmp_path / "a" / f"{name}_state_4.pt"), load(tmp_path / "b" / f"{name}_state_4.pt"))


def test_an_average_belongs_to_a_run_from_its_beginning(pairs_folder, tmp_path):
    train(pairs_folder, tmp_path / "m", "--niter", 1)
    with pytest.raises(UserError, match="--ema is 0.5, the run has 0"):
        resume(tmp_path / "m", "--resume", -1, "--niter", 2, "--ema", 0.5)
    state = load(tmp_path / "m" / "train_state_last.pt")
    del state["options"]["ema"]  # written by an older version
    torch.save(state, tmp_path / "m" / "train_state_last.pt")
    with pytest.raises(UserError, match="keeps no ED_ema"):
        resume(tmp_path / "m", "--resume", -1, "--niter", 2, "--ema", 0.5)
    resume(tmp_path / "m", "--resume", -1, "--niter", 2)


def test_overwriting_a_run_leaves_no_average_behind(pairs_folder, tmp_path):
    train(pairs_folder, tmp_path / "m", "--niter", 2, "--ema", 0.5)
    train(pairs_folder, tmp_path / "m", "--niter", 1, "--overwrite")
    assert not list((tmp_path / "m").glob("*ema*"))
