"""The losses as pure functions (docs/method.md, 3 and 4)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..precision import full_fp32

LOGVAR_RANGE = (math.log(1e-8), math.log(1e4))


def gaussian_kl(mu: Tensor, logvar: Tensor, prior_mu: Tensor | float = 0.0, prior_var: float = 1.0) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(prior_mu, prior_var)), mean over all elements; KL_z and KL_b of the paper.

    Args:
        mu, logvar: any shape; logvar is clamped to [log 1e-8, log 1e4] in here alone.
        prior_mu: a number or a tensor of that shape.
        prior_var: above 0.
    """
    logvar = logvar.clamp(*LOGVAR_RANGE)
    ratio = logvar.exp() / prior_var
    return 0.5 * torch.mean((mu - prior_mu) ** 2 / prior_var + ratio - 1 - (logvar - math.log(prior_var)))


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """mean over samples of (||grad of D at a point between real and fake||_2 - 1)^2 (Gulrajani et al., 2017).

    Args:
        critic: returns the scores (N,), alone or first of a tuple.
        real, fake: (N, 3, H, W); no gradient goes back to them.
        alpha: (N, 1, 1, 1) in [0, 1], the share of the real image.
    """
    between = (alpha * real + (1 - alpha) * fake).detach().requires_grad_()
    score = critic(between)
    score = score[0] if isinstance(score, tuple) else score
    (gradient,) = torch.autograd.grad(score.sum(), between, create_graph=True)
    return torch.mean((gradient.flatten(1).norm(dim=1) - 1) ** 2)  # a norm per sample, not per pixel


def _blur(x: Tensor) -> Tensor:
    """11x11 Gaussian window, sigma 1.5, zero padding, each channel by itself."""
    offsets = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    line = (line / line.sum()).expand(x.shape[1], 1, 1, -1)  # (C, 1, 1, 11)
    x = F.conv2d(x, line, padding=(0, 5), groups=x.shape[1])
    return F.conv2d(x, line.transpose(2, 3), padding=(5, 0), groups=x.shape[1])


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of RGB images in [0, 1], (N, 3, H, W), mean over all elements; the loss is its negative.

    Zero padding, C1 = 1e-4, C2 = 9e-4: the training loss, not the metric of the paper's tables.
    """
    mu_a, mu_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mu_a**2, _blur(b * b) - mu_b**2
    covariance = _blur(a * b) - mu_a * mu_b
    c1, c2 = 1e-4, 9e-4
    return torch.mean(
        (2 * mu_a * mu_b + c1) * (2 * covariance + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    )


def restoration_loss(derained: Tensor, clean: Tensor, w_l1: float = 0.0) -> tuple[Tensor, Tensor]:
    """-SSIM + w_l1 * mean |derained - clean|, and its gradient for ``derained``, both in full fp32 on every GPU.

    E[x^2] - mu^2 cancels: with factors rounded to TF32, SSIM would exceed 1. The second term is not the paper's: SSIM
    hardly sees a shift of light.
    """
    derained = derained.detach().requires_grad_()
    with full_fp32():
        loss = -ssim(derained, clean)
        if w_l1:
            loss = loss + w_l1 * F.l1_loss(derained, clean)
        (gradient,) = torch.autograd.grad(loss, derained)
    return loss.detach(), gradient
