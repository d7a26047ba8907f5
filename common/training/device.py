"""The device for --use_gpu and --gpu_id; if the GPU of this machine can't be used, why, in PyTorch's own words."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable

import torch

from .. import distributed
from ..errors import UserError
from ..memory import keep_memory
from ..precision import set_arithmetic

REMEDY = f"""nvidia-smi shows who else uses the GPU, and the version of the driver. If PyTorch does not fit the driver,
https://pytorch.org/get-started/locally tells which one does; for an older driver:
  {sys.executable} -m pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126"""


def pick_device(use_gpu: bool, gpu_id: str, training: bool = False) -> torch.device:
    """The device for --use_gpu and --gpu_id; says so where a GPU is asked for and none can be used, and why.

    Of several processes on a machine, LOCAL_RANK decides: each takes the GPU of its number, or of its place in a list.

    Args:
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
    if len(ids) > 1 and not distributed.is_launched():
        print(f"--gpu_id {gpu_id}: one process uses one GPU, this one takes GPU {ids[0]}; for several: docs/scaling.md")
    if not torch.cuda.is_available():
        return _without_gpu((_failure(torch.cuda.init) or "PyTorch finds none") if has_gpu() else "", training)
    gpus = torch.cuda.device_count()
    place, processes = distributed.local_rank(), distributed.local_size()
    if processes > 1 and ids == [0]:  # the default
        ids = list(range(processes))
    if processes > min(gpus, len(ids)):
        raise UserError(
            f"--gpu_id {gpu_id}: {processes} processes on this machine, which has {gpus} GPUs; start a process for "
            "each GPU that is named (torchrun's --nproc_per_node), or say --use_gpu false"
        )
    for i in ids:
        if not 0 <= i < gpus:
            raise UserError(f"--gpu_id: there is no GPU {i}; this machine has {', '.join(map(str, range(gpus)))}")
    chosen = torch.device("cuda", ids[place])
    torch.cuda.set_device(chosen)
    if reason := _failure(lambda: torch.ones(3, device=chosen).sum().item()):  # one too old for this PyTorch, or in use
        return _without_gpu(f"{torch.cuda.get_device_name(chosen)}: {reason}", training)
    set_arithmetic("fp32")  # exact, until --precision says otherwise
    torch.backends.cudnn.benchmark = training  # batches of one size
    return chosen


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, which is not hidden on purpose; asked where PyTorch finds none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return b"GPU" in subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30, check=True).stdout
    return False


def _failure(work: Callable[[], object]) -> str:
    """The first line of the error that a first use of the GPU ends with; empty where it works."""
    try:
        work()
    except (RuntimeError, AssertionError) as error:
        return (str(error).splitlines() or ["no reason given"])[0]
    return ""


def _without_gpu(reason: str, training: bool) -> torch.device:
    if reason and training:
        raise UserError(f"--use_gpu: {reason}\n{REMEDY}\n--use_gpu false trains on the CPU all the same.")
    why = f"The GPU can't be used: {reason}\n{REMEDY}\nRunning" if reason else "No CUDA GPU here: running"
    print(f"{why} on the CPU (--use_gpu false says so without this line).")
    return torch.device("cpu")
