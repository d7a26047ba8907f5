"""Joint training of BNet, RNet, G and D: the two steps of the paper (docs/method.md, 3)."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import derainer, distributed
from ..models import Derain, PReNet
from ..terminal import warn
from .checkpoint import load, load_weights, put_weights
from .kinds import kind_of, unwrapped
from .losses import gaussian_kl, gradient_penalty

Tensors = dict[str, Tensor]


class Forward(NamedTuple):
    """The outputs of BNet and EDNet for a batch."""

    mu_b: Tensor  # (N, 3, p, p), the derained image
    logvar_b: Tensor  # (N, 3, p, p)
    rain: Tensor  # (N, 3, p, p), >= 0
    mu_z: Tensor  # (N, nz)
    logvar_z: Tensor  # (N, nz)
    fake: Tensor  # (N, 3, p, p) = mu_b + rain, not clamped


def forward(netDerain: nn.Module, netED: nn.Module, rainy: Tensor, eps: Tensor) -> Forward:
    """Derain a batch and put generated rain on the result.

    Args:
        rainy: (N, 3, p, p) in [0, 1].
        eps: (N, nz), standard normal draw for the rain code.
    """
    # BNet may run in bfloat16 and in another memory layout (precision.py); the losses do not.
    mu_b, logvar_b = (out.to(rainy.dtype).contiguous() for out in netDerain(rainy))
    rain, mu_z, logvar_z, _ = netED(rainy, eps)
    return Forward(mu_b, logvar_b, rain, mu_z, logvar_z, mu_b + rain)


def d_step(netD: nn.Module, optD: Optimizer, rainy: Tensor, fake: Tensor, alpha: Tensor, lambda_gp: float) -> Tensors:
    """One step of the critic on loss_D = -mean D(O) + mean D(fake) + lambda_gp gp; touches D alone.

    Args:
        rainy, fake: (N, 3, p, p); fake is detached here.
        alpha: (N, 1, 1, 1) in [0, 1], for the gradient penalty.

    Returns:
        The losses, detached: loss_D, d_real, d_fake, gp (unweighted).
    """
    fake = fake.detach()
    optD.zero_grad()
    # Three calls in this order, one backward: the spectral norm moves on at every call (docs/method.md, 2).
    d_real = -netD(rainy)[0].mean()
    d_fake = netD(fake)[0].mean()
    gp = gradient_penalty(netD, rainy, fake, alpha)
    loss = d_real + d_fake + lambda_gp * gp
    loss.backward()
    optD.step()
    return {"loss_D": loss.detach(), "d_real": d_real.detach(), "d_fake": d_fake.detach(), "gp": gp.detach()}


def g_step(
    netDerain: nn.Module,
    netED: nn.Module,
    netD: nn.Module,
    optDerain: Optimizer,
    optED: Optimizer,
    out: Forward,
    clean: Tensor,
    w_adv: float,
    eps2: float,
    with_ED: bool = True,
) -> Tensors:
    """One step of BNet and EDNet on loss_G = w_adv (-mean D(fake)) + KL_z + KL_b; of D only u and v move.

    Args:
        out: the forward of this very batch, with its graph.
        clean: (N, 3, p, p) ground truth.
        w_adv: weight of the adversarial term.
        eps2: prior variance of the background.
        with_ED: false: EDNet stays as it is.

    Returns:
        The losses, detached: loss_G, g_adv (unweighted), kl_z, kl_b.
    """
    optDerain.zero_grad()
    optED.zero_grad()
    g_adv = -netD(out.fake)[0].mean()
    kl_z = gaussian_kl(out.mu_z, out.logvar_z)
    kl_b = gaussian_kl(out.mu_b, out.logvar_b, prior_mu=clean, prior_var=eps2)
    loss = w_adv * g_adv + kl_z + kl_b
    learning = [*netDerain.parameters(), *(netED.parameters() if with_ED else ())]
    loss.backward(inputs=learning)  # none for the weights of D
    optDerain.step()
    if with_ED:
        optED.step()
    return {"loss_G": loss.detach(), "g_adv": g_adv.detach(), "kl_z": kl_z.detach(), "kl_b": kl_b.detach()}


def joint_step(
    netDerain: nn.Module,
    netED: nn.Module,
    netD: nn.Module,
    optimizers: dict[str, Optimizer],
    w_adv: float,
    lambda_gp: float,
    eps2: float,
) -> Callable[..., tuple[Tensors, Tensors]]:
    """The step for ``fit``: D in every one, BNet and EDNet where ``kind`` says so, see ``joint_draw``.

    Args:
        optimizers: DerainNet, ED and D.
    """

    def step(
        kind: tuple[bool, bool], rainy: Tensor, clean: Tensor, eps: Tensor, alpha: Tensor
    ) -> tuple[Tensors, Tensors]:
        learn, with_ED = kind
        with torch.set_grad_enabled(learn):  # a step of D needs no gradients of BNet and EDNet
            out = forward(netDerain, netED, rainy, eps)
        losses = {"mse": torch.mean((out.mu_b.detach() - clean) ** 2)}
        losses |= d_step(netD, optimizers["D"], rainy, out.fake, alpha, lambda_gp)
        if learn:
            opts = optimizers["DerainNet"], optimizers["ED"]
            losses |= g_step(netDerain, netED, netD, *opts, out, clean, w_adv, eps2, with_ED)
        images = {"derained": out.mu_b, "clean": clean, "rainy": rainy, "generated_rainy": out.fake}
        images["rain_layer"] = out.rain
        return losses, {name: image.detach() for name, image in images.items()}

    return step


def joint_draw(n_dis: int, nz: int, bnet_first: int = 0) -> Callable[[Tensor, Tensor, int, int], tuple]:
    """The inputs of a step for ``fit``: (kind, rainy, clean, eps, alpha), drawn in the order of the reference.

    The kind is two flags: whether BNet learns beside D, and whether EDNet does, too.

    The draws are for the whole batch; each process takes its share.

    Args:
        n_dis: BNet and EDNet learn in every n_dis-th step, counted from 0 over the whole training.
        bnet_first: steps at the start in which EDNet does not learn.
    """

    def draw(rainy: Tensor, clean: Tensor, index: int, whole: int) -> tuple:
        mine = distributed.share()
        eps = torch.randn(whole, nz, device=rainy.device)[mine]
        alpha = torch.rand(whole, 1, 1, 1, device=rainy.device)[mine]
        learn = index % n_dis == 0
        return (learn, learn and index >= bnet_first), rainy, clean, eps, alpha

    return draw


def start_from(args: argparse.Namespace, netDerain: Derain, netED: nn.Module) -> None:
    """Fill BNet and EDNet from --init_Derain and --init_ED, where these are given.

    A derainer of augmented training gives BNet its body and its mean. The variance starts at that of the prior, where
    it ends anyway; from a random start its loss would spoil the body within a few steps.

    Raises:
        UserError: see ``load_weights``.
    """
    if args.init_ED:
        load_weights(netED, args.init_ED, "--init_ED")
    if not args.init_Derain:
        return
    where, own = f"--init_Derain: {args.init_Derain}", netDerain.derainet
    content = unwrapped(load(args.init_Derain, "--init_Derain"), netDerain.state_dict().keys(), where)
    stored = derainer.stored(Path(args.init_Derain))
    stages = stored.get("recurrent_iter", stored.get("stage", args.stage))
    if stages != args.stage:  # it loads, and removes rain badly
        warn([f"stage: {args.stage}, in the training of {args.init_Derain} it was {stages}"])
    if kind_of(content) != "augmented":
        return put_weights(netDerain, content, where)
    net = PReNet(args.stage)
    put_weights(net, content, where)
    own.load_state_dict(net.state_dict(), strict=False)
    final, conv = own.convfinal[0], net.conv[0]
    with torch.no_grad():
        final.weight.copy_(torch.cat([conv.weight, torch.zeros_like(conv.weight)]))
        final.bias.copy_(torch.cat([conv.bias, torch.full_like(conv.bias, math.log(args.eps2))]))
