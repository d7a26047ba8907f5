"""Decoded images in memory: in RAM, where other processes can share them, or on the device; crops are cut there."""

import argparse
import contextlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import distributed
from ..errors import UserError
from ..terminal import progress_bar
from .images import ImageError
from .pairs import Pair, crop_at, planes, some_of, widened

SHARE = 1 / 3  # of the memory, up to which images are kept there by themselves
GIB = 2**30


def memory() -> int:
    """Bytes of RAM that this process may use at most: of the machine, or of the container where that is less."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return min(limits, default=8 * GIB)


def free_memory() -> int:
    """Bytes of RAM that can be had now: of the machine, or of the container where that is less."""
    limits = [memory()]  # where the system tells no more
    with contextlib.suppress(OSError, ValueError, IndexError):
        limits.append(1024 * _count("/proc/meminfo", "MemAvailable:"))
    for limit, used, files in (
        ("memory.max", "memory.current", "inactive_file"),  # cached files make room
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError, IndexError):
            taken = _count(f"/sys/fs/cgroup/{used}") - _count(
                Path("/sys/fs/cgroup", used).with_name("memory.stat"), files
            )
            limits.append(_count(f"/sys/fs/cgroup/{limit}") - taken)
    return max(min(limits), 0)


def _count(path: str | Path, name: str = "") -> int:
    """The number behind a name in a file, or at its beginning."""
    words = Path(path).read_text().split()
    return int(words[words.index(name) + 1 if name else 0])


def decoded_bytes(pairs: Sequence[Pair]) -> float:
    """Bytes of all pairs decoded; of long lists estimated from samples. What can't be read counts as nothing."""
    some, values, deepest = some_of(pairs), 0, 1
    for pair in some:
        try:
            height, width, kind = pair.format()
        except ImageError:
            continue  # the check that follows will tell
        values += 6 * height * width
        deepest = max(deepest, np.dtype(kind).itemsize)  # one type for all
    return values * deepest * len(pairs) / len(some)


def choose(args: argparse.Namespace, pairs: Sequence[Pair], device: torch.device) -> str:
    """Where --cache wants the images: 'ram', 'gpu' or 'none'; says so where that is not what was asked for.

    Raises:
        UserError: --cache ram or gpu, and they do not fit there.
    """
    if args.cache == "none" or args.dry_run:
        return "none"
    where = args.cache
    if where == "gpu" and device.type != "cuda":
        print("--cache gpu: no GPU is used, the images are kept in RAM")
        where = "ram"
    processes = distributed.local_size()  # each keeps its own
    needed, there = decoded_bytes(pairs), memory() // processes
    each = f" of each of {processes} processes" if processes > 1 else ""
    if where == "auto" and device.type == "cuda" and needed <= SHARE * torch.cuda.mem_get_info(device)[0]:
        return "gpu"
    if where == "auto":
        if needed > SHARE * there:
            print(
                f"--cache: {needed / GIB:.1f} GiB of decoded images are more than a third of the memory{each} "
                f"({there / GIB:.1f} GiB), they are read again and again; a pack (python -m common.data.pack) is "
                "faster than image files"
            )
        return "ram" if needed <= SHARE * there else "none"
    if where == "gpu":
        there, each = torch.cuda.mem_get_info(device)[0], ""
    if needed > 0.9 * there:
        raise UserError(
            f"--cache {args.cache}: {needed / GIB:.1f} GiB of decoded images do not fit into {there / GIB:.1f} GiB"
            f"{each}; take --cache none, best with a pack (python -m common.data.pack)"
        )
    return where


class NoRoom(UserError):
    """Decoded images fit nowhere."""


