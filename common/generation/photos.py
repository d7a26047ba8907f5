"""Rain on anyone's own photos: a folder of photos in, exact rainy/clean pairs out, ready for training."""

import contextlib
import hashlib
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from .. import distributed
from ..data import page
from ..data.images import (
    ImageError,
    has_alpha,
    image_size,
    inputs,
    read_image,
    to_eight_bits,
    to_uint8,
    write_image,
)
from ..data.pairs import LIST
from ..data.pictures import sheet, thumbnail
from ..errors import UserError, is_out_of_memory
from ..files import LONGEST_NAME, write_bytes
from ..models import EDNet
from ..terminal import printable, progress_bar, tell
from .knobs import clamped, set_knobs
from .manifest import NAME as MANIFEST
from .manifest import PAIR, Manifest, Row, Settings
from .measures import RAINY
from .rain import VERSION, RainMaker, auto_scale, fingerprint

KINDS = (*PAIR, "layer")
SHEET = "contact_sheet.jpg"
SHOWN, THUMBNAIL = 12, 320  # pairs on the contact sheet, px of their longer side


def draws(seed: int, photo: str, variant: int) -> np.random.RandomState:
    """The random numbers of one rain; they depend on these three alone, and on no version of NumPy."""
    key = hashlib.sha256(b"\0".join([str(seed).encode(), os.fsencode(photo), str(variant).encode()])).digest()
    return np.random.RandomState(np.frombuffer(key, "<u4"))


def output_names(photos: list[Path]) -> dict[Path, Path]:
    """Paths of the outputs below rain/ and norain/, without variant and .png; equal stems keep their extension."""

    def key(path: Path) -> str:
        return path.as_posix().casefold()  # so that they also fit on file systems that do not tell A from a

    names = {photo: photo.with_suffix("") for photo in photos}
    folders = {key(parent) for photo in photos for parent in photo.parents}
    while True:
        taken: dict[str, list[Path]] = {}
        for photo, name in names.items():
            taken.setdefault(key(name), []).append(photo)
        clashes = [group for name, group in taken.items() if len(group) > 1 or f"{name}.png" in folders]
        longer = [photo for group in clashes for photo in group if names[photo] != photo]
        if not longer:
            return names
        names.update({photo: photo for photo in longer})


def contact_sheet(folder: Path, rows: list[Row]) -> Path | None:
    """A picture of up to 12 pairs, clean beside rainy, first variants first; None where no pair can be read."""
    cells: list[tuple[list[np.ndarray], list[str]]] = []
    for row in sorted(rows, key=lambda row: row.variant):
        if len(cells) == SHOWN:
            break
        with contextlib.suppress(ImageError):  # somebody moved it
            pair = [thumbnail(read_image(folder / kind / row.file), THUMBNAIL) for kind in ("norain", "rain")]
            name = printable(row.file)
            cells.append((pair, [name if len(name) <= 40 else f"...{name[-37:]}", "with rain"]))
    if not cells:
        return None
    lines = [
        ([image for pair, _ in part for image in pair], [text for _, labels in part for text in labels])
        for part in (cells[i : i + 2] for i in range(0, len(cells), 2))
    ]
    write_image(folder / SHEET, sheet(lines))
    return folder / SHEET


def report(folder: Path, rows: list[Row]) -> Path:
    """A page with a before/after slider of some pairs, first variants first, and how much rain they have.

    Returns:
        The page.

    Raises:
        UserError: it can't be written.
    """
    items = []
    for row in sorted(rows, key=lambda row: row.variant)[: page.SHOWN]:
        files = {"clean": folder / "norain" / row.file, "rainy": folder / "rain" / row.file}
        with contextlib.suppress(ImageError):  # somebody moved it
            clean, rainy = map(read_image, files.values())
            rain = cv2.subtract(rainy, clean).max(2) / 255
            wet = rain[rain > RAINY]
            values = {"rainy pixels": wet.size / rain.size, "brightness": float(wet.mean()) if wet.size else math.nan}
            items.append(page.Item(row.file, files, values))
    some = f"{len(items)} of {len(rows)} pairs are shown, all are in {MANIFEST}." if len(items) < len(rows) else ""
    lead = [
        some,
        "Rainy pixels: their share. Brightness: mean of the rain, from 0 to 1, where there is some.",
        f"Settings: {', '.join(f'{name} {_told(rows[0], name)}' for name in vars(rows[0].settings))}." if rows else "",
    ]
    order = page.Order("rainy pixels", "least rain", "most rain")
    path, title = folder / page.NAME, f"Rain on photos: {len(rows)} pair{'s' * (len(rows) > 1)}"
    page.write(path, title, [line for line in lead if line], items, ("clean", "rainy"), order=order)
    return path


