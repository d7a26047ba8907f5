"""Pictures to look at: labelled rows and sheets, strips without text, animated GIFs. All arrays are uint8 RGB."""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import write_bytes

GAP, LABEL = 6, 22  # px


def row(images: Sequence[np.ndarray], labels: Sequence[str], width: int) -> np.ndarray:
    """Images of equal height side by side, centred in ``width`` px, a line of text above each.

    Args:
        images: (H, W_i, 3) uint8.
        labels: as many as images; empty ones for none.

    Returns:
        (H + 22, width, 3) uint8, white where nothing is.
    """
    height = max(image.shape[0] for image in images)
    sheet = Image.new("RGB", (width, height + LABEL), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    x = (width - sum(image.shape[1] for image in images) - GAP * (len(images) - 1)) // 2
    for image, label in zip(images, labels, strict=True):
        draw.text((x, 3), label, "black", font)
        sheet.paste(Image.fromarray(image), (x, LABEL))
        x += image.shape[1] + GAP
    return np.asarray(sheet)


def sheet(rows: Sequence[tuple[Sequence[np.ndarray], Sequence[str]]]) -> np.ndarray:
    """Rows of (images, labels) below each other; see ``row``."""
    width = max(sum(image.shape[1] + GAP for image in images) for images, _ in rows) + GAP
    return np.concatenate([row(images, labels, width) for images, labels in rows])


def strip(images: Sequence[np.ndarray], gap: int, axis: int = 1) -> np.ndarray:
    """Images of one size side by side (axis 1) or below each other (axis 0), with ``gap`` white px between them."""
    between = list(images[0].shape)
    between[axis] = gap
    white = np.full(between, 255, np.uint8)
    parts = [part for image in images for part in (white, image)][1:]
    return np.concatenate(parts, axis)


def grid(images: Sequence[np.ndarray], columns: int, gap: int) -> np.ndarray:
    """Images of one size in rows of so many, with ``gap`` white px between them; see ``strip``."""
    return strip([strip(images[i : i + columns], gap) for i in range(0, len(images), columns)], gap, axis=0)


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Scaled up by a whole number, pixels repeated, so that the longer side has about ``side`` px; never down."""
    scale = max(1, round(side / max(image.shape[:2])))
    return image.repeat(scale, 0).repeat(scale, 1)


def reduced(image: np.ndarray, side: int) -> np.ndarray:
    """Scaled down so that the longer side has ``side`` px at most."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """Reduced or enlarged so that the longer side has about ``side`` px, centred in a white box that wide."""
    image = reduced(enlarged(image, side), side)
    left = (side - image.shape[1]) // 2
    return np.pad(image, ((0, 0), (left, side - image.shape[1] - left), (0, 0)), constant_values=255)


def write_gif(path: Path, frames: Sequence[np.ndarray], milliseconds: int) -> None:
    """Write an endless animation, whole or not at all; frames of one size. Equal neighbours are shown as one frame.

    Raises:
        UserError: the folder can't be written to, or the disk is full.
    """
    first, *others = (Image.fromarray(frame).quantize(256) for frame in frames)
    data = io.BytesIO()
    first.save(data, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    write_bytes(path, data.getvalue())
