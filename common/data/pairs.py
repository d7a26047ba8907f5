"""Rainy/clean pairs in two folders or in a list, and their checks."""

import hashlib
import os
import random
import re
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.images import ImageError, image_format, list_images, natural_key, read_image, size_text
from common.errors import UserError
from common.files import LONGEST_NAME, read_small
from common.terminal import printable, progress_bar

# How the public sets name the clean partner of a rainy file. One rule holds for a whole set, never mere position.
# Each is a pattern for the rainy stem and what the clean stem is then.
RULES = {
    "equal names": (r"(.*)", r"\1"),
    "K_1 ... K_14 with K (Rain1400)": (r"(.*)_(?:[1-9]|1[0-4])", r"\1"),
    "rain-K with norain-K (Rain100L, Rain100H)": (r"rain-(.*)", r"norain-\1"),
    "NAMEx2 with NAME (Rain100L, Rain100H)": (r"(.*)x2", r"\1"),
}
PROBLEMS_SHOWN, SHOWN = 10, 200  # problems in a message, bytes of a path in it
LONGEST_LIST = 2**29  # bytes, ten times SPA-Data's list
LONGEST_PATH = 4000  # bytes: no system has longer ones
LIST = "real_world.txt"  # SPA-Data's list of pairs, in --data_path
CHECK_ALL, CHECK_SOME = 1000, 200  # longer lists are checked by so many samples, so that training starts in seconds


@dataclass(frozen=True)
class Pair:
    """A rainy file, its clean partner, and the name of the pair: the rainy file's path inside its folder."""

    name: str
    rainy: Path
    clean: Path
    line: int = 0  # of the list that names the pair, counted from 1; 0 for pairs of folders

    @property
    def place(self) -> str:
        """Where the pair is listed, to end a message with; empty for pairs of folders."""
        return f" (line {self.line} of {LIST})" if self.line else ""

    def format(self) -> tuple[int, int, type]:
        """Height, width and pixel type of both, from their headers.

        Raises:
            ImageError: a header can't be read, or the sizes differ.
        """
        (*size, kind), (*clean_size, clean_kind) = self._both(image_format)
        self.require_one_size(size, clean_size)
        return *size, max(kind, clean_kind, key=lambda kind: np.dtype(kind).itemsize)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Decode both: rainy and clean, each (H, W, 3) uint8 or uint16.

        Raises:
            ImageError: a file can't be read, or the sizes differ.
        """
        rainy, clean = self._both(read_image)
        self.require_one_size(rainy.shape, clean.shape)
        return rainy, clean

    def crop(self, place: tuple[float, float], p: int) -> np.ndarray:
        """The crop of p px at a relative place, see ``crop_at``: (6, p, p), rainy above clean, uint8 or uint16.

        Raises:
            ImageError: a file can't be read or has changed since it was checked.
        """
        rainy, clean = self.read()
        if min(rainy.shape[:2]) < p:
            raise ImageError(f"{self.rainy} is {size_text(rainy.shape)}, smaller than the {p} px patch{self.place}")
        height, width = rainy.shape[:2]
        crop = crop_at(place, height, width, p)
        return planes(rainy[crop], clean[crop])

    def _both(self, read: Callable) -> tuple:
        try:
            return read(self.rainy), read(self.clean)
        except ImageError as error:
            raise ImageError(f"{error}{self.place}") from None

    def require_one_size(self, rainy: Sequence[int], clean: Sequence[int]) -> None:
        """Compare (height, width, ...) of both.

        Raises:
            ImageError: they differ.
        """
        if tuple(rainy[:2]) != tuple(clean[:2]):
            sizes = f"{size_text(rainy)}, its clean partner {self.clean.name} {size_text(clean)}"
            raise ImageError(f"{self.rainy} is {sizes}{self.place}")


def crop_at(place: tuple[float, float], height: int, width: int, p: int) -> tuple[slice, slice]:
    """Rows and columns of a crop of p px, from a place in [0, 1) x [0, 1); the last ones are reached (T8)."""
    row, column = int(place[0] * (height - p + 1)), int(place[1] * (width - p + 1))
    return slice(row, row + p), slice(column, column + p)


def planes(rainy: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Two (H, W, 3) arrays as one (6, H, W), of the deeper type of the two; the values in [0, 1] stay the same."""
    deep = np.uint16 in (rainy.dtype, clean.dtype)
    both = np.empty((6, *rainy.shape[:2]), np.uint16 if deep else np.uint8)  # not concatenated: that keeps their order
    for part, image in ((both[:3], rainy), (both[3:], clean)):
        part[:] = (widened(image) if deep else image).transpose(2, 0, 1)
    return both


