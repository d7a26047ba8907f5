"""PSNR and SSIM as the paper's MATLAB scripts compute them (docs/results.md), and the table for any method's results.

    python -m common.evaluation.metrics --pred DERAINED --gt CLEAN [--csv metrics.csv]

PSNR and SSIM are on the Y channel of YCbCr; RGB PSNR stands beside them, because Y alone does not see a colour cast.
"""

import argparse
import csv
import io
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from .. import cli, flags
from ..data import page
from ..data.images import (
    ImageError,
    half_of,
    image_format,
    list_images,
    read_image,
    require_outside,
    to_eight_bits,
    to_float,
    write_image,
)
from ..data.pairs import Pair, Pairing, fail, find_pairs
from ..data.pictures import sheet
from ..errors import UserError
from ..files import write_bytes
from ..terminal import print_result, progress_bar, tell

SSIM_WINDOW = 11
NAMES = {"psnr_y": "PSNR-Y", "ssim_y": "SSIM-Y", "psnr_rgb": "PSNR-RGB"}


@dataclass(frozen=True)
class Scores:
    """psnr_y, psnr_rgb in dB (inf for equal images); ssim_y at most 1 (nan where a side is below 11 px)."""

    psnr_y: float
    ssim_y: float
    psnr_rgb: float


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of YCbCr (ITU-R BT.601) of RGB in [0, 1], (H, W, 3) -> (H, W), in double, not rounded."""
    return (rgb.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) + 16) / 255


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two arrays in [0, 1], over all elements; inf where they are equal."""
    return _psnr(float(np.mean(np.square(a - b, dtype=np.float64))))


def _psnr(mse: float) -> float:
    return -10 * math.log10(mse) if mse > 0 else math.inf


