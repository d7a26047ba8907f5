"""Training of G alone: losses, penalty and start by closed forms, what each step touches, files, resume, refusals."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import UserError
from common.models import EDNet
from common.training import generator
from common.training.checkpoint import load_generator
from common.training.generator import RainCritic, critic_view, d_step, g_step, leaky_sample
from common.training.optimizer import adam
from for_syn import train_syn_generator
from tests.conftest import folders
from tests.runs import load, same

TINY = ["--patchSize", "16", "--nz", "4", "--nef", "2", "--ndf", "4", "--batchSize", "4", "--iters_per_epoch", "10"]
HABITS = ["--save_every", "2", "--variants", "2", "--use_gpu", "false", "--ema", "0.8", "--manualSeed", "5"]


def train(data, model, *more):
    return train_syn_generator.main([*folders(data, model), *TINY, *HABITS, *map(str, more)])


class Mean(nn.Module):
    """A critic of one weight: w times the mean of a sample."""

    def __init__(self, w=1.5):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        return self.w * x.mean((1, 2, 3))


def small(seed=0):
    """A generator of 16 px that is alive, in double precision."""
    torch.manual_seed(seed)
    netED = EDNet(nz=4, nef=4, patch_size=16)
    generator.init_decoder(netED.decoder)
    return netED.double()


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_layers_as_the_critic_sees_them():
    levels = [0, 51 / 255, 1]
    rain = torch.tensor([0.001, 51.4 / 255, 3.0], requires_grad=True)
    shown = critic_view(rain.view(1, 3, 1, 1))
    assert shown.flatten().tolist() == pytest.approx([2 * (level + 0.02) ** 0.5 - 1 for level in levels])
    shown.sum().backward()  # as if it were neither rounded nor clipped
    assert rain.grad.tolist() == pytest.approx([(level + 0.02) ** -0.5 for level in levels])
    grey = torch.tensor([60.0, 40.0, 53.0]).view(1, 3, 1, 1) / 255
    assert critic_view(grey, 1).item() == pytest.approx(2 * (51 / 255 + 0.02) ** 0.5 - 1)  # of their mean


@pytest.mark.parametrize("w_gp", [0, 0.25])
def test_the_step_of_the_critic_by_hand(w_gp):
    netD, (real, fake) = Mean(), double(2, 3, 3, 4, 4)
    gap = (real - fake).mean((1, 2, 3))
    losses = d_step(netD, torch.optim.SGD(netD.parameters(), 1.0), real, fake, w_gp)
    margins = (1.5 * gap).tolist()
    assert losses["loss_D"].item() == pytest.approx(np.logaddexp(0, -1.5 * gap).mean().item())
    assert losses["margin"].item() == pytest.approx(sum(margins) / 3)
    slope = sum(-d / (1 + math.exp(m)) for d, m in zip(gap.tolist(), margins, strict=True)) / 3
    if w_gp:  # the gradient of 1.5 * mean is 1.5 / 48 everywhere
        assert losses["r1"].item() == losses["r2"].item() == pytest.approx(1.5**2 / 48)
        slope += w_gp * 2 * 2 * 1.5 / 48
    assert netD.w.item() == pytest.approx(1.5 - slope, rel=1e-6)
    assert ("r1" in losses) == bool(w_gp) and not any(v.requires_grad for v in losses.values())


def test_the_step_of_g_by_hand():
    netED, netD, real, z = small(), Mean(), double(3, 3, 16, 16, seed=1), double(3, 4, seed=2)
    margins = [1.5 * (critic_view(netED.sample(z)) - real).mean((1, 2, 3)).tolist()[i] for i in range(3)]
    scale = netED.decoder.main[-2].weight
    before, rain = scale.detach().clone(), netED.sample(z)
    scores = 1.5 * critic_view(leaky_sample(netED, z)).mean((1, 2, 3))
    pull = torch.tensor([-1 / (1 + math.exp(m)) / 3 for m in margins], dtype=torch.float64)
    (slope,) = torch.autograd.grad(scores, scale, pull)
    losses, made = g_step(netED, netD, torch.optim.SGD(netED.decoder.parameters(), 1.0), real, z)
    assert losses["loss_G"].item() == pytest.approx(np.logaddexp(0, np.negative(margins)).mean(), rel=1e-6)
    assert torch.allclose(made.double(), rain, atol=1e-6)
    assert torch.allclose(before - scale, slope, atol=1e-6) and slope.abs().max() > 1e-3


def changed(before, net):
    """Of each weight whether it is another one than before."""
    return [not torch.equal(a, b) for a, b in zip(before.parameters(), net.parameters(), strict=True)]


def test_each_step_touches_its_own():
    netED, netD = small(), RainCritic(16, 4).double()
    optED = torch.optim.Adam(netED.parameters(), 1e-2)  # RNet too: it gets no gradient
    real, z = critic_view(double(4, 3, 16, 16).abs()), double(4, 4)
    before = copy.deepcopy((netED, netD))
    d_step(netD, torch.optim.Adam(netD.parameters(), 1e-2), real, critic_view(netED.sample(z)), 1.0)
    assert not any(changed(before[0], netED)) and all(p.grad is None for p in netED.parameters())
    assert all(changed(before[1], netD)[:-1])  # the last bias falls out of the difference of scores
    netD.zero_grad()
    netED, netD, real, z = netED.float(), netD.float(), real.float(), z.float()
    before = copy.deepcopy((netED, netD))
    g_step(netED, netD, optED, real, z)
    assert not any(changed(before[0].encoder, netED.encoder)) and not any(changed(before[1], netD))
    assert all(changed(before[0].decoder, netED.decoder))
    assert all(p.grad is None for p in [*netD.parameters(), *netED.encoder.parameters()])


def test_the_closed_relu_lets_a_tenth_of_the_gradient_through():
    netED, z = small(), double(5, 4).requires_grad_()
    before_last = netED.decoder.main[:-1](z)
    closed = before_last < 0
    assert 0.2 < closed.double().mean() < 0.8
    rain = leaky_sample(netED, z)
    assert torch.equal(rain, netED.sample(z))
    pull = double(*rain.shape, seed=3)
    (found,) = torch.autograd.grad(rain, z, pull)
    leak = torch.where(closed, 0.1 * (pull < 0).double(), 1.0)  # black does not become blacker
    (wanted,) = torch.autograd.grad(before_last, z, pull * leak)
    assert torch.allclose(found, wanted, rtol=1e-9)


def test_at_the_start_every_layer_of_g_keeps_the_size_of_its_input():
    torch.manual_seed(0)
    netED = EDNet(nz=128, nef=32, patch_size=32)
    generator.init_decoder(netED.decoder)
    x, sizes = torch.randn(200, 128), []
    with torch.no_grad():
        for layer in netED.decoder.main:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                inside = x[..., 2:-2, 2:-2] if x.shape[-1] > 4 else x  # at the rim there are fewer taps
                sizes.append(inside.square().mean().item())
    assert sizes[:-1] == pytest.approx([1] * 4, rel=0.2) and sizes[-1] == pytest.approx(0.2**2, rel=0.2)
    assert x.std(0).mean() > 0.5 * x.mean()  # codes matter
    generator.init_decoder(netED.decoder, grey=True)
    rain = netED.sample(torch.randn(2, 128))
    assert torch.equal(rain[:, 0], rain[:, 1]) and torch.equal(rain[:, 0], rain[:, 2])


@pytest.mark.parametrize("number, group", [(8, 4), (6, 6)])
def test_the_critic_sees_how_much_the_samples_of_a_group_differ(number, group):
    netD, x, given = RainCritic(16, 4).double(), double(number, 3, 16, 16).requires_grad_(), []
    netD.mix.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    netD(x)
    maps, spread = given[0].split([8, 1], 1)
    for first in range(0, number, group):
        part = slice(first, first + group)
        wanted = maps[part].std(0, correction=0).square().add(1e-8).sqrt().mean()
        assert torch.allclose(spread[part], wanted.expand_as(spread[part]))
    assert torch.autograd.grad(spread.sum(), x)[0].abs().max() > 1e-3
    netD(x[:1].repeat(number, 1, 1, 1))
    assert given[1][:, -1].max().item() == pytest.approx(1e-4)


def test_penalties_come_every_eighth_step():
    netED, netD = small().float(), RainCritic(16, 4, channels=1)
    optimizers = {name: adam(net.parameters(), 1e-4) for name, net in (("ED", netED.decoder), ("D", netD))}
    step, draw = generator.generator_step(netED, netD, optimizers, 0.5), generator.generator_draw(4)
    clean = torch.rand(4, 3, 16, 16)
    results = [step(*draw(clean + 0.3, clean, index, 4)) for index in range(17)]
    assert [i for i, (losses, _) in enumerate(results) if "r1" in losses] == [0, 8, 16]
    images = results[0][1]
    assert images["rain"] == pytest.approx(0.3) and images["generated_rain"].shape == (4, 3, 16, 16)


def test_files_and_resume_bit_for_bit(pairs_folder, tmp_path):
    train(pairs_folder, tmp_path / "a", "--niter", 4)
    names = {path.name for path in (tmp_path / "a").glob("*_state_*.pt")}
    assert {f"{net}_state_{n}.pt" for net in ("ED", "ED_ema", "D") for n in (2, 4)} <= names
    assert load_generator(tmp_path / "a" / "ED_ema_state_4.pt", "--netED").patch_size == 16
    train(pairs_folder, tmp_path / "b", "--niter", 2)
    train(pairs_folder, tmp_path / "b", "--niter", 4)
    for net in ("ED", "ED_ema", "D"):
        assert same(load(tmp_path / "a" / f"{net}_state_4.pt"), load(tmp_path / "b" / f"{net}_state_4.pt"))
    head = (tmp_path / "a_logs" / "log.csv").read_text().splitlines()[0]
    assert all(name in head for name in ("loss_D", "loss_G", "margin", "r1", "r2"))


def test_streaks_of_ones_own(streaks_folder, tmp_path):
    model = tmp_path / "m"
    train(tmp_path / "nowhere", model, "--niter", 2, "--streaks", streaks_folder, "--hold_out", 1)
    netED = load_generator(model / "ED_ema_state_2.pt", "--netED")
    rain = netED.sample(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    assert rain.max() > 0 and torch.equal(rain[:, 0], rain[:, 2])  # grey as the layers
    assert load(model / "D_state_2.pt")["body.0.weight"].shape[1] == 1
    assert torch.equal(load(model / "ED_state_2.pt")["encoder.main.0.weight"], netED.encoder.main[0].weight)


def test_it_learns_how_bright_the_rain_is(streaks_folder, tmp_path):
    """A hundred tiny steps bring the mean of G's rain to that of the layers."""
    more = ["--streaks", streaks_folder, "--iters_per_epoch", "60", "--lr", "5e-3", "--batchSize", "16"]
    train(tmp_path, tmp_path / "m", "--niter", 2, *more)
    netED = load_generator(tmp_path / "m" / "ED_ema_state_2.pt", "--netED")
    with torch.no_grad():
        rain = netED.sample(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)))
    assert 0.02 < rain.mean() < 0.2 and rain.std(0).mean() > 0.02


