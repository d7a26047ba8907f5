"""Training of RNet, G and D alone, on the rain layers of pairs: hours on a CPU where joint training takes weeks.

What joint training spends most of its time on, BNet, is left out: after training, KL_b has pinned its mu_b to the clean
image, so the background cancels between O and mu_b + R, and D may as well compare O - B with R. Two things keep G from
making one rain of all codes, which joint training takes very many steps to get out of: codes are drawn from N(0, I),
and ``sameness`` asks that its rains differ as much from each other as those of the data do (after the mode-seeking
loss of Mao et al., CVPR 2019). RNet learns to read the code back from rain that G has put on the clean image.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.speed import Speed
from common.training.averaging import Average
from common.training.joint import d_step
from common.training.loop import fit
from common.training.losses import LOGVAR_RANGE
from common.training.run import Run


def shapes_of(rain: Tensor, level: Tensor) -> Tensor:
    """Rain layers (N, 3, p, p) divided by their mean plus ``level``, so that neither bright nor faint ones dominate."""
    return rain / (rain.mean((1, 2, 3), keepdim=True) + level).clamp(min=1e-6)  # a batch may hold no rain at all


def sameness(rain: Tensor, real: Tensor) -> Tensor:
    """How much less the generated rains of a batch differ from each other than the real ones: 0 (not less) to 1 (not).

    Args:
        rain, real: (N, 3, p, p) >= 0, N at least 2; neighbours in the batch are compared. 0 where ``real`` has no rain.
    """
    level = real.mean().detach() / 2
    found, wanted = (
        (shape - shape.roll(1, 0)).abs().mean() for shape in (shapes_of(rain, level), shapes_of(real, level).detach())
    )
    return torch.where(wanted > 0, torch.relu(1 - found / wanted.clamp(min=1e-6)), torch.zeros_like(found))


def code_loss(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """-log N(z; mu, exp(logvar)) without its constant, mean over all elements: 0.5 for an encoder that knows nothing.

    Args:
        z, mu, logvar: (N, nz); logvar is clamped as in the KL terms.
    """
    logvar = logvar.clamp(*LOGVAR_RANGE)
    return 0.5 * torch.mean((z - mu) ** 2 / logvar.exp() + logvar)


def g_step(
    netED: nn.Module,
    netD: nn.Module,
    optED: Optimizer,
    rain: Tensor,
    z: Tensor,
    real: Tensor,
    clean: Tensor,
    w_adv: float,
    w_div: float,
) -> dict[str, Tensor]:
    """One step of G on w_adv (-mean D(R)) + w_div sameness, and of RNet on ``code_loss``; of D only u and v move.

    Args:
        rain: (N, 3, p, p) = G(z), with its graph.
        z: (N, nz) its codes.
        real: (N, 3, p, p) = O - B, not below 0.
        clean: (N, 3, p, p) in [0, 1].

    Returns:
        The losses, detached: g_adv and same (unweighted), code.
    """
    optED.zero_grad()
    g_adv = -netD(rain)[0].mean()
    same = sameness(rain, real)
    mu, logvar = netED.encoder(clean + rain.detach()).chunk(2, 1)
    code = code_loss(z, mu, logvar)
    (w_adv * g_adv + w_div * same + code).backward(inputs=list(netED.parameters()))  # none for the weights of D
    optED.step()
    return {"g_adv": g_adv.detach(), "same": same.detach(), "code": code.detach()}


def generator_step(
    netED: nn.Module,
    netD: nn.Module,
    optimizers: Mapping[str, Optimizer],
    w_adv: float,
    w_div: float,
    lambda_gp: float,
    n_dis: int,
    speed: Speed,
    shown: dict[str, Tensor],
    average: Average | None,
) -> Callable[[Tensor, Tensor, int], dict[str, Tensor]]:
    """The step for ``fit``: D in every one, RNet and G in every n_dis-th; see ``train_generator``."""

    def work(learn: bool, rainy: Tensor, clean: Tensor, z: Tensor, alpha: Tensor) -> tuple[dict, dict]:
        real = (rainy - clean).clamp(min=0)
        with torch.set_grad_enabled(learn):
            rain = netED.sample(z)
        losses = d_step(netD, optimizers["D"], real, rain, alpha, lambda_gp)
        if learn:
            losses |= g_step(netED, netD, optimizers["ED"], rain, z, real, clean, w_adv, w_div)
            if average is not None:
                average.update()
        return losses, {"rainy": rainy, "generated_rainy": clean + rain.detach(), "rain_layer": rain.detach()}

    device = next(netD.parameters()).device
    steps = {learn: speed.recorded(lambda *batch, learn=learn: work(learn, *batch), device) for learn in (True, False)}

    def step(rainy: Tensor, clean: Tensor, index: int) -> dict[str, Tensor]:
        z = torch.randn(len(rainy), netED.nz, device=rainy.device)
        alpha = torch.rand(len(rainy), 1, 1, 1, device=rainy.device)
        losses, pictures = steps[index % n_dis == 0](rainy, clean, z, alpha)
        shown.update(pictures)
        return losses

    return step


def train_generator(
    *,
    run: Run,  # model folder, state to go on from, saving
    netED: nn.Module,  # RNet and G
    netD: nn.Module,  # critic, of rain layers
    lrED: float,
    lrD: float,
    beta1: float,  # of Adam, for both
    w_adv: float,  # weight of -mean D(R)
    w_div: float,  # weight of sameness
    lambda_gp: float,  # weight of the gradient penalty
    n_dis: int,  # RNet and G learn in every n_dis-th step, counted from 0 over the whole training
    ema: float,  # decay of a moving average of netED's weights, which is saved beside them; 0: none
    speed: Speed,  # whether steps are recorded, and in which arithmetic
    **settings,  # data, schedule, epochs, saving: see fit
) -> None:
    """Train RNet, G and D on the rain layers of pairs; see ``g_step``, ``joint.d_step`` and the loop ``fit``."""
    optimizers = {
        "ED": speed.adam(netED.parameters(), lrED, beta1),
        "D": speed.adam((p for p in netD.parameters() if p.requires_grad), lrD, beta1),
    }
    speed.switch()
    shown: dict[str, Tensor] = {}
    average = Average(netED, ema) if ema else None
    step = generator_step(netED, netD, optimizers, w_adv, w_div, lambda_gp, n_dis, speed, shown, average)
    nets = {"ED": netED, "D": netD} | ({"ED_ema": average.net} if average else {})
    fit(run=run, step=step, nets=nets, optimizers=optimizers, pictures=lambda: shown, **settings)
