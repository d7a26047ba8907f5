"""Remove rain from images of any size: tensor in, tensor out, or folder in, folder out with metrics."""

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import derainer, distributed
from ..data import page
from ..data.cache import free_memory
from ..data.images import ImageError, image_size, inputs, read_image, size_text, write_image
from ..data.pairs import REMEDY, SAME, Pair, Pairing, find_pairs, fingerprint, half_of
from ..data.patches import floats
from ..errors import UserError, is_out_of_memory
from ..precision import has_bfloat16, order, prepare, without_tuning
from ..terminal import print_result, progress_bar, tell
from . import metrics

MEMORY_LIMIT = 1e9  # bytes that an image may need on a CPU, beyond what the process holds, before --tile -1 takes tiles
FREE_SHARE = 0.5  # of the free memory, that deraining takes
AUTO_WINDOW = 496  # px; 32 float channels of such a window stay below 32 MiB, where malloc still reuses memory
LARGEST_WINDOW = 2**24 - 1  # px; 128 channels of gates are then as many values as 31 bits count


class Windows(NamedTuple):
    """How an image is cut into windows, and a window padded, for a network.

    PReNet takes any size and its halo is known, so only the first of these concerns it: tiles give the result of the
    whole image. Other derainers run on whole images unless a core and a halo are given, which is approximate.
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
        own = derainer.is_custom(args)
        tile, halo = getattr(args, "tile", -1), getattr(args, "tile_halo", None)
        pad_to, pad_square = getattr(args, "pad_to", 1), getattr(args, "pad_square", False)
        if not own and halo is not None:
            raise UserError("--tile_halo: that of prenet is known; leave it out")
        if not own and (pad_to > 1 or pad_square):
            raise UserError("--pad_to, --pad_square: prenet takes images of every size; leave them out")
        if own and tile > 0 and halo is None:
            raise UserError(
                f"--tile {tile}: say with --tile_halo N how many px of margin a tile needs, best as far as an "
                "output pixel of your derainer sees; the result is approximate. --tile 0 takes the whole image"
            )
        if halo is not None and tile <= 0:
            raise UserError(f"--tile_halo {halo}: it is the margin of tiles; add --tile N, or leave it out")
        return cls(tile, halo, pad_to, pad_square)

    def of(
        self, net: nn.Module, height: int, width: int, device: torch.device, number: int = 1
    ) -> Iterator[list[tuple[tuple, tuple, tuple]]]:
        """The windows of ``number`` images, see ``_tiles``, in lists of one size: as many as a GPU takes at once."""
        ours = derainer.is_prenet(net)
        if ours:
            core, halo = tile_size(self.tile, height, width, net.halo, device, number), net.halo
        else:
            core, halo = max(self.tile, 0), self.halo or 0
        sizes: dict[tuple, list] = {}
        for tile in _tiles(height, width, core, halo):
            rows, columns = tile[1]
            sizes.setdefault((rows.stop - rows.start, columns.stop - columns.start), []).append(tile)
        several = ours and device.type == "cuda" and any(len(tiles) > 1 for tiles in sizes.values())
        room = _room(device) if several else 0  # others, and a CPU: one by one
        if self.tile > 0:
            room = min(room, MEMORY_LIMIT)  # somebody wants to save memory
        for (rows, columns), tiles in sizes.items():
            at_once = max(1, int(room / _bytes_needed(rows * columns * number)))
            for i in range(0, len(tiles), at_once):
                yield tiles[i : i + at_once]

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
    """The core of the tiles in px for --tile, 0 for the whole image.

    Args:
        tile: N > 0 for that core, 0 for the whole image, -1 for tiles only where the whole image needs more than
            half of the free memory, or on a CPU more than 1 GB, beyond what the process holds.
        height, width: of the image, in px.
        halo: margin around the core in px, see ``derain``.
        number: of images that are derained at once.
    """
    if tile >= 0:
        return tile
    room = _room(device)
    if _bytes_needed(height * width * number) <= room:
        return 0
    window = math.isqrt(int(room / (_bytes_needed(1) * number)))  # as large as there is room
    return _core(window if device.type == "cuda" else min(window, AUTO_WINDOW), halo)


def _core(window: int, halo: int) -> int:
    """What a window has within its halo, but not less than is worth it."""
    return max(window - 2 * halo, 128)


def _tiles(height: int, width: int, core: int, halo: int) -> Iterator[tuple[tuple, tuple, tuple]]:
    """(core in the image, window in the image, core in the window), each a pair of slices; 0 is one tile."""

    def line(length: int) -> Iterator[tuple[slice, slice, slice]]:
        step = core or max(length, 1)
        for start in range(0, length, step):
            stop = min(start + step, length)
            low, high = max(0, start - halo), min(length, stop + halo)
            yield slice(start, stop), slice(low, high), slice(start - low, stop - low)

    for rows in line(height):
        for columns in line(width):
            yield tuple(zip(rows, columns, strict=True))


def _reflect(length: int, more: int, device: torch.device) -> Tensor:
    """Indices that go on by reflection behind the end, to and fro if need be; a single pixel is repeated."""
    turn = max(2 * (length - 1), 1)
    i = torch.arange(length + more, device=device) % turn
    return torch.minimum(i, turn - i).clamp(max=length - 1)


@torch.no_grad()
def _infer(net: nn.Module, window: Tensor, windows: Windows) -> Tensor:
    if derainer.is_prenet(net):
        return derainer.apply(net, order(window))
    height, width = window.shape[2:]
    more = windows.padding(height, width)
    if any(more):
        rows, columns = (_reflect(n, m, window.device) for n, m in zip((height, width), more, strict=True))
        window = window.index_select(2, rows).index_select(3, columns)
    return derainer.apply(net, window)[..., :height, :width]


def derain(net: nn.Module, rainy: Tensor, tile: int = -1, **windows) -> Tensor:
    """Remove the rain from images of any size.

    Tiles of PReNet overlap by its receptive field (``net.halo``, 13 px per stage) on each side, so that they give the
    result of the whole image (T10).

    Args:
        net: Derain, PReNet or any other derainer, on the device of ``rainy`` and in the mode that is wanted (eval).
        rainy: (N, 3, H, W) in [0, 1], H and W at least 1.
        tile: core of a tile in px; 0 for the whole image; -1 for tiles only where the whole image needs more than
            half of the free memory, or on a CPU more than 1 GB, beyond what the process holds.
        windows: halo, pad_to, pad_square for other derainers, see ``Windows``.

    Returns:
        (N, 3, H, W) on the same device, not clamped.

    Raises:
        ValueError: rainy has another shape.
        DerainerError: another derainer failed, on this size perhaps.
    """
    if rainy.ndim != 4 or rainy.shape[1] != 3 or 0 in rainy.shape:
        raise ValueError(f"expected rainy images (N, 3, H, W), got {tuple(rainy.shape)}")
    number, _, height, width = rainy.shape
    how = Windows(tile, **windows)
    derained = torch.empty_like(rainy)
    for tiles in how.of(net, height, width, rainy.device, number):
        found = _infer(net, torch.cat([rainy[..., *window] for _, window, _ in tiles]), how)
        for (inside, _, keep), part in zip(tiles, found.split(number), strict=True):
            derained[..., *inside] = part[..., *keep]
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
    try:
        return _derain_pixels(net, pixels, device, windows, rounding)
    except torch.OutOfMemoryError:  # of a GPU, which others may use as well
        if windows.tile != -1 or not derainer.is_prenet(net):
            raise
    torch.cuda.empty_cache()
    small = windows._replace(tile=_core(AUTO_WINDOW, net.halo))
    return _derain_pixels(net, pixels, device, small, rounding)


def _derain_pixels(
    net: nn.Module, pixels: np.ndarray, device: torch.device, windows: Windows, rounding: str
) -> np.ndarray:
    derained = np.empty(pixels.shape, np.uint8)
    height, width = pixels.shape[:2]
    batches = list(windows.of(net, height, width, device))
    for tiles in progress_bar(batches, unit="tile", leave=False, hidden=len(batches) == 1):
        rainy = np.stack([pixels[window] for _, window, _ in tiles])
        found = _infer(net, floats(torch.from_numpy(rainy).to(device).permute(0, 3, 1, 2)), windows)
        if not torch.isfinite(found).all():
            raise derainer.DerainerError(f"{type(net).__name__} made values that are not finite of this image")
        found = _pixels(found, rounding).cpu().numpy()
        for (inside, _, keep), part in zip(tiles, found, strict=True):
            derained[inside] = part[keep]
    return derained


def _pixels(values: Tensor, rounding: str) -> Tensor:
    """``to_uint8`` on the device: (N, 3, H, W) -> (N, H, W, 3)."""
    scaled = values.clamp(0, 1) * 255
    return (scaled if rounding == "truncate" else scaled.round()).to(torch.uint8).permute(0, 2, 3, 1)


@contextlib.contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """eval mode within it, then each module's own again: one of them may be frozen."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def validate(
    net: nn.Module, pairs: list[Pair], device: torch.device, windows: Windows, stop: Callable[[], bool]
) -> dict[str, float] | None:
    """Mean scores of the derained, truncated images against their ground truth; None if ``stop`` asked to stop.

    Several processes share the images.
    """
    scores: dict[int, metrics.Scores] = {}
    with _evaluating(net), without_tuning(net):
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
    """What ``fit`` calls to validate; None without pairs. A network that is not ours is tried on every size first.

    Raises:
        DerainerError: it can't take one of the sizes.
    """
    distributed.require_same("--val_data_path", f"{len(pairs)} pairs, {fingerprint(pairs)}")
    if not pairs:
        return None
    windows = windows or Windows()
    if not derainer.is_prenet(net):
        with _evaluating(net):
            for height, width in sorted({pair.format()[:2] for pair in pairs}):
                trial = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
                try:
                    derain_pixels(net, trial, device, windows, "truncate")
                except derainer.DerainerError as error:
                    size = size_text((height, width))
                    raise derainer.DerainerError(f"--val_data_path: trial on {size} px: {error}") from None
    return lambda stop: validate(net, pairs, device, windows, stop)


