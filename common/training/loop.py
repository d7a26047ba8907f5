"""The loop around every kind of training: epochs, schedule, logs, saving, and a guard against bad losses."""

import contextlib
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import distributed
from ..data.patches import CropSampler, PatchDataset, crop_loader, to_batch
from ..derainer import DerainerError
from ..errors import TrainingStopped, UserError, is_dead_worker, is_out_of_memory
from ..terminal import progress_bar
from .ema import EMA
from .folder import TrainingFolder
from .graphs import CannotRecord
from .log import Log
from .optimizer import set_rate


def learning_rate(base: float, milestone: list[int], gamma: float, epoch: int) -> float:
    """Rate in an epoch counted from 1: times gamma for every milestone m < epoch (m acts before epoch m + 1)."""
    rate = base
    for m in milestone:
        rate *= gamma if m < epoch else 1
    return rate


class DataLost(TrainingStopped):
    """An image can't be read any more; the networks are as good as after the last step."""


class LossSums:
    """Sums of the losses and the first step at which one was not finite, kept on the device.

    Steps may report different losses (a step with G and one without); each kind has its own sums.
    """

    def __init__(self, sums: dict) -> None:
        self.kinds: dict[tuple[str, ...], dict] = {}
        for names, (total, steps) in sums.items():
            self.kinds[tuple(names.split())] = {"total": torch.tensor(total, dtype=torch.float64), "steps": steps}

    def add(self, losses: dict[str, Tensor], step: int) -> None:
        """Take the detached 0-dim losses of one step; does not wait for the device."""
        now = torch.stack(list(losses.values())).double()
        kind = self.kinds.setdefault(tuple(losses), {"total": torch.zeros_like(now), "steps": 0})
        kind["total"] = kind["total"].to(now.device) + now
        kind["steps"] += 1
        kind["last"], kind["at"] = now, step
        first_bad = kind.get("bad_step", torch.full((), -1, device=now.device))
        new = (first_bad < 0) & ~torch.isfinite(now).all()
        kind["bad_step"] = torch.where(new, step, first_bad)
        kind["bad"] = torch.where(new, now, kind.get("bad", now))

    def require_finite(self, folder: TrainingFolder) -> None:
        """Wait for the device and look.

        Raises:
            TrainingStopped: a loss was nan or inf; names the step, its losses and the last good state.
        """
        bad = []
        for names, kind in self.kinds.items():
            step = int(kind.get("bad_step", -1))
            if step >= 0:
                values = zip(names, kind["bad"].tolist(), strict=True)
                bad.append((step, ", ".join(f"{name} {value:g}" for name, value in values)))
        if bad:
            step, values = min(bad)
            raise TrainingStopped(
                f"a loss is not finite at step {step} (counted from 0 over the whole training): {values}. "
                f"{folder.last_good()} If it happens again: lower the learning rates, or look at the data."
            )

    def last(self) -> dict[str, float]:
        """The newest value of every loss; waits for the device."""
        kinds = sorted(((k, v) for k, v in self.kinds.items() if "last" in v), key=lambda item: item[1]["at"])
        return {name: value for names, kind in kinds for name, value in zip(names, kind["last"].tolist(), strict=True)}

    def means(self) -> dict[str, float]:
        """Mean of every loss over the steps that report it."""
        total, steps = {}, {}
        for names, kind in self.kinds.items():
            for name, value in zip(names, kind["total"].tolist(), strict=True):
                total[name] = total.get(name, 0.0) + value
                steps[name] = steps.get(name, 0) + kind["steps"]
        return {name: total[name] / steps[name] for name in total}

    def plain(self) -> dict:
        """Plain values from which new sums go on."""
        return {" ".join(names): (kind["total"].tolist(), kind["steps"]) for names, kind in self.kinds.items()}


class StopRequest:
    """Within it, the first Ctrl-C or SIGTERM only asks to stop after the current step; a second Ctrl-C ends at once.

    Under torchrun, which passes signals on, a second one changes nothing; torchrun leaves half a minute.
    """

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        return self.requested

    def _handle(self, number: int, frame) -> None:
        again, alone = self.requested, not distributed.is_launched()
        self.requested = True
        if not again and distributed.is_first():
            hint = " (Ctrl-C again ends at once)" if alone else ""
            with contextlib.suppress(OSError):  # not print: it may be the print of a step that was interrupted
                os.write(2, f"\nstopping after this step to save{hint} ...\n".encode())
        if alone:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def __enter__(self) -> "StopRequest":
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _batches(loader: Iterable[Tensor]) -> Generator[Tensor, None, None]:
    try:
        yield from loader
    except UserError as error:  # a worker's error arrives with its traceback as text; the last line is the message
        raise DataLost(str(error).strip().splitlines()[-1].rpartition("Error: ")[2]) from None


