"""The list of pairs that SPA-Data comes with, and small samples of it."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .pairs import Pair, fail

LIST = "real_world.txt"  # in --data_path


class PairList(Sequence[Pair]):
    """The pairs of SPA-Data's list, "rainy_path clean_path" a line, relative to the folder that holds the list (T7).

    Line ends of any system, a byte order mark, blank lines and lines that begin with # are fine; a leading slash is
    dropped, a backslash read as a slash. Only the lines are kept: the list of SPA-Data has 638,492.

    Args:
        folder: holds the list.
        hint: what belongs into the folder and where it comes from, for the message when it is missing.

    Raises:
        UserError: the list is missing or empty, or lines lack two paths inside the folder.
    """

    def __init__(self, folder: Path, hint: str = "") -> None:
        self.folder = Path(folder)
        path = self.folder / LIST
        if not self.folder.is_dir():
            raise UserError(f"--data_path: {folder} is not a folder. {hint}".rstrip())
        if not path.is_file():
            raise UserError(f"--data_path: there is no {path}, the list of the pairs. {hint}".rstrip())
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._lines: list[bytes] = []
        problems = []
        for number, line in enumerate(text.split(b"\n"), 1):
            if line.strip()[:1] not in (b"", b"#"):
                self._lines.append(line)
                paths = self._paths(line)
                if len(paths) != 2:
                    problems.append(f"line {number}: {len(paths)} paths instead of 2")
                elif leaving := [path for path in paths if ".." in path.split("/")]:
                    problems.append(f"line {number}: {leaving[0]} leaves the folder of the list")
        fail(
            problems,
            f"--data_path: {len(problems)} of {len(self._lines)} entries of {path} can't be used:",
            "A line holds the path of a rainy image, a space, and the path of its clean partner, both inside the "
            "folder of the list and without spaces. Mend these lines, or put a # before them.",
        )
        if not self._lines:
            raise UserError(f"--data_path: {path} lists no pair. {hint}".rstrip())

    @staticmethod
    def _paths(line: bytes) -> list[str]:
        return [os.fsdecode(part).replace("\\", "/").lstrip("/") for part in line.split()]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, i: int) -> Pair:
        rainy, clean = self._paths(self._lines[i])  # raises IndexError
        return Pair(rainy, self.folder / rainy, self.folder / clean)

    @property
    def names(self) -> list[str]:
        """Of all pairs."""
        return [self._paths(line)[0] for line in self._lines]


def small_sample(pairs: Sequence[Pair], number: int, seed: int, source: str = LIST) -> list[Pair]:
    """Shuffle with ``seed`` and keep ``number`` pairs: the small-sample setting of the paper.

    Raises:
        UserError: fewer pairs are there.
    """
    if number > len(pairs):
        text = f"{number} pairs are asked for, but {source} lists {len(pairs)}"
        raise UserError(f"--train_num: {text}; give --train_num {len(pairs)} or less")
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    return [pairs[i] for i in order[:number]]
