import math

import pytest
import torch

from common.models import Discriminator
from common.training.losses import gaussian_kl, gradient_penalty, restoration_loss, ssim
from tests.golden import golden_json


@pytest.mark.parametrize("i", range(3))
def test_ssim_of_the_reference(i):
    import numpy as np

    a = np.random.RandomState(50 + i).rand(2, 3, 48, 64)
    b = np.clip(a + 0.1 * np.random.RandomState(60 + i).standard_normal(a.shape), 0, 1)
    a, b = (torch.from_numpy(x.astype(np.float32)) for x in (a, b))
    assert ssim(a, b).item() == pytest.approx(golden_json("ssim_loss.json")[f"case{i}"], abs=1e-6)


def test_ssim_closed_forms():
    a = torch.rand(2, 3, 20, 24, dtype=torch.double)
    assert ssim(a, a).item() == pytest.approx(1)
    assert ssim(a, 1 - a) < 0.2
    x = torch.rand(1, 3, 12, 13, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ssim(x, a[:1, :, :12, :13]), x)


@pytest.mark.parametrize("w_l1", [0.0, 0.3])
def test_the_loss_of_a_derainer_and_its_gradient(w_l1):
    derained, clean = torch.rand(2, 2, 3, 16, 18, dtype=torch.double)
    x = derained.clone().requires_grad_()
    expected = -ssim(x, clean) + w_l1 * (x - clean).abs().mean()
    (slope,) = torch.autograd.grad(expected, x)
    loss, gradient = restoration_loss(derained, clean, w_l1)
    assert loss.item() == pytest.approx(expected.item()) and not loss.requires_grad
    assert torch.allclose(gradient, slope, rtol=1e-6, atol=1e-12)
    without = restoration_loss(derained, clean)[1]
    assert torch.allclose(gradient - without, w_l1 * (derained - clean).sign() / derained.numel(), rtol=1e-6)


def test_kl_closed_form_and_clamp():
    mu, logvar = torch.tensor([0.3], dtype=torch.double), torch.tensor([0.7], dtype=torch.double)
    p, q = torch.distributions.Normal(mu, (logvar / 2).exp()), torch.distributions.Normal(0.1, math.sqrt(0.5))
    expected = torch.distributions.kl_divergence(p, q).item()
    assert gaussian_kl(mu, logvar, 0.1, 0.5).item() == pytest.approx(expected)
    low = gaussian_kl(mu, torch.tensor([-100.0], dtype=torch.double))
    assert low == gaussian_kl(mu, torch.tensor([math.log(1e-8)], dtype=torch.double))
    inputs = [torch.randn(3, 2, dtype=torch.double, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda m, v: gaussian_kl(m, v, 0.2, 0.3), inputs)


def test_penalty_is_taken_between_real_and_fake_and_can_be_differentiated():
    real, fake = torch.rand(2, 2, 3, 4, 4, dtype=torch.double)
    alpha = torch.tensor([0.25, 0.75], dtype=torch.double).view(2, 1, 1, 1)
    scale = torch.tensor(1.3, dtype=torch.double, requires_grad=True)

    def penalty(scale):
        return gradient_penalty(lambda x: scale * (x**2).flatten(1).sum(1), real, fake, alpha)

    between = alpha * real + (1 - alpha) * fake
    assert penalty(scale).item() == pytest.approx(((2 * 1.3 * between.flatten(1).norm(dim=1) - 1) ** 2).mean().item())
    assert torch.autograd.gradcheck(penalty, scale)
    critic = Discriminator(16, 4).double()
    gradient_penalty(critic, torch.rand(2, 3, 16, 16).double(), torch.rand(2, 3, 16, 16).double(), alpha).backward()
    assert critic.l1[0].module.weight_bar.grad.abs().sum() > 0
