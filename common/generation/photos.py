"""Rain on anyone's own photos: a folder of photos in, exact rainy/clean pairs out, ready for training."""

import argparse
import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from .. import distributed
from ..data import page
from ..data.images import (
    ImageError,
    inputs,
    natural_key,
    read_image,
    read_stored,
    to_eight_bits,
    to_uint8,
    write_image,
)
from ..data.pair_list import LIST
from ..data.pictures import sheet, thumbnail
from ..errors import UserError
from ..files import write_bytes
from ..lock import locked
from ..models import EDNet
from ..terminal import progress_bar, tell, warn
from ..training.checkpoint import digest
from .knob_flags import knobs
from .knobs import Knobs, measured, missed, set_knobs
from .measures import Measures
from .rain import VERSION, RainMaker, auto_scale, colour

KINDS = ("norain", "layer", "rain")
MANIFEST = "manifest.csv"  # which photo and which settings make each pair; written before the first pair
SETTINGS = ["seed", "num", "intensity", "coherence", "grey", "checkpoint", "version", "knobs"]  # of all pairs
COLUMNS = ["file", "photo", "variant", "drawn", *SETTINGS]  # drawn: the knobs of each shower
Row = dict[str, str]
Ranges = dict[str, tuple[float, float]]  # of the knobs that are set, see ``knob_flags.knobs``
SHEET = "contact_sheet.jpg"
SHOWN, THUMBNAIL = 12, 320  # pairs on the contact sheet, px of their longer side


def draws(seed: int, photo: str, variant: int) -> np.random.RandomState:
    """The random numbers of one rain; they depend on these three alone, and on no version of NumPy."""
    key = hashlib.sha256(b"\0".join([str(seed).encode(), os.fsencode(photo), str(variant).encode()])).digest()
    return np.random.RandomState(np.frombuffer(key, "<u4"))


def output_names(photos: list[Path]) -> dict[Path, str]:
    """Paths of the outputs below rain/ and norain/, without variant and .png; where these clash, with the extension."""
    names = {photo: photo.with_suffix("").as_posix() for photo in photos}
    while True:
        number = Counter(name.casefold() for name in names.values())  # some file systems do not tell A from a
        clash = {photo: photo.as_posix() for photo, name in names.items() if number[name.casefold()] > 1}
        if clash.items() <= names.items():
            return names
        names |= clash


def showers(ranges: Ranges, rng: np.random.RandomState) -> list[Knobs]:
    """What the knobs of each shower of a picture are set to, drawn from their ranges."""
    low, high = ranges.get("layers", (1, 1))
    each = {name: ends for name, ends in ranges.items() if name != "layers"}
    return [{name: rng.uniform(*ends) for name, ends in each.items()} for _ in range(rng.randint(low, high + 1))]


def pictures(
    maker: RainMaker, args: argparse.Namespace, ranges: Ranges, photo: str, variant: int, clean: np.ndarray
) -> tuple[dict[str, np.ndarray], list[tuple[Knobs, Measures]]]:
    """The clean picture, the rain and their sum, by folder, (H, W, 3) uint8; and what was set and reached."""
    made = {"norain": clean, "layer": np.zeros_like(clean), "rain": clean.copy()}
    height, width = clean.shape[:2]
    rng = draws(args.seed, photo, variant)
    scale, stretch = (args.scale, 1.0) if args.scale else auto_scale(height, width)
    values = showers(ranges, rng)
    layers = [set_knobs(maker.shower(args.coherence, rng), height, width, one, scale, stretch) for one in values]
    colours = [args.intensity * colour(0 if args.grey else one.get("tint", 0), rng) for one in values]
    for tiles in zip(*(layer.tiles() for layer in layers), strict=True):
        rows, columns, _ = tiles[0]
        tile = sum(hue * tile for hue, (*_, tile) in zip(colours, tiles, strict=True))
        tile = to_uint8(np.repeat(tile.max(2, keepdims=True), 3, 2) if args.grey else tile, "nearest")
        made["layer"][rows, columns] = tile
        made["rain"][rows, columns] = cv2.add(clean[rows, columns].copy(), tile)  # up to 255
    if not ranges.keys() - {"angle", "layers", "tint"}:
        return made, []
    return made, [(one, measured(layer, scale)) for one, layer in zip(values, layers, strict=True)]


def contact_sheet(folder: Path, rows: list[Row]) -> None:
    """A picture of up to 12 pairs, clean beside rainy, first variants first."""
    lines: list[tuple[list[np.ndarray], list[str]]] = []
    for k, row in enumerate(sorted(rows, key=lambda row: int(row["variant"]))[:SHOWN]):
        if k % 2 == 0:
            lines.append(([], []))
        name = row["file"]
        lines[-1][0].extend(thumbnail(read_image(folder / kind / name), THUMBNAIL) for kind in ("norain", "rain"))
        lines[-1][1].extend([name if len(name) <= 40 else f"...{name[-37:]}", "with rain"])
    write_image(folder / SHEET, sheet(lines))


