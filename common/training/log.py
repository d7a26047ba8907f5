"""What a training run leaves for the eye: TensorBoard scalars and grids, log.csv, options.json."""

import contextlib
import csv
import io
import json
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from torchvision.utils import make_grid

from .. import ranks
from ..errors import UserError
from ..files import put_bytes, read_small

GRID = 8  # images in a grid


class _Events:
    """A file for TensorBoard, of whole records whatever the disk does: one that is torn would hide all that follow.

    Not a SummaryWriter: its thread and bounded queue block the training for ever once the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{time.time_ns() % 10**9}"
        self.file = open(folder / name, "ab", buffering=0)  # noqa: SIM115 (open as long as the log)
        self.write(Event(file_version="brain.Event:2"))

    def write(self, *events: Event) -> None:
        """Append events that happen now. Raises OSError; the file then ends as before."""
        now = time.time()
        for event in events:
            event.wall_time = now
        end, rest = self.file.seek(0, io.SEEK_END), b"".join(_record(event.SerializeToString()) for event in events)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError:
            self.file.truncate(end)
            raise


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return b"".join((length, _checksum(length), data, _checksum(data)))


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))


class Log:
    """Logs of one run in one folder, written by the first process alone.

    Once training goes on, a log that can't be written is a warning, not an end.

    Args:
        folder: created if missing; holds TensorBoard's event files, log.csv and options.json.
        options: what to keep as options.json.
        epoch: finished epochs; rows of later ones, left by a run that was cut off, go.
        step: finished steps, the same for TensorBoard.
        overwrite: delete the logs of an earlier run.

    Raises:
        UserError: the folder can't be written to.
    """

    def __init__(self, folder: str, options: dict, epoch: int, step: int, overwrite: bool) -> None:
        self.folder = Path(folder)
        self.csv = self.folder / "log.csv"
        self._warned, self.rows = False, []
        if not ranks.first():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                for path in [*self.folder.glob("events.out.tfevents.*"), self.csv]:
                    path.unlink(missing_ok=True)
            put_bytes(self.folder / "options.json", f"{json.dumps(options, indent=2)}\n".encode())
            self.rows = self._read(epoch)
            self.events = _Events(self.folder)
            if step:  # TensorBoard hides what an interrupted run logged beyond the state
                self.events.write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        except OSError as error:
            raise UserError(f"--log_dir: {self.folder} can't be written to ({error.strerror})") from None

    def _read(self, epoch: int) -> list[dict[str, str]]:
        if not epoch:
            return []
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError, TypeError, csv.Error):
            table = csv.DictReader(io.StringIO(read_small(self.csv).decode(), newline=""))
            return [row for row in table if int(row["epoch"]) <= epoch]
        return []

    def _safely(self, write: Callable[[], None]) -> None:
        if not ranks.first():
            return
        try:
            write()
        except OSError as error:
            if not self._warned:
                with contextlib.suppress(OSError):  # stderr may be a file on that very disk
                    print(f"warning: --log_dir: {self.folder} can't be written to ({error.strerror})", file=sys.stderr)
            self._warned = True

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Scalars of one step."""

        def write() -> None:
            self.events.write(*(Event(step=step, summary=summary.scalar(*item)) for item in values.items()))

        self._safely(write)

    def pictures(self, pictures: dict[str, torch.Tensor], step: int) -> None:
        """Grids of the first images of each (N, 3, H, W) batch, clamped to [0, 1]."""

        def write() -> None:
            for name, batch in pictures.items():
                grid = make_grid(batch[:GRID].detach().float().clamp(0, 1).cpu(), nrow=GRID)
                self.events.write(Event(step=step, summary=summary.image(name, grid.numpy(), rescale=1)))

        self._safely(write)

    def epoch(self, row: dict[str, float | str]) -> None:
        """Add a row to log.csv, which is rewritten as a whole."""
        self.rows.append({key: str(value) for key, value in row.items()})

        def write() -> None:
            fields = list(dict.fromkeys(key for row in self.rows for key in row))
            text = io.StringIO()
            writer = csv.DictWriter(text, fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            put_bytes(self.csv, text.getvalue().encode())

        self._safely(write)

    def close(self) -> None:
        """No more is logged."""
        self._safely(lambda: self.events.file.close())
