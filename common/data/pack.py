"""A pack: all pairs of a data set, decoded, in one HDF5 file of which a crop reads a few kilobytes.

    python -m common.data.pack --data_path RAINY --gt_path CLEAN --out rain100L.h5
    python -m common.data.pack --data_path RAIN800 --side_by_side left --out rain800.h5
    python -m common.data.pack --data_path SPA_DATA --out spa.h5
    python -m common.data.pack --verify rain100L.h5

Every training script takes the file as its --data_path. The pixels are not compressed: a pack is larger than PNG files,
and more than ten times faster to read. It grows as NAME.h5.part and gets its name when it is whole; an interrupted
command starts again from the first pair.

Version 1 of the format: for each size and depth of images one dataset (n, 6, H, W), rainy planes above clean ones, in
chunks of about 64 px; 'index' (pairs, 3): dataset, place in it and CRC-32 of each pair, -1 if it was left out; 'names':
those of the rainy files, each ended by a zero byte; 'meta': a JSON text; 'sha256' of these three.
"""

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np

from .. import cli, flags
from ..errors import Unwritable, UserError
from ..terminal import printable, progress_bar, tell
from .images import ImageError, crop_at, planes
from .pairs import LIST, Pair, PairList, fail, fingerprint, pairs_of, report_same, require_no_pairing

VERSION = 1
KIND = "vrgnet pairs"
CHUNK = 64  # px
ENDINGS = (".h5", ".hdf5")
BUFFER = 2**16  # bytes of HDF5's cache for each size of images; every chunk is read once
IMAGES = re.compile(r"images_([1-9]\d*)x([1-9]\d*)_(uint8|uint16)", re.ASCII)


def is_pack(path: str | Path) -> bool:
    """Whether --data_path names a pack: by its ending, or by the content of the file."""
    path = Path(path)
    return not path.is_dir() and (path.suffix.lower() in ENDINGS or (path.is_file() and h5py.is_hdf5(path)))


# --- reading -------------------------------------------------------------------------------------------------------


class PackedPair(Pair):
    """A pair of a pack, which reads the pixels that its files had when they were packed."""

    pack: "Pack"
    number: int

    def __init__(self, pack: "Pack", number: int) -> None:
        name = pack.name(number)
        super().__init__(name, pack.path / name, pack.path / name)  # the paths are for messages
        object.__setattr__(self, "pack", pack)
        object.__setattr__(self, "number", number)

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
        self.meta, self._names, index = _read_index(self.path)
        self._datasets = self.meta["datasets"]
        self._formats = [_format_of(name) for name in self._datasets]
        used = index[:, 2] >= 0
        ends = np.flatnonzero(self._names == 0)
        self._spans = np.stack((np.append(0, ends[:-1] + 1), ends), 1)[used]  # of the names
        self._index = index[used]
        self._open: tuple[int, h5py.File, list[h5py.Dataset]] | None = None

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> PackedPair:  # type: ignore[override]
        return PackedPair(self, range(len(self))[i])  # raises IndexError

    def name(self, i: int) -> str:
        """The rainy file's path inside its folder."""
        return os.fsdecode(self._names[slice(*self._spans[i])].tobytes())

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
            raise ImageError(f"{self.path}: can't be read any more ({_reason(error)}); pack it again") from None

    def _opened(self) -> list[h5py.Dataset]:
        if self._open is None or self._open[0] != os.getpid():  # a forked process must not use its parent's file
            self._open = None
            file = h5py.File(self.path, "r", rdcc_nbytes=BUFFER)
            self._open = os.getpid(), file, [file[name] for name in self._datasets]
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
    parts = IMAGES.fullmatch(name)
    if parts is None:
        raise ValueError(f"{name[:40]!r} is not the name of a dataset")
    return int(parts[1]), int(parts[2]), np.uint16 if parts[3] == "uint16" else np.uint8


def _reason(error: Exception) -> str:
    """The system's words, which HDF5 wraps in a page of its own."""
    words = re.search(r"error message = '([^']+)'", str(error))
    text = words[1] if words else getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(text.splitlines()[0])


