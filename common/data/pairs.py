"""Rainy/clean pairs in two folders, their checks, and the random crops that training sees."""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from common.data.images import ImageError, list_images, natural_key, read_image, size_text, to_float
from common.errors import UserError

# How the public sets name the clean partner of a rainy file. One rule holds for a whole set, never mere position.
# Each is a pattern for the rainy stem and what the clean stem is then.
RULES = {
    "equal names": (r"(.*)", r"\1"),
    "K_1 ... K_14 with K (Rain1400)": (r"(.*)_(?:[1-9]|1[0-4])", r"\1"),
    "rain-K with norain-K (Rain100L, Rain100H)": (r"rain-(.*)", r"norain-\1"),
    "NAMEx2 with NAME (Rain100L, Rain100H)": (r"(.*)x2", r"\1"),
}
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Pair:
    """A rainy file, its clean partner, and the name of the pair: the rainy file's path inside its folder."""

    name: str
    rainy: Path
    clean: Path


def match(rainy: list[Path], clean: list[Path]) -> tuple[dict[Path, Path], str, list[str]]:
    """Find the clean partner of every rainy file by one rule for all.

    Args:
        rainy, clean: paths relative to their folders; sub-folders must agree.

    Returns:
        The partners, the rule that finds most (the first of equals), and a problem for each file left without.
    """
    stems: dict[Path, list[Path]] = {}
    for path in clean:
        stems.setdefault(path.with_suffix(""), []).append(path)
    exact = set(clean)

    def candidates(path: Path, label: str) -> list[Path]:
        if label == "equal names" and path in exact:
            return [path]
        rule = re.fullmatch(RULES[label][0], path.stem, re.DOTALL)
        found = stems.get(path.parent / rule.expand(RULES[label][1]), []) if rule else []
        return [p for p in found if p.suffix == path.suffix] or found

    best, best_rule, best_count = {}, "", -1
    for label in RULES:
        found = {path: candidates(path, label) for path in rainy}
        count = sum(len(partners) == 1 for partners in found.values())
        if count > best_count:
            best, best_rule, best_count = found, label, count
        if count == len(rainy):
            break
    problems = [
        f"{path}: {'several clean partners: ' + ', '.join(map(str, partners)) if partners else 'no clean partner'}"
        for path, partners in best.items()
        if len(partners) != 1
    ]
    return {path: partners[0] for path, partners in best.items() if len(partners) == 1}, best_rule, problems


def fail(problems: list[str], headline: str, remedy: str) -> None:
    """Raise one error for all problems, the first ten named.

    Raises:
        UserError: there is at least one problem.
    """
    if problems:
        shown = "".join(f"\n  {line}" for line in problems[:PROBLEMS_SHOWN])
        rest = f"\n  ... and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise UserError(f"{headline}{shown}{rest}\n{remedy}")


