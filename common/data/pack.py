"""A pack: all pairs of a data set, decoded, in one HDF5 file of which a crop reads a few kilobytes.

    python -m common.data.pack --data_path RAINY --gt_path CLEAN --out rain100L.h5
    python -m common.data.pack --data_path RAIN800 --side_by_side left --out rain800.h5
    python -m common.data.pack --data_path SPA_DATA --out spa.h5
    python -m common.data.pack --verify rain100L.h5

Every training script takes the file as its --data_path. The pixels are not compressed: a pack is larger than PNG files,
and read ten times faster and more. An interrupted command goes on where it was; the file appears when it is whole.

Layout: for each size and depth of images one dataset (n, 6, H, W), rainy planes above clean ones, in chunks of about
64 px; 'index' (pairs, 3) with dataset, place in it and CRC-32 of each pair; 'names'; 'meta', a JSON text; 'sha256' of
these three. Of kinds that could hide something (links, references, text of variable length, filters) there is none.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from .. import cli, flags
from ..errors import Unwritable, UserError
from ..files import umask
from ..terminal import printable, progress_bar, tell
from .images import ImageError, size_text
from .pairs import (
    LIST,
    REMEDY,
    SAME,
    Pair,
    PairList,
    both_widened,
    crop_at,
    fail,
    fingerprint,
    pairs_of,
    planes,
    require_no_pairing,
    some_of,
    widened,
)

VERSION = 1
KIND = "vrgnet pairs"
CHUNK = 64  # px
BUFFER = 2**16  # bytes of chunks that HDF5 keeps for each size of images; every chunk is wanted once
FLUSH_SECONDS = 5.0  # between marks of what is done; so much work an interruption may cost
IMAGES = re.compile(r"images_([1-9]\d*)x([1-9]\d*)_(uint8|uint16)", re.ASCII)
MISSING = -1  # in the index, in place of a CRC-32 (0 to 2^32 - 1): not written yet, or left out for good
NO_PLACE = -1  # of a pair whose header can't be read
ROOM = 64  # spaces behind the JSON text, for what changes at the end
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_pack(path: str | Path) -> bool:
    """Whether --data_path names a pack, by its ending, or by its content where it is a file."""
    path = Path(path)
    if path.is_dir():
        return False
    if path.suffix.lower() in (".h5", ".hdf5"):
        return True
    if not path.is_file():  # a pipe might never end
        return False
    try:
        with open(path, "rb") as file:
            return file.read(8) == SIGNATURE
    except OSError:
        return False


# --- reading -------------------------------------------------------------------------------------------------------


class PackedPair(Pair):
    """A pair of a pack; what it reads is what its files were when they were packed."""

    pack: "Pack"
    number: int

    def __init__(self, pack: "Pack", number: int) -> None:
        name = pack.name(number)
        object.__setattr__(self, "pack", pack)
        object.__setattr__(self, "number", number)
        super().__init__(name, Path(pack.path, name), Path(pack.path, name))  # for messages

    def format(self) -> tuple[int, int, type]:
        """Height, width and pixel type."""
        return self.pack.format(self.number)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Rainy and clean, each (H, W, 3) uint8 or uint16."""
        both = self.pack.pixels(self.number, np.s_[:, :, :])
        return both[:3].transpose(1, 2, 0), both[3:].transpose(1, 2, 0)

    def crop(self, place: tuple[float, float], p: int) -> np.ndarray:
        """See ``Pair.crop``; reads the chunks that the crop touches."""
        height, width, _ = self.format()
        return self.pack.pixels(self.number, (slice(None), *crop_at(place, height, width, p)))