def _read_index(path: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    """meta, names and index of a whole pack."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such pack; make it with python -m common.data.pack --out {path.name}")
    try:
        with h5py.File(path, "r") as file:
            if not {"meta", "names", "index", "sha256"} <= set(file):
                raise UserError(f"{path}: is no pack, or not a whole one; make it with python -m common.data.pack")
            text, names, index, digest = (file[name][:] for name in ("meta", "names", "index", "sha256"))
            meta = json.loads(text.tobytes())
            if meta["kind"] != KIND:
                raise UserError(f"{path}: is no pack of pairs, but of kind {meta['kind']!r:.40}")
            if meta["version"] != VERSION:
                version = f"{meta['version']!r:.20}, this program reads {VERSION}"
                raise UserError(f"{path}: is a pack of version {version}; pack it again")
            if digest.tobytes() != _sha256(text, names, index):
                raise UserError(f"{path}: is damaged or not whole: the checksum of its index is wrong; pack it again")
            for number, name in enumerate(meta["datasets"]):
                height, width, kind = _format_of(name)
                least = index[index[:, 0] == number, 1].max(initial=-1) + 1
                shape = file[name].shape
                if shape[0] < least or shape[1:] != (6, height, width) or file[name].dtype != kind:
                    raise UserError(f"{path}: is damaged: its index does not fit its images; pack it again")
    except UserError:
        raise
    except Exception as error:  # h5py raises many kinds for damaged files
        raise UserError(f"{path}: can't be read as a pack ({_reason(error)}); pack it again") from None
    return meta, names, index


def _sha256(*parts: np.ndarray) -> bytes:
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


# --- writing -------------------------------------------------------------------------------------------------------


def require_free(out: Path, overwrite: bool) -> None:
    """Check that --out can become a pack.

    Raises:
        UserError: it has another ending, is a folder, or exists and ``overwrite`` is not given.
    """
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out: {out.name} should end with .h5, by which the training scripts know a pack")
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; name a file, NAME.h5")
    if out.exists() and not overwrite:
        raise UserError(f"--out: {out} is there already; --overwrite replaces it")


def write(pairs: Sequence[Pair], out: Path, workers: int, skip_bad: bool = False) -> None:
    """Decode pairs into a pack; the file appears when it is whole. Few images are in memory at a time.

    Args:
        workers: threads that decode.
        skip_bad: leave out pairs that can't be read, and name them on stderr.

    Raises:
        UserError: pairs can't be read (the first ten are named), no pair has rain, or the disk is too small.
        Unwritable: the file can't be written.
    """
    names, problems = _datasets_of(pairs)
    if not skip_bad:
        _refuse(problems, len(pairs))
    counts = Counter(filter(None, names))
    formats = {name: _format_of(name) for name in counts}
    needed = sum(6 * counts[name] * h * w * np.dtype(kind).itemsize for name, (h, w, kind) in formats.items())
    print(f"{len(pairs)} pairs, {needed / 1e9:.2f} GB")
    part = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if needed > free:
            room = f"{needed / 1e9:.2f} GB are needed in {out.parent}, {free / 1e9:.2f} GB are free"
            raise UserError(f"--out: {room}; make room or name another folder")
        part.unlink(missing_ok=True)  # left by a command that was killed
        try:
            with h5py.File(part, "w") as file:
                for name, (height, width, kind) in formats.items():
                    rows, columns = (math.ceil(length / math.ceil(length / CHUNK)) for length in (height, width))
                    file.create_dataset(name, (counts[name], 6, height, width), kind, chunks=(1, 6, rows, columns))
                used = _fill(file, pairs, names, workers, problems, skip_bad)
            os.replace(part, out)
        except BaseException:  # Ctrl-C, a full disk, a bad pair
            part.unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:  # HDF5 raises the second kind if closing fails
        raise Unwritable(f"--out: {part} can't be written ({_reason(error)}); check the folder and the disk") from None
    if problems:
        tell(problems, f"warning: {len(problems)} of {len(pairs)} pairs can't be read and are left out")
    print(f"{out}: {used} pairs, {out.stat().st_size / 1e9:.2f} GB. Train with --data_path {out}")


def _datasets_of(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """The dataset of each pair ('' if a header can't be read), and the problems."""
    names, problems = [], []
    for pair in progress_bar(pairs, desc="reading sizes", unit="pair", leave=False):
        try:
            height, width, kind = pair.format()
            names.append(sys.intern(f"images_{height}x{width}_{np.dtype(kind).name}"))
        except ImageError as error:
            names.append("")
            problems.append(str(error))
    return names, problems


def _refuse(problems: list[str], number: int) -> None:
    remedy = "Mend or remove these files, or leave them out with --skip_bad."
    fail(problems, f"{len(problems)} of {number} pairs can't be packed:", remedy)


def _fill(
    file: h5py.File, pairs: Sequence[Pair], names: list[str], workers: int, problems: list[str], skip_bad: bool
) -> int:
    """Write the pixels, then what describes them; adds to ``problems`` and returns the number of pairs."""
    datasets = {name: number for number, name in enumerate(dict.fromkeys(filter(None, names)))}
    places, index, same = Counter(), np.full((len(pairs), 3), -1, np.int64), []
    for i, values in _decoded(pairs, names, workers):
        if isinstance(values, str):
            problems.append(values)
            continue
        file[names[i]][places[names[i]]] = values
        index[i] = datasets[names[i]], places[names[i]], zlib.crc32(values.data)
        places[names[i]] += 1
        if np.array_equal(values[:3], values[3:]):
            same.append(pairs[i].name)
    used = np.flatnonzero(index[:, 2] >= 0).tolist()
    if not (skip_bad and used):
        _refuse(problems, len(pairs))
    report_same(same, len(used), "--data_path")
    mark = fingerprint(pairs if len(used) == len(pairs) else [pairs[i] for i in used])
    meta = {"kind": KIND, "version": VERSION, "pairs": len(used), "fingerprint": mark, "datasets": list(datasets)}
    stems = b"".join(os.fsencode(pairs[i].name) + b"\0" for i in used)
    parts = np.frombuffer(json.dumps(meta).encode(), np.uint8), np.frombuffer(stems, np.uint8), index[used]
    file["meta"], file["names"], file["index"] = parts
    file["sha256"] = np.frombuffer(_sha256(*parts), np.uint8)
    return len(used)


def _decoded(pairs: Sequence[Pair], names: list[str], workers: int) -> Iterator[tuple[int, np.ndarray | str]]:
    """The number and the (6, H, W) values of each pair with a good header, or what is wrong with it."""

    def decode(i: int) -> np.ndarray | str:
        try:
            return planes(*pairs[i].read())
        except ImageError as error:
            return str(error)

    numbers = [i for i, name in enumerate(names) if name]
    with ThreadPoolExecutor(workers) as pool, progress_bar(total=len(numbers), desc="packing", unit="pair") as bar:
        for start in range(0, len(numbers), 4 * workers):  # pool.map would decode all of them ahead
            batch = numbers[start : start + 4 * workers]
            for i, values in zip(batch, pool.map(decode, batch), strict=True):
                yield i, values
                bar.update()


# --- the command ---------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_path("--data_path", help=f"folder of rainy images, or folder of {LIST}")
    parser.add_path("--gt_path", help="folder of their clean partners; left out for a list")
    flags.add_pairing(parser)
    parser.add_path("--out", help="the pack, NAME.h5")
    parser.add_path("--verify", help="read a whole pack and compare the checksums of all pairs")
    parser.add_argument("--workers", type=cli.positive_int, default=4, help="threads that decode")
    switch = {"type": cli.boolean, "nargs": "?", "const": True, "default": False}
    parser.add_argument("--skip_bad", **switch, help="leave out pairs that can't be read")
    parser.add_argument("--overwrite", **switch, help="replace a file of this name")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.verify:
        if {"data_path", "gt_path", "out"} & args.given:
            raise UserError("--verify: it only reads a pack; leave the other paths out")
        return _verify(Path(args.verify))
    if not args.data_path or not args.out:
        raise UserError("--data_path, --out: give both (with --gt_path for two folders), or --verify PACK")
    require_free(Path(args.out), args.overwrite)
    if is_pack(args.data_path):
        raise UserError(f"--data_path: {args.data_path} is a pack already")
    pairs: Sequence[Pair]
    if args.gt_path or args.side_by_side:
        pairs, _ = pairs_of(args)
    else:
        require_no_pairing(args, LIST)
        pairs = PairList(Path(args.data_path), "For pairs in two folders give --gt_path, too.")
    write(pairs, Path(args.out), args.workers, args.skip_bad)
    return 0


def _verify(path: Path) -> int:
    pack = Pack(path)
    sizes = len(pack.meta["datasets"])
    print(f"{path}: {len(pack)} pairs of {sizes} {'size' if sizes == 1 else 'sizes'}, version {pack.meta['version']}")
    if bad := pack.damaged():
        shown = "\n  ".join(printable(name) for name in bad[:10])
        print(f"{len(bad)} pairs are damaged; pack them again:\n  {shown}", file=sys.stderr)
        return 1
    print("all checksums are right")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
