"""The random crops that training sees: which ones, from where, and how they become a batch."""

import argparse
import functools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, multiprocessing
from torch.utils.data import DataLoader, Dataset, default_convert

from .. import distributed
from ..errors import UserError
from ..terminal import ending_signals
from . import cache, pack
from .cache import DecodedPair
from .images import images_in, widened
from .pair_list import LIST, PairList, small_sample
from .pairs import (
    Pair,
    check_pairs,
    fingerprint,
    pairs_of,
    require_light,
    require_no_pairing,
    some_of,
)

DRAWN = 3  # version of how a seed makes crops; raised with every change of crop_keys and Pair.crop
Key = tuple[int, float, float]  # number of the crop over the whole training, and its place in the image


class PatchDataset(Dataset):
    """Random crops, the same of rainy and clean; no flips. Without photos they go round the shuffled images.

    Args:
        pairs: checked pairs: files, or decoded in RAM or in a pack.
        patch_size: side of the crop in px.
        seed: of the order of the images and of the crops (see ``crop_keys``), 0 or more.

    Attributes:
        photos: photos without rain, as pairs with themselves, from which crops come whose number is below 0.
        n_real: crops at the start of each batch that come from the pairs, where there are photos.
    """

    photos: "PatchDataset | None" = None
    n_real: int | None = None

    def __init__(self, pairs: Sequence[Pair], patch_size: int, seed: int) -> None:
        self.pairs, self.patch_size, self.seed = pairs, patch_size, seed
        # Neighbours in a list may be frames of one film, and an epoch may be shorter than the list.
        self.images = np.random.default_rng([seed]).permutation(len(pairs))

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """(n, row, column) of ``crop_keys`` -> rainy and clean crop, each (3, p, p) float32 in [0, 1]."""
        rainy, clean = to_batch(self.__getitems__([key]))
        return rainy[0], clean[0]

    def __getitems__(self, keys: Sequence[Key]) -> Tensor:
        """What a DataLoader asks for: (N, 6, p, p) pixels, rainy above clean; ``to_batch`` makes floats of them.

        Raises:
            ImageError: a file vanished or changed since it was checked.
        """
        crops = [self._crop(*key) for key in keys]
        if any(crop.dtype == np.uint16 for crop in crops):
            crops = [widened(crop) for crop in crops]
        return torch.from_numpy(np.stack(crops))

    def _crop(self, n: int, row: float, column: float) -> np.ndarray:
        if n < 0:
            return self.photos._crop(~n, row, column)
        return self.pairs[int(self.images[n % len(self.pairs)])].crop((row, column), self.patch_size)

    def fingerprint(self) -> str:
        """Number and names of the pairs in short, and how crops are drawn, to notice that a resumed run sees others."""
        own = f"{len(self.pairs)} pairs, {fingerprint(self.pairs)}, crops {DRAWN}"
        return f"{own}; photos: {self.photos.fingerprint()}" if self.photos is not None else own

    def is_decoded(self, in_ram: bool) -> bool:
        """Whether all images are decoded, and, if ``in_ram``, lie in RAM."""
        pair = self.pairs[0]
        own = isinstance(pair, DecodedPair) and (isinstance(pair.images.values, np.ndarray) or not in_ram)
        return own and (self.photos is None or self.photos.is_decoded(in_ram))


