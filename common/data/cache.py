"""Decoded pairs, of which a crop is cut without decoding: in RAM, where --cache says so, or in a file (``pack``)."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import cli, distributed
from ..errors import UserError
from ..memory import free_memory
from ..terminal import progress_bar
from .images import ImageError, crop_at, planes, widened
from .pairs import Pair, check_pairs, some_of

AUTO, MOST = 1 / 3, 0.9  # of the free memory, that images may take with --cache auto and with --cache ram
GIB = 2**30


@dataclass(frozen=True)
class DecodedPair(Pair):
    """A pair of ``Decoded``; its paths are for messages alone."""

    images: "Decoded | None" = None
    number: int = 0

    def format(self) -> tuple[int, int, type]:
        """Height, width and pixel type."""
        height, width = self.images.sizes[self.number].tolist()
        return height, width, self.images.values.dtype.type

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Rainy and clean, each (H, W, 3) uint8 or uint16."""
        height, width, _ = self.format()
        both = self._part(0, 6 * height * width).reshape(6, height, width)
        return both[:3].transpose(1, 2, 0), both[3:].transpose(1, 2, 0)

    def crop(self, place: tuple[float, float], p: int) -> np.ndarray:
        """See ``Pair.crop``; of each plane the rows of the crop are read."""
        height, width, kind = self.format()
        rows, columns = crop_at(place, height, width, p)
        crop = np.empty((6, p, p), kind)
        for plane in range(6):
            first = (plane * height + rows.start) * width
            crop[plane] = self._part(first, first + p * width).reshape(p, width)[:, columns]
        return crop

    def _part(self, first: int, last: int) -> np.ndarray:
        start = self.images.starts[self.number]
        return self.images.values[start + first : start + last]


class Decoded(Sequence[DecodedPair]):
    """Pairs whose pixels lie one after the other: of each pair (6, H, W), the planes of rainy, then those of clean.

    Args:
        names: of the pairs.
        sizes: (pairs, 2): height and width in px.
        values: the pixels, uint8 or uint16 for all pairs; an array, or values in a file.
        path: of the file.
    """

    def __init__(self, names: list[str], sizes: np.ndarray, values: Any, path: Path = Path()) -> None:
        self.names, self.sizes, self.values, self.path = names, sizes, values, path
        self.starts = [0, *np.cumsum(6 * sizes.prod(1)).tolist()]  # of each pair, in values

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> DecodedPair:
        number = range(len(self))[i]  # raises IndexError
        path = self.path / self.names[number]
        return DecodedPair(self.names[number], path, path, images=self, number=number)

    def put(self, i: int, rainy: np.ndarray, clean: np.ndarray) -> np.ndarray:
        """Keep the pixels of a pair, see ``Pair.read``; returns them as they are kept: (6 * H * W,).

        Raises:
            ImageError: there are more or others than ``scan`` found.
        """
        both = planes(rainy, clean)
        both = (both if both.dtype == self.values.dtype else widened(both)).ravel()
        if (both.size, both.dtype) != (self.starts[i + 1] - self.starts[i], self.values.dtype):
            raise ImageError(f"{self.names[i]}: the file has changed since its header was read")
        self.values[self.starts[i] : self.starts[i + 1]] = both
        return both


def scan(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.dtype, list[str]]:
    """Read the headers of all pairs.

    Returns:
        (pairs, 2) heights and widths in px, 0 where a pair can't be read; the type that holds all pixels; what is
        wrong with the others.
    """
    sizes, kind, problems = np.zeros((len(pairs), 2), np.int64), np.dtype(np.uint8), []
    bar = progress_bar(pairs, desc="reading sizes", unit="pair", leave=False, hidden=len(pairs) <= 1000)
    for i, pair in enumerate(bar):
        try:
            *size, own = pair.format()
            sizes[i], kind = size, np.promote_types(kind, own)
        except ImageError as error:
            problems.append(str(error))
    return sizes, kind, problems


def decode(pairs: Sequence[Pair], patch_size: int, flags: str) -> Decoded:
    """Decode all pairs into RAM; takes and raises what ``check_pairs`` does."""
    sizes, kind, _ = scan(pairs)  # what is wrong is found again by the check, which names all problems
    values = np.empty(6 * sizes.prod(1).sum(), kind)
    decoded = Decoded([pair.name for pair in pairs], sizes, values)
    check_pairs(pairs, patch_size, flags, decoded.put)
    return decoded


def is_wanted(args: argparse.Namespace, pairs: Sequence[Pair]) -> bool:
    """Whether --cache keeps these pairs in RAM; says so where they do not fit.

    Raises:
        UserError: --cache ram, and they do not fit.
    """
    if args.cache == "none" or args.dry_run:
        return False
    some = some_of(pairs)
    sizes, kind, _ = scan(some)
    needed = 6 * sizes.prod(1).sum() * kind.itemsize * len(pairs) / len(some)  # an estimate, for long lists
    free = free_memory() // distributed.local_size()
    if needed <= free * (AUTO if args.cache == "auto" else MOST):
        return True
    text = f"{needed / GIB:.1f} GiB of decoded images, {free / GIB:.1f} GiB of memory are free for them"
    pack = f"a pack ({cli.typed('data.pack')})"
    if args.cache == "ram":
        raise UserError(f"--cache ram: {text}; take --cache none, best with {pack}")
    print(f"--cache: {text}; they are read again and again, best from {pack}")
    return False
