"""Decoded images in memory, in RAM or on the device; crops are cut there."""

import argparse
import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import cli, distributed
from ..errors import UserError
from ..memory import free_memory
from ..terminal import progress_bar
from .images import ImageError, crop_at, planes, widened
from .pairs import Pair, some_of

SHARE = 1 / 3  # of the memory, up to which --cache auto keeps images there
GIB = 2**30


def decoded_bytes(pairs: Sequence[Pair]) -> float:
    """Bytes of all pairs decoded, estimated from samples of long lists. What can't be read counts as nothing."""
    samples, values, deepest = some_of(pairs), 0, 1
    for pair in samples:
        with contextlib.suppress(ImageError):  # the check that follows names it
            height, width, kind = pair.format()
            values += 6 * height * width
            deepest = max(deepest, np.dtype(kind).itemsize)  # one type for all
    return values * deepest * len(pairs) / len(samples)


def choose(args: argparse.Namespace, pairs: Sequence[Pair], device: torch.device) -> str:
    """Where --cache puts the images: 'ram', 'gpu' or 'none'; prints it if the user named another place.

    Raises:
        UserError: --cache ram or gpu, and they do not fit there.
    """
    where = args.cache
    if where == "none" or args.dry_run:
        return "none"
    if where == "gpu" and device.type != "cuda":
        print("--cache gpu: no GPU is used, the images are kept in RAM")
        where = "ram"
    needed, ram = decoded_bytes(pairs), free_memory() // distributed.local_size()
    gpu = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    if where == "auto" and needed <= SHARE * gpu:
        return "gpu"
    if where == "auto" and needed <= SHARE * ram:
        return "ram"
    room = gpu if where == "gpu" else ram
    sizes = f"{needed / GIB:.1f} GiB of decoded images, {room / GIB:.1f} GiB of memory are free for them"
    pack = f"a pack ({cli.typed('data.pack')})"
    if where == "auto":
        print(f"--cache: {sizes}; they are read again and again, best from {pack}")
        return "none"
    if needed > 0.9 * room:
        raise UserError(f"--cache {args.cache}: {sizes}; take --cache none, best with {pack}")
    return where


class Decoded:
    """All images of a set, decoded once; filled by ``put``, then read by ``crops``.

    A process that is started later shares the images: PyTorch puts tensors that it sends into shared memory.

    Args:
        pairs: only their sizes are read here.
        where: 'ram' or 'gpu'.
        device: for 'gpu'.

    Attributes:
        on_device: whether crops are cut on the device, and only in the process that uses it.
    """

    def __init__(self, pairs: Sequence[Pair], where: str, device: torch.device) -> None:
        shape = np.zeros((len(pairs), 3), np.int64)  # height, width, bytes of a value
        scan = progress_bar(pairs, desc="reading sizes", unit="pair", leave=False, hidden=len(pairs) <= 1000)
        for i, pair in enumerate(scan):
            with contextlib.suppress(ImageError):  # its place stays empty; the check that decodes it names it
                height, width, kind = pair.format()
                shape[i] = height, width, np.dtype(kind).itemsize
        self.sizes: list[tuple[int, int]] = [tuple(size) for size in shape[:, :2].tolist()]
        self.dtype = np.dtype(np.uint16 if shape[:, 2].max() > 1 else np.uint8)
        self.starts: list[int] = [0, *np.cumsum(6 * shape[:, :2].prod(1)).tolist()]  # of each image, in values
        self.on_device = where == "gpu"
        kind = torch.int16 if self.dtype == np.uint16 else torch.uint8  # indexing knows no uint16
        self._values = torch.empty(max(self.starts[-1], 1), dtype=kind, device=device if self.on_device else "cpu")

    def _image(self, i: int) -> np.ndarray:
        """An image in RAM: (6, H, W)."""
        values = self._values[self.starts[i] : self.starts[i + 1]].numpy()
        return values.view(self.dtype).reshape(6, *self.sizes[i])

    def put(self, i: int, rainy: np.ndarray, clean: np.ndarray) -> None:
        """Keep a pair, see ``Pair.read``."""
        both = planes(rainy, clean)
        both = both if both.dtype == self.dtype else widened(both)
        values = torch.from_numpy(both.view(np.int16) if both.dtype == np.uint16 else both)
        self._values[self.starts[i] : self.starts[i + 1]] = values.flatten().to(self._values.device)

    def crops(self, numbers: Sequence[int], places: Sequence[tuple[float, float]], p: int) -> Tensor:
        """Crops of p px of the images ``numbers`` at relative places: (N, 6, p, p) uint8 or uint16."""
        if self.on_device:
            return self.cut(self.table(np.asarray(numbers), np.asarray(places), p), p)
        crops = np.empty((len(numbers), 6, p, p), self.dtype)
        for crop, i, place in zip(crops, numbers, places, strict=True):
            crop[:] = self._image(i)[:, *crop_at(place, *self.sizes[i], p)]
        return torch.from_numpy(crops)

    def table(self, numbers: np.ndarray, places: np.ndarray, p: int) -> Tensor:
        """Where crops of p px lie on the device, see ``gather``: (N,) images and (N, 2) places -> (3, N)."""
        sizes = np.asarray(self.sizes)[numbers]  # (N, 2)
        corners = (places * (sizes - p + 1)).astype(np.int64)  # as ``crop_at`` has them
        first = np.asarray(self.starts)[numbers] + corners[:, 0] * sizes[:, 1] + corners[:, 1]
        return torch.from_numpy(np.stack((first, sizes.prod(1), sizes[:, 1]))).to(self._values.device)

    def cut(self, table: Tensor, p: int) -> Tensor:
        """Crops at the places of a ``table``, or a part (3, N) of it: (N, 6, p, p) uint8 or uint16 on the device."""
        crops = gather(self._values, table, p)
        return crops.view(torch.uint16) if self.dtype == np.uint16 else crops


def gather(values: Tensor, table: Tensor, p: int) -> Tensor:
    """Cut crops out of images that lie one after the other, plane by plane.

    Args:
        values: of all images, 1-dimensional.
        table: (3, N): where a crop's first value is, values of a plane, values of a row.

    Returns:
        (N, 6, p, p).
    """
    first, plane, row = (column.view(-1, 1, 1, 1) for column in table)
    along = torch.arange(max(p, 6), device=values.device)
    index = first + along[:6].view(1, 6, 1, 1) * plane + along[:p].view(1, 1, p, 1) * row + along[:p].view(1, 1, 1, p)
    return values[index]