def to_batch(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 6, p, p) uint8 or uint16 on any device -> rainy and clean (N, 3, p, p), float32 in [0, 1]."""
    return floats(pixels[:, :3]), floats(pixels[:, 3:])


def floats(pixels: Tensor) -> Tensor:
    """``to_float`` on any device: uint8 or uint16 of any shape -> float32 in [0, 1]."""
    top = torch.full((), torch.iinfo(pixels.dtype).max, dtype=torch.float32, device=pixels.device)
    # Divided by a tensor of the device: by a number, CUDA would multiply with the reciprocal, a rounding off.
    return pixels.to(torch.float32).div_(top)


def crop_keys(
    batch_size: int, steps: int, seed: int, first: int, last: int, skip: int = 0, n_real: int | None = None
) -> Iterator[list[Key]]:
    """Keys of a PatchDataset for a whole training, a batch at a time, each epoch in a seeded order of its own.

    T1: which image a crop comes from and its place depend on (seed, epoch, sample) alone, not on workers or processes.

    Args:
        batch_size: crops in a step, of all processes together; this process gets its share of each batch.
        steps: of an epoch.
        seed: of the order and the places, 0 or more.
        first, last: epochs, counted from 1, both included.
        skip: steps of the first epoch that are done already.
        n_real: the crops of a batch from there on come from photos: their numbers are -1 - n. None: no crop does.
    """
    length = batch_size * steps
    for epoch in range(first, last + 1):
        rng = np.random.default_rng([seed, epoch])
        order, places = rng.permutation(length), rng.random((length, 2))
        batches = order.reshape(steps, batch_size)
        numbers = (epoch - 1) * length + batches
        if n_real is not None:
            numbers[:, n_real:] = ~numbers[:, n_real:]
        done = skip if epoch == first else 0
        shares = (part[done:, distributed.share()].tolist() for part in (numbers, batches))
        for own, drawn in zip(*shares, strict=True):
            yield [(n, *places[i].tolist()) for n, i in zip(own, drawn, strict=True)]


# --- the processes that read ---------------------------------------------------------------------------------------


def crop_loader(
    dataset: PatchDataset, keys: Iterator[list[Key]], workers: int, pin_memory: bool = False
) -> tuple[Iterable[Tensor], Callable[[], None]]:
    """Batches of crops, for ``to_batch``, and a function to call when no more are wanted.

    Args:
        keys: of each batch, see ``crop_keys``; they can be gone through once.
        workers: processes that read. None are started where the images are in memory, since cutting a crop takes less
            time than handing it from one process to another; nor for a pack on the CPU, where that is true as well (on
            a GPU the time of this process is dear).
    """
    closing = multiprocessing.Value("b", False)  # from then on the workers end when they are told to
    if dataset.is_decoded(in_ram=pin_memory):
        workers = 0
    loader = DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=min(workers, (os.cpu_count() or 1) // distributed.local_size() or 1),  # more would wait
        collate_fn=default_convert,  # the dataset makes batches itself
        worker_init_fn=functools.partial(_start_worker, closing),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own: the loader must not move the generator that is part of the state
    )

    def close() -> None:
        closing.value = True

    return loader, close


def _start_worker(closing: Any, worker: int) -> None:
    """Ctrl-C and other signals often go to all processes, but are for the main one: it saves, then ends the workers.

    Threads of OpenCV in every worker would only be in the way.
    """
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in ending_signals():
        signal.signal(number, lambda *_: os._exit(0) if closing.value else None)
    cv2.setNumThreads(0)


# --- from the flags of a script ------------------------------------------------------------------------------------


def training_set(args: argparse.Namespace, hint: str) -> tuple[PatchDataset, str]:
    """Find and check the pairs of --data_path: of a pack, of two folders in a script with --gt_path, else of a list.

    --train_num and --seed take a small sample of a list or pack. Of more than 1000 pairs there, samples are checked,
    unless all are decoded for the cache; the others when they are used. Raises as ``pack.load``, ``pairs_of``,
    ``PairList``, ``require_light``, ``small_sample`` and ``check_pairs``.

    Args:
        hint: what belongs into the folders and where it comes from, for the message when they are missing.

    Returns:
        The data set, and by which rule pairs were found, or where they come from, in words.
    """
    path, name = Path(args.data_path), LIST
    if "gt_path" in args and not pack.is_pack(path):
        pairs, rule = pairs_of(args, hint)
        return _checked(pairs, pairs, args, "--data_path, --gt_path"), rule
    if "gt_path" in args.given:
        raise UserError(f"--gt_path: the pack {path} holds the clean images, too; leave the flag out")
    require_no_pairing(args, f"the pack or {LIST}")
    if pack.is_pack(path):
        pairs, name = pack.load(path), path.name
        if pairs.sizes.min() < args.patchSize:
            text = f"{path} has images of {pairs.sizes.min()} px, smaller than the {args.patchSize} px patch"
            raise UserError(f"--data_path: {text}; choose a smaller --patchSize")
    else:
        pairs = PairList(path, hint)
        if not args.dark_rain:
            require_light(pairs, "--data_path")
    source = f"{name}, {len(pairs)} pairs"
    if number := getattr(args, "train_num", None):
        pairs = small_sample(pairs, number, args.seed, name)
        source += f", {number} of them drawn with --seed {args.seed}"
    return _checked(pairs, some_of(pairs), args, "--data_path"), source


def photo_set(args: argparse.Namespace) -> PatchDataset:
    """The photos of --clean_path, each as a pair with itself; raises as ``images_in`` and ``check_pairs``."""
    folder = Path(args.clean_path)
    photos = [Pair(path.as_posix(), folder / path, folder / path) for path in images_in(folder, "--clean_path")]
    return _checked(photos, some_of(photos), args, "--clean_path")


def _checked(pairs: Sequence[Pair], some: Sequence[Pair], args: argparse.Namespace, flags: str) -> PatchDataset:
    """Check pairs; where --cache keeps them in RAM, all are decoded for that."""
    if cache.is_wanted(args, pairs):
        pairs = cache.decode(pairs, args.patchSize, flags)
    else:
        if len(some) < len(pairs):
            print(f"{flags}: {len(pairs)}, {len(some)} of them checked now, the others when they are used")
        check_pairs(some, args.patchSize, flags)
    return PatchDataset(pairs, args.patchSize, args.manualSeed)
