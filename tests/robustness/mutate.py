"""Inputs for fuzz.py: small good files of every kind that the project reads, and functions that damage them.

All images are computed. A result depends on the numpy Generator alone.
"""

import csv
import io
import os
import pickle
import struct
import zlib

import cv2
import numpy as np
import torch
from PIL import Image

from common.models import Derain, Discriminator, EDNet, PReNet
from tests.conftest import photo

# Names that are odd for one reason each; without NUL and slash, so that they can be file names.
ODD = [
    "a b", "-rf", "--data_path", "=1+1", "+1", "@SUM(A1)", "'=1", "a\tb", "a\nb", "a\r\nb", "<b>&\"'", "$x^{$", "%s%n",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202egnp.exe", "\u200b", "\ud800", "\udcff\udcfe", "é", "e\u0301",
    "\u96e8", "\U0001f327", "CON", "..", "...", "a.", ".a", "~", "*", "?", "a;b", "a|b", "a\\b", "C:x", "n" * 240,
    "\u96e8" * 80, "1" * 200, "x.png", "X.PNG", "x.jpg", "{0}", "None", "nan", "\x7f", "\u2028", "a,b", "#x", "\x85",
]  # fmt: skip
NUMBERS = [
    "0", "1", "-1", "2", "1e3", "0x10", "1_0", " 7 ", "١٢", "²", "nan", "inf", "-inf", "1e999", "1e-999", "-0", "",
    "3.5", "2147483648", "9" * 30, "9" * 5000, "true", "1/2", "1,2", "+3", "½",
]  # fmt: skip
VALUES = [
    None, True, -1, 0, 1, 1e308, float("nan"), float("inf"), "", "x", "\x1b[31m", [], {}, [[]], [1], ["x", 2],
    {"a": 1}, [0.1] * 4, "9" * 5000, [None] * 4, {"": None}, 1000000, "../../x",
]  # fmt: skip
PATHS = ["../x.png", "/etc/passwd", "C:\\x.png", "a/../../b", "#", "", "a" * 300, "\\", "a/" * 3000]


def odd(rng: np.random.Generator) -> str:
    """One of the odd names, or two of them joined."""
    return "".join(ODD[k] for k in rng.integers(len(ODD), size=1 + (rng.random() < 0.3)))[:240]


