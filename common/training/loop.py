"""The loop around every kind of training: epochs, schedule, logs, saving, and a guard against bad losses."""

import argparse
import contextlib
import hashlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import distributed
from ..data.patches import CropSampler, PatchDataset, crop_loader, to_batch
from ..errors import TrainingStopped, UserError, is_dead_worker, is_out_of_memory
from ..terminal import ending_signals, progress_bar
from .ema import EMA
from .folder import TrainingFolder
from .graphs import record
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
    """Sums of the losses over the steps of an epoch, kept on the device.

    Steps may report different losses (a step with G and one without); each kind has its own sums.
    """

    def __init__(self, stored: dict) -> None:
        kinds = stored.get("kinds", stored)  # older states have no newest values
        self.kinds = {
            tuple(names.split()): (torch.tensor(total, dtype=torch.float64), steps)
            for names, (total, steps) in kinds.items()
        }
        self.newest = {name: torch.tensor(x, dtype=torch.float64) for name, x in stored.get("newest", {}).items()}

    def add(self, losses: Tensors) -> None:
        """Take the detached 0-dim losses of one step; does not wait for the device."""
        now = torch.stack(list(losses.values())).double()
        total, steps = self.kinds.get(tuple(losses), (torch.zeros_like(now), 0))
        self.kinds[tuple(losses)] = total.to(now.device) + now, steps + 1
        self.newest |= zip(losses, now, strict=True)

    def require_finite(self, step: int) -> None:
        """Wait for the device and look.

        Raises:
            TrainingStopped: a loss was nan or inf in a step up to this one.
        """
        bad = [name for name, value in self.means().items() if not math.isfinite(value)]
        if bad:
            raise TrainingStopped(
                f"a loss is not finite at step {step} (counted from 0 over the whole training) or shortly before: "
                f"{', '.join(bad)}. If it happens again: lower the learning rates, or look at the data."
            )

    def last(self) -> Numbers:
        """The newest value of every loss; waits for the device."""
        return {name: value.item() for name, value in self.newest.items()}

    def means(self) -> Numbers:
        """Mean of every loss over the steps that report it; waits for the device."""
        total, steps = {}, {}
        for names, (sums, number) in self.kinds.items():
            for name, value in zip(names, sums.tolist(), strict=True):
                total[name] = total.get(name, 0.0) + value
                steps[name] = steps.get(name, 0) + number
        return {name: total[name] / steps[name] for name in total}

    def plain(self) -> dict:
        """Plain values from which new sums go on."""
        kinds = {" ".join(names): (total.tolist(), steps) for names, (total, steps) in self.kinds.items()}
        return {"kinds": kinds, "newest": self.last()}


@contextlib.contextmanager
def stop_request() -> Iterator[Stop]:
    """Within it the first Ctrl-C, SIGTERM or SIGHUP only asks to stop after this step; a second one ends at once."""
    asked: list[int] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: object) -> None:
        if not asked and distributed.is_first():
            with contextlib.suppress(OSError):  # not print: it may be the print of a step that was interrupted
                os.write(2, b"\nstopping after this step to save ...\n")
        asked.append(number)
        if not distributed.is_launched():  # torchrun passes signals on, and some come twice
            restore()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, *ending_signals())}
    try:
        yield lambda: bool(asked)
    finally:
        restore()


def _digest(frozen: nn.Module | None) -> str:
    """', generator' and a few digits that change with the weights; empty without one."""
    if frozen is None:
        return ""
    digest = hashlib.sha256()
    for value in frozen.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return f", generator {digest.hexdigest()[:12]}"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read the output is gone; that is no reason to stop
        print(text, flush=True)


def _stopped(folder: TrainingFolder) -> KeyboardInterrupt:
    done = f"{folder.epoch} epochs and {folder.step} steps"
    return KeyboardInterrupt(f"stopped and saved after {done}. {folder.again().capitalize()} goes on.")


