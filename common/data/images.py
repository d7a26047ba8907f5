"""Read and write RGB images: any common format in, upright, without transparency, in sRGB, whole files only.

Pillow decodes, because it notices truncated files; OpenCV decodes the 16-bit ones, which Pillow would cut to 8 bits.
"""

import contextlib
import functools
import io
import itertools
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from ..errors import UserError
from ..files import write_bytes
from ..terminal import warn_once

JPEG = (".jpg", ".jpeg", ".jfif")
EXTENSIONS = (".png", *JPEG, ".bmp", ".webp", ".tif", ".tiff")
_UNREAD = (".heic", ".heif", ".avif", ".gif", ".jxl", ".jp2", ".ppm", ".exr", ".dng", ".cr2", ".cr3", ".nef", ".arw")
_FOREIGN = ("@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found", "system volume information")  # of systems
_WRITTEN: dict[str, dict] = {  # by format, options of Pillow
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "BMP": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_deflate"},
}
WHITE, BLACK = 255, 0  # what transparent parts become
LINKS_SHOWN = 4  # in a message
ROUNDED = 2  # levels by which the profiles of sRGB that programs write differ

warnings.filterwarnings("ignore", module="PIL")  # of broken files, one message is enough
Image.MAX_IMAGE_PIXELS = 2**30  # as many as OpenCV reads; Pillow takes photos of 200 megapixels for attacks
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class ImageError(UserError):
    """An image that can't be read: the message names the file and the remedy."""


def natural_key(path: str | Path) -> list:
    """Sort key under which 2.png comes before 10.png (T12); folders compare part by part."""
    return [
        [int(token) if i % 2 else token for i, token in enumerate(re.split("([0-9]+)", part))]
        for part in Path(path).parts
    ]


def list_images(folder: Path) -> list[Path]:
    """All images below a folder, by their paths in it, in natural order.

    Linked folders count, but each real folder is read once. Hidden folders are left out, and those in which systems
    keep thumbnails and deleted files.

    Raises:
        UserError: a folder can't be read; one that is left out with its images would not be noticed.
    """

    def refuse(error: OSError) -> NoReturn:
        remedy = "make it readable, or move it elsewhere"
        raise UserError(f"{error.filename}: the folder can't be read ({error.strerror}); {remedy}") from None

    files, left_out, seen = [], [], set(Path(folder).resolve().parents)
    todo = [Path(folder)]
    for top in todo:  # links come behind all real folders, so that these keep their names
        for current, inner, names in os.walk(top, onerror=refuse):
            here = Path(current)
            if here.resolve() in seen:
                left_out.append(here.relative_to(folder).as_posix())
                inner.clear()
                continue
            seen.add(here.resolve())
            inner[:] = sorted(name for name in inner if not name.startswith(".") and name.lower() not in _FOREIGN)
            todo += [here / name for name in inner if here.joinpath(name).is_symlink()]
            files += [here.relative_to(folder) / name for name in names if not name.startswith(".")]
    if left_out:
        shown = ", ".join(left_out[:LINKS_SHOWN]) + ", ..." * (len(left_out) > LINKS_SHOWN)
        text = f"{len(left_out)} links below {folder} are left out, since each real folder is read once: {shown}"
        warn_once(text, text)
    if unread := [f.suffix.lower() for f in files if f.suffix.lower() in _UNREAD]:
        text = f"{len(unread)} images below {folder} are left out ({', '.join(sorted({*unread}))}); convert them to PNG"
        warn_once(text, text)
    files = [f for f in files if f.suffix.lower() in EXTENSIONS]
    return sorted(files, key=lambda path: (natural_key(path), str(path)))


def images_in(folder: Path, flag: str, hint: str = "") -> list[Path]:
    """``list_images`` of a folder that a flag names; UserError with ``hint`` if it is missing or holds none."""
    if not Path(folder).is_dir():
        raise UserError(f"{flag}: {folder} is not a folder. {hint}".rstrip())
    images = list_images(Path(folder))
    if not images:
        raise UserError(f"{flag}: no image (PNG, JPEG, BMP, WebP, TIFF) in {folder}. {hint}".rstrip())
    return images


def require_outside(flag: str, out: Path, inputs: Mapping[str, Path | None]) -> None:
    """Raise UserError if results would lie in an input folder (by its flag), where they would be inputs next time."""
    for source, folder in inputs.items():
        if folder and Path(out).resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"{flag}: {out} lies in the input folder {source} {folder}; choose another")


def inputs(data_path: Path, save_path: Path, hint: str) -> tuple[Path, list[Path]]:
    """The folder of the images that --data_path names, a folder or one image, and their paths in it in natural order.

    UserError: there are none, or results would land among them.
    """
    if save_path.exists() and not save_path.is_dir():
        raise UserError(f"--save_path: {save_path} is a file; name a folder")
    if data_path.is_file():
        if data_path.suffix.lower() not in EXTENSIONS:
            raise UserError(f"--data_path: {data_path} is not an image ({', '.join(EXTENSIONS)})")
        if save_path.resolve() == data_path.parent.resolve():
            raise UserError(f"--save_path: {save_path} is the folder of the input; choose another one")
        return data_path.parent, [Path(data_path.name)]
    if not data_path.exists():
        raise UserError(f"--data_path: there is no {data_path}. {hint}".rstrip())
    require_outside("--save_path", save_path, {"--data_path": data_path})
    return data_path, images_in(data_path, "--data_path", hint)


