"""The loop around every kind of training: epochs, schedule, logs, saving, and a guard against bad losses."""

import argparse
import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import distributed
from ..data.patches import PatchDataset, crop_keys, crop_loader, to_batch
from ..errors import Stopped, UserError, explain
from ..terminal import end, ending_signals, handling, progress_bar
from . import graphs
from .checkpoint import digest
from .ema import EMA
from .folder import AGAIN, Position, TrainingFolder
from .log import Log
from .optimizer import set_rate

Tensors = dict[str, Tensor]
Numbers = dict[str, float]
Stop = Callable[[], bool]  # whether to stop
Validate = Callable[[Stop], Numbers | None]  # (stop?) -> psnr_y or others; None if it was stopped


@dataclass
class Models:
    """The networks of a training, all on one device, and what makes them learn."""

    nets: dict[str, nn.Module]  # by file prefix; the first is the one whose best state is kept
    optimizers: Mapping[str, Optimizer]  # by the same prefixes, see optimizer.py
    ema: EMA | None = None  # moving average of one of the networks, updated after each step
    frozen: nn.Module | None = None  # what the steps use and never change, to notice another one on resume


def learning_rate(base: float, milestone: list[int], gamma: float, epoch: int) -> float:
    """Rate in an epoch counted from 1: times gamma for every milestone m < epoch (m acts before epoch m + 1)."""
    rate = base
    for m in milestone:
        rate *= gamma if m < epoch else 1
    return rate


class LossSums:
    """Sums of the losses over the steps of an epoch, kept on the device, and the seconds that these took.

    Steps may report different losses (a step with G and one without); each kind has its own sums.
    """

    def __init__(self, stored: dict) -> None:
        self.kinds = {  # by the names of their losses
            names: (torch.as_tensor(total, dtype=torch.float64), steps)
            for names, (total, steps) in stored.get("kinds", {}).items()
        }
        self.newest: dict[str, Tensor | float] = stored.get("newest", {})
        self.began = time.monotonic() - stored.get("seconds", 0.0)

    def add(self, losses: Tensors) -> None:
        """Take the detached 0-dim losses of one step; does not wait for the device."""
        kind, now = " ".join(losses), torch.stack(list(losses.values())).double()
        total, steps = self.kinds.get(kind, (torch.zeros_like(now), 0))
        self.kinds[kind] = total.to(now.device) + now, steps + 1
        self.newest = self.newest | dict(zip(losses, now, strict=True))

    def last(self) -> Numbers:
        """The newest value of every loss; waits for the device. Stopped: one is not finite."""
        values = {name: float(value) for name, value in self.newest.items()}
        if bad := [name for name, mean in self.means().items() if not math.isfinite(mean + values[name])]:
            remedy = "If it happens again: lower the learning rates, or look at the data."
            raise Stopped(f"not finite, in this step or shortly before: {', '.join(bad)}. {remedy}")
        return values

    def means(self) -> Numbers:
        """Mean of every loss over the steps that report it; waits for the device."""
        total, steps = {}, {}
        for names, (sums, number) in self.kinds.items():
            for name, value in zip(names.split(), sums.tolist(), strict=True):
                total[name] = total.get(name, 0.0) + value
                steps[name] = steps.get(name, 0) + number
        return {name: total[name] / steps[name] for name in total}

    def state(self) -> dict:
        """What new sums go on from."""
        return {"kinds": self.kinds, "newest": self.newest, "seconds": time.monotonic() - self.began}