def images_in(folder: Path, flag: str, hint: str = "") -> list[Path]:
    """The images of a folder that a flag names, see ``list_images``.

    Raises:
        UserError: the folder is missing or holds no image; ``hint`` says what belongs there.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{flag}: {folder} is not a folder. {hint}".rstrip())
    images = list_images(Path(folder))[0]
    if not images:
        raise UserError(f"{flag}: no image (PNG, JPEG, BMP, WebP, TIFF) in {folder}. {hint}".rstrip())
    return images


def find_pairs(
    rainy_folder: Path, clean_folder: Path, flags: str, hint: str = "", names: list[Path] | None = None
) -> tuple[list[Pair], str]:
    """Pair the images of two folders, sub-folders included, in natural order (T12).

    Args:
        names: the rainy images to pair, where they are listed already; None for all in the folder.
        flags: the two flags that name the folders, for messages ('--data_path, --gt_path').
        hint: what belongs into the folders and where it comes from, for the message when one is missing.

    Returns:
        The pairs and the naming rule that was used.

    Raises:
        UserError: a folder is missing or empty, or a rainy image has no partner or several.
    """
    rainy_flag, clean_flag = re.split(", *", flags)
    names = images_in(rainy_folder, rainy_flag, hint) if names is None else names
    partners, rule, problems = match(names, images_in(clean_folder, clean_flag, hint))
    fail(
        problems,
        f"{len(problems)} of {len(names)} rainy images of {rainy_folder} have no partner in {clean_folder} "
        f"by the rule that fits best, '{rule}':",
        f"Rules: {'; '.join(RULES)}. Rename, add or remove these files ({flags}).",
    )
    pairs = [Pair(p.as_posix(), Path(rainy_folder, p), Path(clean_folder, q)) for p, q in partners.items()]
    return sorted(pairs, key=lambda pair: natural_key(pair.name)), rule


def check_pairs(pairs: list[Pair], patch_size: int, flags: str) -> None:
    """Decode every image once, before training: whole, partners of equal size, at least patch-sized (T8, T9).

    Args:
        flags: the flags that name the data, for the message.

    Raises:
        UserError: lists the problems, the first ten by name.
    """

    def problem_of(pair: Pair) -> str | None:
        try:
            rainy, clean = read_image(pair.rainy).shape[:2], read_image(pair.clean).shape[:2]
        except ImageError as error:
            return str(error)
        if rainy != clean:
            return f"{pair.rainy} is {size_text(rainy)}, its clean partner {pair.clean.name} {size_text(clean)}"
        if min(rainy) < patch_size:
            return f"{pair.rainy} is {size_text(rainy)}, smaller than the {patch_size} px patch"
        return None

    with ThreadPoolExecutor(4) as pool:
        found = pool.map(problem_of, pairs)
        results = tqdm(found, total=len(pairs), desc="checking pairs", unit="pair", leave=False, disable=None)
        try:
            problems = [problem for problem in results if problem]
        except BaseException:  # Ctrl-C: do not wait for the rest
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    fail(
        problems,
        f"{len(problems)} of {len(pairs)} pairs can't be used for training:",
        f"Mend or remove these files ({flags}), or choose a smaller --patchSize where they are too small.",
    )


def training_pairs(data_path: str, gt_path: str, patch_size: int, hint: str) -> tuple[list[Pair], str]:
    """Find and check the pairs of --data_path and --gt_path; see ``find_pairs`` and ``check_pairs``."""
    flags = "--data_path, --gt_path"
    pairs, rule = find_pairs(data_path, gt_path, flags, hint)
    check_pairs(pairs, patch_size, flags)
    return pairs, rule


def validation_pairs(data_path: str | None, gt_path: str | None) -> list[Pair]:
    """Find and check the pairs of --val_data_path and --val_gt_path; none where neither is given.

    Raises:
        UserError: only one of the two is given, or see ``find_pairs`` and ``check_pairs``.
    """
    if not data_path and not gt_path:
        return []
    flags = "--val_data_path, --val_gt_path"
    if not (data_path and gt_path):
        raise UserError(f"{flags}: give both or none")
    pairs, _ = find_pairs(data_path, gt_path, flags)
    check_pairs(pairs, 1, flags)
    return pairs


class PatchDataset(Dataset):
    """Random crops, the same of rainy and clean; no flips. Crop n of a training shows image n modulo their number.

    Args:
        pairs: checked pairs.
        patch_size: side of the crop in px.
        seed: of the crops, 0 or more. T1: a crop depends on (seed, epoch, n) alone, not on the worker.
    """

    def __init__(self, pairs: list[Pair], patch_size: int, seed: int) -> None:
        self.pairs, self.patch_size, self.seed = pairs, patch_size, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(epoch, n) -> rainy and clean crop, each (3, p, p) float32 in [0, 1]; n counts over the whole training.

        Raises:
            ImageError: a file vanished or changed since it was checked.
        """
        epoch, n = key
        pair, p = self.pairs[n % len(self.pairs)], self.patch_size
        rainy, clean = read_image(pair.rainy), read_image(pair.clean)
        height, width = rainy.shape[:2]
        if rainy.shape != clean.shape or min(height, width) < p:
            raise ImageError(f"{pair.rainy}: changed since training began; restore it and its clean partner")
        rng = np.random.default_rng([self.seed, epoch, n + 1])  # + 1: the order of the crops has the 0
        row = rng.integers(height - p + 1)  # T8: the last row and column are reached
        column = rng.integers(width - p + 1)
        crop = np.s_[row : row + p, column : column + p]
        return tuple(torch.from_numpy(to_float(image[crop]).transpose(2, 0, 1).copy()) for image in (rainy, clean))

    def fingerprint(self) -> str:
        """Number and names of the pairs in short, to notice that a resumed run sees other data."""
        names = "\n".join(pair.name for pair in self.pairs).encode("utf-8", "surrogateescape")
        return f"{len(self.pairs)} pairs, {hashlib.sha256(names).hexdigest()[:12]}"


class CropSampler(Sampler):
    """Keys (epoch, n) of a PatchDataset for a whole training, each epoch in a seeded order of its own.

    Args:
        length: crops per epoch.
        seed: of the order, 0 or more.
        first, last: epochs, counted from 1, both included.
        skip: crops of the first epoch that are done already.
    """

    def __init__(self, length: int, seed: int, first: int, last: int, skip: int = 0) -> None:
        self.length, self.seed, self.first, self.last, self.skip = length, seed, first, last, skip

    def __len__(self) -> int:
        return self.length * (self.last - self.first + 1) - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for epoch in range(self.first, self.last + 1):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
            for i in order[self.skip if epoch == self.first else 0 :]:
                yield epoch, (epoch - 1) * self.length + int(i)
