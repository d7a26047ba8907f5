"""A pack: all pairs of a data set, decoded, in one HDF5 file of which a crop reads its rows alone.

    python -m common.data.pack --data_path RAINY --gt_path CLEAN --out rain100L.h5
    python -m common.data.pack --data_path RAIN800 --side_by_side left --out rain800.h5
    python -m common.data.pack --data_path SPA_DATA --out spa.h5
    python -m common.data.pack --verify rain100L.h5

Every training script takes the file as its --data_path. The pixels are not compressed: a pack is larger than PNG files,
and more than ten times faster to read. It grows as NAME.h5.part and gets its name when it is whole; an interrupted
command starts again from the first pair.

The format, version 2, has four data sets. 'values': the pixels of all pairs one after the other, uint8 or uint16, of
each pair (6, H, W), the planes of rainy, then those of clean. 'sizes' (pairs, 2): height and width. 'names': those of
the rainy files, in bytes, with a zero between two. 'sums': CRC-32 of the pixels of each pair. Attribute of the file:
'version'.
"""

import argparse
import os
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from .. import cli, flags
from ..errors import Stopped, UserError
from ..lock import locked
from ..terminal import progress_bar
from .cache import Decoded, scan
from .images import ImageError
from .pair_list import LIST, PairList
from .pairs import Pair, check_pairs, fail, pairs_of, require_light, require_no_pairing

VERSION = 2
ENDINGS = (".h5", ".hdf5")


def is_pack(path: str | Path) -> bool:
    """Whether --data_path names a pack, by its ending."""
    return Path(path).suffix.lower() in ENDINGS and not Path(path).is_dir()


# --- reading -------------------------------------------------------------------------------------------------------


class _Values:
    """The pixels of a pack; each process opens the file for itself."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype, self._open = path, dtype, (0, None)

    def __getitem__(self, part: slice) -> np.ndarray:
        try:
            if self._open[0] != os.getpid():  # a forked process must not use its parent's file
                # NFS and Lustre are often mounted without locks.
                self._open = os.getpid(), h5py.File(self.path, "r", locking=False)["values"]
            return self._open[1][part]
        except (OSError, KeyError) as error:
            raise ImageError(f"{self.path}: can't be read any more ({error}); pack it again") from None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": (0, None)}


def load(path: Path) -> Decoded:
    """The pairs of a pack, in the order of the set that it was made of. Any process can read them.

    Raises:
        UserError: it is missing, damaged, not whole, of another version, or no pack.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such pack; make it with {cli.typed('data.pack')} --out {path.name}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            version, values = int(file.attrs["version"]), file["values"]
            sizes, names = file["sizes"][:], file["names"][:].tobytes().split(b"\0")
            found = Decoded([os.fsdecode(name) for name in names], sizes, _Values(path, values.dtype), path)
            fits = len(names) == len(sizes) == len(file["sums"]) and found.starts[-1] == values.size
        if version != VERSION or not fits:
            raise ValueError(f"it is of version {version}" if fits else "its parts do not fit together")
    except Exception as error:  # h5py raises many kinds for damaged files
        raise UserError(f"{path}: is no whole pack of version {VERSION} ({error}); pack it again") from None
    return found


def verify(path: Path) -> None:
    """Read all of a pack.

    Raises:
        UserError: pixels do not have their checksums; or see ``load``.
    """
    pairs, problems = load(path), []
    with h5py.File(path, "r", locking=False) as file:
        sums = file["sums"][:]
    for i in progress_bar(range(len(pairs)), desc="verifying", unit="pair", leave=False):
        if zlib.crc32(pairs.values[pairs.starts[i] : pairs.starts[i + 1]]) != sums[i]:
            problems.append(pairs.names[i])
    fail(problems, f"--verify: {len(problems)} of {len(pairs)} pairs are damaged:", "Pack them again.")
    print(f"{path}: {len(pairs)} pairs, all checksums are right")


# --- writing -------------------------------------------------------------------------------------------------------


def write(pairs: Sequence[Pair], out: Path, workers: int, overwrite: bool = False) -> None:
    """Decode pairs into a pack; the file appears when it is whole. Few images are in memory at a time.

    Args:
        workers: threads that decode.

    Raises:
        UserError: --out has another ending or is there already, pairs can't be read (the first ten are named), no
            pair has rain, the disk is too small, or another run writes the same file.
        Stopped: the file can't be written.
    """
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out: {out.name} should end with .h5, by which the training scripts know a pack")
    if out.exists() and not overwrite:
        raise UserError(f"--out: {out} is there already; --overwrite replaces it")
    part, sums = out.with_name(out.name + ".part"), np.zeros(len(pairs), np.uint32)
    sizes, kind, problems = scan(pairs)
    fail(problems, f"{len(problems)} of {len(pairs)} pairs can't be used:", "Mend or remove these files.")
    size = int(6 * sizes.prod(1).sum())
    needed = size * kind.itemsize
    print(f"{len(pairs)} pairs, {needed / 1e9:.2f} GB")
    with locked(out, "--out", is_file=True):
        part.unlink(missing_ok=True)  # of a command that was killed; it takes room
        if needed > (free := shutil.disk_usage(out.parent).free):
            raise UserError(f"--out: {free / 1e9:.2f} GB are free in {out.parent}; make room or name another folder")
        try:
            with h5py.File(part, "w", locking=False) as file:
                names, values = [pair.name for pair in pairs], file.create_dataset("values", size, kind)
                decoded = Decoded(names, sizes, values)

                def keep(i: int, rainy: np.ndarray, clean: np.ndarray) -> None:
                    sums[i] = zlib.crc32(decoded.put(i, rainy, clean))

                check_pairs(pairs, 1, "--data_path", keep, workers=workers)
                file["sizes"], file["sums"] = sizes, sums
                file["names"] = np.frombuffer(b"\0".join(map(os.fsencode, names)), np.uint8)
                file.attrs["version"] = VERSION
            os.replace(part, out)
        except (OSError, RuntimeError) as error:  # HDF5 raises the second kind if closing fails
            raise Stopped(f"--out: {part} can't be written ({error}); check the folder and the disk") from None
        finally:  # it is gone where all went well
            part.unlink(missing_ok=True)
    print(f"{out}: {len(pairs)} pairs, {out.stat().st_size / 1e9:.2f} GB. Train with --data_path {out}")


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
        verify(Path(args.verify))
        return 0
    if not args.data_path or not args.out:
        raise UserError("--data_path, --out: give both (with --gt_path for two folders), or --verify PACK")
    if args.gt_path or args.side_by_side:
        pairs, _ = pairs_of(args)
    else:
        require_no_pairing(args, LIST)
        pairs = PairList(Path(args.data_path), "For pairs in two folders give --gt_path, too.")
        if not args.dark_rain:
            require_light(pairs, "--data_path")
    write(pairs, Path(args.out), args.workers, args.overwrite)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
