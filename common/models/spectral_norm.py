"""Spectral normalisation (Miyato et al., ICLR 2018) with one power iteration at every forward, train and eval alike.

Own module instead of torch's: names, order of the iteration and one quirk are part of the numerics (docs/method.md, 2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _unit(x: Tensor) -> Tensor:
    return x / (x.norm() + 1e-12)


class SpectralNorm(nn.Module):
    """A convolution whose weight is divided by its largest singular value.

    Args:
        conv: the convolution; its ``weight`` becomes ``weight_bar`` (raw), ``weight_u``, ``weight_v`` (unit vectors).
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.module = conv
        weight = conv.weight
        del conv.weight
        rows = weight.shape[0]
        u = _unit(torch.randn(rows, dtype=weight.dtype))
        v = _unit(torch.randn(weight.numel() // rows, dtype=weight.dtype))
        conv.weight_u = nn.Parameter(u, requires_grad=False)
        conv.weight_v = nn.Parameter(v, requires_grad=False)
        conv.weight_bar = nn.Parameter(weight.detach())

    def _weight(self) -> Tensor:
        """One power iteration, then the normalised weight; W counts as (out, rest)."""
        u, v, weight = self.module.weight_u, self.module.weight_v, self.module.weight_bar
        matrix = weight.flatten(1)
        with torch.no_grad():
            # Through .data, so that autograd's version check does not see it: the one backward of loss_D runs after
            # three calls of D, and the gradient of sigma then uses the u and v of the LAST call for all three. The
            # reference trains so and golden/joint_*.json pins it; copies of u and v would give the textbook gradient,
            # but other numbers.
            v.data.copy_(_unit(matrix.t() @ u))
            u.data.copy_(_unit(matrix @ v))
        sigma = torch.dot(u, matrix @ v)
        return weight / sigma

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> what the convolution gives with the normalised weight. Moves u and v, without gradient."""
        return F.conv2d(x, self._weight(), self.module.bias, self.module.stride, self.module.padding)