def _downsample(y: np.ndarray) -> np.ndarray:
    """The automatic downsampling of the SSIM script: an f x f box mean, then every f-th sample."""
    f = max(1, int(min(y.shape) / 256 + 0.5))
    if f == 1:
        return y
    centre = (f - 1) // 2  # MATLAB's imfilter: floor((f + 1) / 2), counted from 1
    return cv2.blur(y, (f, f), anchor=(centre, centre), borderType=cv2.BORDER_REFLECT)[::f, ::f]


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004) of two Y channels (H, W) in [0, 1]; nan where a side is below 11 px."""
    from skimage.metrics import structural_similarity  # imported late: it costs memory that deraining can use

    a, b = (_downsample(np.ascontiguousarray(255 * y)) for y in (a, b))
    if min(a.shape) < SSIM_WINDOW:
        return math.nan
    return float(
        structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    )


def score(image: np.ndarray, clean: np.ndarray) -> Scores:
    """Measure one image against its ground truth.

    Args:
        image, clean: (H, W, 3), uint8 or uint16 RGB of the same size.

    Raises:
        ValueError: the sizes differ.
    """
    if image.shape != clean.shape:
        raise ValueError(f"sizes differ: {image.shape} and {clean.shape}")
    y_image, y_clean, squares = [], [], 0.0
    for start in range(0, len(image), 256):  # a large photo in doubles would need gigabytes
        a, b = (to_float(x[start : start + 256], np.float64) for x in (image, clean))
        y_image.append(luma(a))
        y_clean.append(luma(b))
        squares += float(np.sum((a - b) ** 2))
    both = np.concatenate(y_image), np.concatenate(y_clean)
    return Scores(psnr(*both), ssim(*both), _psnr(squares / image.size))


def mean(scores: list[Scores]) -> Scores:
    """Mean over images of the per-image values; infinite and undefined ones are left out (nan if none is left)."""
    means = []
    for name in Scores.__dataclass_fields__:
        finite = [value for s in scores if math.isfinite(value := getattr(s, name))]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    return Scores(*means)


class Table:
    """Scores by image and by method ('rainy', 'derained'), as text, as CSV and as a page."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Scores]] = {}  # by image; each has the same methods in the same order

    def means(self) -> dict[str, Scores]:
        """The mean of every method."""
        methods = next(iter(self.rows.values()), {})
        return {method: mean([row[method] for row in self.rows.values()]) for method in methods}

    def __str__(self) -> str:
        means = self.means()
        width = max(map(len, [*self.rows, "mean"]))
        head = " " * width + "".join(f"  {method:>29}" for method in means)
        lines = [head, " " * width + "  PSNR-Y [dB]  SSIM-Y   PSNR-RGB".rjust(31) * len(means)]
        for name, scores in [*self.rows.items(), ("mean", means)]:
            cells = (
                f"  {_number(s.psnr_y, 4):>11} {_number(s.ssim_y, 5):>8} {_number(s.psnr_rgb, 4):>8}"
                for s in scores.values()
            )
            lines.append(f"{name:<{width}}{''.join(cells)}")
        return "\n".join([*lines, *self.notes()])

    def notes(self) -> list[str]:
        """What the means leave out: equal images (inf), and images too small for SSIM."""
        every = [score for row in self.rows.values() for score in row.values()]
        equal, small = sum(math.isinf(s.psnr_y) for s in every), sum(math.isnan(s.ssim_y) for s in every)
        notes = [f"{equal} identical to the ground truth (inf), left out of the mean PSNR"] * bool(equal)
        return notes + [f"{small} with a side below {SSIM_WINDOW} px: no SSIM, left out of its mean"] * bool(small)

    def save(self, path: Path) -> None:
        """Write a CSV: one line an image, then the mean."""
        means, out, fields = self.means(), io.StringIO(), list(Scores.__dataclass_fields__)
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["image", *(f"{method}_{field}" for method in means for field in fields)])
        for name, scores in [*self.rows.items(), ("mean", means)]:
            writer.writerow([name, *(f"{getattr(s, f):.6f}" for s in scores.values() for f in fields)])
        write_bytes(path, out.getvalue().encode("utf-8", "surrogateescape"))

    def page(
        self,
        path: Path,
        title: str,
        pictures: dict[str, dict[str, Path]],
        sides: tuple[str, str],
        halves: Mapping[str, str],
    ) -> None:
        """Write ``pictures`` (image -> label -> file) and the scores, where there are some; see ``page.write``."""

        def values(scores: Mapping[str, Scores]) -> dict[str, float]:
            cells = [(f"{method} {NAMES[field]}", getattr(s, field)) for method, s in scores.items() for field in NAMES]
            return dict(cells)

        means = values(self.means())
        unknown = dict.fromkeys(means, math.nan)
        rows = {name: values(scores) for name, scores in self.rows.items()}
        items = [page.Item(name, files, rows.get(name, unknown)) for name, files in pictures.items()]
        column = list(means)[-len(NAMES)] if means else None
        page.write(path, title, self.notes(), items, sides, means, column, halves)


def _number(value: float, digits: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def check_sizes(pairs: list[Pair], flags: str) -> None:
    """Compare the sizes in the headers, before any work. A first image that can't be read is left for later.

    Args:
        flags: the flags that name the folders, for the message.

    Raises:
        UserError: lists the images that differ in size from their partner, or whose partner can't be read.
    """
    problems = []
    for pair in pairs:
        try:
            image_format(pair.rainy)
        except ImageError:  # it is named when its turn comes
            continue
        try:
            pair.format()
        except ImageError as error:
            problems.append(str(error))
    headline = f"{len(problems)} of {len(pairs)} images can't be measured:"
    fail(problems, headline, f"Mend or remove these files ({flags}).")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, cli.typed("evaluation.metrics"))
    flags.add_path(parser, "--pred", required=True, nargs="+", help="folder of derained images, or several")
    flags.add_path(parser, "--gt", required=True, help="folder of clean images (names: docs/data.md)")
    flags.add_pairing(parser, rain=False)
    flags.add_path(parser, "--csv", help="also write the table to this file")
    flags.add_path(parser, "--sheet", help="also write the first four images to this picture (.png or .jpg)")
    flags.add_path(parser, "--report", help="also write a page with the table and sliders to this file (.html)")
    return parser.parse_args(argv)