def report(folder: Path, rows: list[Row]) -> None:
    """A page with a before/after slider of some pairs, first variants first."""
    items = []
    for row in sorted(rows, key=lambda row: int(row["variant"]))[: page.SHOWN]:
        files = {"clean": folder / "norain" / row["file"], "rainy": folder / "rain" / row["file"]}
        items.append(page.Item(row["file"], files, {}))
    lead = [f"{len(items)} of {len(rows)} pairs; all are in {MANIFEST}, with their settings."]
    page.write(folder / page.NAME, "Rain on photos", lead, items, ("clean", "rainy"))


# --- the folder ----------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> list[Row]:
    """The rows of a folder's manifest; none where there is no file.

    Raises:
        UserError: the file is no manifest.
    """
    path = folder / MANIFEST
    if not path.exists():
        return []
    table = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8", "surrogateescape"), newline=""))
    if table.fieldnames != COLUMNS:
        raise UserError(
            f"{path}: is in the way, its first line is not {','.join(COLUMNS)}; choose another --save_path, or move it"
        )
    rows = list(table)
    for row in rows:
        if None in row.values() or Path(row["file"]).is_absolute() or ".." in Path(row["file"]).parts:
            raise UserError(f"{path}: {row['file']!r} names no pair of this folder; choose another --save_path")
    return rows


def _write_manifest(folder: Path, rows: Iterable[Row]) -> None:
    out = io.StringIO(newline="")
    table = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(folder / MANIFEST, out.getvalue().encode("utf-8", "surrogateescape"))


def _prepare(save: Path, rows: list[Row], overwrite: bool) -> None:
    """Write the manifest of all pairs to come; with ``overwrite`` delete those of an earlier run before.

    Raises:
        UserError: the folder holds pairs of other settings, or such of others.
    """
    old = read_manifest(save)
    if not (save / MANIFEST).exists():
        for name in (*KINDS, LIST):
            if (save / name).exists():
                raise UserError(f"--save_path: {save / name} is there, but no {MANIFEST}; choose another folder")
    if overwrite:
        for row in old:
            for kind in KINDS:
                (save / kind / row["file"]).unlink(missing_ok=True)
        for name in (LIST, SHEET, page.NAME):
            (save / name).unlink(missing_ok=True)
        old = []
    for row in old:
        if differ := [name for name in SETTINGS if row[name] != rows[0][name]]:
            before, now = (", ".join(f"{n} {some[n][:40] or 'none'}" for n in differ) for some in (row, rows[0]))
            raise UserError(
                f"--save_path: it holds rain/{row['file']}, made with {before}, now {now}; choose another folder, or "
                "delete all pairs of this one by --overwrite"
            )
    _write_manifest(save, {row["file"]: row for row in [*old, *rows]}.values())


def _finish(save: Path) -> None:
    """Sort the manifest, leave out the pairs that could not be made, write the list and the contact sheet."""
    rows = [row for row in read_manifest(save) if _is_there(save, row, ("rain", "norain"))]
    rows.sort(key=lambda row: (natural_key(row["photo"]), int(row["variant"])))
    _write_manifest(save, rows)
    listed = [row["file"] for row in rows if row["file"].split() == [row["file"]]]
    text = "".join(f"rain/{file} norain/{file}\n" for file in listed)
    write_bytes(save / LIST, text.encode("utf-8", "surrogateescape"))
    if spaces := len(rows) - len(listed):
        print(f"{spaces} pairs have spaces in their names and are not in {LIST}, which separates by them")
    if rows:
        contact_sheet(save, rows)
        report(save, rows)
        print(f"lists of the pairs: {save / MANIFEST}, {save / LIST}")
        print(f"picture: {save / SHEET}\npage: {save / page.NAME}")