class SharedBytes:
    """Bytes that processes started from this one see without a copy: a nameless file in shared memory, or in the
    temporary folder where shared memory is too small. The system frees it with the last process, however that ends.

    Raises:
        NoRoom: neither has the room.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        for folder in ("/dev/shm", tempfile.gettempdir()):
            try:
                if shutil.disk_usage(folder).free < count + 2**24:
                    continue
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as the object)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._file.fileno(), 0, count)  # now, rather than a crash at some write
                else:
                    self._file.truncate(count)
                break
            except OSError:  # not there, not to be written to, no room after all
                continue
        else:
            raise NoRoom(
                f"--cache ram: {count / GIB:.1f} GiB of decoded images fit neither into shared memory (/dev/shm) nor "
                f"into {tempfile.gettempdir()}; take --cache none, or set TMPDIR to a folder with more room"
            )
        self._map()

    def _map(self) -> None:
        self.array = np.frombuffer(mmap.mmap(self._file.fileno(), self.count), np.uint8)

    def __getstate__(self) -> dict:  # for processes that are not forked
        from multiprocessing.reduction import DupFd  # not on Windows

        return {"count": self.count, "fd": DupFd(self._file.fileno())}

    def __setstate__(self, state: dict) -> None:
        self.count, self._file = state["count"], os.fdopen(state["fd"].detach(), "r+b")
        self._map()


class Decoded:
    """All images of a set, decoded once; filled by ``put`` or ``fill``, then read by ``crops``.

    Args:
        pairs: only their sizes are read here.
        where: 'ram' or 'gpu'.
        device: for 'gpu'.

    Raises:
        UserError: no room for them.
    """

    def __init__(self, pairs: Sequence[Pair], where: str, device: torch.device) -> None:
        shape = np.zeros((len(pairs), 3), np.int64)  # height, width, bytes of a value
        scan = progress_bar(pairs, desc="reading sizes", unit="pair", leave=False, hidden=len(pairs) <= 1000)
        for i, pair in enumerate(scan):
            try:
                height, width, kind = pair.format()
                shape[i] = height, width, np.dtype(kind).itemsize
            except ImageError:  # its place stays empty; the check that decodes it tells
                continue
        self.sizes: list[tuple[int, int]] = [tuple(size) for size in shape[:, :2].tolist()]
        self.dtype = np.dtype(np.uint16 if len(pairs) and shape[:, 2].max() > 1 else np.uint8)
        counts = 6 * shape[:, :2].prod(1)
        self.starts: list[int] = [0, *np.cumsum(counts).tolist()]  # of each image, in values
        self._on_device: Tensor | None = None
        if where == "ram":
            self._bytes = SharedBytes(max(self.starts[-1], 1) * self.dtype.itemsize)
            return
        kind = torch.int16 if self.dtype == np.uint16 else torch.uint8  # indexing knows no uint16
        try:
            self._on_device = torch.empty(max(self.starts[-1], 1), dtype=kind, device=device)
        except torch.OutOfMemoryError:
            size = self.starts[-1] * self.dtype.itemsize / GIB
            raise NoRoom(
                f"--cache gpu: {size:.1f} GiB of decoded images do not fit into the free memory of the GPU; "
                "take --cache ram or none"
            ) from None

    def _values(self) -> np.ndarray:
        return self._bytes.array.view(self.dtype)

    def _image(self, i: int) -> np.ndarray:
        return self._values()[self.starts[i] : self.starts[i + 1]].reshape(6, *self.sizes[i])

    def put(self, i: int, rainy: np.ndarray, clean: np.ndarray) -> None:
        """Keep a pair, see ``Pair.read``.

        Raises:
            ImageError: its size is not that of its header.
        """
        if rainy.shape[:2] != self.sizes[i]:
            raise ImageError(f"pair {i + 1} has changed while it was read; start again")
        both = planes(rainy, clean)
        both = both if both.dtype == self.dtype else widened(both)
        if self.on_device:
            values = torch.from_numpy(both.view(np.int16) if both.dtype == np.uint16 else both)
            self._on_device[self.starts[i] : self.starts[i + 1]] = values.flatten().to(self._on_device.device)
        else:
            self._image(i)[:] = both

    def fill(self, pairs: Sequence[Pair]) -> None:
        """Read all pairs, which are known to be good."""
        for i, pair in enumerate(progress_bar(pairs, desc="reading pairs", unit="pair", leave=False)):
            self.put(i, *pair.read())

    @property
    def on_device(self) -> bool:
        """Whether crops come from the device, and only in the process that uses it."""
        return self._on_device is not None

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
        return torch.from_numpy(np.stack((first, sizes.prod(1), sizes[:, 1]))).to(self._on_device.device)

    def cut(self, table: Tensor, p: int) -> Tensor:
        """Crops at the places of a ``table``, or a part (3, N) of it: (N, 6, p, p) uint8 or uint16 on the device."""
        found = gather(self._on_device, table, p)
        return found.view(torch.uint16) if self.dtype == np.uint16 else found


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