@contextlib.contextmanager
def stop_request() -> Iterator[Stop]:
    """Within it the first Ctrl-C, SIGTERM or SIGHUP only asks to stop after this step; a second one ends at once."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked and not distributed.is_launched():  # torchrun passes signals on, and some come twice
            end(number, frame)
        if not asked and distributed.is_first():
            with contextlib.suppress(OSError):  # not print: it may be the print of a step that was interrupted
                os.write(2, b"\nstopping after this step to save ...\n")
        asked.append(number)

    with handling((signal.SIGINT, *ending_signals()), ask):
        yield lambda: bool(asked)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read the output is gone; that is no reason to stop
        print(text, flush=True)


def fit(
    *,
    args: argparse.Namespace,  # flags of add_run: niter, milestone, batchSize, what to save and when
    folder: TrainingFolder,  # the state to go on from, saving
    models: Models,
    dataset: PatchDataset,  # of crops
    draw: Callable[[Tensor, Tensor, int, int], tuple],  # (rainy, clean, index over all steps, whole batch) -> inputs
    step: Callable[..., tuple[Tensors, Tensors]],  # inputs -> losses, detached, and images
    iters_per_epoch: int,  # steps of an epoch
    gamma: float,  # factor of every learning rate after the epochs of --milestone
    warm_up: int = 0,  # steps over which the learning rates rise to their values
    validate: Validate | None = None,
) -> None:
    """Train from where the folder stands to the end of epoch niter.

    Raises:
        Stopped: a loss or weight is not finite, a file can't be read or saved; the last good state stays.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once the state is saved.
    """
    nets, optimizers = models.nets, models.optimizers
    device = next(next(iter(nets.values())).parameters()).device
    data, generator = dataset.fingerprint(), digest(models.frozen) if models.frozen else ""
    distributed.require_same("--data_path, --netED", data + generator)
    at = folder.restore(nets, optimizers, data, generator)
    distributed.broadcast_weights(nets.values())
    # The frozen part of a network may have come with the weights of --resume N.
    if args.resume and models.frozen and digest(models.frozen) != generator:
        text = f"{args.netED} is not the generator of the training in {folder.path}"
        raise UserError(f"--netED: {text}; name that one, or another --model_dir")
    if at.epoch >= args.niter:
        _say(f"nothing to do: {at.epoch} epochs are done and --niter is {args.niter}")
        return
    own_size, processes = len(range(args.batchSize)[distributed.share()]), distributed.world_size()
    if own_size == 0:
        raise UserError(f"--batchSize: {args.batchSize} crops for {processes} processes; each needs one")
    weight = own_size / args.batchSize
    for optimizer in optimizers.values():
        distributed.average_gradients(optimizer, weight)
    if args.cuda_graphs:
        step = graphs.RecordedStep(step, optimizers, graphs.recorder(device))
    base = {name: optimizer.param_groups[0]["initial_lr"] for name, optimizer in optimizers.items()}

    def train_on(pixels: Tensor, index: int) -> tuple[Tensors, Tensors]:
        if index <= warm_up:
            for name, optimizer in optimizers.items():
                set_rate(optimizer, base[name] * (index + 1) / (warm_up + 1))
        rainy, clean = to_batch(pixels.to(device, non_blocking=True))
        losses, images = step(*draw(rainy, clean, index, args.batchSize))
        if models.ema is not None:
            models.ema.update(index)
        return distributed.average(losses, weight), images

    folder.begin(nets, optimizers)
    log = Log(args.log_dir, folder.options(), at.epoch, at.epoch * iters_per_epoch + at.step, args.overwrite)
    epochs = at.epoch + 1, args.niter, at.step
    keys = crop_keys(args.batchSize, iters_per_epoch, dataset.seed, *epochs, dataset.n_real)
    loader, close = crop_loader(dataset, keys, args.workers, pin_memory=device.type == "cuda")
    _say(f"training from epoch {at.epoch + 1}/{args.niter}, step {at.step + 1}/{iters_per_epoch}, on {device}")
    with stop_request() as stop:
        try:
            loop = _Loop(args, folder, models, at, log, iters_per_epoch, iter(loader), train_on, validate, stop)
            while at.epoch < args.niter:
                rates = {name: learning_rate(base[name], args.milestone, gamma, at.epoch + 1) for name in optimizers}
                for name, optimizer in optimizers.items():
                    set_rate(optimizer, rates[name])
                loop.run_epoch(rates)
        except Exception as error:
            if reason := explain(error):
                raise Stopped(f"{reason.rstrip('.')}. {folder.last_good()}") from None
            raise
        finally:
            close()
            log.close()


@dataclass
class _Loop:
    """The epochs of ``fit``: steps, validation, saving, logs."""

    args: argparse.Namespace
    folder: TrainingFolder
    models: Models
    at: Position
    log: Log
    iters_per_epoch: int
    batches: Iterator[Tensor]
    train_on: Callable[[Tensor, int], tuple[Tensors, Tensors]]  # pixels, index of the step -> losses, images
    validate: Validate | None
    stop: Stop
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def index(self) -> int:
        """The next step, counted from 0 over the whole training."""
        return self.at.epoch * self.iters_per_epoch + self.at.step

    def save(self) -> None:
        """Save the logs, then the full state, so that no kill loses entries of the logs."""
        self.at.sums = self.sums.state() if self.at.step else {}
        self.log.flush()
        self.folder.save_state(self.at, self.models.nets, self.models.optimizers)
        self.saved_at = time.monotonic()

    def stopped(self) -> KeyboardInterrupt:
        """The state is saved, and the training ends."""
        return KeyboardInterrupt(f"stopped and saved after {self.at}. {AGAIN}")

    def run_epoch(self, rates: Numbers) -> None:
        """Train to the end of the epoch, validate, save, log."""
        args, at, nets = self.args, self.at, self.models.nets
        epoch, self.sums = at.epoch + 1, LossSums(at.sums)
        self.run_steps(rates)
        seconds, end, means = time.monotonic() - self.sums.began, self.index, self.sums.means()
        distributed.broadcast_weights(nets.values(), trainable=False)
        is_last = epoch == args.niter
        validating = self.validate is not None and (epoch % getattr(args, "val_every", 1) == 0 or is_last)
        scores = self.scores() if validating else {}
        saving = epoch % args.save_every == 0 or is_last
        if saving:
            self.folder.save_weights(nets, f"state_{epoch}")
        self.log.scalars({f"val/{name}": value for name, value in scores.items()}, end)
        columns = means | {f"lr/{name}": rate for name, rate in rates.items()}
        columns |= {f"val_{name}": value for name, value in scores.items()}
        self.log.epoch({"epoch": epoch, "step": end, "seconds": f"{seconds:.1f}"} | columns)
        at.epoch, at.step = epoch, 0  # after the log: a resume drops rows that are too new
        self.save()
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        measured = "".join(f"  val {name} {value:.4f}" for name, value in scores.items())
        files = f"  saved ..._state_{epoch}.pt" if saving else ""
        speed = self.iters_per_epoch / max(seconds, 1e-9)
        _say(f"epoch {epoch}/{args.niter}  {shown}{measured}  ({seconds:.0f} s, {speed:.2f} steps/s){files}")

    def run_steps(self, rates: Numbers) -> None:
        """The steps that the epoch lacks, and their logs."""
        at, length, images = self.at, self.iters_per_epoch, {}
        title = f"epoch {at.epoch + 1}/{self.args.niter}"
        with progress_bar(total=length, initial=at.step, desc=title, leave=False) as bar:
            while at.step < length:
                pixels = self.next_batch()
                losses, images = self.train_on(pixels, self.index)
                self.sums.add(losses)
                at.step += 1
                bar.update()
                if at.step % self.args.log_every == 0 or at.step == length:
                    newest = self.sums.last()
                    self.log.scalars({f"loss/{name}": value for name, value in newest.items()}, self.index)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in newest.items()}, refresh=False)
        if images:  # not of an epoch that lacked its validation alone
            self.log.scalars({f"lr/{name}": rate for name, rate in rates.items()}, self.index)
            self.log.images(images, self.index)

    def next_batch(self) -> Tensor:
        """The crops of the next step. Saves when it is time to, and stops where ``stop_request`` says so."""
        pixels = next(self.batches)
        late = time.monotonic() - self.saved_at > 60 * self.args.save_minutes
        stopping, late = distributed.any_true(self.stop(), late)
        if stopping or late:
            self.save()
        if stopping:
            distributed.gather(None)  # until the first process has saved
            raise self.stopped()
        return pixels

    def scores(self) -> Numbers:
        """Validate, and keep the weights of the derainer if it is the best so far."""
        self.save()  # whatever happens now, the epoch's steps are done; a resume repeats the validation alone
        scores = self.validate(self.stop)
        if scores is None:  # Ctrl-C
            raise self.stopped()
        if scores.get("psnr_y", self.at.best) > self.at.best:
            self.at.best = scores["psnr_y"]
            first = next(iter(self.models.nets))
            self.folder.save_weights({first: self.models.nets[first]}, "best")
        return scores
