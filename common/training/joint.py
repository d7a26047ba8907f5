"""Joint training of BNet, RNet, G and D: the two steps of the paper and their loop (docs/method.md, 3)."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import derainer, ranks
from ..speed import Speed
from .averaging import Average
from .checkpoint import load_weights
from .loop import fit
from .losses import gaussian_kl, gradient_penalty
from .proof import steps
from .run import Run


def joint_networks(args: argparse.Namespace) -> tuple[str, ...]:
    """Prefixes of the files that joint training writes with these flags."""
    return ("DerainNet", "ED", "D", *(["ED_ema"] if args.ema else []))


class Forward(NamedTuple):
    """What BNet and EDNet make of a batch."""

    mu_b: Tensor  # (N, 3, p, p), the derained image
    logvar_b: Tensor  # (N, 3, p, p)
    rain: Tensor  # (N, 3, p, p), >= 0
    mu_z: Tensor  # (N, nz)
    logvar_z: Tensor  # (N, nz)
    fake: Tensor  # (N, 3, p, p) = mu_b + rain, not clamped


def forward(netDerain: nn.Module, netED: nn.Module, rainy: Tensor, eps: Tensor, speed: Speed | None = None) -> Forward:
    """Derain a batch and put generated rain on the result.

    Args:
        rainy: (N, 3, p, p) in [0, 1].
        eps: (N, nz), standard normal draw for the rain code.
        speed: how BNet is called; whatever its precision, the results are of the type of ``rainy``.
    """
    speed = speed or Speed()
    with speed.autocast(rainy.device):
        mu_b, logvar_b = (out.to(rainy.dtype).contiguous() for out in netDerain(speed.order(rainy)))
    rain, mu_z, logvar_z, _ = netED(rainy, eps)
    return Forward(mu_b, logvar_b, rain, mu_z, logvar_z, mu_b + rain)


def d_step(
    netD: nn.Module,
    optD: Optimizer,
    rainy: Tensor,
    fake: Tensor,
    alpha: Tensor,
    lambda_gp: float,
    **seen: Tensor,
) -> dict[str, Tensor]:
    """One step of the critic on loss_D = -mean D(O) + mean D(fake) + lambda_gp gp; touches D alone.

    Args:
        rainy, fake: (N, 3, p, p); fake is detached here.
        alpha: (N, 1, 1, 1) in [0, 1], for the gradient penalty.
        seen: further means over this batch, to be returned with the losses.

    Returns:
        The losses, detached, as means over the batches of all processes: d_real, d_fake, gp (unweighted), loss_D.
    """
    fake = fake.detach()
    optD.zero_grad()
    # Three calls in this order, one backward: the spectral norm moves on at every call (docs/method.md, 2).
    d_real = -netD(rainy)[0].mean()
    d_fake = netD(fake)[0].mean()
    gp = gradient_penalty(netD, rainy, fake, alpha)
    loss = d_real + d_fake + lambda_gp * gp
    loss.backward()
    losses = ranks.average(optD, **seen, loss_D=loss, d_real=d_real, d_fake=d_fake, gp=gp)
    optD.step()
    return losses


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
) -> dict[str, Tensor]:
    """One step of BNet and EDNet on loss_G = w_adv (-mean D(fake)) + KL_z + KL_b; of D only u and v move.

    Args:
        out: the forward of this very batch, with its graph.
        clean: (N, 3, p, p) ground truth.
        w_adv: weight of the adversarial term.
        eps2: prior variance of the background.

    Returns:
        The losses, detached, as means over the batches of all processes: g_adv (unweighted), kl_z, kl_b, loss_G.
    """
    optDerain.zero_grad()
    optED.zero_grad()
    g_adv = -netD(out.fake)[0].mean()
    kl_z = gaussian_kl(out.mu_z, out.logvar_z)
    kl_b = gaussian_kl(out.mu_b, out.logvar_b, prior_mu=clean, prior_var=eps2)
    loss = w_adv * g_adv + kl_z + kl_b
    loss.backward(inputs=[*netDerain.parameters(), *netED.parameters()])  # none for the weights of D
    losses = ranks.average(optDerain, optED, loss_G=loss, g_adv=g_adv, kl_z=kl_z, kl_b=kl_b)
    optDerain.step()
    optED.step()
    return losses


def draw(number: int, nz: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What chance decides in a step, in the order of the reference: eps (N, nz) and alpha (N, 1, 1, 1).

    Drawn for the batches of all processes, each of which takes its own.
    """
    whole = number * ranks.count()
    return torch.randn(whole, nz, device=device)[ranks.own()], torch.rand(whole, 1, 1, 1, device=device)[ranks.own()]