def _partners(
    folder: Path, names: list[Path], gt_path: Path | None, save_path: Path, pairing: Pairing
) -> dict[Path, Pair]:
    """Every input with its ground truth, checked for existence and size before any work."""
    if gt_path and gt_path.is_dir() and save_path.resolve().is_relative_to(gt_path.resolve()):
        raise UserError(f"--save_path: {save_path} is the folder of --gt_path or lies in it; choose another one")
    flags = "--data_path, --gt_path"
    if gt_path and gt_path.is_file() and len(names) == 1 and not pairing.side_by_side:
        pairs = [Pair(str(names[0]), folder / names[0], gt_path)]
    else:
        pairs, _ = find_pairs(folder, gt_path, flags, names=names, pairing=pairing)
    metrics.check_sizes(pairs, flags, leave=True)
    return {Path(pair.name): pair for pair in pairs}


@dataclass
class _Result:
    """What became of an image."""

    deep: bool = False  # it has 16 bits a channel
    seconds: float | None = None  # that deraining took
    warm_up: bool = False  # these do not count
    written: bool = False
    scores: dict[str, metrics.Scores] | None = None
    problem: str = ""


def derain_folder(
    *,
    net: nn.Module,  # Derain, PReNet or another derainer, on the device
    data_path: str,  # a folder, sub-folders kept, or one image
    save_path: str,  # the same names below it
    gt_path: str | None,  # folder (or image) of clean images; None for no metrics
    pairing: Pairing | None = None,  # what the user says of how names pair
    device: torch.device,
    windows: Windows,  # tiles and padding
    rounding: str,  # see to_uint8
    precision: str = "fp32",  # or tf32, bf16
    compiled: bool = False,  # by torch.compile
    weights: str = "",  # file of the derainer's weights, for the page
    hint: str = "",  # what belongs into data_path, for the message when it is missing
) -> int:
    """Derain images into a folder; print the time per image and, with a ground truth, the table of metrics.

    report.html there shows both, with a before/after slider for each image.

    Several processes share the images; the first one tells what all did.

    Returns:
        Exit code: 0, or 1 where an image or its ground truth could not be read or did not fit into memory; the
        others are done.

    Raises:
        UserError: paths that are missing, empty or overlap, ground truth that is missing or of another size.
        DerainerError: a derainer of the user's failed on the first image.
    """
    save, pairing = Path(save_path), pairing or Pairing()
    folder, names, others = inputs(Path(data_path), save, hint)
    pairs = {}
    if gt_path or pairing.side_by_side:
        pairs = _partners(folder, names, Path(gt_path) if gt_path else None, save, pairing)
        names = [name for name in names if name in pairs]
    used = {path.resolve() for path in [*(folder / name for name in names), *(pair.clean for pair in pairs.values())]}
    for name in names:
        if (save / name).resolve() in used:
            raise UserError(
                f"--save_path: {save / name} is an input file and would be overwritten; choose another folder"
            )
    distributed.require_shared("--save_path", save)
    prepare(net.eval(), device, precision, compiled)
    if precision != "bf16" and device.type == "cpu" and derainer.is_prenet(net) and has_bfloat16(device):
        print("this processor has bfloat16 instructions: --precision bf16 takes about half the time (docs/scaling.md)")
    if derainer.is_prenet(net):
        with without_tuning(net):
            _infer(net, torch.zeros(1, 3, 32, 32, device=device), windows)  # warm-up
    elif windows.tile > 0:
        print(f"tiles of {windows.tile} px with a halo of {windows.halo} px: approximate for this derainer")
    done: dict[Path, _Result] = {}
    mine = names[distributed.share()]
    for number, name in enumerate(progress_bar(mine, unit="image")):
        result = done[name] = _Result()
        try:
            rainy = half_of(read_image(folder / name), pairing.halves[0])
            began = time.perf_counter()
            derained = derain_pixels(net, rainy, device, windows, rounding)
            result.seconds, result.deep = time.perf_counter() - began, rainy.dtype == np.uint16
            write_image(save / name, derained)
            result.written = True
            if name in pairs:
                truth = half_of(read_image(pairs[name].clean), pairing.halves[1])
                pairs[name].require_one_size(rainy.shape, truth.shape)
                rainy_score, derained_score = (metrics.score(x, truth) for x in (rainy, read_image(save / name)))
                result.scores = {"rainy": rainy_score, "derained": derained_score}
        except KeyboardInterrupt as asked:
            raise distributed.stopped(asked, number, len(mine), f"images are in {save}") from None
        except ImageError as error:  # the input or its ground truth; errors of writing are others and end the run
            result.problem = str(error)
        except derainer.DerainerError as error:  # of this size, perhaps
            result.problem = f"{folder / name}: {error}"
            if number == 0 and distributed.is_first():
                raise derainer.DerainerError(result.problem) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = size_text(image_size(folder / name))
            remedy = "--tile 256" if derainer.is_prenet(net) else "--tile 256 --tile_halo 64 (approximate)"
            result.problem = f"{folder / name}: {size} px do not fit into memory; try {remedy}"
    timed = [result for result in done.values() if result.seconds is not None]
    if len(timed) > 1:
        timed[0].warm_up = True
    done = {name: result for part in distributed.gather(done) for name, result in part.items()}
    everything = [(name, done[name]) for name in names]
    code = _report(everything, save, folder, others, device)
    if distributed.is_first() and any(result.written for _, result in everything):
        _page(everything, save, folder, pairs, Path(weights).name, pairing)
    return code


