"""Rain on anyone's own photos: a folder of photos in, exact rainy/clean pairs out, ready for training."""

import hashlib
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from .. import distributed
from ..data import page
from ..data.images import ImageError, image_size, inputs, read_image, to_eight_bits, to_uint8, write_image
from ..data.pairs import LIST
from ..data.pictures import sheet, thumbnail
from ..errors import UserError, is_out_of_memory
from ..files import write_bytes
from ..models import EDNet
from ..terminal import printable, progress_bar, tell
from .knobs import clamped, measured, missed, set_knobs
from .manifest import NAME as MANIFEST
from .manifest import SETTINGS, Manifest, Row
from .measures import RAINY, Measures
from .rain import VERSION, RainMaker, auto_scale, fingerprint

KINDS = ("norain", "layer", "rain")
SHEET = "contact_sheet.jpg"
SHOWN, THUMBNAIL = 12, 320  # pairs on the contact sheet, px of their longer side


@dataclass(frozen=True)
class Rain:
    """Which rain falls on the photos: the flags of generate_rain.py."""

    seed: int
    num: int  # rains a photo
    intensity: float  # factor of the rain, 0 to 2
    coherence: float  # correlation of the codes of a picture, see Shower
    grey: bool  # the maximum over the channels in all of them
    scale: float | None  # factor of the size of the streaks; None: see auto_scale
    knobs: dict[str, float]  # angle, density, thickness, brightness: those that are set


def draws(seed: int, photo: str, variant: int) -> np.random.RandomState:
    """The random numbers of one rain; they depend on these three alone, and on no version of NumPy."""
    key = hashlib.sha256(b"\0".join([str(seed).encode(), os.fsencode(photo), str(variant).encode()])).digest()
    return np.random.RandomState(np.frombuffer(key, "<u4"))


def output_names(photos: list[Path]) -> dict[Path, Path]:
    """Paths of the outputs below rain/ and norain/, without variant and .png; equal stems keep their extension."""

    def key(path: Path) -> str:
        return path.as_posix().casefold()  # some file systems do not tell A from a

    names = {photo: photo.with_suffix("") for photo in photos}
    folders = {key(parent) for photo in photos for parent in photo.parents}
    while True:
        number = Counter(map(key, names.values()))
        clashes = [p for p, name in names.items() if number[key(name)] > 1 or f"{key(name)}.png" in folders]
        longer = {photo: photo for photo in clashes if names[photo] != photo}
        if not longer:
            return names
        names |= longer


def contact_sheet(folder: Path, rows: list[Row]) -> None:
    """A picture of up to 12 pairs, clean beside rainy, first variants first."""
    lines: list[tuple[list[np.ndarray], list[str]]] = []
    for k, row in enumerate(sorted(rows, key=lambda row: row.variant)[:SHOWN]):
        if k % 2 == 0:
            lines.append(([], []))
        name = printable(row.file)
        lines[-1][0].extend(thumbnail(read_image(folder / kind / row.file), THUMBNAIL) for kind in ("norain", "rain"))
        lines[-1][1].extend([name if len(name) <= 40 else f"...{name[-37:]}", "with rain"])
    write_image(folder / SHEET, sheet(lines))


def report(folder: Path, rows: list[Row]) -> None:
    """A page with a before/after slider of some pairs, first variants first, and how much rain they have."""
    items = []
    for row in sorted(rows, key=lambda row: row.variant)[: page.SHOWN]:
        files = {"clean": folder / "norain" / row.file, "rainy": folder / "rain" / row.file}
        clean, rainy = map(read_image, files.values())
        rain = cv2.subtract(rainy, clean).max(2) / 255
        wet = rain[rain > RAINY]
        values = {"rainy pixels": wet.size / rain.size, "brightness": float(wet.mean()) if wet.size else math.nan}
        items.append(page.Item(row.file, files, values))
    lead = [f"{len(items)} of {len(rows)} pairs are shown, all are in {MANIFEST}."] if len(items) < len(rows) else []
    lead += ["Rainy pixels: their share. Brightness: mean of the rain, from 0 to 1, where there is some."]
    lead += [f"Settings: {_as_text(rows[0].settings)}."]
    title = f"Rain on photos: {len(rows)} pair{'s' * (len(rows) > 1)}"
    page.write(folder / page.NAME, title, lead, items, ("clean", "rainy"))


