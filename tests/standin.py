"""A generator whose factors are known: four directions of its code are the angle, density, thickness and brightness."""

import numpy as np
import torch
from torch import nn

from common.data.demo import rain_layer

FACTORS = {  # what a score of x makes of each
    "angle": lambda x: 12 * x,
    "density": lambda x: 0.12 * np.exp(0.35 * x),
    "width": lambda x: 2.5 * np.exp(0.2 * x),
    "brightness": lambda x: 0.35 * np.exp(0.3 * x),
}


class DrawnRain(nn.Module):
    """Draws streaks; everything else of the code decides where they fall."""

    def __init__(self, nz=8, patch_size=64):
        super().__init__()
        self.nc, self.nz, self.patch_size = 3, nz, patch_size
        turned = np.linalg.qr(np.random.RandomState(3).standard_normal((nz, nz)))[0]
        self.directions = turned[: len(FACTORS)]  # orthonormal rows
        self.weight = nn.Parameter(torch.zeros(1))

    def sample(self, z):
        layers = []
        for code in z.detach().cpu().double().numpy():
            known = {name: made(x) for (name, made), x in zip(FACTORS.items(), self.directions @ code, strict=True)}
            seed = int(np.abs(code * 1e6).sum()) % 2**31
            layers.append(rain_layer((self.patch_size, self.patch_size), seed, **known)[..., 0])
        return torch.from_numpy(np.stack(layers))[:, None].repeat(1, 3, 1, 1)
