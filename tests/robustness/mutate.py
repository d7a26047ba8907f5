"""What the fuzz runs are made of: seeds of every kind of file that the project reads, and ways to spoil them.

All of it is drawn or trained-free: nothing here is anybody's image. Everything depends on a numpy Generator alone.
"""

import csv
import io
import json
import os
import pickle
import struct
import zipfile
import zlib

import cv2
import h5py
import numpy as np
import torch
from PIL import Image

from common.models import Derain, Discriminator, EDNet, PReNet
from tests.conftest import photo

# Names and texts that are odd for one reason each; no NUL and no slash, so that they are file names as well.
ODD = [
    "a b", "-rf", "--data_path", "=1+1", "+1", "@SUM(A1)", "'=1", "a\tb", "a\nb", "a\r\nb", "<b>&\"'", "$x^{$", "%s%n",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "‮gnp.exe", "\u200b", "\ud800", "\udcff\udcfe", "é", "e\u0301",
    "\u96e8", "\U0001f327", "CON", "..", "...", "a.", ".a", "~", "*", "?", "a;b", "a|b", "a\\b", "C:x", "n" * 240,
    "\u96e8" * 80, "1" * 200, "x.png", "X.PNG", "x.jpg", "{0}", "None", "nan", "\x7f", "\u2028", "a,b", "#x", "\x85",
]  # fmt: skip
NUMBERS = [
    "0", "1", "-1", "2", "1e3", "0x10", "1_0", " 7 ", "١٢", "²", "nan", "inf", "-inf", "1e999", "1e-999", "-0", "",
    "3.5", "2147483648", "9" * 30, "9" * 5000, "true", "1/2", "0/0", "1,2", "1,", "NaN", "+3", "½", "4" * 19,
]  # fmt: skip


def odd(rng: np.random.Generator) -> str:
    """One of the odd names, or two of them joined."""
    text = str(rng.choice(np.array(ODD, object)))
    return text if rng.random() < 0.7 else (text + str(rng.choice(np.array(ODD, object))))[:240]


# --- bytes ---------------------------------------------------------------------------------------------------------


