"""The critic D: spectrally normalised convolutions with self-attention (after SAGAN, Zhang et al., ICML 2019).

Structure and checkpoint names: docs/method.md, 2.
"""

import torch
from torch import Tensor, nn

from .spectral_norm import SpectralNorm
from .vrgnet import levels


class SelfAttention(nn.Module):
    """Every position looks at every other one; ``gamma`` starts at 0, so that the layer starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(1, channels // 8)
        self.query_conv = nn.Conv2d(channels, narrow, 1)
        self.key_conv = nn.Conv2d(channels, narrow, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the same shape, and the attention map (N, HW queries, HW keys) whose rows sum to 1."""
        query = self.query_conv(x).flatten(2)  # (N, C/8, HW)
        key = self.key_conv(x).flatten(2)
        value = self.value_conv(x).flatten(2)  # (N, C, HW)
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        attended = (value @ attention.transpose(1, 2)).view_as(x)
        return self.gamma * attended + x, attention


class Discriminator(nn.Module):
    """Wasserstein critic of whole rainy patches.

    Args:
        image_size: side of the patch in px, a power of two from 16 on.
        conv_dim: width of the first convolution; the i-th has conv_dim * 2^i.

    Raises:
        ValueError: image_size is not such a number.
    """

    def __init__(self, image_size: int = 64, conv_dim: int = 64) -> None:
        super().__init__()
        count = levels(image_size)
        # Checkpoint names: l4 is the last one, whatever their number; further ones are called l31, l32, ...
        self.names = (["l1", "l2", "l3"] + [f"l3{i}" for i in range(1, count)])[: count - 1]
        width_in = 3
        for i, name in enumerate([*self.names, "l4"]):
            if name == "l4":
                self.attn1 = SelfAttention(width_in)
            width = conv_dim * 2**i
            setattr(self, name, nn.Sequential(SpectralNorm(nn.Conv2d(width_in, width, 4, 2, 1)), nn.LeakyReLU(0.1)))
            width_in = width
        self.attn2 = SelfAttention(width_in)
        self.last = nn.Sequential(nn.Conv2d(width_in, 1, 4))

    def forward(self, rainy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rainy (N, 3, p, p) -> score (N,), attention of the 8x8 map (N, 64, 64), of the 4x4 map (N, 16, 16).

        Every call moves the power iteration of the spectral norms on, so the number and order of calls matter.
        """
        x = rainy
        for name in self.names:
            x = getattr(self, name)(x)
        x, attention1 = self.attn1(x)  # (N, C, 8, 8)
        x, attention2 = self.attn2(self.l4(x))  # (N, 2C, 4, 4)
        return self.last(x).flatten(), attention1, attention2
