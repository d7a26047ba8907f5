"""The logs of a training: TensorBoard scalars and images, log.csv, options.json."""

import contextlib
import csv
import io
import json
import time
from pathlib import Path

import torch
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from .. import distributed
from ..errors import Stopped, UserError
from ..files import write_bytes

SHOWN = 8  # images side by side


class Log:
    """The logs of one training in one folder, written by the first process alone.

    Args:
        folder: created if missing; holds TensorBoard's event files, log.csv and options.json.
        options: content of options.json.
        epoch: finished epochs; rows of later ones, of a training that was cut off, are deleted.
        step: finished steps, the same for TensorBoard.
        overwrite: delete the logs of an earlier training.

    Raises:
        UserError: log.csv can't be read.
    """

    def __init__(self, folder: str, options: dict, epoch: int, step: int, overwrite: bool) -> None:
        self.csv, self.rows = Path(folder, "log.csv"), []
        self.writes = distributed.is_first()
        if not self.writes:
            return
        if self.csv.exists() and not overwrite:
            try:
                with open(self.csv, newline="") as file:
                    self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epoch]
            except (OSError, KeyError, ValueError, TypeError, csv.Error):
                text = f"{self.csv} can't be read as a table of epochs; repair it or move it away"
                raise UserError(f"--log_dir: {text}") from None
        if overwrite:
            for path in [*Path(folder).glob("events.out.tfevents.*"), self.csv]:
                path.unlink(missing_ok=True)
        write_bytes(Path(folder, "options.json"), f"{json.dumps(options, indent=2)}\n".encode())
        # A file of its own, also if the last one began in this second.
        number = len(list(Path(folder).glob("events.out.tfevents.*")))
        self.file = EventsWriter(str(Path(folder, "events")), f".{number:06}")
        # TensorBoard forgets what a training that was cut off wrote after the state that it goes on from.
        self.events = [Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))]

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add scalars after so many steps."""
        for name, value in values.items():
            self._add(step, summary.scalar(name, value))

    def images(self, images: dict[str, torch.Tensor], step: int) -> None:
        """Add a row of the first images of each (N, 3, H, W) batch, clamped to [0, 1]."""
        for name, batch in images.items() if self.writes else ():
            row = torch.cat(list(batch[:SHOWN].float().clamp(0, 1).cpu()), 2)  # (3, H, 8 W)
            self._add(step, summary.image(name, row))

    def _add(self, step: int, content: summary.Summary) -> None:
        if self.writes:
            self.events.append(Event(wall_time=time.time(), step=step, summary=content))

    def flush(self) -> None:
        """Write what was added for TensorBoard; before a state is saved, so that no kill loses it."""
        if not self.writes:
            return
        events, self.events = self.events, []
        try:
            for event in events:
                self.file.write_event(event)
            self.file.flush()
        except OSError as error:
            text = f"{self.csv.parent} can't be written to ({error.strerror}); check the disk"
            raise Stopped(f"--log_dir: {text}") from None

    def epoch(self, row: dict[str, float | str]) -> None:
        """Add a row to log.csv, which is rewritten as a whole."""
        if self.writes:
            self.rows.append({key: str(value) for key, value in row.items()})
            text = io.StringIO()
            fields = list(dict.fromkeys(key for row in self.rows for key in row))
            writer = csv.DictWriter(text, fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_bytes(self.csv, text.getvalue().encode())

    def close(self) -> None:
        """Write what is left, as far as the disk takes it."""
        if self.writes:
            with contextlib.suppress(OSError, Stopped):
                self.flush()
                self.file.close()
