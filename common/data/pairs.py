"""Rainy/clean pairs in two folders, and the checks of pairs."""

import argparse
import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..terminal import print_result, progress_bar, tell
from .images import ImageError, crop_at, half_of, image_format, images_in, natural_key, planes, read_image, size_text
from .names import Pairing, match, sides

PROBLEMS_SHOWN, NAMES_SHOWN = 10, 4  # in a message
SAME = "each rainy image has the pixels of its clean partner, so there is no rain to learn or to measure"
PAIR_BY = "--pair_by 'rain-{}' 'norain-{}', say: {} is the part that both names share, * is anything"
REMEDY = (
    "Name a folder of rainy and one of clean images. If each image holds both, give --side_by_side left (or right). "
    f"For other names give {PAIR_BY}."
)
LOOKED_AT = 12  # pairs, to notice that rainy and clean are exchanged
DARKER = 0.5 / 255  # by so much of white a rainy image is darker than its clean one, in the mean
CHECK_ALL, CHECK_SOME = 1000, 200  # longer lists are checked by so many samples, so that training starts in seconds


@dataclass(frozen=True)
class Pair:
    """A rainy file, its clean partner, and the name of the pair: the rainy file's path inside its folder."""

    name: str
    rainy: Path
    clean: Path
    halves: tuple[str, str] = ("", "")  # 'left' or 'right': the part of either file that counts; empty for all of it

    def format(self) -> tuple[int, int, type]:
        """Height, width and pixel type of both, from their headers; see ``read``."""
        (*rainy, kind), (*clean, clean_kind) = image_format(self.rainy), image_format(self.clean)
        for size, half in zip((rainy, clean), self.halves, strict=True):
            size[1] //= 2 if half else 1
        self.require_one_size(rainy, clean)
        return *rainy, np.uint16 if np.uint16 in (kind, clean_kind) else np.uint8

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Decode both: rainy and clean, each (H, W, 3) uint8 or uint16.

        Raises:
            ImageError: a file can't be read, or the sizes differ.
        """
        rainy = read_image(self.rainy)
        clean = rainy if self.clean == self.rainy else read_image(self.clean)
        rainy, clean = map(half_of, (rainy, clean), self.halves)
        self.require_one_size(rainy.shape, clean.shape)
        return rainy, clean

    def crop(self, place: tuple[float, float], p: int) -> np.ndarray:
        """The crop of p px at a relative place, see ``crop_at``: (6, p, p), rainy above clean; see ``read``."""
        rainy, clean = self.read()
        self.require_patch(rainy, p)
        crop = crop_at(place, *rainy.shape[:2], p)
        return planes(rainy[crop], clean[crop])

    def require_patch(self, rainy: np.ndarray, p: int) -> None:
        """Raise ImageError if the image is smaller than a patch of p px."""
        if min(rainy.shape[:2]) < p:
            raise ImageError(f"{self.rainy} is {size_text(rainy.shape)}, smaller than the {p} px patch")

    def require_one_size(self, rainy: Sequence[int], clean: Sequence[int]) -> None:
        """Raise ImageError if (height, width, ...) of both differ."""
        if tuple(rainy[:2]) != tuple(clean[:2]):
            sizes = f"{size_text(rainy)}, its clean partner {self.clean.name} {size_text(clean)}"
            raise ImageError(f"{self.rainy} is {sizes}")


# --- names -------------------------------------------------------------------------------------------------------


def fail(problems: list[str], headline: str, remedy: str) -> None:
    """Raise one UserError for all problems, if there are any; the first ten are named."""
    if problems:
        shown = "".join(f"\n  {line}" for line in problems[:PROBLEMS_SHOWN])
        rest = f"\n  ... and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise UserError(f"{headline}{shown}{rest}\n{remedy}")


def find_pairs(
    rainy_folder: str | Path,
    clean_folder: str | Path | None,
    flags: str,
    hint: str = "",
    names: list[Path] | None = None,
    pairing: Pairing | None = None,
) -> tuple[list[Pair], str]:
    """Pair the images of two folders, sub-folders included, in natural order (T12); prints by which rule.

    Both may be one folder whose sub-folders or names tell rainy from clean; other images are left out, with a note.

    Args:
        clean_folder: None with side_by_side.
        flags: the two flags that name the folders, for messages ('--data_path, --gt_path').
        hint: what belongs into the folders and where it comes from, for the message when one is missing.
        names: the rainy images to pair; None for all in the folder.
        pairing: what the user says about it.

    Returns:
        The pairs, and the naming rule with an example.

    Raises:
        UserError: a folder is missing or empty, a rainy image has no partner or several, or see ``require_light``.
    """
    pairing, (rainy_flag, clean_flag) = pairing or Pairing(), flags.split(", ")
    rainy = images_in(rainy_folder, rainy_flag, hint) if names is None else names
    one = clean_folder is None or os.path.realpath(rainy_folder) == os.path.realpath(clean_folder)
    if pairing.side_by_side:
        if pairing.pair_by:
            raise UserError("--pair_by: --side_by_side takes both images from one file; give one of the two flags")
        if not one:
            raise UserError(f"{clean_flag}: {clean_folder} is not needed, --side_by_side takes both from {rainy_flag}")
        pairs = [Pair(p.as_posix(), Path(rainy_folder, p), Path(rainy_folder, p), pairing.halves) for p in rainy]
        rule = f"side by side, rainy on the {pairing.side_by_side}"
    else:
        clean = images_in(clean_folder, clean_flag, hint)
        partners, rule = _partners(rainy, clean, (rainy_folder, clean_folder), one, flags, pairing)
        pairs = [Pair(p.as_posix(), Path(rainy_folder, p), Path(clean_folder, q)) for p, q in partners.items()]
        pairs.sort(key=lambda pair: natural_key(pair.name))
        used = {*partners, *partners.values()} if one else set(partners)
        if unused := [str(path) for path in rainy if path not in used]:
            shown = ", ".join(unused[:NAMES_SHOWN]) + ", ..." * (len(unused) > NAMES_SHOWN)
            print_result(f"note: left out of {rainy_folder}: {len(unused)} images ({shown})")
        rule = f"{rule} ({pairs[0].name} with {partners[Path(pairs[0].name)].as_posix()})"
    print(f"{len(pairs)} pairs in {rainy_folder} by the rule: {rule}")
    if not pairing.dark_rain:
        require_light(pairs, flags)
    return pairs, rule


def _partners(
    rainy: list[Path], clean: list[Path], folders: tuple, one: bool, flags: str, pairing: Pairing
) -> tuple[dict[Path, Path], str]:
    """The clean partner of each rainy file, and the rule."""
    marked_rainy, marked_clean = sides(clean)
    tries = [(rainy, clean)]
    if one and not pairing.pair_by:
        own = set(marked_rainy)
        tries = [([path for path in rainy if path in own], marked_clean)]
    elif marked_rainy and marked_clean and not pairing.pair_by:  # rain-1.png finds norain-1.png beside a rain-1.png
        tries.insert(0, (rainy, marked_clean))
    if not all(tries[0]):
        text = f"both are {folders[1]}, where names don't tell rainy from clean (as rain-1 and norain-1 do)"
        raise UserError(f"{flags}: {text}. {REMEDY}")
    for chosen in tries:
        partners, rule, problems = match(*chosen, pairing.pair_by)
        if not problems:
            break
    fail(
        problems,
        f"{len(problems)} of {len(chosen[0])} rainy images of {folders[0]} find no single partner in {folders[1]} "
        f"by the rule that fits best, {rule}:",
        f"Rename, add or remove these files ({flags}); or say how names pair, {PAIR_BY}.",
    )
    return partners, rule


def pairs_of(args: argparse.Namespace, hint: str = "") -> tuple[list[Pair], str]:
    """``find_pairs`` for --data_path and --gt_path, whose default does not count with --side_by_side."""
    gt_path = args.gt_path if "gt_path" in args.given or not args.side_by_side else None
    return find_pairs(args.data_path, gt_path, "--data_path, --gt_path", hint, pairing=Pairing.from_flags(args))


def require_no_pairing(args: argparse.Namespace, what: str) -> None:
    """Raise UserError if --pair_by or --side_by_side is given, has no effect and is not for validation either."""
    given = sorted({"pair_by", "side_by_side"} & args.given)
    if given and not getattr(args, "val_data_path", None):
        raise UserError(f"--{given[0]}: {what} says what pairs already; leave the flag out")


def fingerprint(pairs: Sequence[Pair]) -> str:
    """A few digits that change with the names of the pairs; the same for files, a list, a pack, or pairs in RAM."""
    names = [pair.name for pair in pairs] if isinstance(pairs, list) else pairs.names
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def check_pairs(
    pairs: Sequence[Pair],
    patch_size: int,
    flags: str,
    keep: Callable[[int, np.ndarray, np.ndarray], Any] | None = None,
    workers: int = 4,
) -> None:
    """Decode every image once: whole, partners of equal size, at least patch-sized (T8, T9).

    Args:
        flags: the flags that name the data, for the message.
        keep: is given the number of each good pair and its images, see ``Pair.read``.
        workers: threads that decode.

    Raises:
        UserError: lists the problems, the first ten by name; or no pair has rain.
    """
    same: list[int] = []  # pairs without rain; photos, each of which is its own partner, are not meant

    def problem_of(number: int) -> str:
        pair = pairs[number]
        try:
            rainy, clean = pair.read()
            pair.require_patch(rainy, patch_size)
            if keep:
                keep(number, rainy, clean)
        except ImageError as error:
            return str(error)
        if rainy is not clean and np.array_equal(rainy, clean):
            same.append(number)
        return ""

    what = "decoding pairs" if keep else "checking pairs"
    starts, numbers = range(0, len(pairs), 100), range(len(pairs))
    with ThreadPoolExecutor(workers) as pool:
        # By the hundred: a task for each pair would take much memory, and on Ctrl-C these may have to be done first.
        results = itertools.chain.from_iterable(pool.map(problem_of, numbers[s : s + 100]) for s in starts)
        problems = list(filter(None, progress_bar(results, total=len(pairs), desc=what, unit="pair", leave=False)))
    smaller = ", or choose a smaller --patchSize where they are too small" if patch_size > 1 else ""
    remedy = f"Mend or remove these files ({flags}){smaller}."
    fail(problems, f"{len(problems)} of {len(pairs)} pairs can't be used:", remedy)
    if len(same) == len(pairs):
        raise UserError(f"{flags}: {SAME}. {REMEDY}")
    if same:
        text = f"warning: {len(same)} of {len(pairs)} pairs have no rain, rainy and clean are the same"
        tell([pairs[i].name for i in sorted(same)[:PROBLEMS_SHOWN]], text)


def require_light(pairs: Sequence[Pair], flags: str) -> None:
    """Look at a dozen pairs at most, to notice that rainy and clean are exchanged: rain adds light.

    Raises:
        UserError: nearly all of these rainy images are darker than their clean partners.
    """
    darker, others, some = 0, 0, spread(pairs, LOOKED_AT)
    for pair in some:
        with contextlib.suppress(ImageError):  # the check that decodes it names it
            rainy, clean = (image.mean() / np.iinfo(image.dtype).max for image in pair.read())
            is_darker = rainy < clean - DARKER
            darker, others = darker + is_darker, others + (not is_darker)
        if others > len(some) // 10:
            return
    if darker > 1:  # one pair says little
        raise UserError(
            f"{flags}: rain adds light, but in {darker} of {darker + others} pairs the rainy image is darker than the "
            "clean one. Exchange rainy and clean; or, if rain does darken these images, give --dark_rain"
        )


def some_of(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """All pairs of a short list, samples from all over a long one."""
    return pairs if len(pairs) <= CHECK_ALL else spread(pairs, CHECK_SOME)


def spread(items: Sequence, number: int) -> list:
    """So many items from all over a sequence, the first and the last among them; of a short one all."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(len(items), number)).astype(int)]


def validation_pairs(args: argparse.Namespace) -> list[Pair]:
    """Find and check the pairs of --val_data_path and --val_gt_path; none where neither is given.

    Raises:
        UserError: only one of the two is given, or see ``find_pairs`` and ``check_pairs``.
    """
    data_path, gt_path, flags = args.val_data_path, args.val_gt_path, "--val_data_path, --val_gt_path"
    if not data_path and not gt_path:
        return []
    if not data_path or not (gt_path or args.side_by_side):
        raise UserError(f"{flags}: give both or none")
    pairs = find_pairs(data_path, gt_path, flags, pairing=Pairing.from_flags(args))[0]
    check_pairs(pairs, 1, flags)
    return pairs
