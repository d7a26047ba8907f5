"""Training of G alone on rain layers: straight, varied rain after hours on a CPU. Not the paper's joint training.

BNet is left out: it ends at the clean image, so the background cancels between O and mu_b + R, and the critic may as
well compare rain with rain. The losses are those of R3GAN (Huang et al., "The GAN is dead; long live the GAN!",
NeurIPS 2024), the penalties lazy as in StyleGAN2 (Karras et al., CVPR 2020).
"""

import itertools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..models import EDNet
from ..models.vrgnet import levels

Tensors = dict[str, Tensor]
GROUP = 4  # samples whose standard deviation the critic sees
LAZY = 8  # steps from one penalty to the next
LEAK = 0.1  # share of the gradient that the closed last ReLU of G lets through while it trains


class RainCritic(nn.Module):
    """The critic of rain layers: strided convolutions, no normalisation, and how much the samples of a group differ.

    A layer has ``patch_size`` px a side, a power of two from 16 on, and 3 channels, or 1 if it is grey. The first
    convolution has ``width`` channels, each further one twice as many.
    """

    def __init__(self, patch_size: int = 64, width: int = 32, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [channels, *(width * 2**i for i in range(levels(patch_size)))]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)  # (N, channels, p, p) -> (N, C, 4, 4)
        self.mix = nn.Conv2d(widths[-1] + 1, widths[-1], 3, 1, 1)
        self.last = nn.Linear(16 * widths[-1], 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, 0.2)
                nn.init.zeros_(module.bias)

    def forward(self, rain: Tensor) -> Tensor:
        """Layers as ``critic_view`` makes them, (N, channels, p, p) -> scores (N,)."""
        x = self.body(rain)
        groups = x.unflatten(0, (-1, GROUP) if len(x) % GROUP == 0 else (1, -1))
        variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)  # var() is slow on a CPU
        spread = (variance + 1e-8).sqrt().mean((1, 2, 3))  # one number a group
        spread = spread.repeat_interleave(groups.shape[1])[:, None, None, None].expand(-1, 1, *x.shape[2:])
        x = F.leaky_relu(self.mix(torch.cat([x, spread], 1)), 0.2)
        return self.last(x.flatten(1))[:, 0]


def critic_view(rain: Tensor, channels: int = 3) -> Tensor:
    """Rain layers (N, nc, p, p) >= 0 as the critic sees them, of 3 channels or 1: the root makes faint streaks count.

    They are rounded to 8 bits and clipped at 1, as the real ones are. G can not make steps, by which the critic would
    know the real ones. The gradient passes as if they were neither.
    """
    rain = rain.mean(1, keepdim=True) if channels == 1 else rain
    eight_bits = (255 * rain).round().clamp(max=255) / 255
    return 2 * (rain + (eight_bits - rain).detach() + 0.02).sqrt() - 1


def init_decoder(decoder: nn.Module, grey: bool = False) -> None:
    """He-normal start of G, so that codes matter from the first step; the last layer 0.2 times that, for faint rain.

    ``grey`` gives all channels the same weights; where the critic sees their mean alone, they stay the same.
    """
    convs = [m for m in decoder.modules() if isinstance(m, (nn.Linear, nn.ConvTranspose2d))]
    for module in convs:
        taps = 1
        if isinstance(module, nn.ConvTranspose2d) and module.stride == (2, 2):
            taps = 4  # of the 4x4 kernel that reach an output pixel
        inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        nn.init.normal_(module.weight, 0, (2 / (taps * inputs)) ** 0.5)
    with torch.no_grad():
        convs[-1].weight *= 0.2
        if grey:
            convs[-1].weight[:] = convs[-1].weight[:, :1]  # (nef, nc, 4, 4)


def leaky_sample(netED: EDNet, z: Tensor) -> Tensor:
    """G(z), whose last ReLU lets a tenth of the gradient through where it is closed: (N, nz) -> (N, 3, p, p) >= 0.

    Only where that would open it: what is black can't become blacker, and would be pushed down without end.
    """
    *body, last = netED.decoder.main
    for layer in body:
        z = layer(z)
    below = LEAK * z.clamp(max=0)
    if below.requires_grad:
        below.register_hook(lambda grad: grad.clamp(max=0))
    return last(z) + below - below.detach()


