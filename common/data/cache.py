"""Decoded images in memory, in RAM or on the device; crops are cut there."""

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import distributed
from ..errors import UserError, is_out_of_memory
from ..terminal import progress_bar
from .images import ImageError, crop_at, planes, widened
from .pairs import Pair, some_of

SHARE = 1 / 3  # of the memory, up to which --cache auto keeps images there
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")  # the limits of a container


def memory() -> int:
    """Bytes of RAM that this process may use at most: of the machine, or of its container if that has less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 * GIB]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of versions 2 and 1
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int((CGROUP / name).read_text()))
    return min(limits)


def free_memory() -> int:
    """Bytes of RAM that are free now: of the machine, or of its container if that has less."""
    limits = [memory()]
    with contextlib.suppress(OSError, ValueError):
        limits.append(1024 * _count("/proc/meminfo", "MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):
        files = _count(CGROUP / "memory.stat", "inactive_file")  # the system drops cached files
        limits.append(int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()) + files)
    return max(min(limits), 0)


def _count(path: str | Path, name: str) -> int:
    """The number that follows a name in a file."""
    words = Path(path).read_text().split()
    return int(words[words.index(name) + 1])


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
    needed, processes = decoded_bytes(pairs), distributed.local_size()
    if where == "auto" and device.type == "cuda" and needed <= SHARE * torch.cuda.mem_get_info(device)[0]:
        return "gpu"
    room, each = memory() // processes, f" of each of {processes} processes" if processes > 1 else ""
    if where == "auto":
        if needed <= SHARE * room:
            return "ram"
        print(
            f"--cache: {needed / GIB:.1f} GiB of decoded images are more than a third of the memory{each} "
            f"({room / GIB:.1f} GiB), they are read again and again; a pack (python -m common.data.pack) is "
            "faster than image files"
        )
        return "none"
    if where == "gpu":
        room, each = torch.cuda.mem_get_info(device)[0], ""
    if needed > 0.9 * room:
        raise UserError(
            f"--cache {args.cache}: {needed / GIB:.1f} GiB of decoded images do not fit into {room / GIB:.1f} GiB"
            f"{each}; take --cache none, best with a pack (python -m common.data.pack)"
        )
    return where


class NoRoom(UserError):
    """The memory for decoded images can't be allocated."""


class Decoded:
    """All images of a set, decoded once; filled by ``put`` or ``fill``, then read by ``crops``.

    A process that is started later shares the images: PyTorch puts tensors that it sends into shared memory.

    Args:
        pairs: only their sizes are read here.
        where: 'ram' or 'gpu'.
        device: for 'gpu'.

    Attributes:
        on_device: whether crops are cut on the device, and only in the process that uses it.

    Raises:
        NoRoom: the memory is too small.
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
        try:
            self._values = torch.empty(max(self.starts[-1], 1), dtype=kind, device=device if self.on_device else "cpu")
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = self.starts[-1] * self.dtype.itemsize / GIB
            other = "--cache ram or none" if self.on_device else "--cache none"
            raise NoRoom(
                f"--cache {where}: {size:.1f} GiB of decoded images do not fit into the free memory; take {other}"
            ) from None

    def _image(self, i: int) -> np.ndarray:
        """An image in RAM: (6, H, W)."""
        values = self._values[self.starts[i] : self.starts[i + 1]].numpy()
        return values.view(self.dtype).reshape(6, *self.sizes[i])

    def put(self, i: int, rainy: np.ndarray, clean: np.ndarray) -> None:
        """Keep a pair, see ``Pair.read``.

        Raises:
            ImageError: its size is not that of its header.
        """
        if rainy.shape[:2] != self.sizes[i]:
            raise ImageError(f"pair {i + 1} has changed while it was read; start again")
        both = planes(rainy, clean)
        both = both if both.dtype == self.dtype else widened(both)
        values = torch.from_numpy(both.view(np.int16) if both.dtype == np.uint16 else both)
        self._values[self.starts[i] : self.starts[i + 1]] = values.flatten().to(self._values.device)

    def fill(self, pairs: Sequence[Pair]) -> None:
        """Read all pairs, which are known to be good."""
        for i, pair in enumerate(progress_bar(pairs, desc="reading pairs", unit="pair", leave=False)):
            self.put(i, *pair.read())

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