def damaged(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """A file with one to three damages: flipped bits, wrong numbers, a cut, repeated bytes, the end of another file."""
    buffer = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not buffer:
            break
        at, near = int(rng.integers(len(buffer))), int(rng.integers(len(buffer), size=3).min())  # often in the header
        length = int(rng.integers(1, 64))
        way = rng.integers(7)
        if way == 0:
            buffer[at] ^= 1 << int(rng.integers(8))
        elif way == 1:
            buffer[near : near + length] = rng.bytes(min(length, len(buffer) - near))
        elif way == 2:
            del buffer[at:]
        elif way == 3:
            size = int(rng.choice([1, 2, 4, 8]))
            value = int(rng.choice([0, 1, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**24, 100_000, int(rng.integers(2**32))]))
            buffer[near : near + size] = (value % 256**size).to_bytes(size, str(rng.choice(["little", "big"])))
        elif way == 4 and other:
            buffer[at:] = other[int(rng.integers(len(other))) :]
        elif way == 5:
            buffer[at:at] = buffer[at : at + length] * int(rng.integers(1, 20))
        else:
            del buffer[at : at + length]
    return bytes(buffer)


# --- images --------------------------------------------------------------------------------------------------------


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    """A picture as the bytes of a file."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def good_images() -> list[bytes]:
    """Small images of every format and mode that the project reads."""
    plain, exif = Image.fromarray(photo(20, 24, 0)), Image.Exif()
    exif[274] = 6
    modes = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "WEBP": ("RGB", "RGBA")}
    modes |= {"BMP": ("1", "L", "P", "RGB", "RGBA"), "TIFF": ("1", "L", "P", "RGBA", "CMYK", "LAB", "I", "F", "I;16")}
    images = [encoded(plain.convert(mode), kind, exif=exif) for kind, names in modes.items() for mode in names]
    images += [encoded(plain, "JPEG", progressive=True, icc_profile=b"x" * 300)]
    images += [encoded(plain, "WEBP", save_all=True, append_images=[Image.fromarray(photo(20, 24, 1))])]
    images += [encoded(plain, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
    for kind in ("png", "tiff"):
        images += [
            cv2.imencode(f".{kind}", photo(20, 24, 2)[..., :n].astype(np.uint16) * 257)[1].tobytes() for n in (1, 3)
        ]
    return images


def png_of_size(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG whose header has any size; it holds no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# --- lists, tables, JSON ---------------------------------------------------------------------------------------------


def spa_list(rng: np.random.Generator) -> bytes:
    """A real_world.txt, right or wrong."""
    lines = []
    for _ in range(int(rng.integers(1, 6))):
        words = ["rain/8.png", "norain/8.png"]
        if rng.random() < 0.4:
            words[rng.integers(2)] = odd(rng) if rng.random() < 0.5 else str(rng.choice(PATHS))
        lines.append(" ".join(words * int(rng.choice([1, 1, 1, 1, 1, 2]))))
    end = str(rng.choice(["\n", "\r\n", "\r", "\n\n", "\v"]))
    data = end.join(lines).encode(str(rng.choice(["utf-8"] * 9 + ["utf-16"])), "surrogatepass")
    return damaged(data, rng) if rng.random() < 0.3 else data


def changed(value: object, rng: np.random.Generator, values: list = VALUES) -> object:
    """A nested value with one thing in it replaced or taken out."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: changed(value[key], rng, values)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = int(rng.integers(len(value)))
        return [*value[:at], *([changed(value[at], rng, values)] if rng.random() < 0.8 else []), *value[at + 1 :]]
    if isinstance(value, (int, float)) and abs(value) < 1e300 and rng.random() < 0.5:
        return value * float(rng.choice([-1, 0, 0.999, 1e6, 1e300]))
    return values[rng.integers(len(values))]


def as_csv(rows: list[list[str]], rng: np.random.Generator) -> bytes:
    """Rows as a CSV with odd cells, cut or longer rows, an open quote, or damaged bytes."""
    rows = [list(row) for row in rows]
    for _ in range(int(rng.integers(0, 4))):
        row = rows[rng.integers(len(rows))]
        if row:
            row[rng.integers(len(row))] = odd(rng) if rng.random() < 0.5 else str(rng.choice([*NUMBERS, *PATHS]))
        way = rng.integers(6)
        if way == 0:
            del row[int(rng.integers(len(row) + 1)) :]
        elif way == 1:
            row.append("more")
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    data = out.getvalue().encode("utf-8", "surrogatepass")
    data = {0: data + b'"open\n' + data, 1: b"\xef\xbb\xbf" + data}.get(int(rng.integers(12)), data)
    return damaged(data, rng) if rng.random() < 0.3 else data


# --- checkpoints -----------------------------------------------------------------------------------------------------


def saved(value: object, zipped: bool = True) -> bytes:
    """A value in the new (zip) or old file format of torch.save."""
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def small_nets() -> dict[str, torch.nn.Module]:
    """A small network of every kind, as ``load_weights`` names them."""
    return {"joint": Derain(1), "augmented": PReNet(1), "ED": EDNet(3, 4, 2, 16), "D": Discriminator(16, 4)}


ODD_TENSORS = [
    None, 1, "x", [], {}, torch.ones(2), torch.zeros(0), torch.eye(3).to_sparse(), torch.zeros(2, 3, 4, 4, 5),
    torch.tensor(float("nan")), torch.zeros(3, 3, dtype=torch.complex64), (1,), b"x",
]  # fmt: skip


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def code_pickles() -> dict[str, bytes]:
    """Checkpoints that would print 'ran' when Python unpickles them, in every form that torch.load knows."""
    attack = Runs(os.system, "echo ran")
    values = {"plain": attack, "nested": {"state": [{"deep": (attack,)}], "x": torch.zeros(2)}}
    files = {f"{name}_{form}": saved(v, form == "zip") for name, v in values.items() for form in ("zip", "old")}
    return files | {"bare": pickle.dumps(attack), "module": saved(torch.nn.Linear(1, 1))}