def widened(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels as uint16 ones, 255 as 65535; uint16 ones as they are."""
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * np.uint16(257)


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
        shown = "".join(f"\n  {printable(line)}" for line in problems[:PROBLEMS_SHOWN])
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
    rainy_folder: str | Path, clean_folder: str | Path, flags: str, hint: str = "", names: list[Path] | None = None
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


class PairList(Sequence[Pair]):
    """The pairs of SPA-Data's list, "rainy_path clean_path" a line, relative to the folder that holds the list (T7).

    Line ends of any system, a byte order mark, spaces at the end, blank lines and lines that begin with # are fine; a
    leading slash is dropped, a backslash read as a slash. Pairs are made when asked for: half a million of them take
    the memory of the list's text and 12 bytes each.

    Args:
        folder: holds the list.
        hint: what belongs into the folder and where it comes from, for the message when it is missing.

    Raises:
        UserError: the list is missing, is no text, lists nothing, or has lines without two paths inside the folder
            (the first ten are named).
    """

    def __init__(self, folder: Path, hint: str = "") -> None:
        self.folder = Path(folder)
        path = self.folder / LIST
        if not self.folder.is_dir():
            raise UserError(f"--data_path: {folder} is not a folder. {hint}".rstrip())
        if not path.is_file():
            raise UserError(f"--data_path: {folder} holds no {LIST}, the list of the pairs. {hint}".rstrip())
        try:
            text = read_small(path, LONGEST_LIST).removeprefix(b"\xef\xbb\xbf")
        except OSError as error:
            raise UserError(f"--data_path: {path} can't be read ({error.strerror}); check the file") from None
        if b"\0" in text:
            raise UserError(f"--data_path: {path} is no plain text; save it as UTF-8")
        self._text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text
        self._starts, self._lines = array("Q"), array("I")
        problems, listed = [], 0
        at = number = 0
        while at < len(self._text):
            number += 1
            parts, end = self._parts(at)
            if parts and not parts[0].startswith(b"#"):
                listed += 1
                problem = self._problem(parts)
                if problem is None:
                    self._starts.append(at)
                    self._lines.append(number)
                else:
                    problems.append(f"line {number}: {problem}" if len(problems) < PROBLEMS_SHOWN else "")
            at = end + 1
        fail(
            problems,
            f"--data_path: {len(problems)} of {listed} entries of {path} can't be used:",
            "A line holds the path of a rainy image, a space, and the path of its clean partner, both inside the "
            "folder of the list and without spaces. Mend these lines, or put a # before them.",
        )
        if not self._starts:
            raise UserError(f"--data_path: {path} lists no pair. {hint}".rstrip())

    def _parts(self, start: int) -> tuple[list[bytes], int]:
        """The words of the line that begins there, and where it ends."""
        end = self._text.find(b"\n", start)
        end = len(self._text) if end < 0 else end
        return self._text[start:end].split(None, 3), end  # of an endless line no more

    @staticmethod
    def _relative(part: bytes) -> bytes:
        return part.replace(b"\\", b"/").lstrip(b"/")

    def _problem(self, parts: list[bytes]) -> str | None:
        if len(parts) != 2:
            return f"{'more than ' if len(parts) > 3 else ''}{min(len(parts), 3)} paths instead of 2"
        for part in parts:
            path = self._relative(part)
            if not path or b":" in path[:2] or b".." in path.split(b"/"):
                what = "is no path to a file" if not path else "leaves the folder of the list"
                return f"{_shown(part)} {what}"
            if len(path) > LONGEST_PATH or max(map(len, path.split(b"/"))) > LONGEST_NAME:
                return f"{_shown(part)} is longer than the path of a file can be"
        return None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, i: int) -> Pair:
        parts, _ = self._parts(self._starts[i])  # raises IndexError
        rainy, clean = (os.fsdecode(self._relative(part)) for part in parts)
        return Pair(rainy, self.folder / rainy, self.folder / clean, self._lines[i])

    def fingerprint(self) -> str:
        """A few digits that change with the list."""
        return hashlib.sha256(self._text).hexdigest()[:12]


def _shown(part: bytes) -> str:
    """A path of a list, in a message."""
    text = part[:SHOWN].decode(errors="backslashreplace")
    return f"{text}..." if len(part) > SHOWN else text


def fingerprint(pairs: Sequence[Pair]) -> str:
    """A few digits that change with the names of the pairs."""
    own = getattr(pairs, "fingerprint", None)  # of a list's text; of what a pack was made of
    if own is None:
        names = "\n".join(pair.name for pair in pairs).encode("utf-8", "surrogateescape")
        return hashlib.sha256(names).hexdigest()[:12]
    return own()


def small_sample(pairs: Sequence[Pair], number: int, seed: int, source: str = LIST) -> list[Pair]:
    """Shuffle with ``seed`` and keep ``number`` pairs: the small-sample setting of the paper.

    Raises:
        UserError: fewer pairs are there.
    """
    if number > len(pairs):
        raise UserError(
            f"--train_num: {number} pairs are asked for, but {source} lists {len(pairs)}; "
            f"give --train_num {len(pairs)} or less"
        )
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    return [pairs[i] for i in order[:number]]


def check_pairs(
    pairs: Sequence[Pair],
    patch_size: int,
    flags: str,
    keep: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> None:
    """Decode every image once, before training: whole, partners of equal size, at least patch-sized (T8, T9).

    Args:
        flags: the flags that name the data, for the message.
        keep: is given the number of each good pair and its images, see ``Pair.read``.

    Raises:
        UserError: lists the problems, the first ten by name.
    """

    def problem_of(number: int) -> str | None:
        pair = pairs[number]
        try:
            rainy, clean = pair.read()
        except ImageError as error:
            return str(error)
        if min(rainy.shape[:2]) < patch_size:
            return f"{pair.rainy} is {size_text(rainy.shape)}, smaller than the {patch_size} px patch{pair.place}"
        if keep:
            keep(number, rainy, clean)
        return None

    with ThreadPoolExecutor(4) as pool:
        found = pool.map(problem_of, range(len(pairs)))
        what = "decoding pairs" if keep else "checking pairs"
        results = progress_bar(found, total=len(pairs), desc=what, unit="pair", leave=False)
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


def some_of(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """All pairs of a short list, samples from all over a long one."""
    if len(pairs) <= CHECK_ALL:
        return pairs
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, CHECK_SOME).astype(int)]


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