def labels(paths: list[str]) -> list[str]:
    """Names of folders: the last part of each path, or the whole paths where these are not distinct or 'clean'."""
    names = [Path(path).name for path in paths]
    return names if len({*names, "clean"}) == len(names) + 1 else paths


def _rows(pairs: list[Pair]) -> dict[object, Pair]:
    """By ground truth, or where one has several results (Rain1400), by the name of the result.

    Raises:
        UserError: two results have the same name and ground truth.
    """
    rows: dict[object, Pair] = {pair.clean: pair for pair in pairs}
    if len(rows) == len(pairs):
        return rows
    rows = {}
    for pair in pairs:
        other = rows.setdefault(Path(pair.name).with_suffix(""), pair)
        if other is not pair:
            raise UserError(f"--pred: {other.rainy} and {pair.rainy} are results for one image; remove one")
    return rows


def _sheet(path: Path, pictures: dict[str, dict[str, Path]], half: str) -> None:
    """A row for each image: its results, then its ground truth, of which a half may count."""
    rows = []
    for name, files in pictures.items():
        images = [to_eight_bits(read_image(file)) for file in files.values()]
        images[-1] = half_of(images[-1], half)
        rows.append((images, [f"{name}: {label}" for label in files]))
    write_image(path, sheet(rows))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    for flag, endings in {"csv": (".csv",), "sheet": (".png", ".jpg"), "report": (".html",)}.items():
        path = getattr(args, flag)
        if path and not path.lower().endswith(endings):  # nor is an image overwritten
            raise UserError(f"--{flag}: {path} must end in {' or '.join(endings)}")
    for flag, folder in [("--gt", args.gt), *(("--pred", folder) for folder in args.pred)]:
        if args.sheet:
            require_outside("--sheet", Path(args.sheet), {flag: folder})
    columns = labels(args.pred) if len(args.pred) > 1 else ["result"]
    half, methods = Pairing(side_by_side=args.side_by_side).halves[1], {}
    for label, folder in zip(columns, args.pred, strict=True):
        pairs, _ = find_pairs(folder, args.gt, "--pred, --gt", pairing=Pairing(args.pair_by, dark_rain=True))  # no rain
        pairs = [replace(pair, halves=("", half)) for pair in pairs]
        check_sizes(pairs, "--pred, --gt")
        methods[label] = _rows(pairs)
    common = [key for key in methods[columns[0]] if all(key in method for method in methods.values())]
    if not common:
        raise UserError("--pred: the folders have no result for the same image")
    sizes = {"--gt": len(list_images(Path(args.gt))), **{label: len(method) for label, method in methods.items()}}
    if max(sizes.values()) > len(common):
        whole = ", ".join(f"{name} {size}" for name, size in sizes.items())
        print_result(f"note: the table is over the {len(common)} images that all folders have ({whole})")
    table, pictures, problems = Table(), {}, []
    for key in progress_bar(common, unit="image", leave=False):
        row = {label: method[key] for label, method in methods.items()}
        first = row[columns[0]]
        pictures[first.name] = {label: pair.rainy for label, pair in row.items()} | {"clean": first.clean}
        try:
            table.rows[first.name] = {label: score(*pair.read()) for label, pair in row.items()}
        except ImageError as error:
            problems.append(str(error))
    print_result(table)
    if args.csv:
        table.save(Path(args.csv))
        print(f"written: {args.csv}")
    if args.sheet:
        _sheet(Path(args.sheet), {name: pictures[name] for name in list(table.rows)[:4]}, half)
        print(f"picture: {args.sheet}")
    if args.report:
        title = f"{', '.join(columns)} beside the ground truth: {len(common)} images"
        table.page(Path(args.report), title, pictures, (columns[0], [*columns, "clean"][1]), {"clean": half})
        print(f"page: {args.report}")
    if problems:
        tell(problems, f"{len(problems)} of {len(common)} images could not be measured")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
