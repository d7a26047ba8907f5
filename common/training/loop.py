"""The loop around every kind of training: epochs, schedule, logs, saving, resume, and a guard against bad losses."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import ranks
from ..data.patches import CropSampler, PatchDataset, crop_loader, to_batch
from ..derainer import DerainerError
from ..errors import StartAgain, TrainingStopped, UserError, is_dead_worker, is_out_of_memory
from ..graphs import CannotRecord
from ..speed import set_rate
from ..terminal import progress_bar
from .log import Log
from .run import Run
from .runtime import StopRequest


def learning_rate(base: float, milestone: list[int], gamma: float, epoch: int) -> float:
    """Rate in an epoch counted from 1: times gamma for every milestone m < epoch (m acts before epoch m + 1)."""
    rate = base
    for m in milestone:
        rate *= gamma if m < epoch else 1
    return rate


class DataLost(TrainingStopped):
    """An image can't be read any more; the networks are as good as after the last step."""


class Ledger:
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

    def require_finite(self, run: Run) -> None:
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
                f"a loss is not finite at step {step} (counted from 0 over the whole run): {values}. {run.last_good()} "
                "If it happens again: lower the learning rates, or look at the data."
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

    def sums(self) -> dict:
        """Plain values from which a new ledger goes on."""
        return {" ".join(names): (kind["total"].tolist(), kind["steps"]) for names, kind in self.kinds.items()}


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


def _without_recording(run: Run, error: CannotRecord) -> Exception:
    """What a recording that broke off ends in: the same run from its start, or of several processes an end."""
    if ranks.count() > 1:
        return TrainingStopped(f"--cuda_graphs: a recording failed ({error}); leave it out. {run.last_good()}")
    _say(f"--cuda_graphs: a recording failed ({error}); starting again without")
    fresh = [] if run.args.resume else ["--overwrite", "--manualSeed", str(run.args.manualSeed)]
    return StartAgain(["--cuda_graphs", "off", *fresh])


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read the output is gone; that is no reason to stop
        print(text, flush=True)