class Pack(Sequence[PackedPair]):
    """The pairs of a pack, in the order of the set that it was made of. Checked when opened; read by any process.

    Args:
        path: the file.

    Raises:
        UserError: it is missing, damaged, not whole yet, of another version, or not one of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with _opened(self.path) as file:
            self._file_was = self._file_is()
            self.meta, self._names, self._index = _checked(file, self.path)
        self._datasets = self.meta["datasets"]
        self._formats = [_dataset_format(name) for name in self._datasets]
        self._ends = np.flatnonzero(self._names == 0)  # each name ends with a zero
        self._used = np.flatnonzero(self._index[:, 2] >= 0)  # all but what was left out
        self._open: tuple[int, h5py.File, dict] | None = None

    def __len__(self) -> int:
        return len(self._used)

    def __getitem__(self, i: int) -> PackedPair:  # type: ignore[override]
        return PackedPair(self, range(len(self))[i])  # raises IndexError

    def name(self, i: int) -> str:
        """The rainy file's path inside its folder."""
        place = self._used[i]
        start = self._ends[place - 1] + 1 if place else 0
        return os.fsdecode(self._names[start : self._ends[place]].tobytes())

    def format(self, i: int) -> tuple[int, int, type]:
        """Height, width and pixel type of a pair."""
        return self._formats[self._index[self._used[i], 0]]

    def smallest(self) -> int:
        """The shortest side of all pairs, in px."""
        return min(min(self._formats[d][:2]) for d in np.unique(self._index[self._used, 0]))

    def pixels(self, i: int, part: tuple) -> np.ndarray:
        """A part of the (6, H, W) values of a pair.

        Raises:
            ImageError: the file can't be read any more.
        """
        dataset, place, _ = self._index[self._used[i]]
        try:
            if self._file_is() != self._file_was:  # HDF5 would give zeros for what is missing
                raise OSError("it has changed")
            return self._dataset(self._datasets[dataset])[(int(place), *part)]
        except (OSError, KeyError, ValueError) as error:
            raise ImageError(f"{self.path}: can't be read any more ({_reason(error)}); pack it again") from None

    def _file_is(self) -> tuple[int, int, int]:
        found = os.stat(self.path)
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _dataset(self, name: str) -> h5py.Dataset:
        if self._open is None or self._open[0] != os.getpid():  # HDF5 files must not be shared with forked workers
            self._open = None
            self._open = os.getpid(), h5py.File(self.path, "r", rdcc_nbytes=BUFFER), {}
        datasets = self._open[2]
        if name not in datasets:
            datasets[name] = self._open[1][name]
        return datasets[name]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}

    def fingerprint(self) -> str:
        """That of the set that it was made of, see ``pairs.fingerprint``."""
        return self.meta["fingerprint"]

    def damaged(self) -> list[str]:
        """Read everything; the names of the pairs whose pixels are not what was packed."""
        bad = []
        for i in progress_bar(range(len(self)), desc="verifying", unit="pair", leave=False):
            try:
                good = zlib.crc32(self.pixels(i, np.s_[:, :, :]).data) == self._index[self._used[i], 2]
            except ImageError:
                good = False
            if not good:
                bad.append(self.name(i))
        return bad


def _dataset_format(name: str) -> tuple[int, int, type]:
    found = IMAGES.fullmatch(name)
    if found is None:
        raise ValueError(f"{name[:40]!r} is no name of a data set")
    return int(found[1]), int(found[2]), np.uint16 if found[3] == "uint16" else np.uint8


def _reason(error: Exception) -> str:
    """What went wrong in words; HDF5 wraps the system's number into a page of its own."""
    number = getattr(error, "errno", None) or re.search(r"errno = (\d+)", str(error))
    if number:
        return os.strerror(number if isinstance(number, int) else int(number[1]))
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such pack; make it with python -m common.data.pack --out {path.name}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        remedy = "wait for the program that writes it" if "unable to lock" in str(error) else "pack it again"
        raise UserError(f"{path}: can't be read as a pack ({_reason(error)}); {remedy}") from None
    with file:
        yield file


