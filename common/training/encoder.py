"""Training of RNet for a G that stays as it is: from a rainy patch to the code of its rain. Not in the paper.

Two kinds of patches teach it: photos with rain of G, whose code is known, and photos with real rain, which G has to
make again out of RNet's mean. So the gradient of the second kind goes through G, which does not learn.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..models import EDNet
from ..precision import autocast
from ..speed import Speed, set_rate
from .generator import seen
from .loop import fit
from .losses import LOGVAR_RANGE
from .proof import steps
from .run import Run

SHARE = 4  # real patches for each generated one: they teach RNet faster
WARM_UP = 200  # steps in which the rate rises to its value; full at once, it leaves RNet with units that are never on


def init_encoder(encoder: nn.Module) -> None:
    """He-normal start of RNet; the last layer 0.2 times that, so that codes begin near their mean, 0."""
    layers = [m for m in encoder.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for module in layers:
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        layers[-1].weight *= 0.2


def code_loss(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """-log N(z; mu, exp(logvar)) without its constant, mean over all elements: 0.5 for an encoder that knows nothing.

    Args:
        z, mu, logvar: (N, nz); logvar is clamped as in the KL terms.
    """
    logvar = logvar.clamp(*LOGVAR_RANGE)
    return 0.5 * torch.mean((z - mu) ** 2 / logvar.exp() + logvar)


def r_step(
    netED: EDNet, optED: Optimizer, rainy: Tensor, clean: Tensor, z: Tensor, w_real: float, precision: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One step of RNet on the code of generated rain + w_real * the distance of G(mu) to real rain; G gets no gradient.

    Args:
        rainy, clean: (N, 3, p, p) in [0, 1], real pairs.
        z: (M, nz), codes of the rain that is generated on the first M clean patches.
        w_real: weight of the mean squared distance on the scale of ``seen``, where faint streaks count.

    Returns:
        The losses, detached: code and real (unweighted); and the rain of the pairs beside what G made of it.
    """
    optED.zero_grad()
    real = (rainy - clean).clamp(min=0)
    with autocast(rainy.device, precision):
        with torch.no_grad():
            generated = (clean[: len(z)] + netED.sample(z).float()).clamp(0, 1)
        mu, logvar = netED.encoder(torch.cat([generated, rainy])).float().chunk(2, 1)
        rain = netED.sample(mu[len(z) :]).float()
    code = code_loss(z, mu[: len(z)], logvar[: len(z)])
    distance = F.mse_loss(seen(rain), seen(real))
    (code + w_real * distance).backward(inputs=list(netED.encoder.parameters()))
    optED.step()
    return {"code": code.detach(), "real": distance.detach()}, {"rain": real, "rain_of_code": rain.detach()}


def encoder_step(
    netED: EDNet, optED: Optimizer, w_real: float, speed: Speed, shown: dict[str, Tensor]
) -> Callable[[Tensor, Tensor, int], dict[str, Tensor]]:
    """The step for ``fit``, see ``r_step``; ``shown`` is given the pictures of the newest one."""

    def work(kind: None, rainy: Tensor, clean: Tensor, z: Tensor) -> tuple[dict, dict]:
        return r_step(netED, optED, rainy, clean, z, w_real, speed.precision)

    proven = steps(work, speed, 1, [netED], {"ED": optED})

    def step(rainy: Tensor, clean: Tensor, index: int) -> dict[str, Tensor]:
        if index <= WARM_UP:
            set_rate(optED, optED.param_groups[0]["initial_lr"] * (index + 1) / (WARM_UP + 1))
        codes = torch.randn(-(-len(rainy) // SHARE), netED.nz, device=rainy.device)
        losses, pictures = proven(None, rainy, clean, codes)
        shown.update(pictures)
        return losses

    return step


def train_encoder(
    *,
    run: Run,  # model folder, state to go on from, saving
    netED: EDNet,  # its RNet learns
    lr: float,
    w_real: float,  # weight of the distance to real rain
    speed: Speed,  # whether steps are recorded, and in which arithmetic
    **settings,  # data, schedule, epochs, saving: see fit
) -> None:
    """Train RNet; see ``r_step`` and the loop ``fit``."""
    optimizer = speed.adam(netED.encoder.parameters(), lr)
    speed.switch()
    shown: dict[str, Tensor] = {}
    step = encoder_step(netED, optimizer, w_real, speed, shown)
    fit(
        run=run,
        step=step,
        nets={"ED": netED},
        optimizers={"ED": optimizer},
        pictures=lambda: shown,
        frozen=netED.decoder,
        **settings,
    )
