"""One layer of generated rain for a picture of any size, out of a generator of patches."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from common.models import EDNet

BLOCKS = 8  # side of a window in blocks; each side gets one block more, of which nothing but its influence is kept


def draw_codes(rows: int, columns: int, nz: int, coherence: float, rng: np.random.RandomState) -> Tensor:
    """A grid of rain codes, each N(0, I), any two of them with correlation ``coherence``.

    They share a picture-wide code, so that one rain per picture looks like one rain, and have fresh detail each:
    z = sqrt(coherence) * shared + sqrt(1 - coherence) * own.

    Args:
        coherence: 0 (unrelated) to 1 (all equal).
        rng: RandomState, whose stream NumPy keeps the same for good.

    Returns:
        (rows, columns, nz) float32.
    """
    shared, own = rng.standard_normal(nz), rng.standard_normal((rows, columns, nz))
    return torch.from_numpy((coherence**0.5 * shared + (1 - coherence) ** 0.5 * own).astype(np.float32))


@torch.no_grad()
def rain_tiles(
    netED: EDNet, height: int, width: int, coherence: float, rng: np.random.RandomState
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The rain layer of a picture, window by window, so that its memory does not grow with the picture.

    Args:
        netED: in eval mode; the tiles are on its device.
        height, width: of the picture in px, from 1 on.
        coherence, rng: see ``draw_codes``.

    Yields:
        Rows and columns of the picture, and the rain there, (nc, rows, columns) >= 0.
    """
    p, device = netED.patch_size, next(netED.parameters()).device
    rows, columns = -(-height // p), -(-width // p)
    codes = draw_codes(rows, columns, netED.nz, coherence, rng).to(device)
    for top in range(0, rows, BLOCKS):
        for left in range(0, columns, BLOCKS):
            above, before = min(top, 1), min(left, 1)
            window = codes[top - above : top + BLOCKS + 1, left - before : left + BLOCKS + 1]
            low, high = top * p, min((top + BLOCKS) * p, height)
            start, stop = left * p, min((left + BLOCKS) * p, width)
            layer = netED.sample_grid(window)[:, above * p :, before * p :]
            yield slice(low, high), slice(start, stop), layer[:, : high - low, : stop - start]


def rain_layer(netED: EDNet, height: int, width: int, coherence: float, rng: np.random.RandomState) -> Tensor:
    """``rain_tiles`` put together: (nc, height, width) >= 0, on the generator's device."""
    layer = torch.empty(netED.nc, height, width, device=next(netED.parameters()).device)
    for rows, columns, tile in rain_tiles(netED, height, width, coherence, rng):
        layer[:, rows, columns] = tile
    return layer


def grey_of(layer: Tensor) -> Tensor:
    """The maximum over the channels in all of them, as interpolation shows rain: (nc, H, W) to the same shape."""
    return layer.amax(0, keepdim=True).expand_as(layer)