def spoiled(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """A file with a few things wrong: flipped bits, cut, spliced with another, numbers that lie, runs repeated."""
    buffer = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not buffer:
            break
        at = int(rng.integers(len(buffer)))
        near = int(min(rng.integers(len(buffer)), rng.integers(len(buffer)), rng.integers(len(buffer))))  # headers
        way = rng.integers(8)
        if way == 0:
            buffer[at] ^= 1 << int(rng.integers(8))
        elif way == 1:
            buffer[near] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
        elif way == 2:
            del buffer[at:]
        elif way == 3:
            size = int(rng.choice([2, 4, 8]))
            value = int(rng.choice([0, 1, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**24, 100_000, int(rng.integers(2**32))]))
            order = "little" if rng.random() < 0.5 else "big"
            buffer[near : near + size] = (value % 256**size).to_bytes(size, order)
        elif way == 4 and other:
            start = int(rng.integers(len(other)))
            buffer[at:] = other[start:]
        elif way == 5:
            length = int(rng.integers(1, 64))
            buffer[at:at] = buffer[at : at + length] * int(rng.integers(1, 20))
        elif way == 6:
            del buffer[at : at + int(rng.integers(1, 64))]
        else:
            length = min(int(rng.integers(1, 32)), len(buffer) - near)
            buffer[near : near + length] = rng.bytes(length)
    return bytes(buffer)


# --- images --------------------------------------------------------------------------------------------------------


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    """A picture as the bytes of a file."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def deep(kind: str, channels: int, seed: int) -> bytes:
    """A 16-bit PNG or TIFF."""
    pixels = photo(20, 24, seed)[..., :channels].astype(np.uint16) * 257
    return cv2.imencode(f".{kind}", pixels)[1].tobytes()


def seed_images() -> list[bytes]:
    """Small images of every format, mode and kind that the project reads."""
    plain = Image.fromarray(photo(20, 24, 0))
    exif = Image.Exif()
    exif[274] = 6
    found = [encoded(plain.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    found += [encoded(plain.convert(mode), "JPEG", exif=exif) for mode in ("L", "RGB", "CMYK")]
    found += [encoded(plain, "JPEG", progressive=True, icc_profile=b"x" * 300), encoded(plain, "PNG", exif=exif)]
    found += [encoded(plain.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")]
    found += [encoded(plain.convert(mode), "WEBP", lossless=True, exif=exif) for mode in ("RGB", "RGBA")]
    found += [encoded(plain, "WEBP", save_all=True, append_images=[Image.fromarray(photo(20, 24, 1))])]
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        found.append(encoded(plain, "TIFF", compression=compression, exif=exif))
    found += [encoded(plain.convert(mode), "TIFF") for mode in ("1", "L", "P", "RGBA", "CMYK", "LAB", "I", "F", "I;16")]
    found += [encoded(plain.convert("1"), "TIFF", compression="group4")]
    found += [deep(kind, channels, 2) for kind in ("png", "tiff") for channels in (1, 3)]
    found += [bmp_of_16_bits(), tiff_of_signed()]
    return found


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int = 8, colour: int = 2, extra: bytes = b"", data: bytes = b"") -> bytes:
    """A PNG whose header says whatever it is told; ``data`` is compressed."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bmp_of_16_bits() -> bytes:
    """A BMP with 16 bits for a pixel, 5 6 5."""
    data = np.arange(48, dtype="<u2").tobytes()
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    head = struct.pack("<IiiHHIIiiII", 40, 8, 6, 1, 16, 3, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 66 + len(data), 0, 0, 66) + head + masks + data


def tiff(tags: dict[int, tuple[int, list[int]]], data: bytes = b"") -> bytes:
    """A little-endian TIFF: tag -> (type 3 short or 4 long, values); strips are to lie at offset 8."""
    place, entries, more = 8 + len(data), [], b""
    after = place + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            entry, more = struct.pack("<I", after + len(more)), more + packed
        else:
            entry = packed.ljust(4, b"\0")
        entries.append(struct.pack("<HHI", tag, kind, len(values)) + entry)
    table = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", place) + data + table + more


def tiff_tags(width: int, height: int, bits: int = 8, channels: int = 3, **more: tuple) -> dict:
    """The tags of a TIFF in one strip; ``more`` replaces some: t339=(3, [2])."""
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [1])}
    tags |= {262: (3, [2 if channels == 3 else 1]), 273: (4, [8]), 277: (3, [channels]), 278: (4, [height])}
    tags |= {279: (4, [min(width * height * channels * bits // 8, 2**32 - 1)])}
    return tags | {int(name[1:]): value for name, value in more.items()}


def tiff_of_signed() -> bytes:
    """A TIFF of 16-bit numbers with a sign."""
    return tiff(tiff_tags(8, 6, 16, 1, t339=(3, [2])), np.arange(48, dtype="<i2").tobytes())


def liar(rng: np.random.Generator) -> bytes:
    """An image whose header speaks of a size, a depth or a length that is not there."""
    sizes = [1, 7, 20, 3000, 9000, 13000, 16383, 30000, 65535, 2**20, 2**31 - 1, 2**32 - 1]
    width, height = (int(v) for v in rng.choice(sizes, 2))
    way = rng.integers(6)
    if way == 0:
        depth, colour = int(rng.choice([1, 2, 4, 8, 16])), int(rng.choice([0, 2, 3, 4, 6]))
        extra = chunk(b"PLTE", b"abc") if rng.random() < 0.4 else b""
        return png(width, height, depth, colour, extra, bytes(int(rng.choice([0, 100, 10**6]))))
    if way == 1:
        name = [b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tEXt", b"acTL", b"tRNS"][rng.integers(7)]
        bomb = zlib.compress(bytes(int(rng.choice([100, 10**6, 8 * 10**7]))), 1)
        head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}.get(name, b"")
        depth = int(rng.choice([8, 16]))
        return png(20, 20, depth, 2, chunk(name, head + bomb), bytes(20 * (1 + 20 * 3 * depth // 8)))
    if way == 2:
        count = int(rng.choice([1, 100, 10**5]))
        bits, channels = int(rng.choice([1, 8, 16, 32])), int(rng.choice([1, 3, 4]))
        more = {
            "t273": (4, [8] * count),
            "t279": (4, [int(rng.choice([0, 10, 2**31]))] * count),
            "t278": (4, [int(rng.choice([0, 1, 2**32 - 1]))]),
            "t259": (3, [int(rng.choice([1, 5, 7, 8, 32773, 50000, 99]))]),
            "t322": (4, [int(rng.choice([0, 16, 2**30]))]),
            "t323": (4, [int(rng.choice([0, 16, 2**30]))]),
            "t339": (3, [int(rng.integers(1, 5))]),
            "t284": (3, [int(rng.integers(1, 3))]),
            "t274": (3, [int(rng.integers(0, 9))]),
        }
        more = {name: value for name, value in more.items() if rng.random() < 0.3}
        return tiff(tiff_tags(width, height, bits, channels, **more), bytes(100))
    if way == 3:
        data = bytearray(encoded(Image.fromarray(photo(20, 24, 0)), "BMP"))
        struct.pack_into("<ii", data, 18, min(width, 2**31 - 1), min(height, 2**31 - 1) * int(rng.choice([1, -1])))
        return bytes(data)
    if way == 4:
        data = bytearray(encoded(Image.fromarray(photo(20, 24, 0)), "JPEG", progressive=bool(rng.integers(2))))
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        struct.pack_into(">HH", data, at + 5, min(height, 65535), min(width, 65535))
        return bytes(data)
    head = struct.pack("<I", 10) + bytes(4) + (min(width, 2**24) - 1).to_bytes(3, "little")
    body = b"VP8X" + head + (min(height, 2**24) - 1).to_bytes(3, "little")
    body += encoded(Image.fromarray(photo(20, 24, 0)), "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


# --- lists, tables, JSON ---------------------------------------------------------------------------------------------


def spa_list(rng: np.random.Generator) -> bytes:
    """A real_world.txt, right or wrong."""
    parts = ["../x.png", "/etc/passwd", "C:\\x.png", "a/../../b", "#", "", "a" * 300, "\\", "a/" * 3000]
    lines = []
    for _ in range(int(rng.integers(1, 6))):
        words = ["rain/8.png", "norain/8.png"]
        if rng.random() < 0.4:
            words[rng.integers(2)] = odd(rng) if rng.random() < 0.5 else str(rng.choice(parts))
        lines.append(" ".join(words * int(rng.choice([1, 1, 1, 1, 1, 2]))))
    end = str(rng.choice(["\n", "\r\n", "\r", "\n\n", "\v"]))
    data = end.join(lines).encode("utf-8", "surrogatepass" if rng.random() < 0.5 else "replace")
    if rng.random() < 0.3:
        data = spoiled(data, rng)
    if rng.random() < 0.05:
        data += b"a " * 10**6
    if rng.random() < 0.1:
        data = data.decode("utf-8", "replace").encode("utf-16")
    return data


JSONS = [
    None, True, -1, 0, 1, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\x1b[31m", [], {}, [[]], [1],
    ["x", 2],
    {"a": 1}, [0.1] * 4, [[0.0] * 11] * 4, "9" * 5000, 2**63, [None] * 4, [[1, 2]] * 4, {"": None}, 1000000, "../../x",
]  # fmt: skip


def changed(value: object, rng: np.random.Generator) -> object:
    """A JSON value with one thing replaced, taken out or added, somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = int(rng.integers(len(value)))
        if rng.random() < 0.2:
            return value[:at] + value[at + 1 :]
        return [*value[:at], changed(value[at], rng), *value[at + 1 :]]
    if isinstance(value, (int, float)) and abs(value) < 1e300 and rng.random() < 0.6:
        return value * float(rng.choice([-1, 0, 0.999, 1e6, 1e300]))
    return JSONS[rng.integers(len(JSONS))]


def as_json(value: object, rng: np.random.Generator) -> bytes:
    """A value as JSON, now and then spoiled or nested without end."""
    if rng.random() < 0.03:
        return b"[" * 100_000
    data = json.dumps(value).encode()
    return spoiled(data, rng) if rng.random() < 0.2 else data


def as_csv(rows: list[list], rng: np.random.Generator) -> bytes:
    """Rows as CSV with a few cells replaced, rows cut, quotes left open, or spoiled as bytes."""
    rows = [list(row) for row in rows]
    for _ in range(int(rng.integers(0, 4))):
        row = rows[rng.integers(len(rows))]
        if row:
            row[rng.integers(len(row))] = odd(rng) if rng.random() < 0.5 else str(rng.choice(NUMBERS))
        way = rng.integers(8)
        if way == 0:
            del row[int(rng.integers(len(row) + 1)) :]
        elif way == 1:
            row += ["more"] * int(rng.integers(1, 4))
        elif way == 2:
            rows.append([])
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    data = out.getvalue().encode("utf-8", "surrogatepass")
    way = rng.integers(12)
    if way == 0:
        data += b'"open\n' + data
    elif way == 1:
        data += b"x" * 200_000
    elif way == 2:
        data = b"\xef\xbb\xbf" + data
    return spoiled(data, rng) if rng.random() < 0.3 else data


# --- checkpoints -----------------------------------------------------------------------------------------------------


def saved(value: object, zipped: bool = True) -> bytes:
    """A value as torch saves it."""
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def small_nets() -> dict[str, torch.nn.Module]:
    """A small network of every kind."""
    return {
        "joint": Derain(1),
        "augmented": PReNet(1),
        "ED": EDNet(3, 4, 2, 16),
        "D": Discriminator(16, 4),
    }


class Runs:
    """Would run a function when it is unpickled."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def repacked(data: bytes, compression: int = zipfile.ZIP_STORED, **replace: bytes) -> bytes:
    """A zip checkpoint with members replaced by their last name ('data.pkl' as data_pkl=...), or compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, replace.get(name.rpartition("/")[2].replace(".", "_"), old.read(name)))
    return out.getvalue()


def expanded(state: dict, shape: tuple[int, ...], key: str) -> dict:
    """A state dict in which one tensor is said to have any shape, with a single number behind it."""
    return state | {key: torch.zeros(1).expand(shape)}


def odd_state(rng: np.random.Generator, state: dict) -> object:
    """Something else than a state dict, or one with something odd in it."""
    keys = [key for key, value in state.items() if value.numel() < 2**20]
    key = keys[rng.integers(len(keys))]
    values = [
        None, 1, "x", [], {}, torch.zeros(0), torch.zeros(1).expand(10**5, 10**5), torch.tensor(float("nan")),
        torch.zeros(state[key].shape, dtype=torch.complex64), torch.zeros(state[key].shape, dtype=torch.int8),
        torch.full(state[key].shape, float("nan")), torch.eye(3).to_sparse(), torch.zeros(2, 3, 4, 4, 5),
        torch.zeros(state[key].shape, dtype=torch.float64), torch.nn.Parameter(torch.zeros(state[key].shape)),
    ]  # fmt: skip
    whole = [[1, 2], {0: torch.ones(1)}, torch.ones(2), "x", None, {}, {"state_dict": state}, {"vrgnet_state": 1}]
    if rng.random() < 0.25:
        return whole[rng.integers(len(whole))]
    value = values[rng.integers(len(values))]
    way = rng.integers(4)
    if way == 0:
        return {k: v for k, v in state.items() if k != key}
    if way == 1:
        return state | {odd(rng).encode("utf-8", "replace").decode(): value}
    if way == 2:
        return {f"module.{k}": v for k, v in (state | {key: value}).items()}
    return state | {key: value}


def legacy_bomb(numbers: int) -> bytes:
    """A file of the old format that claims a storage of so many floats, and has none of them."""
    data = saved(torch.zeros(77), zipped=False)
    return data.replace(b"K\x4d", b"\x8a\x08" + numbers.to_bytes(8, "little"))


def code_pickles() -> dict[str, bytes]:
    """Checkpoints in which code would run, in every wrapping that torch knows; it would print 'ran'."""
    attack = Runs(os.system, "echo ran")
    nested = {"state": [{"deep": (attack,)}], "x": torch.zeros(2)}
    values = {"plain": attack, "nested": nested}
    found = {f"{k}_{form}": saved(v, form == "zip") for k, v in values.items() for form in ("zip", "legacy")}
    found["eval_zip"] = saved({"a": Runs(eval, "print('ran')")})
    found["bare_pickle"] = pickle.dumps(attack)
    found["whole_module"] = saved(torch.nn.Linear(1, 1))
    return found


# --- packs -----------------------------------------------------------------------------------------------------------


def rewritten(data: bytes, change) -> bytes:
    """A pack after ``change(file)`` has been at it."""
    out = io.BytesIO(data)
    with h5py.File(out, "r+") as file:
        change(file)
    return out.getvalue()


def pack_changes(rng: np.random.Generator):
    """A change of a pack that HDF5 itself has nothing against."""
    name = str(rng.choice(["meta", "names", "index", "stamps", "sha256", "x"]))
    kinds = {
        "huge": lambda file: file.create_dataset(name, (2**40,), "u1", chunks=(2**20,)),
        "gzip": lambda file: file.create_dataset(name, data=np.zeros(2**20, "u1"), compression="gzip"),
        "float": lambda file: file.create_dataset(name, data=np.full(9, np.nan)),
        "text": lambda file: file.create_dataset(name, data="x"),
        "scalar": lambda file: file.create_dataset(name, data=1),
        "null": lambda file: file.create_dataset(name, data=h5py.Empty("u1")),
        "wide": lambda file: file.create_dataset(name, (1, 2, 3, 4, 5), "i8"),
        "empty": lambda file: file.create_dataset(name, (0,), "u1"),
        "chunk": lambda file: file.create_dataset(name, (8,), "u1", chunks=(2**31,), maxshape=(None,)),
        "group": lambda file: file.create_group(name),
        "soft": lambda file: file.__setitem__(name, h5py.SoftLink("/meta")),
        "outside": lambda file: file.__setitem__(name, h5py.ExternalLink("/etc/passwd", "/x")),
        "loop": lambda file: file.__setitem__(name, file["/"]),
        "struct": lambda file: file.create_dataset(name, (3,), np.dtype([("a", "u1"), ("b", "f4")])),
        "json": lambda file: file.create_dataset(name, data=np.frombuffer(as_json(changed({}, rng), rng), "u1")),
    }
    way = kinds[str(rng.choice(list(kinds)))]

    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        way(file)

    return change