def zero_centred(netD: nn.Module, x: Tensor) -> Tensor:
    """Mean over samples of ||grad_x D(x)||^2: R1 on real samples, R2 on fake ones. (N, ...) -> 0-dim."""
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(netD(x).sum(), x, create_graph=True)
    return grad.square().sum((1, 2, 3)).mean()


def d_step(netD: nn.Module, optD: Optimizer, real: Tensor, fake: Tensor, w_gp: float) -> Tensors:
    """One step of the critic on softplus(-(D(real) - D(fake))) + w_gp (R1 + R2); touches D alone.

    Takes layers (N, 3 or 1, p, p) as ``critic_view`` makes them. Returns, detached, loss_D without penalties, the mean
    margin D(real) - D(fake), and r1 and r2, unweighted; a w_gp of 0 leaves the penalties out.
    """
    optD.zero_grad()
    margin = netD(real) - netD(fake.detach())
    loss_D = F.softplus(-margin).mean()
    losses = {"loss_D": loss_D.detach(), "margin": margin.detach().mean()}
    if w_gp:
        r1, r2 = zero_centred(netD, real), zero_centred(netD, fake)
        loss_D = loss_D + w_gp * (r1 + r2)
        losses |= {"r1": r1.detach(), "r2": r2.detach()}
    loss_D.backward()
    optD.step()
    return losses


def g_step(netED: EDNet, netD: nn.Module, optED: Optimizer, real: Tensor, z: Tensor) -> tuple[Tensors, Tensor]:
    """One step of G on softplus(-(D(fake) - D(real))); D gets no gradient.

    Takes real layers as ``d_step`` does, and rain codes (N, nz); returns the loss and the rain (N, 3, p, p), detached.
    """
    optED.zero_grad()
    rain = leaky_sample(netED, z)
    with torch.no_grad():
        score = netD(real)
    margin = netD(critic_view(rain, real.shape[1])) - score
    loss_G = F.softplus(-margin).mean()
    loss_G.backward(inputs=list(netED.decoder.parameters()))
    optED.step()
    return {"loss_G": loss_G.detach()}, rain.detach()


def generator_step(
    netED: EDNet, netD: nn.Module, optimizers: Mapping[str, Optimizer], w_gp: float
) -> Callable[..., tuple[Tensors, Tensors]]:
    """The step for ``fit``: D, then G, each with rain of its own codes; penalties in every 8th step, times 8."""
    channels = netD.body[0].in_channels

    def step(
        kind: tuple[bool, bool], rainy: Tensor, clean: Tensor, z_d: Tensor, z_g: Tensor
    ) -> tuple[Tensors, Tensors]:
        penalties, g_learns = kind
        rain = (rainy - clean).clamp(min=0)
        real = critic_view(rain, channels)
        with torch.no_grad():
            fake = critic_view(netED.sample(z_d), channels)
        losses = d_step(netD, optimizers["D"], real, fake, w_gp * LAZY if penalties else 0)
        if not g_learns:
            return losses, {"rain": rain}
        g_losses, generated = g_step(netED, netD, optimizers["ED"], real, z_g)
        return losses | g_losses, {"rain": rain, "generated_rain": generated}

    return step


def generator_draw(nz: int, critic_first: int = 0) -> Callable[[Tensor, Tensor, int, int], tuple]:
    """The inputs of a step for ``fit``: ((with penalties?, does G learn?), rainy, clean, codes for D, codes for G).

    Args:
        critic_first: steps at the start in which D learns alone.
    """

    def draw(rainy: Tensor, clean: Tensor, index: int, whole: int) -> tuple:
        kind = index % LAZY == 0, index >= critic_first
        return kind, rainy, clean, *torch.randn(2, whole, nz, device=rainy.device)

    return draw
