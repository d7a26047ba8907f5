import numpy as np
import pytest
import torch

from common.models import Derain, Discriminator, EDNet, PReNet
from tests.golden import GOLDEN, fill, golden_json, uniform


@pytest.fixture(scope="module")
def modules():
    with np.load(GOLDEN / "modules.npz") as archive:
        return dict(archive)


def close(tensor, reference):
    reference = torch.from_numpy(reference)
    assert tensor.shape == reference.shape
    assert (tensor - reference).abs().max() <= 2e-5 * reference.abs().max()


@pytest.mark.parametrize(
    "section, build",
    {
        "derain_joint": lambda: Derain(stage=6),
        "prenet": lambda: PReNet(recurrent_iter=6),
        "ednet64": lambda: EDNet(nc=3, nz=128, nef=32, patch_size=64),
        "disc64": lambda: Discriminator(image_size=64, conv_dim=64),
        "ednet256_nef8": lambda: EDNet(3, 128, 8, 256),
        "ednet256_nef32": lambda: EDNet(3, 128, 32, 256),
        "disc256": lambda: Discriminator(256, 16),
    }.items(),
)
def test_state_dict_names_and_shapes(section, build):
    with torch.device("meta") if section == "ednet256_nef32" else torch.device("cpu"):
        state = build().state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == golden_json("state_dict_shapes.json")[section]


@pytest.mark.parametrize(
    "layout, learning", [("contiguous_format", True), ("contiguous_format", False), ("channels_last", False)]
)
def test_both_prenet_heads(modules, layout, learning):
    """The gates of the LSTM are computed in another way where no gradients are."""
    rainy = uniform(1, 2, 3, 40, 56).contiguous(memory_format=getattr(torch, layout))
    with torch.set_grad_enabled(learning):
        mu_b, logvar_b = fill(Derain(6), 11)(rainy)
        out, stages = fill(PReNet(6), 12)(rainy)
    close(mu_b, modules["derain_joint/mu_b"])
    close(logvar_b, modules["derain_joint/logvar_b"])
    close(out, modules["prenet/out"])
    close(torch.stack(stages)[..., ::4, ::4], modules["prenet/stages"])


@torch.no_grad()
def test_ednet_64(modules):
    net = fill(EDNet(3, 128, 32), 13)
    rainy = uniform(2, 2, 3, 64, 64)
    codes = torch.from_numpy(np.random.RandomState(3).standard_normal((2, 128)).astype(np.float32))
    close(net.encoder(rainy), modules["ednet64/encoder"])
    close(net.sample(codes), modules["ednet64/sample"])
    torch.manual_seed(5)
    rain, mu_z, logvar_z, z = net(rainy)
    close(rain, modules["ednet64/forward_R"])
    close(z, modules["ednet64/forward_z"])
    torch.manual_seed(5)
    assert torch.equal(net(rainy, torch.randn(2, 128))[3], z)
    assert torch.equal(torch.cat((mu_z, logvar_z), 1), net.encoder(rainy))


@torch.no_grad()
def test_critic_64_twice(modules):
    net = fill(Discriminator(64, 64), 14)
    rainy = uniform(2, 2, 3, 64, 64)
    score, attention1, attention2 = net(rainy)
    close(score, modules["disc64/out_call1"])
    close(attention1[:, ::4, ::4], modules["disc64/attn1"])
    close(attention2, modules["disc64/attn2"])
    close(net(rainy)[0], modules["disc64/out_call2"])  # one more power iteration


@torch.no_grad()
def test_patch_256(modules):
    rainy = uniform(4, 2, 3, 256, 256)
    net = fill(EDNet(3, 128, 8, 256), 15)
    codes = torch.from_numpy(np.random.RandomState(3).standard_normal((2, 128)).astype(np.float32))
    close(net.encoder(rainy), modules["ednet256/encoder"])
    close(net.sample(codes)[..., ::8, ::8], modules["ednet256/sample_sub8"])
    close(fill(Discriminator(256, 16), 16)(rainy)[0], modules["disc256/out_call1"])


@pytest.mark.parametrize("patch", [16, 32, 64, 128, 256])
def test_every_power_of_two_forward_and_backward(patch):  # T3
    rainy = torch.rand(2, 3, patch, patch)
    net, critic = EDNet(3, 8, 2, patch), Discriminator(patch, 4)
    rain, mu_z, logvar_z, z = net(rainy)
    assert rain.shape == rainy.shape and mu_z.shape == logvar_z.shape == z.shape == (2, 8)
    score, attention1, attention2 = critic(rain)
    assert score.shape == (2,) and attention1.shape == (2, 64, 64) and attention2.shape == (2, 16, 16)
    assert torch.allclose(attention1.sum(-1), torch.ones(2, 64))
    score.sum().backward()
    trained = [p for p in critic.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in [*net.parameters(), *trained])
    assert any(p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("patch", [0, 8, 48, 100])
def test_other_patch_sizes_are_refused(patch):
    for build in (lambda: EDNet(patch_size=patch), lambda: Discriminator(patch)):
        with pytest.raises(ValueError, match=f"power of two.*got {patch}"):
            build()


def test_number_of_stages_is_honoured():  # T3
    rainy = torch.rand(1, 3, 8, 9)
    for stages in (1, 3):
        out, outputs = PReNet(stages)(rainy)
        assert len(outputs) == stages and outputs[-1] is out
    net3, net2 = Derain(3), Derain(2)
    net2.load_state_dict(net3.state_dict())
    assert not torch.equal(net2(rainy)[0], net3(rainy)[0])


def test_initial_weights():
    torch.manual_seed(0)
    for net in (Derain(), EDNet()):
        for module in net.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) and module.weight.numel() > 1000:
                assert abs(module.weight.std().item() / 0.02 - 1) < 0.1
    critic = Discriminator()
    assert critic.attn1.gamma.item() == 0
    assert abs(critic.l4[0].module.weight_u.norm().item() - 1) < 1e-5
    bound = 1 / np.sqrt(256 * 16)  # PyTorch's default
    assert bound * 0.99 < critic.l4[0].module.weight_bar.abs().max() <= bound
