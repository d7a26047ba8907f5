"""Remove rain from images of any size: tensor in, tensor out."""

import argparse
import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import derainer, distributed
from ..data.pairs import Pair, fingerprint
from ..data.patches import floats
from ..errors import UserError, is_out_of_memory
from ..memory import free_memory
from ..precision import order
from ..terminal import progress_bar
from . import metrics

MEMORY_LIMIT = 1e9  # bytes that an image may need on a CPU, beyond what the process holds, before --tile -1 takes tiles
FREE_SHARE = 0.5  # of the free memory, that deraining takes
AUTO_WINDOW = 496  # px; 32 float channels of such a window stay below 32 MiB, where malloc still reuses memory
LARGEST_WINDOW = 2**24 - 1  # px; 128 channels of gates are then as many values as 31 bits count


Tile = tuple[tuple[slice, slice], ...]  # the core in the image, the window in the image, the core in the window


class Windows(NamedTuple):
    """How an image is cut into windows, and a window padded, for a network.

    PReNet takes any size and its halo is known, so only ``tile`` concerns it: tiles give the result of the whole image.
    Other derainers run on whole images unless a core and a halo are given, which is approximate.
    """

    tile: int = -1  # core of a tile in px; 0: whole image; -1: PReNet takes tiles where the whole needs much memory
    halo: int | None = None  # margin around the core in px
    pad_to: int = 1  # windows are padded, by reflection to the right and below, to multiples of so many px
    pad_square: bool = False  # and to squares

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> "Windows":
        """For whichever of --tile, --tile_halo, --pad_to, --pad_square and --derainer a script has.

        Raises:
            UserError: the halo of tiles is missing for another derainer; PReNet is given a halo or padding.
        """
        tile, halo = getattr(args, "tile", -1), getattr(args, "tile_halo", None)
        how = cls(tile, halo, getattr(args, "pad_to", 1), getattr(args, "pad_square", False))
        if derainer.is_custom(args):
            how.require_halo("--tile, --tile_halo")
        elif how != cls(tile):
            raise UserError("--tile_halo, --pad_to, --pad_square: prenet needs none of them; leave them out")
        return how

    def require_halo(self, names: str) -> None:
        """Raise UserError if a derainer of unknown receptive field would get tiles without a halo, or the reverse."""
        if (self.tile > 0) != (self.halo is not None):
            raise UserError(f"{names}: a derainer of your own needs both, or neither for whole images")

    def of(self, net: nn.Module, height: int, width: int, device: torch.device, number: int = 1) -> list[Tile]:
        """The tiles of ``number`` images of one size."""
        if derainer.is_prenet(net):
            halo = derainer.inner(net).halo
            core = tile_size(self.tile, height, width, halo, device, number)
        else:
            core, halo = max(self.tile, 0), self.halo or 0
        lines = (_line(length, core, halo) for length in (height, width))
        return [tuple(zip(rows, columns, strict=True)) for rows, columns in itertools.product(*lines)]

    def padding(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns to add to a window."""
        rows, columns = (-(-length // self.pad_to) * self.pad_to for length in (height, width))
        if self.pad_square:
            rows = columns = max(rows, columns)
        return rows - height, columns - width


def _bytes_needed(pixels: int) -> float:
    """Peak of one forward of PReNet, measured on the CPU; small maps fragment the heap, large ones do not."""
    return pixels * (2400 if pixels <= AUTO_WINDOW**2 else 1500)


def _room(device: torch.device) -> float:
    """Bytes that deraining may take now."""
    if device.type != "cuda":
        return min(FREE_SHARE * free_memory() / distributed.local_size(), MEMORY_LIMIT)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free -= torch.cuda.memory_allocated(device)
    return min(FREE_SHARE * max(free, 0), _bytes_needed(LARGEST_WINDOW))


def tile_size(tile: int, height: int, width: int, halo: int, device: torch.device, number: int = 1) -> int:
    """The core of the tiles in px, 0 for the whole image, for so many images at once; ``tile`` is as in ``derain``."""
    if tile >= 0:
        return tile
    room = _room(device)
    if _bytes_needed(height * width * number) <= room:
        return 0
    window = math.isqrt(int(room / (_bytes_needed(1) * number)))  # as large as there is room
    if device.type == "cpu":
        window = min(window, AUTO_WINDOW)
    return max(window - 2 * halo, 128)  # smaller cores are mostly halo


def _line(length: int, core: int, halo: int) -> Iterator[tuple[slice, slice, slice]]:
    """The tiles along one side of an image; a core of 0 gives one."""
    step = core or max(length, 1)
    for start in range(0, length, step):
        stop = min(start + step, length)
        low, high = max(0, start - halo), min(length, stop + halo)
        yield slice(start, stop), slice(low, high), slice(start - low, stop - low)


@torch.no_grad()
def _infer(net: nn.Module, window: Tensor, windows: Windows) -> Tensor:
    if derainer.is_prenet(net):
        half = max(window.shape[2:]) // 2
        try:
            return derainer.apply(net, order(window))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or half <= derainer.inner(net).halo:  # a part would be as large as the whole
                raise
        return derain(net, window, tile=half)  # the same result in parts; the memory of the error is free by now
    height, width = window.shape[2:]
    for side, more in enumerate(windows.padding(height, width), 2):
        index = np.pad(np.arange(window.shape[side]), (0, more), "reflect")
        window = window.index_select(side, torch.from_numpy(index).to(window.device))
    return derainer.apply(net, window)[..., :height, :width]


def derain(net: nn.Module, rainy: Tensor, tile: int = -1, **windows) -> Tensor:
    """Remove the rain from images of any size.

    Tiles of PReNet overlap by its receptive field (``net.halo``, 13 px per stage) on each side, so that they give the
    result of the whole image (T10). A part that does not fit into memory is cut further.

    Args:
        net: Derain, PReNet or any other derainer, on the device of ``rainy`` and in the mode that is wanted (eval).
            DataParallel, torch.compile or AveragedModel may be around it.
        rainy: (N, 3, H, W) in [0, 1], H and W at least 1.
        tile: core of a tile in px; 0 for the whole image; -1 for tiles only where the whole image needs more than
            half of the free memory, or on a CPU more than 1 GB, beyond what the process holds.
        windows: halo, pad_to, pad_square for other derainers (a subclass of PReNet, too), see ``Windows``.

    Returns:
        (N, 3, H, W) on the same device, not clamped.

    Raises:
        ValueError: rainy has another shape, or values of another kind.
        UserError: tiles for another derainer without a halo, or the reverse.
        DerainerError: another derainer failed, on this size perhaps.
    """
    if rainy.ndim != 4 or rainy.shape[1] != 3 or 0 in rainy.shape:
        raise ValueError(f"expected rainy images (N, 3, H, W), got {tuple(rainy.shape)}")
    # Resizing leaves values a little outside of [0, 1].
    if not (rainy.is_floating_point() and rainy.min() >= -0.5 and rainy.max() <= 1.5):
        found = f"{rainy.min():.2f} to {rainy.max():.2f}" if rainy.is_floating_point() else rainy.dtype
        raise ValueError(f"expected floats in [0, 1], got {found}")
    number, _, height, width = rainy.shape
    how = Windows(tile, **windows)
    if not derainer.is_prenet(net):
        how.require_halo("tile, halo")
    derained = torch.empty_like(rainy)
    for inside, window, keep in how.of(net, height, width, rainy.device, number):
        derained[..., *inside] = _infer(net, rainy[..., *window], how)[..., *keep]
    return derained


def derain_pixels(
    net: nn.Module, pixels: np.ndarray, device: torch.device, windows: Windows, rounding: str
) -> np.ndarray:
    """``derain`` for a decoded image; only one tile at a time is held in floats.

    Args:
        pixels: (H, W, 3) uint8 or uint16 RGB.
        rounding: 'truncate' or 'nearest', see ``to_uint8``.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DerainerError: the result is not finite, or another derainer failed.
    """
    derained = np.empty(pixels.shape, np.uint8)
    tiles = windows.of(net, pixels.shape[0], pixels.shape[1], device)
    for inside, window, keep in progress_bar(tiles, unit="tile", leave=False, hidden=len(tiles) == 1):
        rainy = torch.from_numpy(pixels[window].copy()).to(device).permute(2, 0, 1)
        result = _infer(net, floats(rainy[None]), windows)
        if not torch.isfinite(result).all():
            raise derainer.DerainerError(f"{type(net).__name__} made values that are not finite of this image")
        derained[inside] = _pixels(result, rounding)[0].cpu().numpy()[keep]
    return derained


def _pixels(values: Tensor, rounding: str) -> Tensor:
    """``to_uint8`` on the device: (N, 3, H, W) -> (N, H, W, 3)."""
    scaled = values.clamp(0, 1) * 255
    return (scaled if rounding == "truncate" else scaled.round()).to(torch.uint8).permute(0, 2, 3, 1)


@contextlib.contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """eval mode within it, then each module's own again; a GPU tunes nothing for image sizes that come once."""
    modes = {module: module.training for module in net.modules()}  # one of them may be frozen
    tunes, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    net.eval()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = tunes
        for module, training in modes.items():
            module.training = training


def validate(
    net: nn.Module, pairs: list[Pair], device: torch.device, windows: Windows, stop: Callable[[], bool]
) -> dict[str, float] | None:
    """Mean scores of the derained, truncated images against their ground truth; None if ``stop`` asked to stop.

    Several processes share the images.
    """
    scores: dict[int, metrics.Scores] = {}
    with _evaluating(net):
        mine = range(len(pairs))[distributed.share()]
        for number in progress_bar(mine, desc="validating", unit="image", leave=False):
            if stop():
                break
            pair = pairs[number]
            try:
                rainy, clean = pair.read()
                scores[number] = metrics.score(derain_pixels(net, rainy, device, windows, "truncate"), clean)
            except derainer.DerainerError as error:
                raise derainer.DerainerError(f"{pair.rainy}: {error}") from None
    scores = {number: score for part in distributed.gather(scores) for number, score in part.items()}
    return vars(metrics.mean([scores[n] for n in range(len(pairs))])) if len(scores) == len(pairs) else None


def validator(
    net: nn.Module, pairs: list[Pair], device: torch.device, windows: Windows | None = None
) -> Callable[[Callable[[], bool]], dict[str, float] | None] | None:
    """A function with which ``fit`` validates; None without pairs. Other networks than ours are tried on every size.

    Raises:
        DerainerError: the network can't take one of the sizes.
    """
    distributed.require_same("--val_data_path", f"{len(pairs)} pairs, {fingerprint(pairs)}")
    if not pairs:
        return None
    windows = windows or Windows()
    if not derainer.is_prenet(net):
        with _evaluating(net):
            for pair in {pair.format()[:2]: pair for pair in pairs}.values():
                derain_pixels(net, pair.read()[0], device, windows, "truncate")
    return lambda stop: validate(net, pairs, device, windows, stop)