def _checked(file: h5py.File, path: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    """meta, names and index of a whole pack, after looking at everything but the pixels."""
    fail = f"{path}: is no whole pack"
    try:
        _require_plain(file, path)
        if not {"meta", "names", "index", "sha256"} <= set(file):
            raise UserError(f"{fail}: it lacks parts; make packs with python -m common.data.pack")
        meta_bytes = file["meta"][:].tobytes()
        meta = json.loads(meta_bytes)
        if not isinstance(meta, dict) or meta.get("kind") != KIND:
            raise UserError(f"{fail}: it is another kind of file")
        if meta.get("version") != VERSION:
            raise UserError(
                f"{path}: is a pack of version {meta.get('version')!r:.20}, this program reads {VERSION}; pack it again"
            )
        names, index = file["names"][:], file["index"][:]
        if (names.dtype, names.ndim, index.dtype, index.ndim) != (np.uint8, 1, np.int64, 2):
            raise UserError(f"{fail}: its index is of another kind")
        if not file["sha256"][:].any():
            raise UserError(f"{fail} yet: run the command again that began it")
        if file["sha256"][:].tobytes() != _sha256(meta_bytes, names, index):
            raise UserError(f"{path}: is damaged: the checksum of its index is wrong; pack it again")
        count, datasets = meta["pairs"], meta["datasets"]
        mark = meta["fingerprint"]
        described = type(count) is int and isinstance(mark, str) and re.fullmatch("[0-9a-f]{12}", mark, re.ASCII)
        if not described or not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
            raise UserError(f"{fail}: its description is of another kind")
        good = index.shape == (count, 3) and np.count_nonzero(names == 0) == count
        good = good and len(set(datasets)) == len(datasets)
        for number, name in enumerate(datasets if good else []):
            height, width, kind = _dataset_format(name)
            places = index[(index[:, 0] == number) & (index[:, 2] >= 0), 1]
            shape = file[name].shape
            good = good and file[name].dtype == kind and shape[1:] == (6, height, width)
            good = good and (not len(places) or (places.min() >= 0 and places.max() < shape[0]))
        good = good and bool(((index[:, 0] >= 0) & (index[:, 0] < len(datasets))).all())
        if not good or not (index[:, 2] >= 0).any():
            raise UserError(f"{fail}: its index does not fit its images; pack it again")
        return meta, names, index
    except UserError:
        raise
    except Exception as error:  # HDF5 raises many kinds on damaged files
        raise UserError(f"{path}: is damaged ({_reason(error)}); pack it again") from None


def _require_plain(file: h5py.File, path: Path) -> None:
    """Let a file hold no more than plain numbers that are in it, before any of them is read.

    Raises:
        UserError: it holds something else, or claims more than there is.
    """
    fail = f"{path}: is no whole pack"
    for name in file:
        link = file.id.links.get_info(name.encode())
        if link.type != h5py.h5l.TYPE_HARD or not isinstance(file[name], h5py.Dataset):
            raise UserError(f"{fail}: {printable(name):.200} is a link or a group, which no pack of ours has")
        made, kind = file[name].id.get_create_plist(), file[name].id.get_type()
        plain = kind.get_class() == h5t.INTEGER and made.get_nfilters() == 0 and made.get_external_count() == 0
        plain = plain and file[name].nbytes <= path.stat().st_size  # a small file may claim a lot
        if not plain or made.get_layout() not in (h5d.CHUNKED, h5d.CONTIGUOUS):
            raise UserError(f"{fail}: {printable(name):.200} is not of plain numbers, as in every pack of ours")


def _sha256(meta: bytes, names: np.ndarray, index: np.ndarray) -> bytes:
    digest = hashlib.sha256(meta)
    digest.update(names.tobytes())
    digest.update(np.ascontiguousarray(index, "<i8").tobytes())
    return digest.digest()


# --- writing -------------------------------------------------------------------------------------------------------


def _plan(pairs: Sequence[Pair]) -> tuple[list[str], np.ndarray, list[str]]:
    """Names of the datasets, index without checksums, and what is wrong with pairs whose header can't be read."""
    numbers: dict[str, int] = {}
    counts: dict[str, int] = {}
    index, problems = np.zeros((len(pairs), 3), np.int64), []
    for i, pair in enumerate(progress_bar(pairs, desc="reading sizes", unit="pair", leave=False)):
        try:
            height, width, kind = pair.format()
        except ImageError as error:
            problems.append(str(error))
            index[i] = 0, NO_PLACE, MISSING
            continue
        name = f"images_{height}x{width}_{np.dtype(kind).name}"
        number = numbers.setdefault(name, len(numbers))
        index[i] = number, counts.get(name, 0), MISSING
        counts[name] = counts.get(name, 0) + 1
    return list(numbers), index, problems


def _create(path: Path, meta: dict, names: bytes, index: np.ndarray) -> None:
    """Lay out the whole file. From then on only values change, none of HDF5's own structures: a kill can't break it."""
    handle, temporary = tempfile.mkstemp(prefix=".packing-", dir=path.parent)
    os.close(handle)
    try:
        _lay_out(temporary, meta, names, index)
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _lay_out(path: str, meta: dict, names: bytes, index: np.ndarray) -> None:
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        file["meta"] = np.frombuffer(json.dumps(meta).encode() + b" " * ROOM, np.uint8)
        file["names"] = np.frombuffer(names, np.uint8)
        file["index"] = index
        file["stamps"] = np.zeros(len(index), np.int64)
        file["sha256"] = np.zeros(32, np.uint8)
        for number, name in enumerate(meta["datasets"]):
            height, width, kind = _dataset_format(name)
            rows, columns = (math.ceil(length / math.ceil(length / CHUNK)) for length in (height, width))
            plan = h5p.create(h5p.DATASET_CREATE)
            plan.set_chunk((1, 6, rows, columns))
            plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5d.FILL_TIME_NEVER)
            count = int(((index[:, 0] == number) & (index[:, 1] != NO_PLACE)).sum())
            space = h5s.create_simple((count, 6, height, width))
            h5d.create(file.id, name.encode(), h5t.STD_U16LE if kind == np.uint16 else h5t.STD_U8LE, space, plan)