def write_list(folder: Path, rows: list[Row]) -> int:
    """The pairs as the scripts of for_spa read them; returns how many have names that such a list can't hold."""
    listed = [row for row in rows if row.file.split() == [row.file]]
    text = "".join(f"rain/{row.file} norain/{row.file}\n" for row in listed)
    write_bytes(folder / LIST, text.encode("utf-8", "surrogateescape"))
    return len(rows) - len(listed)


def _check_folders(folder: Path, photos: list[Path], save: Path) -> None:
    """Photos must not lie where pairs are written, nor pairs be written among the photos."""
    places = [(folder / photo).resolve() for photo in photos]
    for kind in KINDS:
        target = (save / kind).resolve()
        among = len(photos) > 1 and target.is_relative_to(folder.resolve())
        if among or any(place.is_relative_to(target) for place in places):
            raise UserError(f"--save_path: {save / kind} would be mixed with the photos of {folder}; choose another")
    foreign = [name for name in (LIST, SHEET, page.NAME) if (save / name).exists() and not (save / MANIFEST).exists()]
    if foreign:
        raise UserError(
            f"--save_path: {save / foreign[0]} is there, but no {MANIFEST}: not ours; choose another folder"
        )


def _told(settings: Settings | Row, name: str) -> str:
    value = str(getattr(settings, name))
    return value[:12] if name == "checkpoint" else value or "none"


def _check_rows(rows: Iterable[Row], settings: Settings, files: dict[Path, list[str]]) -> None:
    """One folder holds pairs of one setting, and of a photo those of one name."""
    ours = {photo.as_posix(): set(some) for photo, some in files.items()}
    for row in rows:
        if row.settings != settings:
            differ = [name for name in vars(settings) if getattr(row, name) != getattr(settings, name)]
            before, now = (", ".join(f"{name} {_told(of, name)}" for name in differ) for of in (row, settings))
            raise UserError(
                f"--save_path: it holds rain/{printable(row.file)}, made with {before}, now {now}; "
                "choose another folder, or delete all pairs of this one by --overwrite"
            )
        if row.file not in ours.get(row.photo, {row.file}):
            raise UserError(
                f"--save_path: it holds rain/{printable(row.file)} of {printable(row.photo)}, which would now have "
                "another name; choose another folder, or delete all pairs of this one by --overwrite"
            )


def _start_anew(manifest: Manifest, folder: Path, photos: list[Path]) -> None:
    """Delete the pairs that the manifest lists, then the lists and the manifest; nothing else."""
    kept = {(folder / photo).resolve() for photo in photos}
    for row in manifest.rows.values():
        stem = Path(row.photo).with_suffix("").as_posix()
        for kind in KINDS:
            path = manifest.folder / kind / row.file
            inside = path.parent.resolve().is_relative_to((manifest.folder / kind).resolve())
            if not (row.file.startswith(stem) and path.suffix == ".png" and inside and path.resolve() not in kept):
                raise UserError(f"{manifest.path}: {printable(row.file)} is no pair of {printable(row.photo)}; mend it")
            path.unlink(missing_ok=True)
    for name in (LIST, SHEET, page.NAME, MANIFEST):  # the manifest last: until then the same command goes on deleting
        (manifest.folder / name).unlink(missing_ok=True)
    manifest.rows = {}


class _Taken(Exception):
    """The pair of one photo can't be made; the others can."""


def _is_there(path: Path, folder: Path, pixels: np.ndarray) -> bool:
    """Whether the same picture is there already; another one is an error, since nothing is ever replaced."""
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise _Taken(f"{path}: a link leads out of {folder}; remove it")
    if not path.exists():
        return False
    with contextlib.suppress(ImageError):
        if np.array_equal(read_image(path), pixels):
            return True
    raise _Taken(f"{path}: is there already and is another picture; move it away, or choose another --save_path")