def _digest(net: nn.Module) -> str:
    """A few digits that change with the weights."""
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read the output is gone; that is no reason to stop
        print(text, flush=True)


def fit(
    *,
    folder: TrainingFolder,  # the state to go on from, saving
    draw: Callable[[Tensor, Tensor, int, int], tuple],  # (rainy, clean, index over all steps, whole batch) -> inputs
    step: Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]],  # inputs -> losses, detached, and images
    nets: dict[str, nn.Module],  # by file prefix, on the device
    optimizers: Mapping[str, Optimizer],  # by the same prefixes, see optimizer.py
    dataset: PatchDataset,  # of crops
    device: torch.device,
    batch_size: int,  # crops in a step, of all processes together
    iters_per_epoch: int,  # steps of an epoch
    niter: int,  # epochs
    milestone: list[int],  # finished epochs after which every learning rate is multiplied by gamma
    gamma: float,
    workers: int,  # processes that read images
    log_dir: str,
    save_every: int,  # epochs between bare weights; the last epoch always
    save_minutes: float,  # between full states within an epoch; after each epoch always
    log_every: int,  # steps between scalars
    validate: Callable[[Callable[[], bool]], dict[str, float] | None] | None = None,  # (stop?) -> psnr_y or others
    val_every: int = 1,  # epochs
    frozen: nn.Module | None = None,  # what the steps use and never change, to notice another one on resume
    ema: EMA | None = None,  # moving average of one of the networks, updated after each step
    warm_up: int = 0,  # steps over which the learning rates rise to their values
) -> None:
    """Train from where the folder stands to the end of epoch niter.

    Raises:
        TrainingStopped: a loss or weight is not finite, a file can't be read or saved; the last good state stays.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    base = {name: optimizer.param_groups[0]["initial_lr"] for name, optimizer in optimizers.items()}
    data = dataset.fingerprint() + (f", generator {_digest(frozen)}" if frozen else "")
    distributed.require_same("--use_gpu", device.type)
    distributed.require_same("--data_path, --netED", data)
    folder.restore(nets, optimizers, data)
    distributed.broadcast_weights(nets.values())
    if folder.epoch >= niter:
        _say(f"nothing to do: {folder.epoch} epochs are done and --niter is {niter}")
        return
    own_size = len(range(batch_size)[distributed.share()])
    if own_size == 0:
        raise UserError(f"--batchSize: {batch_size} crops for {distributed.world_size()} processes; each needs one")
    weight = own_size / batch_size
    for optimizer in optimizers.values():
        distributed.average_gradients(optimizer, weight)
    first = folder.epoch + 1
    done_before = folder.epoch * iters_per_epoch + folder.step
    log = Log(log_dir, folder.options(), folder.epoch, done_before, folder.args.overwrite)
    folder.begin()
    sampler = CropSampler(batch_size, iters_per_epoch, dataset.seed, first, niter, folder.step)
    loader, close = crop_loader(dataset, sampler, workers, pin_memory=device.type == "cuda")

    def save() -> None:
        sums.require_finite(folder)
        folder.sums = sums.plain() if folder.step else {}
        folder.save_state(nets, optimizers)

    def stopped() -> KeyboardInterrupt:
        done = f"{folder.epoch} epochs and {folder.step} steps"
        return KeyboardInterrupt(f"stopped and saved after {done}. The same command goes on.")

    batches = _batches(loader)
    with StopRequest() as stop:
        try:
            saved_at = time.monotonic()
            for epoch in range(first, niter + 1):
                rates = {name: learning_rate(base[name], milestone, gamma, epoch) for name in optimizers}
                for name, optimizer in optimizers.items():
                    set_rate(optimizer, rates[name])
                sums, began, began_at = LossSums(folder.sums), time.monotonic(), folder.step
                images: dict[str, Tensor] = {}
                with progress_bar(
                    total=iters_per_epoch, initial=folder.step, desc=f"epoch {epoch}/{niter}", leave=False
                ) as bar:
                    while folder.step < iters_per_epoch:
                        index = (epoch - 1) * iters_per_epoch + folder.step
                        problem = ""
                        try:
                            pixels = next(batches)
                        except DataLost as error:
                            problem = str(error)
                        late = time.monotonic() - saved_at > 60 * save_minutes
                        stopping, late, lost = distributed.any_true(stop(), late, bool(problem))
                        if stopping or late or lost:
                            save()
                            saved_at = time.monotonic()
                        if lost:
                            raise DataLost(f"{distributed.first_reason(problem)}. {folder.last_good()}")
                        if stopping:
                            distributed.gather(None)  # until the first process has saved
                            raise stopped()
                        if index <= warm_up:
                            for name, optimizer in optimizers.items():
                                set_rate(optimizer, base[name] * (index + 1) / (warm_up + 1))
                        rainy, clean = to_batch(pixels.to(device, non_blocking=True))
                        try:
                            losses, images = step(*draw(rainy, clean, index, batch_size))
                        except DerainerError as error:
                            if index > done_before:
                                save()
                            raise TrainingStopped(f"{error} {folder.last_good()}") from None
                        if ema is not None:
                            ema.update(index)
                        sums.add(distributed.average(losses, weight), index)
                        folder.step += 1
                        bar.update()
                        if folder.step % log_every == 0 or folder.step == iters_per_epoch:
                            sums.require_finite(folder)
                            newest = sums.last()
                            log.scalars({f"loss/{name}": value for name, value in newest.items()}, index)
                            bar.set_postfix({name: f"{value:.3g}" for name, value in newest.items()}, refresh=False)
                seconds = time.monotonic() - began
                sums.require_finite(folder)
                distributed.broadcast_weights(nets.values(), trainable=False)
                scores = {}
                if validate is not None and (epoch % val_every == 0 or epoch == niter):
                    save()  # whatever happens now, the epoch's steps are done; a resume repeats the validation alone
                    try:
                        scores = validate(stop)
                    except UserError as error:  # of a derainer, of an image that has changed
                        raise TrainingStopped(f"validation: {error} {folder.last_good()}") from None
                    if scores is None:  # Ctrl-C
                        raise stopped()
                    if scores.get("psnr_y", folder.best) > folder.best:
                        folder.best = scores["psnr_y"]
                        folder.save_weights({name: nets[name] for name in list(nets)[:1]}, "best")
                saving = epoch % save_every == 0 or epoch == niter
                if saving:
                    folder.save_weights(nets, f"state_{epoch}")
                means, speed = sums.means(), (iters_per_epoch - began_at) / max(seconds, 1e-9)
                end = epoch * iters_per_epoch
                rates = {f"lr/{name}": rate for name, rate in rates.items()}
                log.scalars(rates | {f"val/{name}": value for name, value in scores.items()}, end)
                log.images(images, end)
                columns = means | rates | {f"val_{name}": value for name, value in scores.items()}
                log.epoch({"epoch": epoch, "step": end, "seconds": f"{seconds:.1f}"} | columns)
                folder.epoch, folder.step = epoch, 0  # after the log: a resume drops rows that are too new
                save()
                saved_at = time.monotonic()
                shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
                measured = "".join(f"  val {name} {value:.4f}" for name, value in scores.items())
                files = f"  saved ..._state_{epoch}.pt" if saving else ""
                _say(f"epoch {epoch}/{niter}  {shown}{measured}  ({seconds:.0f} s, {speed:.2f} steps/s){files}")
        except CannotRecord as error:
            advice = "Run the same command with --cuda_graphs off."
            raise TrainingStopped(f"--cuda_graphs: {error}. {folder.last_good()} {advice}") from None
        except distributed.ProcessLost as error:
            raise TrainingStopped(f"{error}. {folder.last_good()}") from None
        except (RuntimeError, MemoryError) as error:
            told = (str(error) or type(error).__name__).splitlines()[0]
            if is_dead_worker(error):
                reason = f"a worker that reads the images died ({told}); try fewer --workers."
            elif is_out_of_memory(error):
                reason = (
                    f"out of memory ({told}). Where nothing else takes the memory, a new training needs a smaller "
                    "--batchSize, --patchSize or network, or several GPUs."
                )
            else:
                raise
            raise TrainingStopped(f"{reason} {folder.last_good()}") from None
        finally:
            close()
            batches.close()
            log.close()
