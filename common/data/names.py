"""Which clean image belongs to which rainy one, by their names: one rule for a whole set. The rules: docs/data.md."""

import argparse
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

# Words that name an image or a folder clean (first group) or rainy (second).
MARKS = re.compile(
    r"(?<![a-z])(?:(no[-_ ]?rain|clean|clear|gt|ground[-_ ]?truth|target|c)|(rain|rainy|input|in|lq|r|rd|rs))(?![a-z])"
)
PARTS = re.compile(r"[0-9]+|[^\W0-9_]+")  # numbers and words of a name
Key = tuple[str, ...]  # the parts of a name that a rule compares
Keys = dict[Path, Key]


@dataclass(frozen=True)
class Pairing:
    """What the user says about how files pair, see ``flags.add_pairing``.

    Attributes:
        pair_by: patterns of the rainy and of the clean names: {} is the part that both share, * is anything.
        side_by_side: the half that is rainy, 'left' or 'right', of images that hold both.
        dark_rain: rainy images may be darker than clean ones, see ``pairs.require_light``.
    """

    pair_by: Sequence[str] | None = None
    side_by_side: str | None = None
    dark_rain: bool = False

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> "Pairing":
        """The pairing that the flags of a script describe."""
        return cls(args.pair_by, args.side_by_side, args.dark_rain)

    @property
    def halves(self) -> tuple[str, str]:
        """See ``Pair``."""
        return {None: ("", ""), "left": ("left", "right"), "right": ("right", "left")}[self.side_by_side]


def match(
    rainy: list[Path], clean: list[Path], pair_by: Sequence[str] | None = None
) -> tuple[dict[Path, Path], str, list[str]]:
    """Find the clean partner of every rainy file by one rule for all; several rainy files may share a partner.

    Args:
        rainy, clean: paths relative to their folders; the sub-folders are a part of the names.
        pair_by: see ``Pairing``; files that the patterns do not fit are left out.

    Returns:
        The partners; the first rule that finds all of them, else the one that finds most; and a problem for each file
        that has no partner or several, one of which may come from a closer rule.
    """
    best: dict[Path, list[Path]] = {}
    best_rule, most = "", (-1, 0)
    closer: dict[Path, Path] = {}  # partners by the rules before
    for rule, rainy_keys, clean_keys in _patterns(rainy, clean, *pair_by) if pair_by else _rules(rainy, clean):
        files: dict[Key, list[Path]] = {}
        for path, key in clean_keys.items():
            files.setdefault(key, []).append(path)
        candidates = {}
        for path, key in rainy_keys.items():
            partners = files.get(key, []) if key else []
            candidates[path] = [p for p in partners if p.suffix.lower() == path.suffix.lower()] or partners
        sure = {path: partners[0] for path, partners in candidates.items() if len(partners) == 1}
        if len(sure) == len(candidates):
            best_rule = rule
            best = {path: list(dict.fromkeys([closer.get(path, partner), partner])) for path, partner in sure.items()}
            break
        if (number := (len(sure), sum(map(bool, candidates.values())))) > most:
            best, best_rule, most = candidates, rule, number
        closer = sure | closer
    problems = [
        f"{path}: {'several clean partners: ' + ', '.join(map(str, partners)) if partners else 'no clean partner'}"
        for path, partners in best.items()
        if len(partners) != 1
    ]
    return {path: partners[0] for path, partners in best.items() if len(partners) == 1}, best_rule, problems


def sides(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The rainy and the clean of the files of one folder, as the first sub-folder says, or else the end of the name."""
    rainy_and_clean: tuple[list[Path], list[Path]] = ([], [])
    for path in files:
        marks = [marks[-1] for part in path.with_suffix("").parts if (marks := MARKS.findall(part.lower()))]
        if marks:
            rainy_and_clean[bool(marks[0][0])].append(path)
    return rainy_and_clean


def _rules(rainy: list[Path], clean: list[Path]) -> Iterator[tuple[str, Keys, Keys]]:
    """Ways to compare names, the closest first: each in words, with the keys of rainy and of clean files."""
    yield "equal names", {path: (_stem(path),) for path in rainy}, {path: (_stem(path),) for path in clean}
    for words, marks in (("case, zeros and separators", False), ("words like rain and norain", True)):
        rainy_keys, clean_keys = ({path: _key(_stem(path), marks) for path in files} for files in (rainy, clean))
        one_last = marks and len({key[-1] for key in clean_keys.values()}) == 1 < len(clean)
        for cut in range(max(map(len, rainy_keys.values()))):
            but_for = words + (f", the last {f'{cut} parts' if cut > 1 else 'part'} (rainy)" if cut else "")
            yield f"equal but for {but_for}", _cut(rainy_keys, cut), clean_keys
            if cut and one_last and sides(clean)[1] == clean:
                yield f"equal but for {but_for}, the last part (clean)", _cut(rainy_keys, cut), _cut(clean_keys, 1)


def _patterns(rainy: list[Path], clean: list[Path], *pair_by: str) -> Iterator[tuple[str, Keys, Keys]]:
    """The rule of --pair_by. The key of a file is what stands for {}, and its sub-folder if the pattern has no /."""
    keys: list[Keys] = []
    for files, pattern in zip((rainy, clean), pair_by, strict=True):
        parts = (".*?".join(map(re.escape, part.split("*"))) for part in pattern.split("{}"))
        expression = re.compile("(.+?)".join(parts), re.I | re.DOTALL)
        fitting: Keys = {}
        for path in files:
            folder, name = ("", path) if "/" in pattern else (path.parent, Path(path.name))
            if fits := expression.fullmatch(_stem(name)) or expression.fullmatch(name.as_posix()):  # with its ending
                fitting[path] = _key(f"{folder}/{fits[1]}")
        if not fitting:
            raise UserError(f"--pair_by: no name fits {pattern!r}; say, 'rain-{{}}' fits rain-1.png, and * is anything")
        keys.append(fitting)
    yield "--pair_by '{}' '{}'".format(*pair_by), *keys


def _key(name: str, marks: bool = False) -> Key:
    """The words and numbers of a name: no case, no leading zeros, no separators; with ``marks`` no words of MARKS."""
    name = unicodedata.normalize("NFC", name).casefold()
    parts = PARTS.findall(MARKS.sub(" ", name) if marks else name)
    return tuple(part.lstrip("0") or "0" if part.isdecimal() else part for part in parts) or ("",)


def _cut(keys: Keys, number: int) -> Keys:
    return {path: key[: max(len(key) - number, 0)] for path, key in keys.items()}


def _stem(path: Path) -> str:
    return path.with_suffix("").as_posix()
