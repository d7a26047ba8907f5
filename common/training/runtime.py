"""Device, seeds, and signals: what a script settles before it trains or derains."""

import contextlib
import os
import random
import shlex
import signal
import sys
import threading

import numpy as np
import torch

from .. import ranks
from ..errors import UserError
from ..memory import keep_memory
from ..precision import set_arithmetic
from . import device


def pick_device(use_gpu: bool, gpu_id: str, several: bool = True, training: bool = False) -> torch.device:
    """The device for --use_gpu and --gpu_id; says so where a GPU is asked for and none can be used, and why.

    Of several processes on a machine, LOCAL_RANK decides: each takes the GPU of its number, or of its place in a list.

    Args:
        several: whether the command can run in several processes.
        training: a GPU that is there must be usable: on the CPU the command would take a month.

    Raises:
        UserError: a training can't use the GPU that is there; --gpu_id is no list of numbers, or names a GPU that is
            not there; more processes than GPUs.
    """
    try:
        ids = [int(part) for part in str(gpu_id).split(",")]
    except ValueError:
        raise UserError(f"--gpu_id: expected a number such as 0, or several such as 0,1; got {gpu_id!r}") from None
    keep_memory()
    if not use_gpu:
        return torch.device("cpu")
    if len(ids) > 1 and not ranks.launched():
        print(f"--gpu_id {gpu_id}: one process uses one GPU, this one takes GPU {ids[0]}.")
        if several:
            print(f"A process for each of them:\n  {ranks.torchrun(len(ids))} {shlex.join(sys.argv)}")
    if not torch.cuda.is_available():
        return _without_gpu(device.trouble(), training)
    there = torch.cuda.device_count()
    place, processes = ranks.local_rank(), ranks.local_count()
    if processes > 1 and ids == [0]:  # the default
        ids = list(range(processes))
    if processes > min(there, len(ids)):
        raise UserError(
            f"--gpu_id {gpu_id}: {processes} processes on this machine, which has {there} GPUs; start a process for "
            "each GPU that is named (torchrun's --nproc_per_node), or say --use_gpu false"
        )
    for i in ids:
        if not 0 <= i < there:
            raise UserError(f"--gpu_id: there is no GPU {i}; this machine has {', '.join(map(str, range(there)))}")
    chosen = torch.device("cuda", ids[place])
    torch.cuda.set_device(chosen)
    if reason := device.try_kernel(chosen):
        return _without_gpu(reason, training)
    set_arithmetic("fp32")  # exact, until --precision says otherwise
    return chosen


def _without_gpu(reason: str, training: bool) -> torch.device:
    if reason and training:
        raise UserError(f"--use_gpu: {reason}\n--use_gpu false trains on the CPU all the same.")
    why = f"The GPU can't be used: {reason}\nRunning" if reason else "No CUDA GPU here: running"
    print(f"{why} on the CPU (--use_gpu false says so without this line).")
    return torch.device("cpu")


def seed_everything(seed: int | None) -> int:
    """Seed every random number generator, alike in all processes; None draws a seed and prints it.

    Returns:
        The seed, for the crops.
    """
    if seed is None:
        seed = ranks.from_first(random.SystemRandom().randrange(2**31))
        print(f"manualSeed: {seed} (drawn; --manualSeed {seed} repeats this run)")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def rng_state() -> dict:
    """The state of every generator, as tensors and plain values only."""
    _, keys, position, has_gauss, cached = np.random.get_state()
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of the GPU in use
        "numpy": [torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, list(numbers), gauss],
    }


def set_rng_state(state: dict) -> None:
    """Put every generator back to a state of ``rng_state``."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and (states := state["cuda"]):  # one, or in older files that of every GPU
        torch.cuda.set_rng_state(states[min(torch.cuda.current_device(), len(states) - 1)])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


class StopRequest:
    """Within it, the first Ctrl-C or SIGTERM only asks to stop after the current step; a second Ctrl-C ends at once.

    Under torchrun a second one changes nothing: there it may follow by itself. torchrun leaves half a minute.
    """

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        return self.requested

    def _handle(self, number: int, frame) -> None:
        again, alone = self.requested, not ranks.launched()
        self.requested = True
        if not again and ranks.first():
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
