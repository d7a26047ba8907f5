"""Training of RNet for a G that stays as it is: from a rainy patch to the code of its rain. Not in the paper.

Two kinds of patches teach it: photos with rain of G, whose code is known, and photos with real rain, which G has to
make again out of RNet's mean. So the gradient of the second kind goes through G, which does not learn.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..data.patches import PatchDataset, crop_keys, to_batch
from ..models import EDNet
from .generator import critic_view
from .losses import LOGVAR_RANGE

Tensors = dict[str, Tensor]

SHARE = 4  # real patches for each generated one: they teach RNet faster
HELD_OUT = 512  # patches on which RNet is validated; one counts if more than 0.01 of its pixels are brighter than 0.02
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
    netED: EDNet, optED: Optimizer, rainy: Tensor, clean: Tensor, z: Tensor, w_real: float
) -> tuple[Tensors, Tensors]:
    """One step of RNet on the code of generated rain + w_real * the distance of G(mu) to real rain; G gets no gradient.

    Takes real pairs, each image (N, 3, p, p) in [0, 1]; rain of the codes z, (M, nz), falls on the first M clean ones.
    The distance is squared and on the scale of ``critic_view``, where faint streaks count. Returns, detached, the
    losses code and real (unweighted), and the rain of the pairs beside G's rain for their codes.
    """
    optED.zero_grad()
    real = (rainy - clean).clamp(min=0)
    with torch.no_grad():
        generated = (clean[: len(z)] + netED.sample(z)).clamp(0, 1)
    mu, logvar = netED.encoder(torch.cat([generated, rainy])).chunk(2, 1)
    rain = netED.sample(mu[len(z) :])
    code = code_loss(z, mu[: len(z)], logvar[: len(z)])
    distance = F.mse_loss(critic_view(rain), critic_view(real))
    (code + w_real * distance).backward(inputs=list(netED.encoder.parameters()))
    optED.step()
    return {"code": code.detach(), "real": distance.detach()}, {"rain": real, "rain_of_code": rain.detach()}


def encoder_step(netED: EDNet, optED: Optimizer, w_real: float) -> Callable[..., tuple[Tensors, Tensors]]:
    """The step for ``fit``, see ``r_step``."""

    def step(kind: None, rainy: Tensor, clean: Tensor, z: Tensor) -> tuple[Tensors, Tensors]:
        return r_step(netED, optED, rainy, clean, z, w_real)

    return step


def encoder_draw(nz: int) -> Callable[[Tensor, Tensor, int, int], tuple]:
    """The inputs of a step for ``fit``: (None, rainy, clean, codes for a quarter as many patches)."""

    def draw(rainy: Tensor, clean: Tensor, index: int, whole: int) -> tuple:
        return None, rainy, clean, torch.randn(-(-whole // SHARE), nz, device=rainy.device)

    return draw


# --- what RNet finds -----------------------------------------------------------------------------------------------


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over all elements of each sample; 0 where one is constant. (N, ...) twice -> (N,)."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)


@torch.no_grad()
def recovery(netED: EDNet, rainy: Tensor, clean: Tensor) -> dict[str, float]:
    """Mean correlation of G(mu) with O - B over the patches that hold rain, and with O - B of their neighbours.

    Takes images (N, 3, p, p) in [0, 1]. Returns correlation and shuffled, each in [-1, 1] (1: exactly this rain; 0:
    none of it); nan where no patch holds rain.
    """
    rain = rainy - clean
    holds = (rain.amax(1) > 0.02).float().mean((1, 2)) > 0.01
    rain, rainy = rain[holds], rainy[holds]
    made = netED.sample(netED.encoder(rainy).chunk(2, 1)[0])
    found = {"correlation": rain, "shuffled": rain.roll(1, 0)}
    return {name: correlation(made, other).mean().item() for name, other in found.items()}


def recovery_on(
    netED: EDNet, dataset: PatchDataset, device: torch.device
) -> Callable[[Callable[[], bool]], dict[str, float]]:
    """A function with which ``fit`` validates RNet, on the same random patches of a data set each time."""
    crops = torch.cat([dataset.__getitems__(key) for key in crop_keys(1, HELD_OUT, 0, 1, 1)])
    rainy, clean = (patches.to(device) for patches in to_batch(crops))
    return lambda stop: recovery(netED, rainy, clean)