def test_it_starts_from_a_trained_generator_and_the_critic_learns_first(pairs_folder, tmp_path):
    train(pairs_folder, tmp_path / "a", "--niter", 2)
    flags = ["--init_ED", tmp_path / "a" / "ED_state_2.pt", "--save_every", 1]
    for niter in (1, 2):  # it goes on, too
        train(pairs_folder, tmp_path / "b", "--niter", niter, *flags, "--critic_first", 10)
    before, same_still, after = (load(path) for path in (flags[1], *(tmp_path / f"b/ED_state_{n}.pt" for n in (1, 2))))
    assert same(before, same_still) and not same(before, after)
    assert not same(load(tmp_path / "b" / "D_state_1.pt"), load(tmp_path / "a" / "D_state_2.pt"))


def test_mistakes(pairs_folder, tmp_path, capsys):
    for flags in (["--batchSize", "1"], ["--ema", "1"], ["--n_dis", "2"], ["--val_data_path", "x"]):
        with pytest.raises(SystemExit) as end:
            train(pairs_folder, tmp_path / "m", *flags)
        assert end.value.code == 2
    capsys.readouterr()
    with pytest.raises(UserError, match="is not a folder"):
        train(tmp_path / "nowhere", tmp_path / "m")
    assert train(pairs_folder, tmp_path / "m", "--dry_run") is None
    assert "netED" in capsys.readouterr().out and not (tmp_path / "m").exists()
