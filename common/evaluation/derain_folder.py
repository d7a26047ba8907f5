"""Remove rain from a folder of images: folder in, folder out, with metrics and a page."""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import derainer, distributed
from ..data import page
from ..data.images import (
    JPEG,
    ImageError,
    image_format,
    in_srgb,
    inputs,
    read_image,
    read_stored,
    require_outside,
    size_text,
    write_image,
)
from ..data.pairs import Pair, Pairing, find_pairs, half_of
from ..errors import UserError, is_out_of_memory
from ..precision import prepare
from ..terminal import print_result, progress_bar, tell
from . import metrics
from .derain import Windows, derain_pixels

WORSE = (
    "warning: the derained images are farther from the ground truth than the rainy ones. Check the weights and their "
    "number of stages (--stage, --recurrent_iter), that --gt_path belongs to --data_path, and that the derainer gives "
    "back the image, not the rain"
)


@dataclass
class Result:
    """What became of an image."""

    written: bool = False
    seconds: float | None = None  # that deraining took; None for the first image, which warms up
    scores: dict[str, metrics.Scores] | None = None
    problem: str = ""


def derain_folder(net: nn.Module, args: argparse.Namespace, device: torch.device, weights: str, hint: str) -> int:
    """Derain images into a folder; print the time per image and, with a ground truth, the table of metrics.

    report.html there shows both, with a before/after slider for each image. Several processes share the images; the
    first one tells what all did.

    Args:
        net: Derain, PReNet or another derainer, on ``device``.
        args: the flags --data_path (a folder, sub-folders kept, or one image), --save_path (see ``result_names``),
            --gt_path (None for no metrics), and those of ``flags.add_pairing`` and ``flags.add_deraining``.
        weights: file of the derainer's weights, for the page.
        hint: what belongs into --data_path, for the message when it is missing.

    Returns:
        Exit code: 0, or 1 where an image or its ground truth could not be read or did not fit into memory; the
        others are done.

    Raises:
        UserError: paths that are missing, empty or overlap, ground truth that is missing or of another size.
        DerainerError: a derainer of the user's failed on the first image.
    """
    save, windows, pairing = Path(args.save_path), Windows.from_flags(args), Pairing.from_flags(args)
    folder, names = inputs(Path(args.data_path), save, hint)
    require_outside("--save_path", save, {"--gt_path": args.gt_path})
    pairs = _partners(folder, names, args.gt_path, pairing)
    names = [name for name in names if not pairs or name in pairs]
    results = {name: save / result for name, result in result_names(names, args.keep_format).items()}
    used = {path.resolve() for path in [*(folder / name for name in names), *(pair.clean for pair in pairs.values())]}
    if over := [path for path in results.values() if path.resolve() in used]:
        raise UserError(f"--save_path: {over[0]} is an input file and would be overwritten; choose another folder")
    prepare(net.eval(), device, args.precision)
    done: dict[Path, Result] = {}
    mine = names[distributed.share()]
    for number, name in enumerate(progress_bar(mine, unit="image")):
        result = done[name] = Result()
        try:
            pixels, profile = read_stored(folder / name)
            rainy, began = half_of(pixels, pairing.halves[0]), time.perf_counter()
            derained = derain_pixels(net, rainy, device, windows, args.rounding)
            result.seconds = time.perf_counter() - began if number or len(mine) == 1 else None
            write_image(results[name], derained, profile)
            result.written = True
            if name in pairs:
                truth = half_of(read_image(pairs[name].clean), pairing.halves[1])
                pairs[name].require_one_size(rainy.shape, truth.shape)
                versions = {"rainy": in_srgb(rainy, profile), "derained": read_image(results[name])}
                result.scores = {label: metrics.score(image, truth) for label, image in versions.items()}
        except KeyboardInterrupt as asked:
            told = f"this process derained {number} of its {len(mine)} images into {save}"
            raise KeyboardInterrupt(f"{str(asked) or 'stopped by Ctrl-C'}; {told}") from None
        except ImageError as error:  # the input or its ground truth; errors of writing are others and end the run
            result.problem = str(error)
        except derainer.DerainerError as error:  # of this size, perhaps
            result.problem = f"{folder / name}: {error}"
            if number == 0 and distributed.is_first():
                raise derainer.DerainerError(result.problem) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = size_text(image_format(folder / name))
            result.problem = f"{folder / name}: {size} px do not fit into memory; try --tile 256"
    done = {name: result for part in distributed.gather(done) for name, result in part.items()}
    done = {name: done[name] for name in names}
    if distributed.is_first():
        table, pictures = _report(done, save, device), {}
        for name in (name for name, result in done.items() if result.written):
            clean = {"clean": pairs[name].clean} if name in pairs else {}
            pictures[name.as_posix()] = {"rainy": folder / name, "derained": results[name], **clean}
        halves = dict(zip(("rainy", "clean"), pairing.halves, strict=True))
        if pictures:
            title = f"Rain removed from {len(pictures)} images with {Path(weights).name}"
            table.page(save / page.NAME, title, pictures, ("rainy", "derained"), halves)
            print(f"page: {save / page.NAME}")
        if not table.rows and (save / "metrics.csv").exists():
            print(f"warning: {save / 'metrics.csv'} is of earlier results; --gt_path measures these", file=sys.stderr)
    problems = []
    for name, result in done.items():
        if result.problem:
            earlier = not result.written and results[name].exists()
            problems.append(result.problem + (f" ({results[name]} is an earlier result)" if earlier else ""))
    if problems:
        tell(problems, f"{len(problems)} of {len(done)} images could not be derained or measured")
    return 1 if problems else 0


