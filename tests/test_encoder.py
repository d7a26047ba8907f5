"""Training of RNet for a trained G: its losses, what a step touches, how much it recovers, files, resume, refusals."""

import math
import shutil
from unittest import mock

import pytest
import torch

from common.errors import UserError
from common.models import EDNet
from common.training import encoder
from common.training.generator import critic_view, init_decoder
from for_syn import train_syn_encoder
from tests.conftest import folders
from tests.runs import load, same

HABITS = ["--batchSize", "4", "--iters_per_epoch", "6", "--save_every", "2", "--variants", "2", "--use_gpu", "false"]


def train(data, model, *more):
    return train_syn_encoder.main([*folders(data, model), *HABITS, "--manualSeed", "5", *map(str, more)])


def small(seed=0):
    torch.manual_seed(seed)
    netED = EDNet(nz=4, nef=4, patch_size=16)
    init_decoder(netED.decoder)
    encoder.init_encoder(netED.encoder)
    netED.decoder.requires_grad_(False)
    return netED


def test_the_loss_of_the_code():
    z = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    nothing = encoder.code_loss(z, torch.zeros_like(z), torch.zeros_like(z))
    assert nothing.item() == pytest.approx(0.5, abs=0.02)
    sure = encoder.code_loss(z, z, torch.full_like(z, math.log(0.01)))
    assert sure.item() == pytest.approx(0.5 * math.log(0.01))
    assert torch.isfinite(encoder.code_loss(z, z, torch.full_like(z, -1e4)))


def test_a_step_is_its_two_losses_and_touches_rnet_alone():
    netED, z = small(), torch.randn(1, 4)
    clean, rain = torch.rand(3, 3, 16, 16), netED.sample(torch.randn(3, 4))
    rainy, before = (clean + rain).clamp(0, 1), {k: v.clone() for k, v in netED.state_dict().items()}
    mu, logvar = netED.encoder((clean[:1] + netED.sample(z)).clamp(0, 1)).chunk(2, 1)
    code = encoder.code_loss(z, mu, logvar)
    made = netED.sample(netED.encoder(rainy)[:, :4])
    real = (critic_view(made) - critic_view(rainy - clean)).square().mean()
    slopes = torch.autograd.grad(code + 7 * real, list(netED.encoder.parameters()))
    optimizer = torch.optim.SGD(netED.encoder.parameters(), 1e-2)
    losses, shown = encoder.r_step(netED, optimizer, rainy, clean, z, 7.0)
    assert losses["code"].item() == pytest.approx(code.item(), rel=1e-5)
    assert losses["real"].item() == pytest.approx(real.item(), rel=1e-5)
    assert torch.allclose(shown["rain_of_code"], made, atol=1e-6)
    for (name, now), slope in zip(netED.encoder.named_parameters(), slopes, strict=True):
        assert torch.allclose(now, before[f"encoder.{name}"] - 1e-2 * slope, atol=1e-6), name
    assert all(same(value, before[f"decoder.{name}"]) for name, value in netED.decoder.state_dict().items())


def test_at_the_start_codes_are_near_their_mean():
    torch.manual_seed(0)
    netED = EDNet()
    encoder.init_encoder(netED.encoder)
    code = netED.encoder(torch.rand(20, 3, 64, 64))
    assert 0.02 < code.std() < 0.5 and code.abs().mean() < 0.5


def test_correlation_is_pearsons():
    a = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert encoder.correlation(a, 3 * a + 1).tolist() == pytest.approx([1] * 4)
    assert encoder.correlation(a, -a).tolist() == pytest.approx([-1] * 4)
    b = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    wanted = [torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item() for x, y in zip(a, b, strict=True)]
    assert encoder.correlation(a, b).tolist() == pytest.approx(wanted, rel=1e-4)
    assert encoder.correlation(a, torch.ones_like(a)).tolist() == [0] * 4


def test_recovery_of_an_rnet_that_knows_and_of_one_that_does_not():
    netED, codes = small(), torch.randn(40, 4)
    clean, knows = torch.zeros(40, 3, 16, 16), torch.cat([codes, torch.zeros(40, 4)], 1)
    rainy = netED.sample(codes)
    rainy[::5] = 0  # no rain there, which does not count

    class Oracle(torch.nn.Module):
        """Finds the patch again."""

        def forward(self, patches):
            return knows[[int((rainy - patch).abs().flatten(1).sum(1).argmin()) for patch in patches]]

    before, netED.encoder = netED.encoder, Oracle()
    found = encoder.recovery(netED, rainy, clean)
    assert found["correlation"] == pytest.approx(1) and found["shuffled"] < 0.7
    netED.encoder = before
    torch.nn.init.zeros_(before.main[-1].weight)
    found = encoder.recovery(netED, rainy, clean)
    assert abs(found["correlation"] - found["shuffled"]) < 0.05


