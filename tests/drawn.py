"""A stand-in for a trained generator: it draws straight streaks whose properties depend on the code."""

import numpy as np
import torch
from torch import nn


def streaks(side, angle, number, width, length, peak, rng):
    """Straight streaks of soft profile on black: (side, side) float32; ``width`` at half maximum."""
    turn = np.radians(angle)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    layer = np.zeros((side, side), np.float32)
    rim = length / 2
    for _ in range(number):
        dx, dy = x - rng.uniform(-rim, side + rim), y - rng.uniform(-rim, side + rim)
        across, along = dx * np.cos(turn) - dy * np.sin(turn), dx * np.sin(turn) + dy * np.cos(turn)
        bell = np.exp2(-((2 * across / width) ** 2))
        layer = np.maximum(layer, peak * bell * np.clip((length / 2 - np.abs(along)) / 3, 0, 1))
    return layer


class Drawer(nn.Module):
    """The part of EDNet that ``RainMaker`` uses. Dimensions 0 to 3 of a code: angle, number, width, brightness.

    Args:
        spread: degrees, standard deviation of the angle over codes.
    """

    def __init__(self, patch_size=64, nc=3, nz=8, spread=20.0, number=10, width=2.0, peak=0.25):
        super().__init__()
        self.patch_size, self.nc, self.nz = patch_size, nc, nz
        self.spread, self.number, self.width, self.peak = spread, number, width, peak
        self.nothing = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def sample(self, codes):
        self.calls += 1
        side = self.patch_size
        made = np.empty((len(codes), self.nc, side, side), np.float32)
        for patch, code in zip(made, codes.numpy(), strict=True):
            rng = np.random.RandomState(np.frombuffer(code.tobytes(), np.uint32))
            a, n, w, p = np.clip(code[:4], -2, 2)
            kind = round(self.number * 1.4**n), self.width * 1.15**w, 0.6 * side, self.peak * 1.2**p
            patch[:] = streaks(side, self.spread * a, *kind, rng)
        return torch.from_numpy(made)
