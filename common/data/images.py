"""Read and write RGB images: any common format in, EXIF orientation applied, whole files only.

Pillow decodes, because it notices truncated files; OpenCV decodes the 16-bit ones, which Pillow would cut to 8 bits.
"""

import contextlib
import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from .. import distributed
from ..errors import UserError
from ..files import write_bytes
from ..terminal import printable, printable_lines

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
NO_IMAGE = "no image (PNG, JPEG, BMP, WebP, TIFF)"
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_ORIENTATION = 274  # tag of EXIF
_JPEG, _TIFF = {"format": "JPEG", "quality": 95, "subsampling": 0}, {"format": "TIFF", "compression": "tiff_deflate"}
_WRITTEN = {  # ending -> options of Pillow
    ".png": {"format": "PNG", "compress_level": 4},
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": {"format": "WEBP", "lossless": True},
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": {"format": "BMP"},
}

warnings.filterwarnings("ignore", module="PIL")  # of broken files, one message is enough
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class ImageError(UserError):
    """An image that can't be read: the message, one line without control characters, names the file and the remedy."""

    def __init__(self, text: str) -> None:
        traceback = text.startswith("Caught ")  # of a worker, by DataLoader
        super().__init__(printable_lines(text) if traceback else printable(text))


def natural_key(path: str | Path) -> list:
    """Sort key under which 2.png comes before 10.png (T12); folders compare part by part."""
    return [
        [int(token) if i % 2 else token for i, token in enumerate(re.split("([0-9]+)", part))]
        for part in Path(path).parts
    ]


def list_images(folder: Path) -> tuple[list[Path], int]:
    """All images below a folder, sub-folders and symbolic links included, in natural order.

    Returns:
        The paths relative to the folder, and the number of other files (hidden ones count as other).

    Raises:
        ImageError: a sub-folder can't be read.
    """
    images, others, visited = [], 0, set()

    def unreadable(error: OSError) -> None:
        raise ImageError(f"{error.filename}: this folder can't be read ({error.strerror}); check its rights") from None

    for current, subfolders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        subfolders.sort()  # of two links to one folder the first by name counts
        real = os.path.realpath(current)
        if real in visited:  # a link that leads back
            subfolders.clear()
            continue
        visited.add(real)
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                images.append(Path(current, name).relative_to(folder))
            else:
                others += 1
    return sorted(images, key=natural_key), others


def images_in(folder: Path, flag: str, hint: str = "") -> list[Path]:
    """The images of a folder that a flag names, see ``list_images``.

    Raises:
        UserError: the folder is missing or holds no image; ``hint`` says what belongs there.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{flag}: {folder} is not a folder. {hint}".rstrip())
    images = list_images(Path(folder))[0]
    if not images:
        raise UserError(f"{flag}: {NO_IMAGE} in {folder}. {hint}".rstrip())
    return images


def inputs(data_path: Path, save_path: Path, hint: str) -> tuple[Path, list[Path], int]:
    """The images that --data_path names, a folder or one image; results must not land among them.

    Args:
        hint: what belongs there and where it comes from, for the message when it is missing.

    Returns:
        Their folder, their paths in it in natural order, the number of other files.

    Raises:
        UserError: there are none, or --save_path is their folder or lies in it; or processes that share the images see
            different ones.
    """
    if save_path.exists() and not save_path.is_dir():
        raise UserError(f"--save_path: {save_path} is a file; name a folder")
    if data_path.is_file():
        if data_path.suffix.lower() not in EXTENSIONS:
            raise UserError(f"--data_path: {data_path} is not an image ({', '.join(EXTENSIONS)})")
        if save_path.resolve() == data_path.parent.resolve():
            raise UserError(f"--save_path: {save_path} is the folder of the input; choose another one")
        return data_path.parent, [Path(data_path.name)], 0
    if not data_path.is_dir():
        raise UserError(f"--data_path: there is no {data_path}. {hint}".rstrip())
    if save_path.resolve().is_relative_to(data_path.resolve()):
        raise UserError(
            f"--save_path: {save_path} is the input folder or lies in it; choose a folder outside {data_path}"
        )
    names, others = list_images(data_path)
    if not names:
        raise UserError(f"--data_path: {NO_IMAGE} in {data_path}. {hint}".rstrip())
    digest = hashlib.sha256("\n".join(map(str, names)).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    distributed.require_same("--data_path", f"{len(names)} images, {digest}")
    return data_path, names, others


# --- reading -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image of which the header is read; whatever Pillow raises within becomes an ImageError."""
    what = "read as an image"
    try:
        with Image.open(path, formats=_FORMATS) as image:
            what = "decoded"
            yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Image.DecompressionBombError as error:
        pixels, most = (int(number) / 1e6 for number in re.findall(r"\d+", str(error))[:2])
        size = f"{pixels:.0f} megapixels, up to {most:.0f} are read"
        raise ImageError(f"{path}: too large to be a photo ({size}); scale it down first") from None
    except MemoryError:
        raise ImageError(f"{path}: does not fit into memory; scale it down first") from None
    except Exception as error:  # Pillow raises many kinds for broken headers
        text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        text = "not a PNG, JPEG, BMP, WebP or TIFF of 8 or 16 bits" if "cannot identify" in text else text
        raise ImageError(f"{path}: can't be {what} ({text.splitlines()[0]}); replace or remove the file") from None


