"""What a training run leaves for the eye: TensorBoard scalars and grids, log.csv, options.json."""

import contextlib
import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from torchvision.utils import make_grid

from common import ranks
from common.errors import UserError
from common.files import read_small

GRID = 8  # images in a grid


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
            (self.folder / "options.json").write_text(json.dumps(options, indent=2) + "\n")
            self.rows = self._read(epoch)
            # Not a SummaryWriter: its thread and bounded queue block the training for ever once the disk is full.
            self.events = EventsWriter(str(self.folder / "events"), f".{time.time_ns() % 10**9}")
            if step:  # TensorBoard hides what an interrupted run logged beyond the state
                self._event(step, session_log=SessionLog(status=SessionLog.START))
        except OSError as error:
            raise UserError(f"--log_dir: {self.folder} can't be written to ({error.strerror})") from None

    def _read(self, epoch: int) -> list[dict[str, str]]:
        if not epoch:
            return []
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError, TypeError, csv.Error):
            table = csv.DictReader(io.StringIO(read_small(self.csv).decode(), newline=""))
            return [row for row in table if int(row["epoch"]) <= epoch]
        return []

    def _event(self, step: int, **content) -> None:
        self.events.write_event(Event(wall_time=time.time(), step=step, **content))

    def _safely(self, write: Callable[[], None]) -> None:
        if not ranks.first():
            return
        try:
            write()
        except OSError as error:
            if not self._warned:
                print(f"warning: --log_dir: {self.folder} can't be written to ({error.strerror})", file=sys.stderr)
            self._warned = True

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Scalars of one step."""

        def write() -> None:
            for name, value in values.items():
                self._event(step, summary=summary.scalar(name, value))

        self._safely(write)

    def pictures(self, pictures: dict[str, torch.Tensor], step: int) -> None:
        """Grids of the first images of each (N, 3, H, W) batch, clamped to [0, 1]."""

        def write() -> None:
            for name, batch in pictures.items():
                grid = make_grid(batch[:GRID].detach().float().clamp(0, 1).cpu(), nrow=GRID)
                self._event(step, summary=summary.image(name, grid.numpy(), rescale=1))

        self._safely(write)

    def epoch(self, row: dict[str, float | str]) -> None:
        """Add a row to log.csv, which is rewritten as a whole."""
        self.rows.append({key: str(value) for key, value in row.items()})

        def write() -> None:
            fields = list(dict.fromkeys(key for row in self.rows for key in row))
            aside = self.csv.with_suffix(".tmp")
            with open(aside, "w", newline="") as file:
                writer = csv.DictWriter(file, fields, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)
            os.replace(aside, self.csv)
            self.events.flush()

        self._safely(write)

    def close(self) -> None:
        """Write out what TensorBoard's file still holds back."""
        self._safely(lambda: self.events.close())
