"""The rain side of VRGNet: RNet (encoder of a rainy patch to a rain code) and G (rain code to rain layer).

Structure and checkpoint names: docs/method.md, 2. One pattern serves every patch size 2^k from 16 on.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .prenet import init_weights


def levels(patch_size: int) -> int:
    """Number of stride-2 convolutions between a patch and a 4x4 map: 64 -> 4.

    Raises:
        ValueError: patch_size is not a power of two, or is below 16.
    """
    if patch_size < 16 or patch_size & (patch_size - 1):
        raise ValueError(f"patch size must be a power of two from 16 on (16, 32, 64, 128, 256, ...), got {patch_size}")
    return patch_size.bit_length() - 3


def _encoder(nc: int, nz: int, nef: int, patch_size: int) -> nn.Module:
    """RNet: (N, nc, p, p) -> (N, 2 nz), first nz the mean, the rest the log variance."""
    layers: list[nn.Module] = []
    width = nc
    for i in range(levels(patch_size)):
        layers += [nn.Conv2d(width, nef * 2**i, 4, 2, 1, bias=False), nn.ReLU()]
        width = nef * 2**i
    layers += [nn.Conv2d(width, 2 * width, 4, 1, 0), nn.ReLU()]  # (N, 2 width, 1, 1)
    main = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width, 2 * nz))
    return nn.Sequential(OrderedDict(main=main))  # for the checkpoint names


class _FromOnePixel(nn.ConvTranspose2d):
    """A transposed convolution of 1x1 inputs as a product, which a CPU computes several times faster."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])


def _decoder(nc: int, nz: int, nef: int, patch_size: int) -> nn.Module:
    """G: (N, nz) -> (N, nc, p, p), >= 0 because the last layer is a ReLU."""
    width = nef * 2 ** levels(patch_size)
    layers = [nn.Linear(nz, width), nn.Unflatten(1, (width, 1, 1)), nn.ReLU()]
    layers += [_FromOnePixel(width, width // 2, 4, bias=False), nn.ReLU()]  # 1x1 -> 4x4
    while width > 2 * nef:
        width //= 2
        layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), nn.ReLU()]
    main = nn.Sequential(*layers, nn.ConvTranspose2d(nef, nc, 4, 2, 1, bias=False), nn.ReLU())
    return nn.Sequential(OrderedDict(main=main))


class EDNet(nn.Module):
    """RNet (``encoder``) and G (``decoder``), the VAE of rain.

    Args:
        nc: image channels.
        nz: length of the rain code.
        nef: width of the first convolution.
        patch_size: side of the square patch in px, a power of two from 16 on.

    Raises:
        ValueError: patch_size is not such a number.
    """

    def __init__(self, nc: int = 3, nz: int = 128, nef: int = 32, patch_size: int = 64) -> None:
        super().__init__()
        self.nc, self.nz, self.nef, self.patch_size = nc, nz, nef, patch_size
        self.encoder = _encoder(nc, nz, nef, patch_size)
        self.decoder = _decoder(nc, nz, nef, patch_size)
        self.apply(init_weights)

    def forward(self, rainy: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode a rainy patch, draw a code from its posterior and generate the rain layer.

        Args:
            rainy: (N, nc, p, p) in [0, 1].
            eps: (N, nz) standard normal draw; None draws it from torch's global generator.

        Returns:
            rain (N, nc, p, p) >= 0, mu_z, logvar_z (as it comes, not clamped) and z, each (N, nz).
        """
        mu_z, logvar_z = self.encoder(rainy).chunk(2, 1)
        eps = torch.randn_like(mu_z) if eps is None else eps
        z = mu_z + torch.exp(logvar_z / 2) * eps
        return self.decoder(z), mu_z, logvar_z, z

    def sample(self, z: Tensor) -> Tensor:
        """Rain codes (N, nz) -> rain layers (N, nc, p, p) >= 0."""
        return self.decoder(z)