def joint_step(
    netDerain: nn.Module,
    netED: nn.Module,
    netD: nn.Module,
    optimizers: dict[str, Optimizer],
    w_adv: float,
    lambda_gp: float,
    n_dis: int,
    eps2: float,
    speed: Speed,
    shown: dict[str, Tensor],
    average: Average | None = None,
) -> Callable[[Tensor, Tensor, int], dict[str, Tensor]]:
    """The step of joint training for ``fit``: D in every one, BNet and EDNet in every n_dis-th; see ``train_joint``.

    Args:
        optimizers: DerainNet, ED and D.
        shown: is given the batches of the newest step, for pictures.
        average: of EDNet's weights, updated with them.
    """

    def work(learn: bool, rainy: Tensor, clean: Tensor, eps: Tensor, alpha: Tensor) -> tuple[dict, dict]:
        with torch.set_grad_enabled(speed.needs_grad(learn)):  # a step of D needs none of BNet and EDNet: same numbers
            out = forward(netDerain, netED, rainy, eps, speed)
        mu_b, rain, fake = out.mu_b.detach(), out.rain.detach(), out.fake.detach()
        losses = d_step(netD, optimizers["D"], rainy, fake, alpha, lambda_gp, mse=torch.mean((mu_b - clean) ** 2))
        if learn:
            opts = optimizers["DerainNet"], optimizers["ED"]
            losses |= g_step(netDerain, netED, netD, *opts, out, clean, w_adv, eps2)
            if average is not None:
                average.update()
        pictures = {"derained": mu_b, "clean": clean, "rainy": rainy, "generated_rainy": fake, "rain_layer": rain}
        return losses, pictures

    proven = steps(work, speed, n_dis, (netDerain, netED, netD), optimizers, average)

    def step(rainy: Tensor, clean: Tensor, index: int) -> dict[str, Tensor]:
        losses, pictures = proven(index % n_dis == 0, rainy, clean, *draw(len(rainy), netED.nz, rainy.device))
        shown.update(pictures)
        return losses

    return step


def joint_optimizers(
    netDerain: nn.Module,
    netED: nn.Module,
    netD: nn.Module,
    lrDerain: float,
    lrED: float,
    lrD: float,
    speed: Speed | None = None,
) -> dict[str, Optimizer]:
    """Adam with PyTorch's betas and eps for each network, by the prefixes of the checkpoint files."""
    speed = speed or Speed()
    return {
        "DerainNet": speed.adam(netDerain.parameters(), lrDerain),
        "ED": speed.adam(netED.parameters(), lrED),
        "D": speed.adam((p for p in netD.parameters() if p.requires_grad), lrD),
    }


def start_from(args: argparse.Namespace, netDerain: nn.Module, netED: nn.Module) -> None:
    """Fill BNet and EDNet from --init_Derain and --init_ED, where these are given; a run that goes on has its own.

    Raises:
        UserError: see ``load_weights``.
    """
    if args.resume:
        return
    if args.init_ED:
        load_weights(netED, args.init_ED, "ED", "--init_ED")
    if args.init_Derain:
        load_weights(netDerain, args.init_Derain, "joint", "--init_Derain")
        trained = derainer.stored(Path(args.init_Derain)) or {}
        derainer.tell_stages("--stage", args.stage, trained.get("stage"))


def train_joint(
    *,
    run: Run,  # model folder, state to go on from, saving
    netDerain: nn.Module,  # BNet
    netED: nn.Module,  # RNet and G
    netD: nn.Module,  # critic
    lrDerain: float,
    lrED: float,
    lrD: float,
    w_adv: float,  # weight of -mean D(fake)
    lambda_gp: float,  # weight of the gradient penalty
    n_dis: int,  # BNet and EDNet learn in every n_dis-th step, counted from 0 over the whole training
    eps2: float,  # prior variance of the background
    ema: float,  # decay of a moving average of EDNet's weights, which is saved beside them; 0: none
    speed: Speed,  # how BNet is called
    **settings,  # data, schedule, epochs, saving: see fit
) -> None:
    """Train the three networks jointly; see ``d_step``, ``g_step`` and the loop ``fit``."""
    optimizers = joint_optimizers(netDerain, netED, netD, lrDerain, lrED, lrD, speed)
    speed.prepare(netDerain, settings["device"], say=True)
    shown: dict[str, Tensor] = {}
    average = Average(netED, ema) if ema else None
    step = joint_step(netDerain, netED, netD, optimizers, w_adv, lambda_gp, n_dis, eps2, speed, shown, average)
    nets = {"DerainNet": netDerain, "ED": netED, "D": netD}
    fit(
        run=run,
        step=step,
        nets=nets | ({"ED_ema": average.net} if average else {}),
        optimizers=optimizers,
        pictures=lambda: shown,
        **settings,
    )
