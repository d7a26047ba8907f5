"""Rain on anyone's own photos: a folder of photos in, exact rainy/clean pairs out, ready for training."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.data.images import (
    ImageError,
    add_rain,
    has_alpha,
    inputs,
    printable,
    read_image,
    tell,
    to_eight_bits,
    to_uint8,
    write_bytes,
    write_image,
)
from common.data.pairs import LIST
from common.data.pictures import sheet, thumbnail
from common.errors import UserError
from common.generation.manifest import Manifest, Row, Settings
from common.generation.rain import RAINY, RainMaker, grey_of
from common.models import EDNet

SHEET = "contact_sheet.jpg"
SHOWN, THUMBNAIL = 12, 320  # pairs on the contact sheet, px of their longer side


def fingerprint(netED: EDNet) -> str:
    """SHA-256 of the generator's weights, whatever file they came in."""
    digest = hashlib.sha256()
    for key, value in sorted(netED.state_dict().items()):
        if key.startswith("decoder."):
            digest.update(key.encode() + value.float().cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def draws(seed: int, photo: str, variant: int) -> np.random.RandomState:
    """The random numbers of one rain; they depend on these three alone, and on no version of NumPy."""
    key = hashlib.sha256(b"\0".join([str(seed).encode(), os.fsencode(photo), str(variant).encode()])).digest()
    return np.random.RandomState(np.frombuffer(key, "<u4"))


def output_names(photos: list[Path]) -> dict[Path, Path]:
    """Paths of the outputs below rain/ and norain/, without variant and .png; equal stems keep their extension."""

    def key(path: Path) -> str:
        return path.as_posix().casefold()  # so that they also fit on file systems that do not tell A from a

    names = {photo: photo.with_suffix("") for photo in photos}
    while True:
        taken: dict[str, list[Path]] = {}
        for photo, name in names.items():
            taken.setdefault(key(name), []).append(photo)
        doubled = [photo for group in taken.values() if len(group) > 1 for photo in group if names[photo] != photo]
        if not doubled:
            return names
        names.update({photo: photo for photo in doubled})


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


def write_list(folder: Path, rows: list[Row]) -> int:
    """The pairs as the scripts of for_spa read them; returns how many have names that such a list can't hold."""
    listed = [row for row in rows if row.file.split() == [row.file]]
    text = "".join(f"rain/{row.file} norain/{row.file}\n" for row in listed)
    write_bytes(folder / LIST, text.encode("utf-8", "surrogateescape"))
    return len(rows) - len(listed)


def _check_settings(manifest: Manifest, settings: Settings, files: list[str]) -> None:
    for file in files:
        row = manifest.rows.get(file)
        if row is not None and row.settings != settings:
            differ = [name for name in vars(settings) if getattr(row, name) != getattr(settings, name)]
            before = ", ".join(f"{name} {str(getattr(row, name))[:12]}" for name in differ)
            now = ", ".join(f"{name} {str(getattr(settings, name))[:12]}" for name in differ)
            raise UserError(
                f"--save_path: {manifest.folder} holds rain/{printable(file)} made with {before}, now {now}; "
                "choose another folder, or --overwrite"
            )


class _Taken(Exception):
    pass


def _put(path: Path, pixels: np.ndarray, overwrite: bool, copy_of: Path | None = None) -> None:
    """Write a picture, or leave the same one that is there."""
    if path.exists() and not overwrite:
        with contextlib.suppress(ImageError):
            if np.array_equal(read_image(path), pixels):
                return
        raise _Taken(f"{path}: is there already and is another picture; --overwrite replaces it")
    if copy_of is None:
        write_image(path, pixels)
    else:
        write_bytes(path, copy_of.read_bytes())  # quicker than to compress it again


def rain_on_photos(
    *,
    netED: EDNet,  # on the device, in eval mode
    data_path: str,  # a folder of photos, sub-folders kept, or one photo
    save_path: str,  # rain/, norain/, layer/, manifest.csv and the contact sheet go there
    num: int,  # rains a photo
    seed: int,
    intensity: float,  # factor of the rain
    coherence: float,  # correlation of neighbouring codes, see draw_codes
    grey: bool,  # the maximum over the channels in all of them
    save_layer: bool,
    shard: tuple[int, int],  # (K, N): the K-th of N parts, counted from 1
    overwrite: bool,  # make pairs again that are there
    strict: bool,  # stop at the first photo that can't be read
    hint: str = "",  # what belongs into data_path, for the message when it is missing
) -> int:
    """Make rainy/clean pairs of photos, and print what was made; goes on where an interrupted run stopped.

    Returns:
        Exit code: 0, or 1 where a photo could not be read or its place was taken; the others are done.

    Raises:
        UserError: paths that are missing, empty or overlap; pairs of other settings in save_path; with ``strict``, a
            photo that can't be read; results that can't be written.
    """
    save = Path(save_path)
    folder, photos, others = inputs(Path(data_path), save, hint)
    names = output_names(photos)
    settings = Settings(seed, intensity, coherence, grey, fingerprint(netED))
    manifest = Manifest(save)
    files = {  # of this part: photo -> one file a variant
        photo: [f"{names[photo].as_posix()}{f'_v{v:02d}' if num > 1 else ''}.png" for v in range(1, num + 1)]
        for photo in photos[shard[0] - 1 :: shard[1]]
    }
    if not overwrite:
        _check_settings(manifest, settings, [file for variants in files.values() for file in variants])
    manifest.mend()
    maker = RainMaker(netED)
    kinds = ("rain", "norain", "layer") if save_layer else ("rain", "norain")

    def is_done(photo: Path, variant: int, file: str) -> bool:
        row = manifest.rows.get(file)
        same = row is not None and (row.photo, row.variant, row.settings) == (photo.as_posix(), variant, settings)
        return same and all((save / kind / file).exists() for kind in kinds)

    def make(photo: Path, variant: int, file: str, clean: np.ndarray, copy_of: Path | None) -> float:
        """Writes one pair; returns its density, the share of rainy pixels."""
        rainy = np.empty_like(clean)
        layer = np.empty_like(clean) if save_layer else None
        wet, (height, width) = 0, clean.shape[:2]
        for rows, columns, tile in maker.tiles(height, width, coherence, draws(seed, photo.as_posix(), variant)):
            rain = intensity * (grey_of(tile) if grey else tile).permute(1, 2, 0).cpu().numpy()
            rainy[rows, columns] = add_rain(clean[rows, columns], rain)
            wet += np.count_nonzero(rain.max(2) > RAINY)
            if layer is not None:
                layer[rows, columns] = to_uint8(rain, "nearest")
        _put(save / "norain" / file, clean, overwrite, copy_of)
        if layer is not None:
            _put(save / "layer" / file, layer, overwrite)
        _put(save / "rain" / file, rainy, overwrite)
        manifest.append(Row(file, photo.as_posix(), variant, width, height, **vars(settings)))
        return wet / (height * width)

    problems, densities, there, deep, alpha = [], [], 0, 0, 0
    try:
        for photo, variants in tqdm(files.items(), unit="photo", disable=None):
            todo = [(v, file) for v, file in enumerate(variants, 1) if overwrite or not is_done(photo, v, file)]
            there += num - len(todo)
            if not todo:
                continue
            try:
                pixels = read_image(folder / photo)
                deep += pixels.dtype == np.uint16
                alpha += has_alpha(folder / photo)
                clean = to_eight_bits(pixels)
                first = None
                for variant, file in todo:
                    densities.append(make(photo, variant, file, clean, first))
                    first = first or save / "norain" / file
            except (ImageError, _Taken) as error:
                if strict:
                    raise UserError(str(error)) from None
                problems.append(str(error))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped by Ctrl-C; {len(densities) + there} of {num * len(files)} pairs are in {save}; "
            "the same command goes on"
        ) from None
    print(f"{len(densities)} pairs made in {save}" + (f", {there} were there already" if there else ""))
    if others:
        print(f"{others} other files in {folder} skipped")
    if deep:
        print(f"{deep} photos with 16 bits a channel: their pairs have 8")
    if alpha:
        print(f"{alpha} photos with transparency: it is left out, their colours are taken as they are")
    if densities:
        density = np.mean(densities)
        print(f"rain covers {density:.1%} of the pixels")
        if density < 0.001 and intensity > 0:
            print("warning: this generator makes hardly any rain; train it longer, or look at it by --figure generated")
    if densities or there:
        with manifest.finished() as rows:
            spaces = write_list(save, rows)
            picture = contact_sheet(save, rows)
        if spaces:
            print(f"{spaces} pairs have spaces in their names and are not in {LIST}, which separates by them")
        print(f"lists of the pairs: {manifest.path}, {save / LIST}" + (f"\npicture: {picture}" if picture else ""))
    if problems:
        tell(problems, f"{len(problems)} of {len(files)} photos could not be used")
    return 1 if problems else 0
