"""Training of RNet, G and D alone: its terms by closed forms, what each step touches, files, resume, refusals."""

import math

import pytest
import torch

from common.errors import UserError
from common.models import Discriminator, EDNet
from common.training import generator
from common.training.checkpoint import load_generator
from for_syn import train_syn_generator
from tests.conftest import folders
from tests.test_training import load, same

TINY = ["--patchSize", "16", "--nz", "4", "--nef", "2", "--ndf", "4", "--batchSize", "2", "--iters_per_epoch", "6"]
HABITS = ["--save_every", "2", "--workers", "0", "--use_gpu", "false", "--ema", "0.8", "--manualSeed", "5"]


def train(data, model, *more):
    return train_syn_generator.main([*folders(data, model), *TINY, *HABITS, *map(str, more)])


def test_rains_that_are_all_alike_are_told_from_rains_that_differ():
    real = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert generator.sameness(real[:1].repeat(6, 1, 1, 1), real) == 1
    assert generator.sameness(torch.zeros_like(real), real) == 1  # a dead generator
    assert generator.sameness(real.flip(0), real).item() == pytest.approx(0, abs=1e-6)
    assert generator.sameness(3 * real, real) == 0  # more than the data, since the level weighs less: no reward
    brighter = torch.linspace(1, 2, 6)[:, None, None, None] * real[:1]
    assert generator.sameness(brighter, real) > 0.8  # brightness alone makes no other rain


def test_sameness_is_the_formula():
    a, b = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    a[0, :, 0, 0], b[0], b[1, :, 0] = 0.4, 0.1, 0.2  # real a: means 0.1 and 0, level 0.025
    wanted = (0.4 / 0.125) / 4  # both neighbours differ by the one bright pixel of four
    found = abs(0.1 / 0.125 - 0.2 / 0.125) / 2 + abs(0.1 / 0.125 - 0) / 2
    assert generator.sameness(b, a).item() == pytest.approx(max(0, 1 - found / wanted))
    b[1] = 0.1
    b[1, :, 0, 0] = 0.2
    shapes = [x / (x.mean() + 0.025) for x in b]
    assert generator.sameness(b, a).item() == pytest.approx(1 - (shapes[0] - shapes[1]).abs().mean().item() / wanted)


def test_gradients_of_sameness():
    rain = torch.rand(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    real = torch.rand(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) ** 6
    assert 0 < generator.sameness(rain, real) < 1
    assert torch.autograd.gradcheck(lambda x: generator.sameness(x, real), rain.requires_grad_())


def test_a_batch_without_rain_asks_for_nothing():
    rain = torch.rand(3, 3, 4, 4).requires_grad_()
    for made in (rain, 0 * rain):
        same_ = generator.sameness(made, torch.zeros(3, 3, 4, 4))
        same_.backward()
        assert same_ == 0 and torch.isfinite(rain.grad).all()
        rain.grad = None


def test_the_loss_of_the_code():
    z = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    nothing = generator.code_loss(z, torch.zeros_like(z), torch.zeros_like(z))
    assert nothing.item() == pytest.approx(0.5, abs=0.02)
    sure = generator.code_loss(z, z, torch.full_like(z, math.log(0.01)))
    assert sure.item() == pytest.approx(0.5 * math.log(0.01))
    assert torch.isfinite(generator.code_loss(z, z, torch.full_like(z, -1e4)))


def test_each_step_touches_its_own():
    torch.manual_seed(0)
    netED, netD = EDNet(nz=4, nef=2, patch_size=16), Discriminator(16, 4)
    opt = torch.optim.Adam(netED.parameters(), 1e-2)
    clean, z = torch.rand(3, 3, 16, 16), torch.randn(3, 4)
    real = torch.rand(3, 3, 16, 16)
    before = {name: [p.detach().clone() for p in net.parameters()] for name, net in (("ED", netED), ("D", netD))}
    learns = [p.requires_grad for p in netD.parameters()]
    losses = generator.g_step(netED, netD, opt, netED.sample(z), z, real, clean, 1.0, 10.0)
    assert set(losses) == {"g_adv", "same", "code"} and not any(v.requires_grad for v in losses.values())
    assert all(not torch.equal(a, b) for a, b in zip(before["ED"], netED.parameters(), strict=True))
    for a, b, trains in zip(before["D"], netD.parameters(), learns, strict=True):
        assert torch.equal(a, b) or not trains
    assert all(p.grad is None for p in netD.parameters())


def test_the_encoder_learns_from_the_code_and_g_does_not():
    torch.manual_seed(0)
    netED, netD = EDNet(nz=4, nef=2, patch_size=16), Discriminator(16, 4)
    opt = torch.optim.SGD(netED.parameters(), 0.0)
    clean, z = torch.rand(3, 3, 16, 16), torch.randn(3, 4)
    gradients = []
    for w_adv in (0.0, 1.0):
        generator.g_step(netED, netD, opt, netED.sample(z), z, clean, clean, w_adv, 0.0)
        gradients.append([p.grad.clone() for p in netED.encoder.parameters()])
        of_g = max(p.grad.abs().max() for p in netED.decoder.parameters())
        assert (of_g > 0) == (w_adv > 0)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # nothing else reaches the encoder


def test_files_and_resume_bit_for_bit(pairs_folder, tmp_path):
    train(pairs_folder, tmp_path / "a", "--niter", 4)
    names = {path.name for path in (tmp_path / "a").glob("*_state_*.pt")}
    assert {f"{net}_state_{n}.pt" for net in ("ED", "ED_ema", "D") for n in (2, 4)} <= names
    assert load_generator(tmp_path / "a" / "ED_ema_state_4.pt", "--netED").patch_size == 16
    train(pairs_folder, tmp_path / "b", "--niter", 2)
    train_syn_generator.main(["--model_dir", str(tmp_path / "b"), "--resume", "-1", "--niter", "4"])
    for net in ("ED", "ED_ema", "D"):
        assert same(load(tmp_path / "a" / f"{net}_state_4.pt"), load(tmp_path / "b" / f"{net}_state_4.pt"))
    head = (tmp_path / "a_l" / "log.csv").read_text().splitlines()[0]
    assert all(f"{name}" in head for name in ("loss_D", "g_adv", "same", "code"))


def test_it_learns_what_it_is_asked_to(tmp_path, pairs_folder):
    """Twenty steps move the terms where they should go: rains apart, codes readable."""
    more = ["--lrED", "5e-3", "--n_dis", "1", "--iters_per_epoch", "20", "--batchSize", "8", "--w_adv", "1e-6"]
    train(pairs_folder, tmp_path / "m", "--niter", 6, *more)
    rows = (tmp_path / "m_l" / "log.csv").read_text().splitlines()
    column = rows[0].split(",").index("same")
    same_ = [float(row.split(",")[column]) for row in rows[1:]]
    assert same_[-1] < 0.7 * same_[0]


def test_mistakes(pairs_folder, tmp_path, capsys):
    for flags in (["--batchSize", "1"], ["--beta1", "1"], ["--compile"], ["--val_data_path", "x"]):
        with pytest.raises(SystemExit) as end:
            train(pairs_folder, tmp_path / "m", *flags)
        assert end.value.code == 2
    capsys.readouterr()
    with pytest.raises(UserError, match="is not a folder"):
        train(tmp_path / "nowhere", tmp_path / "m")
    assert train(pairs_folder, tmp_path / "m", "--dry_run") is None
    assert "netED" in capsys.readouterr().out and not (tmp_path / "m").exists()
