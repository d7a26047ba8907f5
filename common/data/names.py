"""Which clean image belongs to which rainy one, by their names: one rule for a whole set. The rules: docs/data.md."""

import argparse
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Words that name an image or a folder clean (first group) or rainy (second).
MARKS = re.compile(
    r"(?<![a-z])(?:(no[-_ ]?rain|clean|clear|gt|ground[-_ ]?truth|target|c)|(rain|rainy|input|in|lq|r))(?![a-z])"
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
    rules = _patterns(rainy, clean, *pair_by) if pair_by else _rules(rainy, clean)
    best: dict[Path, list[Path]] = {}
    best_rule, most = "", (-1, 0)
    closer: dict[Path, Path] = {}  # partners by the rules before
    for rule, rainy_keys, clean_keys in rules:
        files: dict[Key, list[Path]] = {}
        for path, key in clean_keys.items():
            files.setdefault(key, []).append(path)
        candidates = {path: _of_its_kind(path, files.get(key, []) if key else []) for path, key in rainy_keys.items()}
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
    keys = [{path: _key(_stem(path)) for path in side} for side in (rainy, clean)]
    words = [[{part for part in key if not part.isdecimal()} for key in side.values()] for side in keys]
    marks = [set.intersection(*own) - set.union(*other) for own, other in (words, words[::-1])]
    for side, own in enumerate(words):
        if len(own) == 1:  # one name can't show what all have in common
            marks[side] = {word for word in marks[side] if MARKS.fullmatch(word)}
    bare = [
        {path: tuple(part for part in key if part not in own) or ("",) for path, key in side.items()}  # all was marks
        for side, own in zip(keys, marks, strict=True)
    ]
    named = [f"{', '.join(sorted(own))} ({side})" for own, side in zip(marks, ("rainy", "clean"), strict=True) if own]
    last = {key[-1:] for key in bare[1].values()}
    numbered = all(marks) and len(clean) > 1 and len(last) == 1 and "".join(*last).isdecimal()
    for cut in range(max(map(len, bare[0].values()))):
        ends = [f"the last {f'{cut} parts' if cut > 1 else 'part'} (rainy)"] if cut else []
        but_for = ", ".join(named + ends) or "case, zeros and separators"
        yield f"equal but for {but_for}", _cut(bare[0], cut), bare[1]
        if cut and numbered:
            yield f"equal but for {but_for}, the last number (clean)", _cut(bare[0], cut), _cut(bare[1], 1)


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
        keys.append(fitting)
    yield "--pair_by '{}' '{}'".format(*pair_by), *keys


def _of_its_kind(path: Path, files: list[Path]) -> list[Path]:
    """The files with the ending of ``path``, or all if no file has it."""
    return [file for file in files if file.suffix.lower() == path.suffix.lower()] or files


def _key(name: str) -> Key:
    """The words and numbers of a name: no case, no leading zeros, no separators."""
    parts = PARTS.findall(unicodedata.normalize("NFC", name).casefold())
    return tuple(part.lstrip("0") or "0" if part.isdecimal() else part for part in parts)


def _stem(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _cut(keys: Keys, number: int) -> Keys:
    return {path: key[: max(len(key) - number, 0)] for path, key in keys.items()}