def _estimate(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Bytes of the pack, and seconds it will take with one thread; from a few pairs.

    Raises:
        UserError: rainy and clean hold the same pixels in all that were read.
    """
    total, seconds, some, timed, same = 0, 0.0, some_of(pairs), 0, 0
    for i, pair in enumerate(some):
        try:
            height, width, kind = pair.format()
            total += 6 * height * width * np.dtype(kind).itemsize
            if i % max(1, len(some) // 8) == 0:
                began = time.perf_counter()
                same += np.array_equal(*both_widened(*pair.read()))
                seconds, timed = seconds + time.perf_counter() - began, timed + 1
        except ImageError:
            continue
    if 0 < same == timed:
        raise UserError(f"--data_path: {SAME} ({some[0].name}: the same pixels). {REMEDY}")
    return total / len(some) * len(pairs), seconds / max(timed, 1) * len(pairs)


def _text(seconds: float) -> str:
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def write(pairs: Sequence[Pair], out: Path, workers: int, skip_bad: bool = False, overwrite: bool = False) -> list[str]:
    """Decode pairs into a pack, or go on with one that was interrupted. Memory does not grow with their number, only
    (by some 100 KB) with that of their sizes.

    Args:
        workers: threads that decode.
        skip_bad: leave pairs out that can't be read, instead of waiting for them to be mended.
        overwrite: start anew where an interrupted pack of other pairs is in the way.

    Returns:
        What is wrong with the pairs that can't be read. Unless they are skipped, the pack is not finished then, and
        the next call only asks for them.

    Raises:
        UserError: no room, no right to write, other pairs than those of the interrupted pack, no good pair at all.
    """
    part = out.with_name(out.name + ".part")
    names = b"".join(os.fsencode(pair.name) + b"\0" for pair in pairs)
    content = {"kind": KIND, "version": VERSION, "pairs": len(pairs), "fingerprint": fingerprint(pairs)}
    bytes_, seconds = _estimate(pairs)
    threads = max(1, min(workers, os.cpu_count() or 1))
    print(f"{len(pairs)} pairs: about {bytes_ / 1e9:.2f} GB and {_text(seconds / threads)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if overwrite and part.exists() and not _is_same(part, content, names):
            _require_ours(part)
            part.unlink()
        if part.exists():
            if not _is_same(part, content, names):
                raise UserError(f"--out: {part} is of other pairs; --overwrite starts anew, another --out keeps it")
        else:
            room = shutil.disk_usage(out.parent).free
            if bytes_ > room:
                raise UserError(
                    f"--out: about {bytes_ / 1e9:.2f} GB are needed in {out.parent}, {room / 1e9:.2f} GB are free"
                )
            datasets, index, problems = _plan(pairs)
            if not skip_bad or not datasets:
                remedy = "Mend or remove these files, or leave them out with --skip_bad."
                fail(problems, f"{len(problems)} of {len(pairs)} pairs can't be packed:", remedy)
            _create(part, content | {"datasets": datasets}, names, index)
        return _fill(pairs, part, out, workers, skip_bad)
    except BlockingIOError:
        raise UserError(f"--out: another program writes {part} right now; wait for it") from None
    except (OSError, RuntimeError) as error:  # HDF5 raises the second kind where closing fails
        remedy = "; what is in it stays, the same command goes on" if part.is_file() else ""
        raise Unwritable(f"--out: {part} can't be written ({_reason(error)}){remedy}") from None


def _is_same(part: Path, content: dict, names: bytes) -> bool:
    """Whether an interrupted pack is of these pairs.

    Raises:
        BlockingIOError: another program writes it.
    """
    try:
        with h5py.File(part, "r+") as file:
            _require_plain(file, part)
            meta = json.loads(file["meta"][:].tobytes())
            same = {key: meta.get(key) for key in content} == content and file["names"][:].tobytes() == names
            index, count, rooms = file["index"], content["pairs"], []
            for name in meta["datasets"]:
                height, width, kind = _dataset_format(name)
                same = same and file[name].shape[1:] == (6, height, width) and file[name].dtype == kind
                rooms.append(len(file[name]))
            same = same and (index.shape, index.dtype) == ((count, 3), np.int64) and len(file["sha256"]) == 32
            same = same and (file["stamps"].shape, file["stamps"].dtype) == ((count,), np.int64)
            return same and all(place < rooms[number] and place >= NO_PLACE for number, place, _ in index[:])
    except BlockingIOError:
        raise
    except Exception:  # another kind of file, or a damaged one
        return False


def _require_ours(path: Path) -> None:
    """Let --overwrite replace nothing but packs.

    Raises:
        UserError: it is something else.
    """
    try:
        with h5py.File(path, "r") as file:
            _require_plain(file, path)
            ours = json.loads(file["meta"][:].tobytes())["kind"] == KIND
    except Exception:  # another kind of file, or a damaged one
        ours = False
    if not ours:
        raise UserError(f"--overwrite: {path} is no pack of ours; move it away yourself, or take another --out")


def _stamp(pair: Pair) -> int:
    """A number that changes with where the two files are, their sizes and times."""
    text = b""
    for path in (pair.rainy, pair.clean):
        with contextlib.suppress(OSError):  # the decoder tells
            found = os.stat(path)
            text += os.fsencode(os.path.realpath(path)) + b"\0%d %d\0" % (found.st_size, found.st_mtime_ns)
    text += "".join(pair.halves).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "little")


def _decode(pair: Pair) -> np.ndarray | str:
    try:
        return planes(*pair.read())
    except ImageError as error:
        return str(error)


def _fill(pairs: Sequence[Pair], part: Path, out: Path, workers: int, skip_bad: bool) -> list[str]:
    problems, same = [], []
    with h5py.File(part, "r+", rdcc_nbytes=BUFFER) as file, ThreadPoolExecutor(max(workers, 1)) as pool:
        meta, index, stamps = json.loads(file["meta"][:].tobytes()), file["index"][:], file["stamps"][:]
        for i in np.flatnonzero(index[:, 2] >= 0).tolist():  # other files than those that were packed are packed again
            if stamps[i] != _stamp(pairs[i]):
                index[i, 2] = MISSING
        if (done := int((index[:, 2] >= 0).sum())) or stamps.any():
            print(f"going on with {part}: {done} of {len(pairs)} pairs are in it")
        datasets = [(file[name], _dataset_format(name)) for name in meta["datasets"]]
        missing = iter(np.flatnonzero(index[:, 2] < 0).tolist())
        bar = progress_bar(total=len(pairs), initial=int((index[:, 2] >= 0).sum()), desc="packing", unit="pair")
        ahead = [
            (i, pool.submit(_decode, pairs[i])) for i in islice(missing, 4 * max(workers, 1))
        ]  # not more in memory
        flushed = time.monotonic()
        try:
            with bar:
                while ahead:
                    i, found = ahead.pop(0)
                    values = found.result()
                    for following in islice(missing, 1):
                        ahead.append((following, pool.submit(_decode, pairs[following])))
                    bar.update()
                    problem = values if isinstance(values, str) else _put(datasets, index[i], values)
                    stamps[i] = 0 if problem else _stamp(pairs[i])
                    if not isinstance(values, str) and np.array_equal(values[:3], values[3:]):
                        same.append(pairs[i].name)
                    if problem:
                        problems.append(problem if isinstance(values, str) else f"{pairs[i].rainy}: {problem}")
                    if time.monotonic() - flushed > FLUSH_SECONDS:
                        _mark(file, index, stamps)
                        flushed = time.monotonic()
        except BaseException as error:  # Ctrl-C, a full disk
            pool.shutdown(wait=False, cancel_futures=True)
            with contextlib.suppress(OSError):
                _mark(file, index, stamps)
            if isinstance(error, KeyboardInterrupt):
                done = int((index[:, 2] >= 0).sum())
                raise KeyboardInterrupt(
                    f"stopped by Ctrl-C; {done} of {len(pairs)} pairs are in {part}, the same command goes on"
                ) from None
            raise
        _mark(file, index, stamps)
        bad = index[:, 2] < 0
        if bad.any() and not skip_bad:
            return problems
        if bad.all():
            raise UserError(f"--data_path: no pair can be read: {problems[0]}")
        if bad.any():  # what is left is another set
            good = [pairs[i] for i in np.flatnonzero(~bad).tolist()]
            meta["fingerprint"] = fingerprint(good)
        text = json.dumps(meta).encode().ljust(len(file["meta"]))
        file["meta"][:] = np.frombuffer(text, np.uint8)
        file["sha256"][:] = np.frombuffer(_sha256(text, file["names"][:], index), np.uint8)
    with open(part, "rb+") as whole:
        os.fsync(whole.fileno())
    os.replace(part, out)
    if same:
        tell(same, f"warning: {len(same)} of {len(pairs)} pairs have no rain, rainy and clean are the same")
    return problems


def _put(datasets: list, entry: np.ndarray, values: np.ndarray) -> str | None:
    """Write a pair to its place and its checksum to its entry; what is wrong with it, or None."""
    dataset, (height, width, kind) = datasets[entry[0]]
    values = widened(values) if kind == np.uint16 else values
    if entry[1] == NO_PLACE or values.shape[1:] != (height, width) or values.dtype != kind:
        size = size_text(values.shape[1:])
        return f"is {size} now, not what it was when packing began; delete the .part file to start anew"
    values = np.ascontiguousarray(values)
    dataset[int(entry[1])] = values
    entry[2] = zlib.crc32(values.data)
    return None


def _mark(file: h5py.File, index: np.ndarray, stamps: np.ndarray) -> None:
    """First the pixels, then what is done: after a kill, no mark stands for pixels that are not there."""
    file.flush()
    file["stamps"][:] = stamps
    file["index"][:] = index
    file.flush()


# --- the command ---------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_path("--data_path", help=f"folder of rainy images, or folder of {LIST}")
    parser.add_path("--gt_path", help="folder of their clean partners; left out for a list")
    flags.add_pairing(parser)
    parser.add_path("--out", help="the pack, NAME.h5")
    parser.add_path("--verify", help="read a whole pack and compare the checksums of all pairs")
    parser.add_argument("--workers", type=cli.positive_int, default=4, help="threads that decode")
    parser.add_argument(
        "--skip_bad", type=cli.boolean, nargs="?", const=True, default=False, help="leave out pairs that can't be read"
    )
    parser.add_argument(
        "--overwrite", type=cli.boolean, nargs="?", const=True, default=False, help="replace a pack of this name"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.verify:
        if {"data_path", "gt_path", "out"} & args.given:
            raise UserError("--verify: it only reads a pack; leave the other paths out")
        return _verify(Path(args.verify))
    if not args.data_path or not args.out:
        raise UserError("--data_path, --out: give both (with --gt_path for two folders), or --verify PACK")
    out = Path(args.out)
    require_free(out, args.overwrite)
    if is_pack(args.data_path):
        raise UserError(f"--data_path: {args.data_path} is a pack already")
    pairs: Sequence[Pair]
    if args.gt_path or args.side_by_side:
        pairs, _ = pairs_of(args)
    else:
        require_no_pairing(args, LIST)
        pairs = PairList(Path(args.data_path), "For pairs in two folders give --gt_path, too.")
    return make(pairs, out, args.workers, args.skip_bad, args.overwrite)


def require_free(out: Path, overwrite: bool) -> None:
    """Whether --out can become a pack.

    Raises:
        UserError: it has another ending, is a folder, or is there already (with ``overwrite``: and is no pack).
    """
    if out.suffix.lower() not in (".h5", ".hdf5"):
        raise UserError(f"--out: {out.name} should end with .h5, by which the training scripts know a pack")
    for path in (out, out.with_name(out.name + ".part")):
        if path.is_dir():
            raise UserError(f"--out: {path} is a folder, and in the way; name a file, NAME.h5")
    if out.exists():
        if not overwrite:
            raise UserError(f"--out: {out} is there already; --overwrite replaces it")
        _require_ours(out)


def make(
    pairs: Sequence[Pair],
    out: Path,
    workers: int,
    skip_bad: bool = False,
    overwrite: bool = False,
    remedy: str = "Mend them and run the same command again, or leave them out with --skip_bad.",
) -> int:
    """``write``, and say what came of it.

    Args:
        remedy: what to do about pairs that can't be read.

    Returns:
        Exit code: 0, or 1 where pairs could not be read and are not skipped.

    Raises:
        UserError: see ``write``.
    """
    problems = write(pairs, out, workers, skip_bad, overwrite)
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    if problems and not skip_bad:
        print(
            f"{len(problems)} of {len(pairs)} pairs can't be read; the others are in {out}.part. {remedy}",
            file=sys.stderr,
        )
        return 1
    pack = Pack(out)
    left_out = f", {len(pairs) - len(pack)} left out" if len(pack) < len(pairs) else ""
    print(f"{out}: {len(pack)} pairs{left_out}, {out.stat().st_size / 1e9:.2f} GB. Train with --data_path {out}")
    return 0


def _verify(path: Path) -> int:
    pack = Pack(path)
    bad = pack.damaged()
    sizes = len(pack.meta["datasets"])
    print(f"{path}: {len(pack)} pairs of {sizes} {'size' if sizes == 1 else 'sizes'}, version {pack.meta['version']}")
    if bad:
        shown = "\n  ".join(printable(name) for name in bad[:10])
        print(f"{len(bad)} pairs are damaged; pack them again:\n  {shown}", file=sys.stderr)
        return 1
    print("all checksums are right")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
