"""Augmented training (A+): G rains on clean crops while any derainer learns (docs/method.md, 4)."""

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import derainer, ranks
from ..errors import UserError
from ..models import EDNet
from ..precision import full_fp32
from ..speed import Speed
from .checkpoint import generator_of
from .loop import fit
from .losses import ssim
from .proof import steps
from .run import Run


def _exact(fake_ratio: float) -> Fraction:
    return Fraction(repr(float(fake_ratio)))  # the decimal that was typed: 3000 * 1.1 is 3300, not a hair more


def real_samples(batch_size: int, fake_ratio: float) -> int:
    """n_real = ceil(batch / (1 + fake_ratio)): how many samples of a batch keep their own rain, at least 1."""
    return math.ceil(batch_size / (1 + _exact(fake_ratio)))


def steps_per_epoch(iters_per_epoch: int, fake_ratio: float) -> int:
    """ceil(iters_per_epoch * (1 + fake_ratio)): an epoch shows as many real samples as one without generated ones."""
    return math.ceil(iters_per_epoch * (1 + _exact(fake_ratio)))


def ratio_digits(fake_ratio: float) -> str:
    """The ratio in a file name: the decimal without its point, 0.5 -> 05, 0.25 -> 025, 1 -> 10."""
    return format(Decimal(repr(float(fake_ratio))), "f").replace(".", "")


@torch.no_grad()
def rain_on(netED: EDNet, rainy: Tensor, clean: Tensor, n_real: int, z: Tensor) -> Tensor:
    """Put generated rain on the clean crops from n_real on; the crops before that keep their own rain.

    Args:
        rainy, clean: (N, 3, p, p) in [0, 1].
        z: (N - n_real, nz) standard normal draw.

    Returns:
        (N, 3, p, p): rainy[:n_real], then clamp(clean + G(z), 0, 1).
    """
    generated = (clean[n_real:] + netED.sample(z)).clamp(0, 1)
    return torch.cat((rainy[:n_real], generated))


def a_step(
    derain: Callable[[Tensor], Tensor], optimizer: Optimizer, rainy: Tensor, clean: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """One step of a derainer on loss = -SSIM.

    Args:
        derain: rainy (N, 3, p, p) to derained, the same shape.
        rainy, clean: (N, 3, p, p) in [0, 1].

    Returns:
        The losses, detached, as means over the batches of all processes: loss, mse; and the derained batch, detached.
    """
    optimizer.zero_grad()
    derained = derain(rainy)
    seen = derained.detach().requires_grad_()
    with (
        full_fp32()
    ):  # E[x^2] - mu^2 cancels: of rounded factors SSIM exceeds 1; and so for the backward of the windows
        loss = -ssim(seen, clean)
        (gradient,) = torch.autograd.grad(loss, seen)
    derained.backward(gradient)
    derained = derained.detach()
    losses = ranks.average(optimizer, mse=torch.mean((derained - clean) ** 2), loss=loss)
    optimizer.step()
    return losses, derained


def pick_generator(run: Run, device: torch.device, hint: str) -> EDNet | None:
    """The generator of --netED, frozen; None where --fake_ratio is 0, which needs none.

    Its sizes go to the flags --nz, --nef and --patchSize, and are said, where these were left alone.

    Raises:
        UserError: the file is missing or the wrong one, its sizes contradict flags that were given, or a batch has no
            sample for generated rain.
    """
    args = run.args
    if args.fake_ratio == 0:
        if "netED" in args.given:
            print("--netED: no generator is needed with --fake_ratio 0")
        return None
    net = generator_of(args, device, hint, run.settled)
    whole = args.batchSize * ranks.count()
    n_real = real_samples(whole, args.fake_ratio)
    if n_real == whole:
        ratio = _exact(args.fake_ratio)
        least = math.ceil(math.ceil((1 + ratio) / ratio) / ranks.count())
        raise UserError(
            f"--batchSize: {args.batchSize} with --fake_ratio {args.fake_ratio:g} leaves no sample of a batch for "
            f"generated rain; give --batchSize {least} or more, a larger --fake_ratio, or --fake_ratio 0 to do without"
        )
    print(f"a batch: {n_real} crops with their own rain, {whole - n_real} with generated rain")
    return net


def aug_step(
    net: nn.Module, netED: EDNet | None, optimizer: Optimizer, n_real: int, speed: Speed, shown: dict[str, Tensor]
) -> Callable[[Tensor, Tensor, int], dict[str, Tensor]]:
    """The step of augmented training for ``fit``, see ``train_augmented``.

    Args:
        n_real: samples that keep their own rain, of the batches of all processes; they come first.
        shown: is given the batches of the newest step, for pictures.
    """

    def derain(rainy: Tensor) -> Tensor:
        with speed.autocast(rainy.device):
            return derainer.apply(net, speed.order(rainy) if derainer.is_ours(net) else rainy)

    def work(kind: None, rainy: Tensor, clean: Tensor, *z: Tensor) -> tuple[dict, dict]:
        if own_real < len(rainy):
            rainy = rain_on(netED, rainy, clean, own_real, *z)
        losses, derained = a_step(derain, optimizer, rainy, clean)
        return losses, {"rainy": rainy, "derained": derained, "clean": clean}

    proven = steps(work, speed, 1, [net], {"derainer": optimizer})
    own_real = len(range(n_real)[ranks.own()])

    def step(rainy: Tensor, clean: Tensor, index: int) -> dict[str, Tensor]:
        z = []
        if netED:
            whole = torch.randn(len(rainy) * ranks.count() - n_real, netED.nz, device=rainy.device)
            z = [whole[ranks.own(n_real)]]
        losses, pictures = proven(None, rainy, clean, *z)
        shown.update(pictures)
        if own_real < len(rainy):
            shown.update(generated_rainy=pictures["rainy"][own_real:])
        return losses

    return step


def train_augmented(
    *,
    run: Run,  # model folder, state to go on from, saving; its prefix names the derainer's files
    net: nn.Module,  # any derainer, see common/derainer.py
    netED: EDNet | None,  # RNet and G, frozen; None: all samples keep their own rain
    lr: float,
    fake_ratio: float,  # generated samples for each real one; an epoch has (1 + fake_ratio) times the steps
    device: torch.device,
    batch_size: int,  # of each process
    iters_per_epoch: int,  # before that factor
    speed: Speed,  # how the derainer is called
    **settings,  # data, schedule, epochs, saving: see fit
) -> None:
    """Train a derainer with generated rain among the real one; see ``rain_on``, ``a_step`` and the loop ``fit``."""
    whole = batch_size * ranks.count()
    n_real = real_samples(whole, fake_ratio) if netED else whole
    optimizer = speed.adam((p for p in net.parameters() if p.requires_grad), lr)
    speed.prepare(net, device, say=True)
    shown: dict[str, Tensor] = {}
    step = aug_step(net, netED, optimizer, n_real, speed, shown)
    (name,) = run.prefixes
    fit(
        run=run,
        step=step,
        nets={name: net},
        optimizers={name: optimizer},
        device=device,
        batch_size=batch_size,
        iters_per_epoch=steps_per_epoch(iters_per_epoch, fake_ratio),
        pictures=lambda: shown,
        frozen=netED,
        **settings,
    )