def _page(
    done: list[tuple[Path, _Result]],
    save: Path,
    folder: Path,
    pairs: dict[Path, Pair],
    weights: str,
    pairing: Pairing,
) -> None:
    """The images that were written as report.html."""
    pictures, table = {}, metrics.Table()
    for name, result in done:
        if result.written:
            files = {"rainy": folder / name, "derained": save / name}
            pictures[name.as_posix()] = files | ({"clean": pairs[name].clean} if name in pairs else {})
        if result.scores:
            table.add(name.as_posix(), **result.scores)
    left_out = len(done) - len(pictures)
    lead = [f"Derained with {weights}." if weights else "", f"{left_out} could not be derained." if left_out else ""]
    if table.rows:
        lead.append("PSNR and SSIM on the Y channel, as the paper computes them, and PSNR on RGB.")
    title = f"Rain removed from {len(pictures)} image{'s' * (len(pictures) > 1)}"
    halves = dict(zip(("rainy", "clean"), pairing.halves, strict=True))
    table.page(save / page.NAME, title, pictures, [line for line in lead if line], ("rainy", "derained"), halves)
    print(f"page: {save / page.NAME}")


def _report(done: list[tuple[Path, _Result]], save: Path, folder: Path, others: int, device: torch.device) -> int:
    """Print, and save as a table, what became of all images; returns the exit code."""
    results = [result for _, result in done]
    print(f"{sum(result.written for result in results)} images derained into {save}")
    if others:
        print(f"{others} other files in {folder} skipped")
    if deep := sum(result.deep for result in results):
        print(f"{deep} images with 16 bits a channel: the results have 8")
    if seconds := [r.seconds for r in results if r.seconds is not None and not r.warm_up]:
        left_out = ", the first one left out as warm-up" if any(result.warm_up for result in results) else ""
        print(f"average time per image: {sum(seconds) / len(seconds):.3f} s on {device}{left_out}")
    rainy = [result.scores["rainy"] for result in results if result.scores]
    if rainy and all(math.isinf(scores.psnr_rgb) for scores in rainy):
        raise UserError(f"--data_path, --gt_path: {SAME}. {REMEDY}")
    table = metrics.Table()
    for name, result in done:
        if result.scores:
            table.add(name.as_posix(), **result.scores)
    if table.rows and distributed.is_first():
        table.save(save / "metrics.csv")
        print_result(table)
        print(f"written: {save / 'metrics.csv'}")
        means = table.means()
        if means["derained"].psnr_y < means["rainy"].psnr_y:
            print(
                "warning: the derained images are farther from the ground truth than the rainy ones. Check the weights "
                "and their number of stages (--stage, --recurrent_iter), that --gt_path belongs to --data_path, and "
                "that the derainer gives back the image, not the rain",
                file=sys.stderr,
            )
    problems = [result.problem for result in results if result.problem]
    if problems:
        tell(problems, f"{len(problems)} of {len(done)} images could not be derained or measured")
    return 1 if problems else 0
