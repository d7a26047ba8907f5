"""How much of the rain RNet recovers: the correlation of G(RNet(O)) with O - B, and with another patch's O - B.

    python -m common.evaluation.recovery --netED ED_state_N.pt --data_path RAINY --gt_path CLEAN

1: exactly this rain; 0: none of it. RNet's mean is used, on random crops that hold rain.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .. import cli, flags
from ..data.pack import Pack, is_pack
from ..data.pairs import check_pairs, pairs_of
from ..data.patches import CropSampler, PatchDataset, to_batch
from ..generation.measures import RAINY
from ..models import EDNet
from ..terminal import print_result, progress_bar
from ..training.checkpoint import generator_of
from ..training.device import pick_device

PATCHES = 512
LEAST = 0.01  # a patch holds rain if a larger share of its pixels is rainy


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over all elements of each sample; 0 where one is constant. (N, ...) twice -> (N,)."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)


@torch.no_grad()
def recovery(netED: EDNet, rainy: Tensor, clean: Tensor) -> dict[str, float]:
    """Mean correlation of G(mu) with O - B over the patches that hold rain, and with O - B of their neighbours.

    Args:
        rainy, clean: (N, 3, p, p) in [0, 1].

    Returns:
        correlation and shuffled, each in [-1, 1]; nan where no patch holds rain.
    """
    rain = rainy - clean
    holds = (rain.amax(1) > RAINY).float().mean((1, 2)) > LEAST
    rain, rainy = rain[holds], rainy[holds]
    made = netED.sample(netED.encoder(rainy).chunk(2, 1)[0])
    return {
        "correlation": correlation(made, rain).mean().item(),
        "shuffled": correlation(made, rain.roll(1, 0)).mean().item(),
    }


def some_patches(dataset: PatchDataset, number: int = PATCHES) -> tuple[Tensor, Tensor]:
    """The same random crops each time, rainy and clean, each (N, 3, p, p) in [0, 1]."""
    keys = progress_bar(list(CropSampler(1, number, 0, 1, 1)), desc="reading patches", unit="patch", leave=False)
    return to_batch(torch.cat([dataset.__getitems__(key) for key in keys]))


def recovery_on(
    netED: EDNet, dataset: PatchDataset, device: torch.device
) -> Callable[[Callable[[], bool]], dict[str, float]]:
    """A function for ``fit`` that validates RNet on patches of a data set."""
    rainy, clean = (patches.to(device) for patches in some_patches(dataset))
    return lambda stop: recovery(netED, rainy, clean)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_netED(required=True)
    parser.add_path("--data_path", required=True, help="folder of rainy images, or a pack")
    parser.add_path("--gt_path", help="folder of their clean partners")
    flags.add_pairing(parser)
    flags.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = pick_device(args.use_gpu, args.gpu_id)
    netED = generator_of(args, device, "")
    if is_pack(args.data_path):
        pairs = Pack(Path(args.data_path))
    else:
        pairs, _ = pairs_of(args)
        check_pairs(pairs, netED.patch_size, "--data_path, --gt_path")
    rainy, clean = some_patches(PatchDataset(pairs, netED.patch_size, 0))
    values = recovery(netED, rainy.to(device), clean.to(device))
    print_result("  ".join(f"{name} {value:.4f}" for name, value in values.items()))


if __name__ == "__main__":
    sys.exit(cli.run(main))