def result_names(names: list[Path], keep_format: bool) -> dict[Path, Path]:
    """The names of the results: those of the images, but PNG in place of JPEG, which would change pixels once more.

    Args:
        keep_format: keep JPEG, too.
    """
    found = {name: name for name in names if keep_format or name.suffix.lower() not in JPEG}
    taken = {str(name).casefold() for name in found}  # some file systems do not tell A from a
    for name in names:
        if name not in found:
            stem = name.with_suffix("")
            while f"{stem}.png".casefold() in taken:  # a.png beside a.jpg, which becomes a.jpg.png
                stem = stem.with_name(stem.name + name.suffix)
            found[name] = stem.with_name(f"{stem.name}.png")
            taken.add(str(found[name]).casefold())
    return found


def _partners(folder: Path, names: list[Path], gt_path: str | None, pairing: Pairing) -> dict[Path, Pair]:
    """Every input with its ground truth, checked for existence and size before any work; empty without one."""
    flags = "--data_path, --gt_path"
    if not (gt_path or pairing.side_by_side):
        return {}
    if gt_path and Path(gt_path).is_file() and len(names) == 1 and not pairing.side_by_side:
        pairs = [Pair(str(names[0]), folder / names[0], Path(gt_path))]
    else:
        pairs, _ = find_pairs(folder, gt_path, flags, names=names, pairing=pairing)
    metrics.check_sizes(pairs, flags)
    return {Path(pair.name): pair for pair in pairs}


def _report(done: dict[Path, Result], save: Path, device: torch.device) -> metrics.Table:
    """Print what became of all images, and save the scores of those that have some; returns these."""
    results = done.values()
    print(f"{sum(result.written for result in results)} images derained into {save}")
    if seconds := [result.seconds for result in results if result.seconds is not None]:
        print(f"average time per image: {sum(seconds) / len(seconds):.3f} s on {device}")
    table = metrics.Table()
    for name, result in done.items():
        if result.scores:
            table.rows[name.as_posix()] = result.scores
    if table.rows:
        table.save(save / "metrics.csv")
        print_result(table)
        print(f"written: {save / 'metrics.csv'}")
        means = table.means()
        if means["derained"].psnr_y < means["rainy"].psnr_y:
            print(WORSE, file=sys.stderr)
    return table
