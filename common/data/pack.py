"""A pack: all pairs of a data set, decoded, in one HDF5 file of which a crop reads a few kilobytes.

    python -m common.data.pack --data_path RAINY --gt_path CLEAN --out rain100L.h5
    python -m common.data.pack --data_path RAIN800 --side_by_side left --out rain800.h5
    python -m common.data.pack --data_path SPA_DATA --out spa.h5
    python -m common.data.pack --verify rain100L.h5

Every training script takes the file as its --data_path. The pixels are not compressed: a pack is larger than PNG files,
and more than ten times faster to read. It grows as NAME.h5.part and gets its name when it is whole; an interrupted
command starts again from the first pair.

Version 1 of the format: for each size and depth of images one dataset (n, 6, H, W), rainy planes above clean ones, in
chunks of about 64 px; 'index' (pairs, 3): dataset, place in it and CRC-32 of each pair, -1 if it is left out; 'names':
those of the rainy files, each ended by a zero byte; 'meta': a JSON text; 'sha256' of these three.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from .. import cli, flags
from ..errors import Unwritable, UserError
from ..lock import locked
from ..terminal import progress_bar
from .images import ImageError, crop_at, planes
from .pairs import LIST, Pair, PairList, fail, fingerprint, pairs_of, require_light, require_no_pairing, require_rain

VERSION = 1
KIND = "vrgnet pairs"
CHUNK = 64  # px
ENDINGS = (".h5", ".hdf5")
BUFFER = 2**16  # bytes of HDF5's cache for each size of images; every chunk is read once


def is_pack(path: str | Path) -> bool:
    """Whether --data_path names a pack: by its ending, or by the content of the file."""
    path = Path(path)
    return not path.is_dir() and (path.suffix.lower() in ENDINGS or (path.is_file() and h5py.is_hdf5(path)))


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedPair(Pair):
    """A pair of a pack, which reads the pixels that its files had when they were packed; paths are for messages."""

    pack: "Pack | None" = None
    number: int = 0

    def format(self) -> tuple[int, int, type]:
        """Height, width and pixel type."""
        return self.pack.format(self.number)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Rainy and clean, each (H, W, 3) uint8 or uint16."""
        both = self.pack.pixels(self.number)
        return both[:3].transpose(1, 2, 0), both[3:].transpose(1, 2, 0)

    def crop(self, place: tuple[float, float], p: int) -> np.ndarray:
        """See ``Pair.crop``; reads the chunks that the crop touches."""
        height, width, _ = self.format()
        return self.pack.pixels(self.number, slice(None), *crop_at(place, height, width, p))


class Pack(Sequence[PackedPair]):
    """The pairs of a pack, in the order of the set that it was made of. Any process can read it.

    Args:
        path: the file.

    Raises:
        UserError: it is missing, damaged, not whole, of another version, or no pack.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.meta, names, index = _read_index(self.path)
        used = index[:, 2] >= 0
        self._names = [name for name, is_used in zip(names.tobytes().split(b"\0"), used, strict=False) if is_used]
        self._index = index[used]
        self._formats = [_format_of(name) for name in self.meta["datasets"]]
        self._open: tuple[int, h5py.File, list[h5py.Dataset]] | None = None

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> PackedPair:
        number = range(len(self))[i]  # raises IndexError
        path = self.path / self.name(number)
        return PackedPair(self.name(number), path, path, pack=self, number=number)

    def name(self, i: int) -> str:
        """The rainy file's path inside its folder."""
        return os.fsdecode(self._names[i])

    def format(self, i: int) -> tuple[int, int, type]:
        """Height, width and pixel type of a pair."""
        return self._formats[self._index[i, 0]]

    def smallest(self) -> int:
        """The shortest side of all pairs, in px."""
        return min(min(self._formats[d][:2]) for d in np.unique(self._index[:, 0]))

    def pixels(self, i: int, *part: slice) -> np.ndarray:
        """The (6, H, W) values of a pair, or a part of them.

        Raises:
            ImageError: the file can't be read any more.
        """
        dataset, place, _ = self._index[i]
        try:
            return self._opened()[dataset][(int(place), *part)]
        except (OSError, KeyError) as error:
            raise ImageError(f"{self.path}: can't be read any more ({error}); pack it again") from None

    def _opened(self) -> list[h5py.Dataset]:
        if self._open is None or self._open[0] != os.getpid():  # a forked process must not use its parent's file
            file = h5py.File(self.path, "r", locking=False, rdcc_nbytes=BUFFER)
            self._open = os.getpid(), file, [file[name] for name in self.meta["datasets"]]
        return self._open[2]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}

    def fingerprint(self) -> str:
        """The fingerprint of the set that it was made of, see ``pairs.fingerprint``."""
        return self.meta["fingerprint"]

    def damaged(self) -> list[str]:
        """Read everything and return the names of the pairs whose checksums are wrong."""
        numbers = progress_bar(range(len(self)), desc="verifying", unit="pair", leave=False)
        return [self.name(i) for i in numbers if zlib.crc32(self.pixels(i).data) != self._index[i, 2]]