# --- reading -------------------------------------------------------------------------------------------------------


def size_text(size: Sequence[int]) -> str:
    """(height, width, ...) as people write it, width first."""
    return f"{size[1]}x{size[0]}"


def _unreadable(path: Path, error: Exception) -> Exception:
    if isinstance(error, MemoryError):  # the image may be fine
        return error
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{path}: no such file")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ImageError(f"{path}: can't be read as an image ({reason}); replace or remove the file")


def image_format(path: Path) -> tuple[int, int, type]:
    """Height, width and pixel type that ``read_image`` gives, from the header only. ImageError: it can't be read."""
    try:
        with Image.open(path, formats=list(_WRITTEN)) as image:
            return _format(image)
    except Exception as error:  # Pillow raises many kinds for broken headers
        raise _unreadable(path, error) from None


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the whole image
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _format(image: Image.Image) -> tuple[int, int, type]:
    # 16 bits a channel, without a sign; in a BMP they are those of a whole pixel.
    deep = image.format != "BMP" and any(re.search(r";16[BLN]?\b", str(tile[3])) for tile in image.tile)
    width, height = image.size
    if image.format == "TIFF":  # newer versions of Pillow turn this size by themselves, older ones do not
        width, height = image.tag_v2[256], image.tag_v2[257]
        deep = 16 in image.tag_v2.get(258, ()) and image.mode != "I"  # tiles of a plane do not say it; "I" has a sign
    if _orientation(image) in (5, 6, 7, 8):
        height, width = width, height
    return height, width, np.uint16 if deep else np.uint8


def read_image(path: Path, ground: int = WHITE) -> np.ndarray:
    """Decode a whole image to sRGB; grey is repeated, EXIF orientation applied, transparent parts lie on ``ground``.

    Args:
        ground: WHITE, or BLACK for pictures of rain, in which black is nothing.

    Returns:
        (H, W, 3) array, uint8, or uint16 where the file has 16 bits a channel.

    Raises:
        ImageError: the file is missing, truncated, not an image, or not of 8 or 16 bits.
    """
    return in_srgb(*read_stored(path, ground))


def read_stored(path: Path, ground: int = WHITE) -> tuple[np.ndarray, bytes | None]:
    """``read_image`` in the colours of the file, and the ICC profile that tells which these are; None for sRGB.

    What is made of this image alone keeps both. Images of print or of grey, with a profile, come in sRGB.
    """
    try:
        with Image.open(path, formats=list(_WRITTEN)) as image:
            turned = _orientation(image) != 1  # by the header alone, as ``image_format`` says it
            profile, alpha = image.info.get("icc_profile"), None
            if image.format in ("TIFF", "PNG", "WEBP") and image.is_animated:  # behind a JPEG, no program shows it
                warn_once(f"{path} holds several pictures; only the first is read", f"{path}")
            if _format(image)[2] == np.uint16:
                pixels, alpha = _deep(image, path, turned)
                profile = _fitting(path, profile, ["RGB"])[0]
            elif image.mode[0] in "IF":
                raise ValueError(f"{image.mode} pixels are neither 8 nor 16 bits; save it as PNG")
            else:
                image.load()  # the whole file, before convert could take a part of it
                image = ImageOps.exif_transpose(image) if turned else image
                if image.has_transparency_data:
                    alpha = np.asarray(image.convert("RGBA"))[..., 3:]
                plain = image.convert({"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB"))
                profile, transform = _fitting(path, profile, [plain.mode, "RGB"])
                converted = ImageCms.applyTransform(plain, transform) if transform else plain.convert("RGB")
                pixels = np.asarray(converted)
        if alpha is not None and (alpha < np.iinfo(alpha.dtype).max).any():
            colour = "black" if ground == BLACK else "white"
            warn_once(f"{path}: transparent parts become {colour}; so do those of other images", colour)
            pixels = _on(ground, pixels, alpha)
        return np.ascontiguousarray(pixels), profile
    except Exception as error:  # Pillow raises many kinds for broken files
        raise _unreadable(path, error) from None


def _deep(image: Image.Image, path: Path, turned: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """The colours (H, W, 3) of an image of 16 bits, and its alpha channel (H, W, 1), if it has one."""
    is_transparent = image.has_transparency_data and "RGB" in image.mode
    if image.format == "TIFF":  # where 0 is white, in planes, or multiplied with alpha: OpenCV would not notice
        plain = image.tag_v2.get(262) in (1, 2) and image.tag_v2.get(284) != 2
        if not plain or "RGBa" in str(image.tile):
            raise ValueError("a rare kind of TIFF of 16 bits; save it as PNG")
    if turned and is_transparent:
        raise ValueError("of 16 bits, transparent and turned; save it upright")
    how = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    how = cv2.IMREAD_UNCHANGED if is_transparent else how if turned else how | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), how)  # imread itself can't open every name on every system
    if pixels is None:
        raise ValueError("a damaged image of 16 bits")
    return pixels[..., 2::-1], pixels[..., 3:] if is_transparent else None


