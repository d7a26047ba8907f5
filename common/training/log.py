"""The logs of a training: TensorBoard scalars and image grids, log.csv, options.json."""

import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tensorboardX import SummaryWriter
from torchvision.utils import make_grid

from .. import distributed
from ..errors import UserError
from ..files import put_bytes, read_small

GRID = 8  # images in a grid


class Log:
    """The logs of one training in one folder, written by the first process alone.

    Once training goes on, a log that can't be written is a warning, not an end.

    Args:
        folder: created if missing; holds TensorBoard's event files, log.csv and options.json.
        options: content of options.json.
        epoch: finished epochs; rows of later ones, of a training that was cut off, are deleted.
        step: finished steps, the same for TensorBoard.
        overwrite: delete the logs of an earlier training.

    Raises:
        UserError: the folder can't be written to.
    """

    def __init__(self, folder: str, options: dict, epoch: int, step: int, overwrite: bool) -> None:
        self.folder = Path(folder)
        self.csv = self.folder / "log.csv"
        self._warned = False
        if not distributed.is_first():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                for path in [*self.folder.glob("events.out.tfevents.*"), self.csv]:
                    path.unlink(missing_ok=True)
            put_bytes(self.folder / "options.json", f"{json.dumps(options, indent=2)}\n".encode())
            self.rows = self._read(epoch)
            # An endless queue: once the disk is full, a bounded one would block the training for ever.
            self.writer = SummaryWriter(str(self.folder), purge_step=step or None, max_queue=0)
        except OSError as error:
            raise UserError(f"--log_dir: {self.folder} can't be written to ({error.strerror})") from None

    def _read(self, epoch: int) -> list[dict[str, str]]:
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError, TypeError, csv.Error):
            table = csv.DictReader(io.StringIO(read_small(self.csv).decode(), newline=""))
            return [row for row in table if int(row["epoch"]) <= epoch] if epoch else []
        return []

    def _write(self, write: Callable[[], None]) -> None:
        if not distributed.is_first():
            return
        try:
            write()
        except OSError as error:
            if not self._warned:
                with contextlib.suppress(OSError):  # stderr may be a file on that very disk
                    print(f"warning: --log_dir: {self.folder} can't be written to ({error.strerror})", file=sys.stderr)
            self._warned = True

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add scalars of one step."""
        self._write(lambda: [self.writer.add_scalar(name, value, step) for name, value in values.items()])

    def images(self, images: dict[str, torch.Tensor], step: int) -> None:
        """Add a grid of the first images of each (N, 3, H, W) batch, clamped to [0, 1]."""

        def write() -> None:
            for name, batch in images.items():
                self.writer.add_image(name, make_grid(batch[:GRID].float().clamp(0, 1).cpu(), nrow=GRID), step)

        self._write(write)

    def epoch(self, row: dict[str, float | str]) -> None:
        """Add a row to log.csv, which is rewritten as a whole."""

        def write() -> None:
            self.rows.append({key: str(value) for key, value in row.items()})
            fields = list(dict.fromkeys(key for row in self.rows for key in row))
            text = io.StringIO()
            writer = csv.DictWriter(text, fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            put_bytes(self.csv, text.getvalue().encode())

        self._write(write)

    def close(self) -> None:
        """Write what is left."""
        self._write(self.writer.close if distributed.is_first() else lambda: None)
