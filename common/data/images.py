"""Read and write RGB images: any common format in, EXIF orientation applied, whole files only.

Pillow decodes, because it notices truncated files; OpenCV decodes the 16-bit ones, which Pillow would cut to 8 bits.
"""

import contextlib
import hashlib
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from .. import distributed
from ..errors import UserError
from ..files import write_bytes
from ..terminal import printable, printable_lines

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
MOST_PIXELS, LONGEST_SIDE = 2 * 89_478_485, 2**16  # of an image; the first is where Pillow stops, too
LARGEST_TILE = 2**26  # px of a TIFF's tiles
_ORIENTATION, _TILE = 274, (322, 323)  # tags of EXIF and TIFF
_TURN = {  # EXIF orientation -> the upright array
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
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
    digits = "0123456789"  # not isdigit, which takes superscripts for digits

    def key(token: str) -> tuple[int, int, str]:
        number = token.lstrip("0")  # not int, which takes 4300 digits at most
        return (0, len(number), number) if token[0] in digits else (1, 0, token)

    return [[key(token) for token in re.split("([0-9]+)", part) if token] for part in Path(path).parts]


def list_images(folder: Path) -> tuple[list[Path], int]:
    """All images below a folder, sub-folders and symbolic links included, in natural order.

    Returns:
        The paths relative to the folder, and the number of other files (hidden ones count as other).

    Raises:
        ImageError: a sub-folder can't be read.
    """
    images, others, seen = [], 0, set()

    def unreadable(error: OSError) -> None:
        raise ImageError(f"{error.filename}: this folder can't be read ({error.strerror})") from None

    for current, subfolders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        subfolders.sort()  # of two links to one folder the first by name counts
        real = os.path.realpath(current)
        if real in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add(real)
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                images.append(Path(current, name).relative_to(folder))
            else:
                others += 1
    return sorted(images, key=natural_key), others


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
        folder, names, others = data_path.parent, [Path(data_path.name)], 0
        if save_path.resolve() == folder.resolve():
            raise UserError(f"--save_path: {save_path} is the folder of the input; choose another one")
        return folder, names, others
    if not data_path.is_dir():
        raise UserError(f"--data_path: there is no {data_path}. {hint}".rstrip())
    if save_path.resolve().is_relative_to(data_path.resolve()):
        raise UserError(
            f"--save_path: {save_path} is the input folder or lies in it; choose a folder outside {data_path}"
        )
    names, others = list_images(data_path)
    if not names:
        raise UserError(f"--data_path: no image (PNG, JPEG, BMP, WebP, TIFF) in {data_path}. {hint}".rstrip())
    digest = hashlib.sha256("\n".join(map(str, names)).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    distributed.require_same("--data_path", f"{len(names)} images, {digest}")
    return data_path, names, others


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image of which the header is read; what goes wrong within, whatever Pillow calls it, is an ImageError."""
    what = "read as an image"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{path}: is no file (a folder, pipe or device)")
        _check_canvas(path)
        with Image.open(path, formats=_FORMATS) as image:
            _check_size(path, *image.size)
            _check_tiles(path, image)
            what = "decoded"
            yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except PermissionError:
        raise ImageError(f"{path}: may not be read; check its permissions") from None
    except Image.DecompressionBombError as error:
        found = int(re.search(r"\d+", str(error))[0])
        raise ImageError(f"{path}: {_too_large(found)}") from None
    except MemoryError:
        raise ImageError(f"{path}: does not fit into memory; scale it down first") from None
    except Exception as error:  # Pillow raises many kinds on broken headers
        raise ImageError(f"{path}: can't be {what} ({_short(error)}); replace or remove the file") from None


def _too_large(pixels: int) -> str:
    size = f"{pixels / 1e6:.0f} megapixels, up to {MOST_PIXELS / 1e6:.0f} are read"
    return f"too large to be a photo ({size}); scale it down first"


def _check_size(path: Path, width: int, height: int) -> None:
    """Refuse sizes for which decoders take very much memory, or in long rows time."""
    if width * height > MOST_PIXELS:
        raise ImageError(f"{path}: {_too_large(width * height)}")
    if max(width, height) > LONGEST_SIDE:
        raise ImageError(f"{path}: has {width}x{height} px, sides up to {LONGEST_SIDE} px are read; cut it into parts")


def _check_canvas(path: Path) -> None:
    """Look at the size of an extended WebP, for which Pillow takes the memory when it opens it."""
    with open(path, "rb") as file:
        head = file.read(30)
    if head[8:16] == b"WEBPVP8X":
        _check_size(path, *(int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27)))


def _check_tiles(path: Path, image: Image.Image) -> None:
    """Refuse a TIFF in tiles that are larger than any program makes them: a decoder takes the memory of a whole one."""
    if image.format == "TIFF":
        width, height = (image.tag_v2.get(tag, side) for tag, side in zip(_TILE, image.size, strict=True))
        if width * height > max(math.prod(image.size), LARGEST_TILE):
            tiles = f"{width}x{height} px in a picture of {size_text(image.size[::-1])} px"
            raise ImageError(f"{path}: has tiles of {tiles}, up to {LARGEST_TILE} px are read; save it anew")


def _short(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    if "cannot identify" in text:
        return "not a PNG, JPEG, BMP, WebP or TIFF of 8 or 16 bits"
    if "MAX_TEXT" in text:
        return (
            f"its texts or colour profile have more than {PngImagePlugin.MAX_TEXT_CHUNK} bytes, which are read at most"
        )
    return text.splitlines()[0]


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
    deep = _is_deep(image)  # before anything loads the pixels
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


def _is_deep(image: Image.Image) -> bool:
    """Whether it has 16 bits a channel, without a sign; in a BMP 16 bits are those of a whole pixel."""
    return image.format != "BMP" and any(re.search(r";16[BLN]?\b", str(tile[3])) for tile in image.tile)


def has_alpha(path: Path) -> bool:
    """Whether an image has transparency, from the header only.

    Raises:
        ImageError: the header can't be read.
    """
    with _opened(path) as image:
        return image.has_transparency_data


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking would decode the whole image
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF data is no reason to refuse the picture
        return 1
    return value if value in _TURN else 1


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
        orientation = _orientation(image)
        if kind == np.uint16:
            pixels = _read_16_bit(path, image.format, orientation)
        elif image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ImageError(f"{path}: {image.mode} pixels are neither 8 nor 16 bits; convert the file")
        else:
            image.load()
            turned = ImageOps.exif_transpose(image) if image.format == "TIFF" else image  # a TIFF knows what is left
            pixels = np.asarray(turned if turned.mode == "RGB" else turned.convert("RGB"))
            if image.format != "TIFF":
                pixels = np.ascontiguousarray(_upright(pixels, orientation))
        if (
            pixels.shape != (height, width, 3) or pixels.dtype != kind
        ):  # two decoders may read a broken file differently
            found = f"{size_text(pixels.shape)} px of {pixels.dtype}, its header says {width}x{height}"
            raise ImageError(f"{path}: has {found} of {np.dtype(kind)}; replace or remove the file")
        return pixels


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return _TURN[orientation](pixels) if orientation in _TURN else pixels


def _read_16_bit(path: Path, kind: str, orientation: int) -> np.ndarray:
    data = np.fromfile(path, np.uint8)  # imread itself can't open every name on every system
    if kind == "PNG":
        _check_chunks(data)
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ImageError(f"{path}: can't be decoded; replace or remove the file")
    if kind == "TIFF":
        if orientation >= 5:
            raise ImageError(f"{path}: a 16-bit TIFF that lies on its side (EXIF); save it upright, or as PNG")
        orientation = 1  # OpenCV flips TIFFs itself, whatever the flag says
    return np.ascontiguousarray(_upright(pixels[..., ::-1], orientation))


def _check_chunks(data: np.ndarray) -> None:
    """Refuse a PNG in which a chunk claims more bytes than there are: OpenCV would take the memory for them.

    Raises:
        ValueError: one does.
    """
    at = 8
    while at + 8 <= len(data):
        length, name = int.from_bytes(data[at : at + 4].tobytes(), "big"), data[at + 4 : at + 8].tobytes()
        if at + 12 + length > len(data):
            raise ValueError(f"its part {name!r} claims {length} bytes, {max(len(data) - at - 12, 0)} are there")
        at += 12 + length
        if name == b"IEND":
            return


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
    if pixels.dtype == np.uint8:
        return pixels
    eight = np.empty(pixels.shape, np.uint8)
    for i in range(0, len(pixels), 256):  # in parts, for the memory
        eight[i : i + 256] = (pixels[i : i + 256].astype(np.uint32) + 128) // 257
    return eight


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB in the format of the name's ending: all lossless, but JPEG (quality 95, 4:4:4).

    The file appears whole or not at all; folders are created.

    Raises:
        UserError: the folder can't be written to, the disk is full, or the format has no room for such a picture.
    """
    encoded = io.BytesIO()  # not into the file itself: on a full disk Pillow leaves out ends unsaid
    options = {
        ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
        ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
        ".webp": {"format": "WEBP", "lossless": True},
        ".tif": {"format": "TIFF", "compression": "tiff_deflate"},
        ".tiff": {"format": "TIFF", "compression": "tiff_deflate"},
        ".bmp": {"format": "BMP"},
        ".png": {"format": "PNG", "compress_level": 4},
    }[Path(path).suffix.lower()]
    try:
        Image.fromarray(pixels).save(encoded, **options)
    except (OSError, ValueError) as error:  # a side too long for the format
        raise UserError(f"{path}: can't be written ({error}); choose another format") from None
    write_bytes(path, encoded.getvalue())