def rain_on_photos(
    *,
    netED: EDNet,  # on the device, in eval mode
    data_path: str,  # a folder of photos, sub-folders kept, or one photo
    save_path: str,  # rain/, norain/, layer/, manifest.csv and the contact sheet go there
    num: int,  # rains a photo
    seed: int,
    intensity: float,  # factor of the rain
    coherence: float,  # correlation of the codes of a picture, see Shower
    scale: float | None,  # factor of the size of the streaks; None: by the size of the photo, see auto_scale
    grey: bool,  # the maximum over the channels in all of them
    knobs: dict[str, float],  # angle, density, thickness, brightness: those that are set
    save_layer: bool,
    overwrite: bool,  # first delete all pairs that the manifest of save_path lists
    strict: bool,  # stop at the first photo that can't be read
    hint: str = "",  # what belongs into data_path, for the message when it is missing
) -> int:
    """Make rainy/clean pairs of photos, and print what was made; goes on where an interrupted run stopped.

    Several processes share the photos; the first one tells what all did.

    Returns:
        Exit code: 0, or 1 where a photo could not be read, did not fit into memory or its place was taken; the
        others are done.

    Raises:
        UserError: paths that are missing, empty or overlap; pairs of other settings in save_path; with ``strict``, a
            photo that can't be read; results that can't be written.
    """
    save = Path(save_path)
    folder, photos, others = inputs(Path(data_path), save, hint)
    _check_folders(folder, photos, save)
    names = output_names(photos)
    knobs, warnings = clamped(knobs)
    for warning in warnings if distributed.is_first() else ():
        print(f"warning: --{warning}", file=sys.stderr)
    if {"density", "brightness"} & set(knobs) and intensity != 1:
        raise UserError("--intensity: it scales what --density and --brightness set; leave the one or the others out")
    set_ones = knobs | ({"scale": scale} if scale else {})
    made_with = " ".join(f"{name}={value:.4g}" for name, value in set_ones.items())
    settings = Settings(seed, num, float(intensity), float(coherence), grey, fingerprint(netED), VERSION, made_with)
    files = {  # photo -> one file a variant
        photo: [f"{names[photo].as_posix()}{f'_v{v:02d}' if num > 1 else ''}.png" for v in range(1, num + 1)]
        for photo in photos
    }
    distributed.require_shared("--save_path", save)
    if distributed.is_first():
        manifest = Manifest(save)
        if overwrite:
            _start_anew(manifest, folder, photos)
        manifest.mend()
    distributed.gather(None)  # the others wait for that
    manifest = Manifest(save)
    _check_rows(manifest.rows.values(), settings, files)
    maker = RainMaker(netED)
    mine = photos[distributed.share()]
    kinds = KINDS if save_layer else PAIR

    def is_done(photo: Path, file: str, digest: str) -> bool:
        row = manifest.rows.get(file)
        if row is None or not all((save / kind / file).exists() for kind in kinds) or row.layer < save_layer:
            return False
        if row.photo_sha256 != digest or row.photo != photo.as_posix():
            raise _Taken(
                f"{folder / photo}: {save / 'rain' / file} was made of another photo; choose another --save_path, "
                "or delete all pairs of this one by --overwrite"
            )
        return True

    def make(photo: Path, variant: int, file: str, clean: np.ndarray, digest: str, copy_of: Path | None) -> int:
        """Writes one pair; returns its number of rainy pixels."""
        pictures = {"norain": clean, "layer": np.empty_like(clean), "rain": np.empty_like(clean)}
        wet, (height, width) = 0, clean.shape[:2]
        shower = maker.shower(coherence, draws(seed, photo.as_posix(), variant))
        layer = set_knobs(shower, height, width, knobs, scale or auto_scale(height, width))
        for rows, columns, tile in layer.tiles():
            rain = intensity * (np.repeat(tile.max(2, keepdims=True), 3, 2) if grey else tile)
            wet += np.count_nonzero(rain.max(2) > RAINY)
            rain = to_uint8(rain, "nearest")
            pictures["layer"][rows, columns] = rain
            pictures["rain"][rows, columns] = cv2.add(np.ascontiguousarray(clean[rows, columns]), rain)  # up to 255
        todo = {
            save / kind / file: pictures[kind]
            for kind in ("norain", "layer", "rain")
            if kind in kinds and not _is_there(save / kind / file, save / kind, pictures[kind])
        }
        for path, pixels in todo.items():
            if pixels is clean and copy_of is not None:
                write_bytes(path, copy_of.read_bytes())  # quicker than to compress it again
            else:
                write_image(path, pixels)
        facts = {"width": width, "height": height, "layer": save_layer, "photo_sha256": digest}
        manifest.append(Row(file, photo.as_posix(), variant, **facts, **vars(settings)))
        return wet

    problems: dict[Path, str] = {}
    made, wet, area, there, deep, alpha = 0, 0, 0, 0, 0, 0
    try:
        for photo in progress_bar(mine, unit="photo"):
            try:
                image_size(folder / photo)  # an image at all, and no pipe
                digest = _digest(folder / photo)
                if max(len(os.fsencode(part)) for file in files[photo] for part in Path(file).parts) > LONGEST_NAME:
                    raise _Taken(f"{folder / photo}: its name is too long for that of a pair; shorten it")
                todo = [(v, f) for v, f in enumerate(files[photo], 1) if not is_done(photo, f, digest)]
                there += num - len(todo)
                if not todo:
                    continue
                pixels = read_image(folder / photo)
                deep += pixels.dtype == np.uint16
                alpha += has_alpha(folder / photo)
                clean = to_eight_bits(pixels)
                del pixels  # as large again
                first = None
                for variant, file in todo:
                    wet += make(photo, variant, file, clean, digest, first)
                    made, area, first = made + 1, area + clean[..., 0].size, first or save / "norain" / file
            except (ImageError, _Taken, RuntimeError, MemoryError) as error:
                problems[photo] = str(error)
                if is_out_of_memory(error):
                    problems[photo] = f"{folder / photo}: does not fit into memory; scale it down"
                elif isinstance(error, RuntimeError):
                    raise
                if strict:
                    raise UserError(problems[photo]) from None
    except KeyboardInterrupt as asked:
        again = "without --overwrite goes on" if overwrite else "goes on"
        rest = f"pairs are in {save}; the same command {again}"
        raise distributed.stopped(asked, made + there, num * len(mine), rest) from None
    *counts, found = zip(*distributed.gather((made, wet, area, there, deep, alpha, problems)), strict=True)
    made, wet, area, there, deep, alpha = map(sum, counts)
    problems = {photo: text for of_one in found for photo, text in of_one.items()}
    print(f"{made} pairs made in {save}" + (f", {there} were there already" if there else ""))
    if others:
        print(f"{others} other files in {folder} skipped")
    if deep:
        print(f"{deep} photos with 16 bits a channel: their pairs have 8")
    if alpha:
        print(f"{alpha} photos with transparency: it is left out, their colours are taken as they are")
    if made:
        print(f"rain covers {wet / area:.1%} of the pixels")
        if wet < 0.001 * area and intensity > 0:
            print(
                "warning: this generator makes hardly any rain; train it longer, "
                "or look at it by test_disentanglement.py --figure generated",
                file=sys.stderr,
            )
    if (made or there) and distributed.is_first():
        with manifest.finished() as rows:
            spaces = write_list(save, rows)
            picture = contact_sheet(save, rows)
            shown = report(save, rows)
        if spaces:
            print(f"{spaces} pairs have spaces in their names and are not in {LIST}, which separates by them")
        print(f"lists of the pairs: {manifest.path}, {save / LIST}" + (f"\npicture: {picture}" if picture else ""))
        print(f"page: {shown}")
    if problems:
        told = [problems[photo] for photo in photos if photo in problems]
        tell(told, f"{len(told)} of {len(photos)} photos could not be used")
    return 1 if problems else 0


def _digest(path: Path) -> str:
    """SHA-256 of a photo's file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"{path}: can't be read ({error.strerror}); replace or remove the file") from None