def size_text(size: Sequence[int]) -> str:
    """(height, width) as people write it, width first."""
    return f"{size[1]}x{size[0]}"


def image_format(path: Path) -> tuple[int, int, type]:
    """Height, width and pixel type of an image as ``read_image`` gives it, from the header only.

    Raises:
        ImageError: the header can't be read.
    """
    with _opened(path) as image:
        return _format(image)


def _format(image: Image.Image) -> tuple[int, int, type]:
    # 16 bits a channel, without a sign; in a BMP they are those of a whole pixel.
    deep = image.format != "BMP" and any(re.search(r";16[BLN]?\b", str(tile[3])) for tile in image.tile)
    width, height = image.size
    if image.format == "TIFF":  # newer versions of Pillow turn this size by themselves, older ones do not
        width, height = image.tag_v2[256], image.tag_v2[257]
    if _orientation(image) >= 5:
        height, width = width, height
    return height, width, np.uint16 if deep else np.uint8


def image_size(path: Path) -> tuple[int, int]:
    """(height, width), see ``image_format``.

    Raises:
        ImageError: the header can't be read.
    """
    return image_format(path)[:2]


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the whole image
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF data is no reason to refuse the picture
        return 1
    return value if value in range(1, 9) else 1


def read_image(path: Path) -> np.ndarray:
    """Decode a whole image to RGB; grey is repeated, alpha dropped, EXIF orientation applied.

    Returns:
        (H, W, 3) array, uint8, or uint16 where the file has 16 bits a channel.

    Raises:
        ImageError: the file is missing, truncated, not an image, of another depth, or not of the size that its header
            says.
    """
    with _opened(path) as image:
        height, width, kind = _format(image)
        if kind == np.uint16:
            pixels = _read_16_bit(path, image)
        elif image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ImageError(f"{path}: {image.mode} pixels are neither 8 nor 16 bits; convert the file")
        else:
            turned = _orientation(image) > 1
            image.load()
            upright = ImageOps.exif_transpose(image) if turned else image
            pixels = np.asarray(upright.convert("RGB"))
        if pixels.shape != (height, width, 3) or pixels.dtype != kind:  # the two decoders may disagree
            decoded = f"{size_text(pixels.shape)} px of {pixels.dtype}, its header says {width}x{height}"
            raise ImageError(f"{path}: has {decoded} of {np.dtype(kind)}; replace or remove the file")
        return pixels


def _read_16_bit(path: Path, image: Image.Image) -> np.ndarray:
    if image.format == "TIFF" and _orientation(image) >= 5:  # which OpenCV does not turn
        raise ImageError(f"{path}: a 16-bit TIFF that lies on its side (EXIF); save it upright, or as PNG")
    data = np.fromfile(path, np.uint8)  # imread itself can't open every name on every system
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if pixels is None:
        raise ImageError(f"{path}: can't be decoded; replace or remove the file")
    return np.ascontiguousarray(pixels[..., ::-1])


# --- pixels and writing --------------------------------------------------------------------------------------------


def to_float(pixels: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """uint8 or uint16 pixels to floats in [0, 1] (8-bit pixels over 255, 16-bit ones over 65535)."""
    return pixels.astype(dtype) / dtype(np.iinfo(pixels.dtype).max)


def to_uint8(values: np.ndarray, rounding: str = "truncate") -> np.ndarray:
    """Floats, clamped to [0, 1], to uint8.

    Args:
        rounding: 'truncate' (floor(255 x), how the published images were made) or 'nearest'.
    """
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


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB in the format of the name's ending: all lossless, but JPEG (quality 95, 4:4:4).

    The file appears whole or not at all; folders are created.

    Raises:
        UserError: the folder can't be written to, the disk is full, or the format has no room for such a picture.
    """
    encoded = io.BytesIO()  # not into the file itself: on a full disk Pillow may end without an error
    try:
        Image.fromarray(pixels).save(encoded, **_WRITTEN[Path(path).suffix.lower()])
    except (OSError, ValueError) as error:  # a side too long for the format
        raise UserError(f"{path}: can't be written ({error}); choose another format") from None
    write_bytes(path, encoded.getvalue())