def _on(ground: int, pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) with an alpha channel (H, W, 1), both uint8 or uint16, on a ground of one level, 0 or 255."""
    top = np.iinfo(pixels.dtype).max
    weight = alpha.astype(np.uint32)
    return ((pixels * weight + ground // 255 * top * (top - weight) + top // 2) // top).astype(pixels.dtype)


# --- colours -------------------------------------------------------------------------------------------------------


@functools.lru_cache(16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of an ICC profile to sRGB, for a mode of Pillow; None where they are the same.

    Raises:
        PyCMSError: the profile is damaged, or not one of such images.
    """
    source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
    if mode == "RGB":
        levels = range(0, 256, 15)
        colours = Image.fromarray(np.array([[*itertools.product(levels, levels, levels)]], np.uint8))
        change = np.subtract(ImageCms.applyTransform(colours, transform), colours, dtype=int)
        transform = transform if np.abs(change).max() > ROUNDED else None
    return transform


def _fitting(
    path: Path, profile: bytes | None, modes: Sequence[str]
) -> tuple[bytes | None, ImageCms.ImageCmsTransform | None]:
    """A profile that an RGB image can keep; or None, and the transform to sRGB for an image of another mode."""
    for mode in modes if profile else ():
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # in turn for another mode, for no profile
            transform = _to_srgb(profile, mode)
            return (profile, None) if mode == "RGB" else (None, transform)
    if profile:
        warn_once(f"{path}: its colour profile can't be used; colours are read as sRGB", f"profile of {path}")
    return None, None


def in_srgb(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Colours of ``read_stored`` in sRGB: (H, W, 3) uint8, or uint16, which are rounded to 8 bits on the way."""
    transform = _to_srgb(profile, "RGB") if profile else None
    if transform is None:
        return pixels
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(to_eight_bits(pixels)), transform))
    return widened(converted) if pixels.dtype == np.uint16 else converted


# --- pixels and writing --------------------------------------------------------------------------------------------


def to_float(pixels: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """uint8 or uint16 pixels to floats in [0, 1] (8-bit pixels over 255, 16-bit ones over 65535)."""
    return pixels.astype(dtype) / dtype(np.iinfo(pixels.dtype).max)


def to_uint8(values: np.ndarray, rounding: str = "truncate") -> np.ndarray:
    """Floats, clamped to [0, 1], to uint8; ``rounding``: 'truncate' (as the published images were) or 'nearest'."""
    scaled = np.clip(values, 0, 1) * 255
    return (scaled if rounding == "truncate" else np.rint(scaled)).astype(np.uint8)


def to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels as they are, uint16 ones rounded to uint8."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def widened(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels as uint16 ones, 255 as 65535; uint16 ones as they are."""
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * np.uint16(257)


def half_of(pixels: np.ndarray, half: str) -> np.ndarray:
    """The 'left' or 'right' half of (H, W, 3) pixels, W // 2 px wide; all of them for ''."""
    width = pixels.shape[1] // 2
    return {"left": pixels[:, :width], "right": pixels[:, -width:], "": pixels}[half]


def crop_at(place: tuple[float, float], height: int, width: int, p: int) -> tuple[slice, slice]:
    """Rows and columns of a crop of p px, from a place in [0, 1) x [0, 1); the last ones are reached (T8)."""
    row, column = int(place[0] * (height - p + 1)), int(place[1] * (width - p + 1))
    return slice(row, row + p), slice(column, column + p)


def planes(rainy: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Two (H, W, 3) arrays as one (6, H, W), of the deeper type of the two; the values in [0, 1] stay the same."""
    if rainy.dtype != clean.dtype:
        rainy, clean = widened(rainy), widened(clean)
    both = np.empty((6, *rainy.shape[:2]), rainy.dtype)  # np.concatenate would keep the order of the axes in memory
    both[:3], both[3:] = rainy.transpose(2, 0, 1), clean.transpose(2, 0, 1)
    return both


def write_image(path: Path, pixels: np.ndarray, profile: bytes | None = None) -> None:
    """Write (H, W, 3) uint8 RGB in the format of the name's ending: all lossless, but JPEG (quality 95, 4:4:4).

    The file appears whole or not at all; folders are created.

    Args:
        profile: ICC profile that tells which colours these are, see ``read_stored``; a BMP can't hold one.

    Raises:
        UserError: the folder can't be written to, or the disk is full.
    """
    encoded = io.BytesIO()  # not into the file itself: on a full disk Pillow may end without an error
    kind = Image.registered_extensions()[Path(path).suffix.lower()]
    Image.fromarray(pixels).save(encoded, kind, icc_profile=profile, **_WRITTEN[kind])
    write_bytes(path, encoded.getvalue())