def fit(
    *,
    run: Run,  # model folder, state to go on from, saving
    step: Callable[[Tensor, Tensor, int], dict[str, Tensor]],  # (rainy, clean, index over the run) -> detached losses
    nets: dict[str, nn.Module],  # by file prefix, on the device
    optimizers: Mapping[str, Optimizer],  # by the same prefixes; their initial_lr is that of epoch 1, see Speed.adam
    dataset: PatchDataset,  # of crops
    device: torch.device,
    batch_size: int,  # of each process
    iters_per_epoch: int,  # steps of an epoch
    niter: int,  # epochs
    milestone: list[int],  # finished epochs after which every learning rate is multiplied by gamma
    gamma: float,
    workers: int,  # processes that read images
    log_dir: str,
    save_every: int,  # epochs between bare weights; the last epoch always
    save_minutes: float,  # between full states within an epoch; after each epoch always
    log_every: int,  # steps between scalars
    pictures: Callable[[], dict[str, Tensor]],  # batches for the image grids
    validate: Callable[[Callable[[], bool]], dict[str, float] | None] | None = None,  # (stop?) -> psnr_y or others
    val_every: int = 1,  # epochs
    frozen: nn.Module | None = None,  # what the steps use and never change, to notice another one on resume
) -> None:
    """Train from where the run stands to the end of epoch niter.

    Raises:
        TrainingStopped: a loss or weight is not finite, a file can't be read or saved; the last good state stays.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    base = {name: optimizer.param_groups[0]["initial_lr"] for name, optimizer in optimizers.items()}
    data = dataset.fingerprint() + (f", generator {_digest(frozen)}" if frozen else "")
    ranks.require_same("--use_gpu", device.type)
    ranks.require_same("--data_path, --netED", data)
    run.restore(nets, optimizers, data)
    ranks.spread(nets.values())
    if run.epoch >= niter:
        _say(f"nothing to do: {run.epoch} epochs are done and --niter is {niter}")
        return
    first = run.epoch + 1
    done_before = run.epoch * iters_per_epoch + run.step
    log = Log(log_dir, run.options(), run.epoch, done_before, run.args.overwrite)
    run.begin()
    whole = batch_size * ranks.count()
    if ranks.count() > 1:
        _say(f"{ranks.count()} processes: a step has {whole} crops, {batch_size} of each")
    sampler = CropSampler(whole * iters_per_epoch, dataset.seed, first, niter, run.step * whole)
    loader, close = crop_loader(dataset, sampler, batch_size, workers, pin_memory=device.type == "cuda")

    def save() -> None:
        ranks.goes_on(patient=True)
        ledger.require_finite(run)
        run.sums = ledger.sums() if run.step else {}
        run.save_state(nets, optimizers)

    def interrupted() -> KeyboardInterrupt:
        return KeyboardInterrupt(
            f"stopped and saved after {run.epoch} epochs and {run.step} steps. To go on:\n  {run.command()}"
        )

    batches = _batches(loader)
    with StopRequest() as stop:
        try:
            saved_at = time.monotonic()
            for epoch in range(first, niter + 1):
                rates = {name: learning_rate(base[name], milestone, gamma, epoch) for name in optimizers}
                for name, optimizer in optimizers.items():
                    set_rate(optimizer, rates[name])
                ledger, began, began_at = Ledger(run.sums), time.monotonic(), run.step
                with progress_bar(
                    total=iters_per_epoch, initial=run.step, desc=f"epoch {epoch}/{niter}", leave=False
                ) as bar:
                    while run.step < iters_per_epoch:
                        index = (epoch - 1) * iters_per_epoch + run.step
                        problem = ""
                        try:
                            pixels = next(batches)
                        except DataLost as error:
                            problem = str(error)
                        late = time.monotonic() - saved_at > 60 * save_minutes
                        stopping, late, lost = ranks.any_wish(stop(), late, bool(problem))
                        ranks.goes_on()  # with the others: all are here
                        if stopping or late or lost:
                            save()
                            saved_at = time.monotonic()
                        if lost:
                            raise DataLost(f"{ranks.any_reason(problem)}. {run.last_good()}")
                        if stopping:
                            ranks.gather(None)  # until the first process has saved
                            raise interrupted()
                        rainy, clean = to_batch(pixels.to(device, non_blocking=True))
                        try:
                            losses = step(rainy, clean, index)
                        except CannotRecord as error:
                            raise _without_recording(run, error) from None
                        except DerainerError as error:
                            if index > done_before:
                                save()
                            raise TrainingStopped(f"{error} {run.last_good()}") from None
                        ledger.add(losses, index)
                        run.step += 1
                        bar.update()
                        if run.step % log_every == 0 or run.step == iters_per_epoch:
                            ledger.require_finite(run)
                            newest = ledger.last()
                            log.scalars({f"loss/{name}": value for name, value in newest.items()}, index)
                            bar.set_postfix({name: f"{value:.3g}" for name, value in newest.items()}, refresh=False)
                seconds = time.monotonic() - began
                ranks.goes_on(patient=True)
                ledger.require_finite(run)
                ranks.spread(nets.values(), weights=False)
                scores = {}
                if validate is not None and (epoch % val_every == 0 or epoch == niter):
                    save()  # whatever happens now, the epoch's steps are done; a resume repeats the validation alone
                    try:
                        scores = validate(stop)
                    except UserError as error:  # of a derainer, of an image that has changed
                        raise TrainingStopped(f"validation: {error} {run.last_good()}") from None
                    if scores is None:  # Ctrl-C
                        raise interrupted()
                    if scores.get("psnr_y", run.best) > run.best:
                        run.best = scores["psnr_y"]
                        run.save_weights({name: nets[name] for name in list(nets)[:1]}, "best")
                saving = epoch % save_every == 0 or epoch == niter
                if saving:
                    run.save_weights(nets, f"state_{epoch}")
                means, speed = ledger.means(), (iters_per_epoch - began_at) / max(seconds, 1e-9)
                end = epoch * iters_per_epoch
                rates = {f"lr/{name}": rate for name, rate in rates.items()}
                log.scalars(rates | {f"val/{name}": value for name, value in scores.items()}, end)
                if pictures():
                    log.pictures(pictures(), end)
                columns = means | rates | {f"val_{name}": value for name, value in scores.items()}
                log.epoch({"epoch": epoch, "step": end, "seconds": f"{seconds:.1f}"} | columns)
                run.epoch, run.step = epoch, 0  # after the log: a resume drops rows that are too new, not missing ones
                save()
                saved_at = time.monotonic()
                shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
                measured = "".join(f"  val {name} {value:.4f}" for name, value in scores.items())
                files = f"  saved ..._state_{epoch}.pt" if saving else ""
                _say(f"epoch {epoch}/{niter}  {shown}{measured}  ({seconds:.0f} s, {speed:.2f} steps/s){files}")
        except (RuntimeError, MemoryError) as error:
            told = (str(error) or type(error).__name__).splitlines()[0]
            if is_dead_worker(error):
                reason = f"a worker that reads the images died ({told}); try fewer --workers."
            elif is_out_of_memory(error):
                reason = (
                    f"out of memory ({told}). Where nothing else takes the memory, a new run needs a smaller "
                    "--batchSize, --patchSize or network, or several GPUs."
                )
            else:
                raise
            raise TrainingStopped(f"{reason} {run.last_good()}") from None
        finally:
            close()
            batches.close()
            log.close()