def _format_of(name: str) -> tuple[int, int, type]:
    """Of the images of a dataset, by its name: images_20x24_uint8."""
    _, size, kind = name.split("_")
    height, width = map(int, size.split("x"))
    return height, width, np.dtype(kind).type


def _read_index(path: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    """meta, names and index of a whole pack."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such pack; make it with {cli.typed('data.pack')} --out {path.name}")
    try:
        with h5py.File(path, "r", locking=False) as file:  # NFS and Lustre are often mounted without locks
            text, names, index, digest = (file[name][:] for name in ("meta", "names", "index", "sha256"))
        meta = json.loads(text.tobytes())
        kind, version, is_whole = meta["kind"], meta["version"], digest.tobytes() == _sha256(text, names, index)
    except Exception as error:  # h5py raises many kinds for damaged files
        raise UserError(f"{path}: is no whole pack of this project ({error}); pack it again") from None
    if (kind, version) != (KIND, VERSION):
        known = f"this program reads {KIND!r} of version {VERSION}"
        raise UserError(f"{path}: holds {kind!r} of version {version}, {known}; pack it again")
    if not is_whole:
        raise UserError(f"{path}: is damaged, the checksum of its index is wrong; pack it again")
    return meta, names, index


def _sha256(*parts: np.ndarray) -> bytes:
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


# --- writing -------------------------------------------------------------------------------------------------------


def require_free(out: Path, overwrite: bool) -> None:
    """Check that --out can become a pack.

    Raises:
        UserError: it has another ending, or exists and ``overwrite`` is not given.
    """
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out: {out.name} should end with .h5, by which the training scripts know a pack")
    if out.exists() and not overwrite:
        raise UserError(f"--out: {out} is there already; --overwrite replaces it")


def write(pairs: Sequence[Pair], out: Path, workers: int) -> None:
    """Decode pairs into a pack; the file appears when it is whole. Few images are in memory at a time.

    Args:
        workers: threads that decode.

    Raises:
        UserError: pairs can't be read (the first ten are named), no pair has rain, the disk is too small, or another
            run writes the same file.
        Unwritable: the file can't be written.
    """
    part = out.with_name(out.name + ".part")
    names, problems, needed = [], [], 0
    for pair in progress_bar(pairs, desc="reading sizes", unit="pair", leave=False):
        try:
            height, width, kind = pair.format()
            names.append(f"images_{height}x{width}_{np.dtype(kind).name}")
            needed += 6 * height * width * np.dtype(kind).itemsize
        except ImageError as error:
            problems.append(str(error))
    _refuse(problems, len(pairs))
    print(f"{len(pairs)} pairs, {needed / 1e9:.2f} GB")
    with locked(out, "--out", is_file=True):
        part.unlink(missing_ok=True)  # of a command that was killed; it takes room
        if needed > (free := shutil.disk_usage(out.parent).free):
            raise UserError(f"--out: {free / 1e9:.2f} GB are free in {out.parent}; make room or name another folder")
        try:
            with h5py.File(part, "w", locking=False) as file:
                for name, count in Counter(names).items():
                    height, width, kind = _format_of(name)
                    rows, columns = (math.ceil(length / math.ceil(length / CHUNK)) for length in (height, width))
                    file.create_dataset(name, (count, 6, height, width), kind, chunks=(1, 6, rows, columns))
                _fill(file, pairs, names, workers)
            os.replace(part, out)
        except (OSError, RuntimeError) as error:  # HDF5 raises the second kind if closing fails
            raise Unwritable(f"--out: {part} can't be written ({error}); check the folder and the disk") from None
        finally:  # it is gone where all went well
            part.unlink(missing_ok=True)
    print(f"{out}: {len(pairs)} pairs, {out.stat().st_size / 1e9:.2f} GB. Train with --data_path {out}")


def _refuse(problems: list[str], number: int) -> None:
    fail(problems, f"{len(problems)} of {number} pairs can't be packed:", "Mend or remove these files.")


def _fill(file: h5py.File, pairs: Sequence[Pair], names: list[str], workers: int) -> None:
    """Write the pixels, then what describes them."""
    datasets = {name: number for number, name in enumerate(dict.fromkeys(names))}
    places, index, same, problems = Counter(), np.empty((len(pairs), 3), np.int64), [], []

    def decode(i: int) -> np.ndarray | str:
        try:
            return planes(*pairs[i].read())
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool, progress_bar(total=len(pairs), desc="packing", unit="pair") as bar:
        for start in range(0, len(pairs), 4 * workers):  # pool.map would decode all of them ahead
            batch = range(len(pairs))[start : start + 4 * workers]
            for i, values in zip(batch, pool.map(decode, batch), strict=True):
                bar.update()
                if isinstance(values, str):
                    problems.append(values)
                    continue
                file[names[i]][places[names[i]]] = values
                index[i] = datasets[names[i]], places[names[i]], zlib.crc32(values.data)
                places[names[i]] += 1
                if np.array_equal(values[:3], values[3:]):
                    same.append(pairs[i].name)
    _refuse(problems, len(pairs))
    require_rain(same, len(pairs), "--data_path")
    meta = {"kind": KIND, "version": VERSION, "pairs": len(pairs), "fingerprint": fingerprint(pairs)}
    text = np.frombuffer(json.dumps(meta | {"datasets": list(datasets)}).encode(), np.uint8)
    stems = np.frombuffer(b"".join(os.fsencode(pair.name) + b"\0" for pair in pairs), np.uint8)
    file["meta"], file["names"], file["index"] = text, stems, index
    file["sha256"] = np.frombuffer(_sha256(text, stems, index), np.uint8)


# --- the command ---------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, cli.typed("data.pack"))
    flags.add_path(parser, "--data_path", help=f"folder of rainy images, or folder of {LIST}")
    flags.add_path(parser, "--gt_path", help="folder of their clean partners; left out for a list")
    flags.add_pairing(parser)
    flags.add_path(parser, "--out", help="the pack, NAME.h5")
    flags.add_path(parser, "--verify", help="read a whole pack and compare the checksums of all pairs")
    parser.add_argument("--workers", type=cli.positive_int, default=4, help="threads that decode")
    flags.add_switch(parser, "--overwrite", "replace a file of this name")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.verify:
        found = Pack(Path(args.verify))
        problems = found.damaged()
        fail(problems, f"--verify: {len(problems)} of {len(found)} pairs are damaged:", "Pack them again.")
        print(f"{args.verify}: {len(found)} pairs, all checksums are right")
        return 0
    if not args.data_path or not args.out:
        raise UserError("--data_path, --out: give both (with --gt_path for two folders), or --verify PACK")
    require_free(Path(args.out), args.overwrite)
    if args.gt_path or args.side_by_side:
        pairs, _ = pairs_of(args)
    else:
        require_no_pairing(args, LIST)
        pairs = PairList(Path(args.data_path), "For pairs in two folders give --gt_path, too.")
        if not args.dark_rain:
            require_light(pairs, "--data_path")
    write(pairs, Path(args.out), args.workers)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