def write_list(folder: Path, rows: list[Row]) -> int:
    """The pairs as the scripts of for_spa read them; returns how many have names that such a list can't hold."""
    listed = [row for row in rows if row.file.split() == [row.file]]
    text = "".join(f"rain/{row.file} norain/{row.file}\n" for row in listed)
    write_bytes(folder / LIST, text.encode("utf-8", "surrogateescape"))
    return len(rows) - len(listed)


def _as_text(settings: dict[str, object]) -> str:
    texts = {name: str(value)[: 12 if name == "checkpoint" else None] for name, value in settings.items()}
    return ", ".join(f"{name} {text or 'none'}" for name, text in texts.items())


def _check_folders(folder: Path, photos: list[Path], save: Path) -> None:
    """Refuse photos that lie where pairs are written, and lists of others that would be replaced."""
    places = [(folder / photo).resolve() for photo in photos]
    for kind in KINDS:
        if any(place.is_relative_to((save / kind).resolve()) for place in places):
            raise UserError(f"--save_path: {save / kind} would be mixed with the photos of {folder}; choose another")
    if (save / LIST).exists() and not (save / MANIFEST).exists():
        raise UserError(f"--save_path: {save / LIST} is there, but no {MANIFEST}: not ours; choose another folder")


def _check_rows(rows: Iterable[Row], settings: dict[str, object], files: dict[Path, list[str]]) -> None:
    """Refuse a folder with pairs of other settings, or of a photo whose pairs would now have another name."""
    ours = {photo.as_posix(): some for photo, some in files.items()}
    for row in rows:
        differ = [name for name in settings if row.settings[name] != settings[name]]
        if differ:
            before, now = (_as_text({name: some[name] for name in differ}) for some in (row.settings, settings))
            why = f"made with {before}, now {now}"
        elif row.file not in ours.get(row.photo, [row.file]):
            why = f"of {printable(row.photo)}, which would now have another name"
        else:
            continue
        raise UserError(
            f"--save_path: it holds rain/{printable(row.file)}, {why}; choose another folder, or delete all pairs of "
            "this one by --overwrite"
        )


def _prepare(save: Path, overwrite: bool) -> None:
    """Mend the manifest; with ``overwrite`` delete the pairs in it, then the lists, the manifest last."""
    manifest = Manifest(save)
    if overwrite:
        for row in manifest.rows.values():
            for kind in KINDS:
                (save / kind / row.file).unlink(missing_ok=True)
        for name in (LIST, SHEET, page.NAME, MANIFEST):  # until the manifest is gone the same command goes on deleting
            (save / name).unlink(missing_ok=True)
    else:
        manifest.mend()