def rain_on_photos(args: argparse.Namespace, netED: EDNet) -> int:
    """Make rainy/clean pairs of photos, and print what was made; goes on where an interrupted run stopped.

    Several processes share the photos; the first one reports for all.

    Args:
        args: the flags of ``commands.rain_flags``.
        netED: on the device, in eval mode.

    Returns:
        Exit code: 0, or 1 where a photo could not be read; the other photos are done.

    Raises:
        UserError: knobs that contradict each other; paths that are missing, empty or overlap; pairs of other settings
            in --save_path, or another run that writes there; results that can't be written.
    """
    ranges, save = knobs(args), Path(args.save_path)
    folder, photos = inputs(Path(args.data_path), save, "Name a folder of clean photos, or one photo.")
    for kind in KINDS:
        if any((folder / photo).resolve().is_relative_to((save / kind).resolve()) for photo in photos):
            raise UserError(f"--save_path: {save / kind} would be mixed with the photos of {folder}; choose another")
    if ranges.keys() & {"density", "brightness"} and args.intensity != 1:
        raise UserError("--intensity: it scales what --density and --brightness set; leave the one or the others out")
    rows = _planned(photos, args, ranges, digest(netED.decoder))
    kinds, mine = KINDS if args.save_layer else ("norain", "rain"), photos[distributed.share()]
    made, problems, reached = 0, {}, []
    with locked(save, "--save_path"):
        if distributed.is_first():
            _prepare(save, [row for some in rows.values() for row in some], args.overwrite)
        distributed.gather(None)  # the others wait for that
        maker = RainMaker(netED)
        earlier = sum(_is_there(save, row, kinds) for photo in mine for row in rows[photo])
        try:
            for photo in progress_bar(mine, unit="photo"):
                try:
                    measures = _make(maker, args, ranges, folder / photo, rows[photo], kinds)
                    reached += [one for some in measures for one in some]
                    made += len(measures)
                except ImageError as error:
                    problems[photo] = str(error)
        except KeyboardInterrupt as stop:
            done = sum(_is_there(save, row, kinds) for some in rows.values() for row in some)
            again = f"the same command {'without --overwrite ' * args.overwrite}goes on"
            told = f"{done} of {args.num * len(photos)} pairs are in {save}; {again}"
            raise KeyboardInterrupt(f"{str(stop) or 'stopped by Ctrl-C'}; {told}") from None
        parts = distributed.gather((made, earlier, problems, reached))
        made, earlier = (sum(part[i] for part in parts) for i in (0, 1))
        problems = {photo: text for part in parts for photo, text in part[2].items()}
        print(f"{made} pairs made in {save}, {earlier} were there already")
        warn(missed([one for part in parts for one in part[3]]))
        if distributed.is_first():
            _finish(save)
    if problems:
        told = [problems[photo] for photo in photos if photo in problems]
        tell(told, f"{len(problems)} of {len(photos)} photos can't be used")
    return 1 if problems else 0


def _is_there(save: Path, row: Row, kinds: Iterable[str]) -> bool:
    return all((save / kind / row["file"]).exists() for kind in kinds)


def _make(
    maker: RainMaker, args: argparse.Namespace, ranges: Ranges, photo: Path, rows: list[Row], kinds: Iterable[str]
) -> list[list[tuple[Knobs, Measures]]]:
    """Make the pairs of a photo that are not there yet; returns what was set and reached for each.

    Raises:
        ImageError: the photo can't be read, or those that are there were made of another one.
    """
    save, (stored, profile) = Path(args.save_path), read_stored(photo)
    clean, reached = to_eight_bits(stored), []
    done = [save / "norain" / row["file"] for row in rows if _is_there(save, row, kinds)]
    if done and not np.array_equal(read_stored(done[0])[0], clean):
        raise ImageError(f"{done[0]} was made of another photo; choose another --save_path, or give --overwrite")
    for row in rows:
        if not _is_there(save, row, kinds):
            made, measures = pictures(maker, args, ranges, row["photo"], int(row["variant"]), clean)
            for kind in kinds:
                write_image(save / kind / row["file"], made[kind], profile)
            reached.append(measures)
    return reached


def _planned(photos: list[Path], args: argparse.Namespace, ranges: Ranges, checkpoint: str) -> dict[Path, list[Row]]:
    """The rows of all pairs to make, by photo."""
    fixed = ranges | ({"scale": (args.scale, args.scale)} if args.scale else {})
    text = " ".join(f"{name}={low:.6g}" + f":{high:.6g}" * (low != high) for name, (low, high) in fixed.items())
    settings = {name: str(value) for name, value in vars(args).items() if name in SETTINGS}
    settings |= {"checkpoint": checkpoint, "version": str(VERSION), "knobs": text}
    rows: dict[Path, list[Row]] = {photo: [] for photo in photos}
    for photo, name in output_names(photos).items():
        for k in range(1, args.num + 1):
            file = f"{name}_v{k:02d}.png" if args.num > 1 else f"{name}.png"
            one = {"file": file, "photo": photo.as_posix(), "variant": str(k)}
            drawn = showers(ranges, draws(args.seed, one["photo"], k))
            one["drawn"] = "; ".join(" ".join(f"{name}={v:.4g}" for name, v in shower.items()) for shower in drawn)
            rows[photo].append(one | settings)
    return rows
