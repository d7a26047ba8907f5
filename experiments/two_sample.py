"""Can a small classifier tell generated rain from real rain? AUC 0.5: no; 1: always.

A classifier two-sample test (Lopez-Paz & Oquab, ICLR 2017): a network learns to tell some real crops from some of the
rain in question, and is measured on others. It gives the same figure each time on one machine. The small classifier
sees large differences. The strict one has batch normalisation: it learns much faster and sees smaller ones.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models.vrgnet import levels

STEPS = 400  # of training
BATCH = 64  # crops, half of them real
SMALL, STRICT = "auc", "strict"  # the classifiers, as columns of a table
RATE = 5e-3  # of Adam at its highest; it rises over the first fifth of the steps and falls to 0
SEEDS = (0, 1, 2)  # of the classifier's start and batches


def classifier(side: int, kind: str, generator: torch.Generator) -> nn.Sequential:
    """A classifier, (N, 1, side, side) -> (N, 1) logits that a crop is not real."""
    widths = [1, *(min(64, max(8, 512 // (side >> k))) for k in range(1, levels(side) + 1))]  # alike work at each size
    layers: list[nn.Module] = []
    with torch.device("meta"):  # which leaves the global stream of random numbers alone
        for before, after in pairwise(widths):
            norm = [nn.BatchNorm2d(after)] if kind == STRICT else []
            layers += [nn.Conv2d(before, after, 4, 2, 1), *norm, nn.LeakyReLU(0.2)]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1)]
    net = nn.Sequential(*layers).to_empty(device="cpu")
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, 0.2, generator=generator)
            nn.init.zeros_(module.bias)
    return net


def scaled(crops: Tensor) -> Tensor:
    """(N, p, p) uint8 -> (N, 1, p, p) as the critic of G's training sees rain: the root makes faint streaks count."""
    return 2 * (crops[:, None] / 255 + 0.02).sqrt() - 1


def auc(negative: np.ndarray, positive: np.ndarray) -> float:
    """Share of the pairs in which the positive one has the higher score; equal ones count half. (N,), (M,) floats."""
    ordered = np.sort(negative)
    below, upto = (np.searchsorted(ordered, positive, side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(ordered)))


def largest_auc(
    known: Sequence[np.ndarray], fresh: Sequence[np.ndarray], device: torch.device, kind: str, steps: int = STEPS
) -> float:
    """The largest AUC of three classifiers on fresh crops; below 0.5 if what they learned does not hold for these.

    Args:
        known: real crops and others to learn from, each (N, p, p) uint8, p a power of two from 16 on.
        fresh: real crops and others to be measured on.
        kind: of classifier, SMALL or STRICT.
    """
    learned, measured = ([torch.from_numpy(crops).to(device) for crops in pair] for pair in (known, fresh))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that sums come out the same, however many there are
    try:
        return max(_auc_of(seed, learned, measured, steps, kind) for seed in SEEDS)
    finally:
        torch.set_num_threads(threads)


def _auc_of(seed: int, known: list[Tensor], fresh: list[Tensor], steps: int, kind: str) -> float:
    generator, device = torch.Generator().manual_seed(seed), known[0].device
    net = classifier(known[0].shape[-1], kind, generator).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), RATE, (0.9, 0.99))
    half = BATCH // 2
    labels = torch.arange(2, device=device).repeat_interleave(half)[:, None].float()
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min((k + 1) / (0.2 * steps), (steps - k) / (0.8 * steps))
        chosen = [crops[torch.randint(len(crops), (half,), generator=generator)] for crops in known]
        mirrored = torch.randint(2, (BATCH, 1, 1, 1), generator=generator).to(device).bool()
        batch = scaled(torch.cat(chosen))
        batch = torch.where(mirrored, batch.flip(-1), batch)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(net(batch), labels).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        real, other = (
            torch.cat([net(scaled(part)) for part in crops.split(256)])[:, 0].cpu().numpy() for crops in fresh
        )
    return auc(real, other)