class _Work:
    """What one process makes.

    Attributes:
        counts: of pairs ('made', 'earlier'), pixels ('wet', 'area') and photos with 16 bits ('deep').
        reached: measures of the rain, where knobs are set.
        problems: why photos could not be used.
    """

    def __init__(self, netED: EDNet, folder: Path, manifest: Manifest, rain: Rain, save_layer: bool) -> None:
        self.maker, self.folder, self.manifest, self.save = RainMaker(netED), folder, manifest, manifest.folder
        knobs = " ".join(f"{k}={v:.4g}" for k, v in (rain.knobs | {"scale": rain.scale}).items() if v is not None)
        self.rain, self.settings = rain, {k: v for k, v in vars(rain).items() if k in SETTINGS}
        self.settings |= {"checkpoint": fingerprint(netED), "version": VERSION, "knobs": knobs}
        self.kinds = KINDS if save_layer else ("norain", "rain")
        self.counts: Counter = Counter()
        self.reached: list[Measures] = []
        self.problems: dict[Path, str] = {}

    def make_all(self, files: dict[Path, list[str]], strict: bool) -> None:
        """The pairs of all photos; with ``strict`` a photo that can't be used is a UserError."""
        for photo in progress_bar(files, unit="photo"):
            try:
                self.make_pairs(photo, files[photo])
            except ImageError as error:
                self.problems[photo] = str(error)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.problems[photo] = f"{self.folder / photo}: does not fit into memory; scale it down"
            if strict and photo in self.problems:
                raise UserError(self.problems[photo])

    def make_pairs(self, photo: Path, files: list[str]) -> None:
        """Write those pairs of a photo that do not exist yet; raises ImageError where the photo can't be used."""
        image_size(self.folder / photo)  # or it is no image
        digest = hashlib.sha256((self.folder / photo).read_bytes()).hexdigest()
        todo = [(k, file) for k, file in enumerate(files, 1) if not self._is_done(photo, file, digest)]
        self.counts["earlier"] += len(files) - len(todo)
        if not todo:
            return
        pixels = read_image(self.folder / photo)
        self.counts["deep"] += pixels.dtype == np.uint16
        clean = to_eight_bits(pixels)
        del pixels  # as large again
        facts = {"width": clean.shape[1], "height": clean.shape[0], "photo_sha256": digest}
        for variant, file in todo:
            pictures = self._pictures(photo, variant, clean)
            first, *others = (self.save / "norain" / file for _, file in todo)
            self._write({self.save / kind / file: pictures[kind] for kind in self.kinds}, dict.fromkeys(others, first))
            row = Row(file, photo.as_posix(), variant, layer="layer" in self.kinds, **facts, **self.settings)
            self.manifest.append(row)
            self.counts["made"] += 1

    def _is_done(self, photo: Path, file: str, digest: str) -> bool:
        row = self.manifest.rows.get(file)
        if row is None or not all((self.save / kind / file).exists() for kind in self.kinds):
            return False
        if row.photo_sha256 != digest or row.photo != photo.as_posix():
            raise ImageError(
                f"{self.folder / photo}: {self.save / 'rain' / file} was made of another photo; choose another "
                "--save_path, or delete all pairs of this one by --overwrite"
            )
        return row.layer or "layer" not in self.kinds

    def _pictures(self, photo: Path, variant: int, clean: np.ndarray) -> dict[str, np.ndarray]:
        """The clean picture, the rain and their sum, by folder: (H, W, 3) uint8."""
        pictures = {"norain": clean, "layer": np.empty_like(clean), "rain": np.empty_like(clean)}
        height, width = clean.shape[:2]
        scale = self.rain.scale or auto_scale(height, width)
        shower = self.maker.shower(self.rain.coherence, draws(self.rain.seed, photo.as_posix(), variant))
        layer = set_knobs(shower, height, width, self.rain.knobs, scale)
        if self.rain.knobs.keys() - {"angle"}:
            self.reached.append(measured(layer, scale))
        for rows, columns, tile in layer.tiles():
            rain = self.rain.intensity * (np.repeat(tile.max(2, keepdims=True), 3, 2) if self.rain.grey else tile)
            self.counts["wet"] += np.count_nonzero(rain.max(2) > RAINY)
            rain = to_uint8(rain, "nearest")
            pictures["layer"][rows, columns] = rain
            pictures["rain"][rows, columns] = cv2.add(np.ascontiguousarray(clean[rows, columns]), rain)  # up to 255
        self.counts["area"] += height * width
        return pictures

    def _write(self, pictures: dict[Path, np.ndarray], copies: dict[Path, Path]) -> None:
        """Write the pictures that do not exist yet; nothing is ever replaced. ``copies`` come from another file."""
        todo = [path for path in pictures if not path.exists()]
        for path in pictures.keys() - set(todo):
            if not np.array_equal(read_image(path), pictures[path]):
                raise ImageError(
                    f"{path}: is there already and is another picture; move it, or use another --save_path"
                )
        for path in todo:
            if path in copies:
                write_bytes(path, copies[path].read_bytes())  # quicker than to compress it again
            else:
                write_image(path, pictures[path])