def test_rnet_learns_to_see_rain():
    netED = small()
    optimizer = torch.optim.Adam(netED.encoder.parameters(), 3e-3)
    with torch.no_grad():
        rain = netED.sample(torch.randn(400, 4))
    clean = 0.3 * torch.rand(400, 3, 1, 1)
    for i in range(0, 3000, 20):
        part = slice(i % 300, i % 300 + 20)
        batch = (clean + rain).clamp(0, 1)[part], clean.expand_as(rain)[part]
        encoder.r_step(netED, optimizer, *batch, torch.randn(5, 4), 10.0)
    found = encoder.recovery(netED, (clean + rain).clamp(0, 1)[320:], clean.expand_as(rain)[320:])
    assert found["correlation"] > found["shuffled"] + 0.2 and found["correlation"] > 0.7


def test_files_and_resume_bit_for_bit(pairs_folder, tmp_path, generator, capsys):
    more = ["--netED", generator, "--hold_out", 1]
    train(pairs_folder, tmp_path / "a", "--niter", 4, *more)
    train(pairs_folder, tmp_path / "b", "--niter", 2, *more)
    capsys.readouterr()
    more[1] = shutil.copy(generator, tmp_path / "moved.pt")  # the file may move, its weights stay
    train(pairs_folder, tmp_path / "b", "--niter", 4, *more)
    assert "other data" not in capsys.readouterr().out
    made = load(tmp_path / "a" / "ED_state_4.pt")
    assert same(made, load(tmp_path / "b" / "ED_state_4.pt"))
    for name, value in load(generator).items():
        assert torch.equal(value, made[name]) == name.startswith("decoder"), name
    assert same(load(tmp_path / "a" / "ED_half.pt"), {name: value.half() for name, value in made.items()})
    rows = [row.split(",") for row in (tmp_path / "a_logs" / "log.csv").read_text().splitlines()]
    assert {"code", "real", "val_correlation", "val_shuffled"} <= set(rows[0])
    assert all(-1 <= float(row[-2]) <= 1 for row in rows[1:])
    torch.save({k: v + 0.1 for k, v in load(generator).items()}, tmp_path / "other.pt")
    for resume in (0, 2):
        with pytest.raises(UserError, match="--netED: .*other.pt is not the generator of the training in"):
            train(
                pairs_folder, tmp_path / "b", "--niter", 5, *more, "--resume", resume, "--netED", tmp_path / "other.pt"
            )


def test_overwrite_leaves_nothing_of_an_earlier_run(pairs_folder, tmp_path, generator, monkeypatch):
    train(pairs_folder, tmp_path / "m", "--niter", 1, "--netED", generator)
    assert (tmp_path / "m" / "ED_half.pt").exists()
    monkeypatch.setattr(encoder, "r_step", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(pairs_folder, tmp_path / "m", "--niter", 1, "--netED", generator, "--overwrite")
    assert not list((tmp_path / "m").glob("ED_*"))


def test_streaks_and_photos(streaks_folder, pairs_folder, tmp_path, generator):
    more = ["--streaks", streaks_folder, "--clean", pairs_folder / "norain", "--netED", generator]
    train(tmp_path / "nowhere", tmp_path / "m", "--niter", 1, *more)
    assert (tmp_path / "m" / "ED_state_1.pt").exists()


def test_mistakes(pairs_folder, streaks_folder, tmp_path, generator, capsys):
    for more, told in (
        (["--netED", tmp_path / "no.pt"], "--netED: there is no .*no.pt.*train_syn_generator.py"),
        (["--netED", generator, "--patchSize", 32], "--netED: .* --patchSize is 32, it has 16"),
        (["--netED", generator, "--streaks", streaks_folder], "--streaks, --clean: give both"),
        (["--netED", generator, "--hold_out", 4], "--hold_out: .* leaves none"),
    ):
        with pytest.raises(UserError, match=told):
            train(pairs_folder, tmp_path / "m", *more)
    assert train(pairs_folder, tmp_path / "m", "--netED", generator, "--hold_out", 1, "--dry_run") is None
    assert "validation: 1 pairs" in capsys.readouterr().out and not (tmp_path / "m").exists()
