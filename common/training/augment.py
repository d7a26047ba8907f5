"""Augmented training (A+): G rains on clean crops while any derainer learns (docs/method.md, 4)."""

import argparse
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import derainer, distributed
from ..data.patches import PatchDataset, photo_set, training_set
from ..errors import UserError
from ..models import EDNet
from .checkpoint import generator_of
from .losses import restoration_loss

Tensors = dict[str, Tensor]


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
        z: (N - n_real, nz) standard normal draw, or (N - n_real, 3, p, p) rain that was made of one before.

    Returns:
        (N, 3, p, p): rainy[:n_real], then clamp(clean + G(z), 0, 1).
    """
    generated = (clean[n_real:] + (netED.sample(z) if z.ndim == 2 else z)).clamp(0, 1)
    return torch.cat((rainy[:n_real], generated))


def a_step(
    net: nn.Module, optimizer: Optimizer, rainy: Tensor, clean: Tensor, w_l1: float = 0.0
) -> tuple[Tensors, Tensor]:
    """One step of a derainer on ``restoration_loss``.

    Args:
        net: any derainer, see common/derainer.py.
        rainy, clean: (N, 3, p, p) in [0, 1].
        w_l1: weight of the mean absolute error.

    Returns:
        The losses, detached: mse, loss; and the derained batch, detached.
    """
    optimizer.zero_grad()
    derained = derainer.apply(net, rainy)
    loss, gradient = restoration_loss(derained, clean, w_l1)
    derained.backward(gradient)
    optimizer.step()
    derained = derained.detach()
    return {"mse": torch.mean((derained - clean) ** 2), "loss": loss}, derained


def aug_step(
    net: nn.Module, netED: EDNet | None, optimizer: Optimizer, n_real: int, w_l1: float = 0.0
) -> Callable[..., tuple[Tensors, Tensors]]:
    """The step of augmented training for ``fit``.

    Args:
        netED: RNet and G, frozen; None: all samples keep their own rain.
        n_real: samples of the whole batch that keep their own rain; they come first.
        w_l1: see ``a_step``.
    """
    own_real = len(range(n_real)[distributed.share()])

    def step(kind: None, rainy: Tensor, clean: Tensor, *z: Tensor) -> tuple[Tensors, Tensors]:
        images = {}
        if netED is not None and own_real < len(rainy):
            rainy = rain_on(netED, rainy, clean, own_real, *z)
            images["generated_rainy"] = rainy[own_real:]
        losses, derained = a_step(net, optimizer, rainy, clean, w_l1)
        return losses, {"rainy": rainy, "derained": derained, "clean": clean} | images

    return step


def aug_draw(
    netED: EDNet | None, n_real: int, crop: Callable[..., np.ndarray] | None = None, seed: int = 0
) -> Callable[[Tensor, Tensor, int, int], tuple]:
    """The inputs of a step for ``fit``: (None, rainy, clean, rain codes); codes are drawn for the whole batch.

    Args:
        crop: makes the rain of a crop in place of codes, see ``RainBank.crop``.
        seed: of its random numbers, beside the number of the step and of the sample.
    """

    def draw(rainy: Tensor, clean: Tensor, index: int, whole: int) -> tuple:
        if netED is None:
            return None, rainy, clean
        if crop is not None:
            own = range(whole - n_real)[distributed.share(n_real)]
            rain = np.empty((len(own), *rainy.shape[2:], 3), np.float32)
            for made, k in zip(rain, own, strict=True):
                made[:] = crop(*made.shape[:2], index * (whole - n_real) + k, np.random.RandomState([seed, index, k]))
            return None, rainy, clean, torch.from_numpy(rain).permute(0, 3, 1, 2).to(rainy.device)
        codes = torch.randn(whole - n_real, netED.nz, device=rainy.device)
        return None, rainy, clean, codes[distributed.share(n_real)]

    return draw


def crops(args: argparse.Namespace, hint: str) -> tuple[PatchDataset, str]:
    """The crops of augmented training: of pairs alone, of pairs and of the photos of --clean_path, or of these alone.

    Args:
        hint: see ``training_set``.

    Returns:
        The data set, and where it comes from in words.

    Raises:
        UserError: see ``photo_set`` and ``training_set``.
    """
    if args.clean_path is None:
        return training_set(args, hint)
    if _photos_alone(args):
        for flag in ("gt_path", "side_by_side", "train_num", "seed", "fake_ratio"):
            if flag in args.given:
                raise UserError(f"--{flag}: it belongs to pairs; name these with --data_path, or leave the flag out")
        args.data_path, dataset = "", photo_set(args)  # its default is not used
        return dataset, f"{len(dataset.pairs)} photos of --clean_path"
    dataset, rule = training_set(args, hint)
    dataset.photos, dataset.n_real = photo_set(args), share(args)[0]
    return dataset, f"{rule}; and {len(dataset.photos.pairs)} photos of --clean_path"


def _photos_alone(args: argparse.Namespace) -> bool:
    return args.clean_path is not None and "data_path" not in args.given


def share(args: argparse.Namespace) -> tuple[int, int]:
    """n_real, samples of a batch that keep their own rain, and the steps of an epoch.

    Without pairs no sample is real, and --fake_ratio is not used.
    """
    if _photos_alone(args):
        return 0, args.iters_per_epoch
    return real_samples(args.batchSize, args.fake_ratio), steps_per_epoch(args.iters_per_epoch, args.fake_ratio)


def pick_generator(args: argparse.Namespace, device: torch.device, hint: str, any_crop: bool = False) -> EDNet | None:
    """The generator of --netED, see ``generator_of``; None where --fake_ratio is 0, which needs none.

    Args:
        any_crop: knobs are set, so that --patchSize may be another one than the generator's.

    Raises:
        UserError: see ``generator_of``; or there is no sample for generated rain, in a batch or at all.
    """
    n_real = share(args)[0]
    if args.fake_ratio == 0 and n_real:
        if args.clean_path is not None or any_crop:
            raise UserError("--fake_ratio 0: there is no generated rain; leave out --clean_path, --preset and knobs")
        return None
    net = generator_of(args, device, hint, any_crop)
    if n_real == args.batchSize:
        ratio = _exact(args.fake_ratio)
        raise UserError(
            f"--batchSize: {args.batchSize} with --fake_ratio {args.fake_ratio:g} leaves no sample of a batch for "
            f"generated rain; give --batchSize {math.ceil((1 + ratio) / ratio)} or more, a larger --fake_ratio, or "
            "--fake_ratio 0 to do without"
        )
    print(f"a batch: {n_real} crops with their own rain, {args.batchSize - n_real} with generated rain")
    return net