def _explain(error: Exception) -> str:
    """What stopped a training, and the remedy; empty for a bug of ours."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or '--log_dir'}: can't be written ({error.strerror}); check the disk."
    if is_dead_worker(error):
        return f"a worker that reads the images died ({line}); try fewer --workers."
    if is_out_of_memory(error):
        return f"out of memory ({line}). Use a smaller --batchSize, --patchSize or network, or several GPUs."
    return ""


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
        TrainingStopped: a loss or weight is not finite, a file can't be read or saved; the last good state stays.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once the state is saved.
    """
    nets, optimizers = models.nets, models.optimizers
    device = next(next(iter(nets.values())).parameters()).device
    generator = _digest(models.frozen)
    data = dataset.fingerprint() + generator
    distributed.require_same("--data_path, --netED", data)
    folder.restore(nets, optimizers, data)
    distributed.broadcast_weights(nets.values())
    if _digest(models.frozen) != generator:  # it is a part of a network that goes on, as in train_syn_encoder.py
        text = f"{args.netED} is not the generator of the training in {folder.path}"
        raise UserError(f"--netED: {text}; name that one, or another --model_dir")
    if folder.epoch >= args.niter:
        _say(f"nothing to do: {folder.epoch} epochs are done and --niter is {args.niter}")
        return
    own_size, processes = len(range(args.batchSize)[distributed.share()]), distributed.world_size()
    if own_size == 0:
        raise UserError(f"--batchSize: {args.batchSize} crops for {processes} processes; each needs one")
    weight = own_size / args.batchSize
    for optimizer in optimizers.values():
        distributed.average_gradients(optimizer, weight)
    step = record(step, args, optimizers, device)
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

    loop = _Loop(args, folder, models, iters_per_epoch, train_on, validate)
    epochs = folder.epoch + 1, args.niter, folder.step
    sampler = CropSampler(args.batchSize, iters_per_epoch, dataset.seed, *epochs, dataset.n_real)
    loader, close = crop_loader(dataset, sampler, args.workers, pin_memory=device.type == "cuda")
    _say(f"training from epoch {folder.epoch + 1}/{args.niter}, step {folder.step + 1}/{iters_per_epoch}, on {device}")
    with stop_request() as stop:
        try:
            batches = iter(loader)
            for epoch in range(folder.epoch + 1, args.niter + 1):
                rates = {name: learning_rate(base[name], args.milestone, gamma, epoch) for name in optimizers}
                for name, optimizer in optimizers.items():
                    set_rate(optimizer, rates[name])
                loop.run_epoch(batches, stop, rates)
        except Exception as error:
            if reason := _explain(error):
                raise TrainingStopped(f"{reason.rstrip('.')}. {folder.last_good()}") from None
            raise
        finally:
            close()
            loop.log.close()


