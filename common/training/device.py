"""The device for --use_gpu and --gpu_id; if the GPU of this machine can't be used, why."""

import os
import shutil

import torch

from .. import distributed
from ..errors import UserError
from ..memory import keep_memory
from ..precision import set_arithmetic

INSTALL = "Update the driver, or install the PyTorch that fits it: https://pytorch.org/get-started/locally"


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
    if not torch.cuda.is_available():
        return _without_gpu(trouble(), training)
    gpus = torch.cuda.device_count()
    place, processes = distributed.local_rank(), distributed.local_size()
    if processes > 1 and ids == [0]:  # the default
        ids = list(range(processes))
    if processes > len(ids) or not all(0 <= i < gpus for i in ids):
        raise UserError(
            f"--gpu_id {gpu_id}: {processes} processes on this machine need a GPU each; it has {gpus}, from 0 on"
        )
    chosen = torch.device("cuda", ids[place])
    torch.cuda.set_device(chosen)
    if reason := try_kernel(chosen):
        return _without_gpu(reason, training)
    set_arithmetic("fp32")  # exact, until --precision says otherwise
    torch.backends.cudnn.benchmark = training  # batches of one size
    return chosen


def _without_gpu(reason: str, training: bool) -> torch.device:
    if reason and training:
        raise UserError(f"--use_gpu: {reason}\n--use_gpu false trains on the CPU all the same.")
    why = f"The GPU can't be used: {reason}\nRunning" if reason else "No CUDA GPU here: running"
    print(f"{why} on the CPU (--use_gpu false says so without this line).")
    return torch.device("cpu")


def trouble() -> str:
    """Why PyTorch finds no GPU though there is an NVIDIA driver; empty where there is none, or its GPUs are hidden."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if hidden or not shutil.which("nvidia-smi"):
        return ""
    built = f"PyTorch {torch.__version__} is built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPUs'}"
    return f"there is an NVIDIA driver, but PyTorch can't use the GPU ({built}; see nvidia-smi). {INSTALL}"


def try_kernel(device: torch.device) -> str:
    """Run one small kernel: why it failed; empty where it works."""
    try:
        (torch.ones(3, device=device) * 2).sum().item()
        return ""
    except RuntimeError as error:
        return f"a first kernel on {device} failed ({str(error).partition(chr(10))[0]}). {INSTALL}"
