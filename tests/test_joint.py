"""The two steps of joint training against the reference, and what each of them may touch."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Adam

from common.models import Derain, Discriminator, EDNet
from common.training.joint import d_step, forward, g_step
from common.training.losses import gaussian_kl
from tests.golden import fill, golden_json
from tests.runs import joint_training

NOT_REPRODUCIBLE = ("key_conv.bias", "attn2.value_conv.bias")  # true gradient zero: Adam turns rounding into steps
NAMES = {"d_real": "d_loss_real", "d_fake": "d_loss_fake", "gp": "gp", "loss_D": "errD", "mse": "mse"}
NAMES |= {"g_adv": "g_loss", "loss_G": "errED", "kl_z": "kl_z", "kl_b": "kl_b"}  # of the golden rows, by ours


def batch(step, n=4):
    rng = np.random.RandomState(100 + step)
    clean = rng.rand(n, 3, 64, 64) * 0.7
    rain = (rng.rand(n, 1, 64, 64) > 0.9) * 0.3
    return torch.from_numpy((clean + rain).astype(np.float32)), torch.from_numpy(clean.astype(np.float32))


class InSingle(nn.Module):
    """A network in float32 among others in float64: its convolutions in double would take seven times as long."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.float())


def test_seven_steps_of_the_reference():
    """The run of golden/README.md: all losses of its steps, and the networks after it; in float64 but for BNet."""
    golden = golden_json("joint_syn.json")
    nets = fill(Derain(6), 21, 0.02), fill(EDNet(3, 128, 32), 22, 0.02), fill(Discriminator(64, 64), 23)
    training = joint_training([InSingle(nets[0]), nets[1].double(), nets[2].double()], 5, w_adv=golden["w_adv"])
    posterior = {}
    nets[0].register_forward_hook(lambda net, x, out: posterior.update(b=[y.double() for y in out]))
    nets[1].register_forward_hook(lambda net, x, out: posterior.update(z=out[1:3]))
    torch.manual_seed(7)
    for index, expected in enumerate(golden["rows_float64"]):
        kind, *inputs = training.draw(*batch(index), index, 4)
        rainy, clean, eps, alpha = (x.double() for x in inputs)
        losses, _ = training.step(kind, rainy, clean, eps, alpha)
        assert ("loss_G" in losses) == (index % 5 == 0)
        kl = {"kl_z": gaussian_kl(*posterior["z"]), "kl_b": gaussian_kl(*posterior["b"], clean, 1e-6)}
        row = {NAMES[key]: value.item() for key, value in (kl | losses).items()}
        assert row == pytest.approx({name: expected[name] for name in expected.keys() - {"step"}}, rel=1e-5, abs=1e-6)
    rates = {"derain": 2e-4, "ed": 1e-4, "disc": 4e-4}
    for (name, rate), net in zip(rates.items(), nets, strict=True):
        expected = golden["params_float32_mean_std"][name]
        assert net.state_dict().keys() == expected.keys()
        for key, value in net.state_dict().items():
            mean, std = expected[key]
            if key.endswith(NOT_REPRODUCIBLE):
                assert value.mean().item() == pytest.approx(mean, abs=7 * rate)
                continue
            assert value.mean().item() == pytest.approx(mean, abs=2e-3 * (std or abs(mean))), key
            if value.numel() > 1:
                assert value.std().item() == pytest.approx(std, rel=2e-3), key


def test_what_each_step_changes():
    torch.manual_seed(0)
    nets = nn.ModuleDict({"b": Derain(1), "ed": EDNet(3, 8, 2, 16), "d": Discriminator(16, 4)})
    bnet, ed, critic = nets.values()
    optB, optED, optD = (Adam((p for p in net.parameters() if p.requires_grad), 1e-3) for net in nets.values())
    rainy, clean = torch.rand(2, 2, 3, 16, 16)
    out = forward(bnet, ed, rainy, torch.randn(2, 8))

    def changed(before):
        return {key for key, value in nets.state_dict().items() if not torch.equal(value, before[key])}

    before = copy.deepcopy(nets.state_dict())
    losses = d_step(critic, optD, rainy, out.fake, torch.rand(2, 1, 1, 1), 10)
    assert changed(before) >= {"d.l1.0.module.weight_bar", "d.l4.0.module.weight_u", "d.last.0.weight"}
    assert all(key.startswith("d.") for key in changed(before))
    assert all(p.grad is None for net in (bnet, ed) for p in net.parameters())
    assert losses["loss_D"].item() == pytest.approx((losses["d_real"] + losses["d_fake"] + 10 * losses["gp"]).item())
    assert not any(value.requires_grad for value in losses.values())

    before = copy.deepcopy(nets.state_dict())
    optD.zero_grad()
    losses = g_step(bnet, ed, critic, optB, optED, out, clean, 0.5, 1e-6)
    assert changed(before) >= {"b.derainet.conv0.0.weight", "b.derainet.convfinal.0.weight"}
    assert changed(before) >= {"ed.encoder.main.0.weight", "ed.decoder.main.0.weight"}
    of_critic = {f"d.{layer}.0.module.weight_{x}" for layer in ("l1", "l4") for x in "uv"}
    assert {key for key in changed(before) if key.startswith("d.")} == of_critic
    assert all(p.grad is None for p in critic.parameters())
    total = 0.5 * losses["g_adv"] + losses["kl_z"] + losses["kl_b"]
    assert losses["loss_G"].item() == pytest.approx(total.item())