def rain_on_photos(
    *,
    netED: EDNet,  # on the device, in eval mode
    data_path: str,  # a folder of photos, sub-folders kept, or one photo
    save_path: str,  # rain/, norain/, layer/, manifest.csv and the contact sheet go there
    rain: Rain,
    save_layer: bool,
    overwrite: bool,  # first delete all pairs that the manifest of save_path lists
    strict: bool,  # stop at the first photo that can't be read
    hint: str = "",  # what belongs into data_path, for the message when it is missing
) -> int:
    """Make rainy/clean pairs of photos, and print what was made; goes on where an interrupted run stopped.

    Several processes share the photos; the first one reports for all.

    Returns:
        Exit code: 0, or 1 where a photo could not be read or did not fit into memory, or another picture was in the
        place of a result; the other photos are done.

    Raises:
        UserError: paths that are missing, empty or overlap; pairs of other settings in save_path; with ``strict``, a
            photo that can't be read; results that can't be written.
    """
    save = Path(save_path)
    folder, photos, others = inputs(Path(data_path), save, hint)
    _check_folders(folder, photos, save)
    knobs, warnings = clamped(rain.knobs)
    if knobs.keys() & {"density", "brightness"} and rain.intensity != 1:
        raise UserError("--intensity: it scales what --density and --brightness set; leave the one or the others out")
    _warn(f"--{warning}" for warning in warnings)
    marks = [f"_v{k:02d}" for k in range(1, rain.num + 1)] if rain.num > 1 else [""]
    files = {p: [f"{name.as_posix()}{mark}.png" for mark in marks] for p, name in output_names(photos).items()}
    distributed.require_shared("--save_path", save)
    if distributed.is_first():
        _prepare(save, overwrite)
    distributed.gather(None)  # the others wait for that
    work = _Work(netED, folder, Manifest(save), replace(rain, knobs=knobs), save_layer)
    _check_rows(work.manifest.rows.values(), work.settings, files)
    mine = photos[distributed.share()]
    try:
        work.make_all({photo: files[photo] for photo in mine}, strict)
    except KeyboardInterrupt as stop:
        rest = f"pairs are in {save}; the same command {'without --overwrite ' * overwrite}goes on"
        done = work.counts["made"] + work.counts["earlier"]
        raise distributed.stopped(stop, done, rain.num * len(mine), rest) from None
    parts = distributed.gather((work.counts, work.reached, work.problems))
    counts = sum((counts for counts, _, _ in parts), Counter())
    problems = {photo: text for _, _, of_one in parts for photo, text in of_one.items()}
    _tell_counts(counts, others, save)
    _warn(f"--{text}" for text in missed(knobs, [measures for _, reached, _ in parts for measures in reached]))
    if counts["made"] and rain.intensity > 0 and counts["wet"] < 0.001 * counts["area"]:
        _warn(["this generator makes hardly any rain; look at it by test_disentanglement.py --figure generated"])
    if (counts["made"] or counts["earlier"]) and distributed.is_first():
        _write_lists(work.manifest)
    if problems:
        tell(
            [problems[p] for p in photos if p in problems], f"{len(problems)} of {len(photos)} photos could not be used"
        )
    return 1 if problems else 0


def _warn(texts: Iterable[str]) -> None:
    for text in texts if distributed.is_first() else ():
        print(f"warning: {text}", file=sys.stderr)


def _tell_counts(counts: Counter, others: int, save: Path) -> None:
    print(
        f"{counts['made']} pairs made in {save}" + f", {counts['earlier']} were there already" * (counts["earlier"] > 0)
    )
    if others:
        print(f"{others} other files skipped")
    if counts["deep"]:
        print(f"{counts['deep']} photos with 16 bits a channel: their pairs have 8")
    if counts["made"]:
        print(f"rain covers {counts['wet'] / counts['area']:.1%} of the pixels")


def _write_lists(manifest: Manifest) -> None:
    """Sort the manifest, write the list, the sheet and the page of all its pairs, and print where they are."""
    save = manifest.folder
    with manifest.finished() as rows:
        spaces = write_list(save, rows)
        contact_sheet(save, rows)
        report(save, rows)
    if spaces:
        print(f"{spaces} pairs have spaces in their names and are not in {LIST}, which separates by them")
    print(f"lists of the pairs: {manifest.path}, {save / LIST}\npicture: {save / SHEET}\npage: {save / page.NAME}")