@dataclass
class _Loop:
    """The epochs of ``fit``: steps, validation, saving, logs."""

    args: argparse.Namespace
    folder: TrainingFolder
    models: Models
    iters_per_epoch: int
    train_on: Callable[[Tensor, int], tuple[Tensors, Tensors]]  # pixels, index of the step -> losses, images
    validate: Validate | None

    def __post_init__(self) -> None:
        folder, overwrite = self.folder, self.args.overwrite
        self.log = Log(self.args.log_dir, folder.options(), folder.epoch, self.index, overwrite)
        folder.begin()
        self.saved_at = time.monotonic()

    @property
    def index(self) -> int:
        """The next step, counted from 0 over the whole training."""
        return self.folder.epoch * self.iters_per_epoch + self.folder.step

    def save(self) -> None:
        """Save the full state, if all losses are finite."""
        self.sums.require_finite(self.index - 1)
        seconds = {"seconds": time.monotonic() - self.began}
        self.folder.sums = self.sums.plain() | seconds if self.folder.step else {}
        try:
            self.log.flush()
        finally:  # a full disk of logs loses no steps
            self.folder.save_state(self.models.nets, self.models.optimizers)
        self.saved_at = time.monotonic()

    def run_epoch(self, batches: Iterator[Tensor], stop: Stop, rates: Numbers) -> None:
        """Train to the end of the epoch, validate, save, log."""
        args, folder, nets = self.args, self.folder, self.models.nets
        epoch = folder.epoch + 1
        self.sums, self.began = LossSums(folder.sums), time.monotonic() - folder.sums.get("seconds", 0.0)
        self.run_steps(batches, stop, rates)
        seconds = time.monotonic() - self.began
        distributed.broadcast_weights(nets.values(), trainable=False)
        is_last = epoch == args.niter
        scores: Numbers = {}
        if self.validate is not None and (epoch % getattr(args, "val_every", 1) == 0 or is_last):
            scores = self.scores(self.validate, stop)
        saving = epoch % args.save_every == 0 or is_last
        if saving:
            folder.save_weights(nets, f"state_{epoch}")
        means = self.sums.means()
        try:
            self.write_log(means, rates, scores, seconds)
        except UserError:
            self.save()  # as above
            raise
        folder.epoch, folder.step = epoch, 0  # after the log: a resume drops rows that are too new
        self.save()
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        measured = "".join(f"  val {name} {value:.4f}" for name, value in scores.items())
        files = f"  saved ..._state_{epoch}.pt" if saving else ""
        speed = self.iters_per_epoch / max(seconds, 1e-9)
        _say(f"epoch {epoch}/{args.niter}  {shown}{measured}  ({seconds:.0f} s, {speed:.2f} steps/s){files}")

    def run_steps(self, batches: Iterator[Tensor], stop: Stop, rates: Numbers) -> None:
        """The steps that the epoch lacks, and their logs."""
        folder, length = self.folder, self.iters_per_epoch
        images: Tensors = {}
        title = f"epoch {folder.epoch + 1}/{self.args.niter}"
        with progress_bar(total=length, initial=folder.step, desc=title, leave=False) as bar:
            while folder.step < length:
                index, pixels = self.index, self.next_batch(batches, stop)
                losses, images = self.train_on(pixels, index)
                self.sums.add(losses)
                folder.step += 1
                bar.update()
                if folder.step % self.args.log_every == 0 or folder.step == length:
                    self.sums.require_finite(index)
                    newest = self.sums.last()
                    self.log.scalars({f"loss/{name}": value for name, value in newest.items()}, index + 1)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in newest.items()}, refresh=False)
        if images:  # not of an epoch that lacked its validation alone
            self.log.scalars({f"lr/{name}": rate for name, rate in rates.items()}, self.index)
            self.log.images(images, self.index)

    def next_batch(self, batches: Iterator[Tensor], stop: Stop) -> Tensor:
        """The crops of the next step. Saves when it is time to; then stops where it has to.

        Raises:
            TrainingStopped: an image can't be read.
            KeyboardInterrupt: see ``stop_request``.
        """
        problem = ""
        try:
            pixels = next(batches)
        except UserError as error:  # a worker's error has its traceback as text; the last line is the message
            problem = str(error).strip().splitlines()[-1].rpartition("Error: ")[2]
        late = time.monotonic() - self.saved_at > 60 * self.args.save_minutes
        stopping, late, lost = distributed.any_true(stop(), late, bool(problem))
        if stopping or late or lost:
            self.save()
        if lost:
            raise TrainingStopped(f"{distributed.first_reason(problem)}.")
        if stopping:
            distributed.gather(None)  # until the first process has saved
            raise _stopped(self.folder)
        return pixels

    def scores(self, validate: Validate, stop: Stop) -> Numbers:
        """Validate, and keep the weights of the derainer if it is the best so far."""
        folder = self.folder
        self.save()  # whatever happens now, the epoch's steps are done; a resume repeats the validation alone
        try:
            scores = validate(stop)
        except UserError as error:  # of a derainer, of an image that has changed
            raise TrainingStopped(f"validation: {error}") from None
        if scores is None:  # Ctrl-C
            raise _stopped(folder)
        if scores.get("psnr_y", folder.best) > folder.best:
            folder.best = scores["psnr_y"]
            first = next(iter(self.models.nets))
            folder.save_weights({first: self.models.nets[first]}, "best")
        return scores

    def write_log(self, means: Numbers, rates: Numbers, scores: Numbers, seconds: float) -> None:
        """Log an epoch whose steps are done."""
        epoch, end = self.folder.epoch + 1, self.index
        self.log.scalars({f"val/{name}": value for name, value in scores.items()}, end)
        columns = means | {f"lr/{name}": rate for name, rate in rates.items()}
        columns |= {f"val_{name}": value for name, value in scores.items()}
        self.log.epoch({"epoch": epoch, "step": end, "seconds": f"{seconds:.1f}"} | columns)
