"""The device for --use_gpu and --gpu_id; if the GPU of this machine can't be used, why, and which command helps."""

import contextlib
import os
import subprocess
import sys

import torch

from .. import distributed
from ..errors import UserError
from ..memory import keep_memory
from ..precision import set_arithmetic

# PyPI's wheels are for CUDA 13: GPUs from Turing (T4, GTX 16xx, RTX 20xx) and drivers from 580 on. The last wheels for
# older ones (CUDA 12.6: Maxwell to Hopper, drivers from 525 on) are those of PyTorch 2.14.
DRIVER = 580
PIP = f"{sys.executable} -m pip install --force-reinstall "
INDEX = " torchvision --index-url https://download.pytorch.org/whl/"
NEW, OLD = f"{PIP}torch{INDEX}cu130", f'{PIP}"torch>=2.11,<2.15"{INDEX}cu126'


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
        return _without_gpu(trouble(), training)
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


def driver() -> str:
    """Version of this machine's NVIDIA driver; empty where there is none, or where its GPUs are hidden on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return ""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        versions = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.split()
        return versions[0] if versions else ""
    return ""


def trouble() -> str:
    """Why PyTorch finds no GPU though there is an NVIDIA driver, and what helps; empty where there is none."""
    version = driver()
    major = int(version.partition(".")[0]) if version[:3].isdecimal() else 0
    if not version:
        return ""
    if torch.version.cuda is None:
        line = NEW if major >= DRIVER else OLD
        return f"this PyTorch ({torch.__version__}) is a build for CPUs, but there is an NVIDIA GPU. Install\n  {line}"
    if major < DRIVER and torch.version.cuda >= "13":
        return (
            f"the NVIDIA driver {version} is too old for this PyTorch (CUDA {torch.version.cuda}, which needs driver "
            f"{DRIVER}). Update the driver, or install\n  {OLD}"
        )
    try:
        torch.cuda.init()
        reason = "no GPU is visible"
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
    return f"the NVIDIA driver {version} is there, but PyTorch can't use it ({reason}). nvidia-smi must list the GPU"


def try_kernel(device: torch.device) -> str:
    """Run one small kernel: why it failed, and what helps; empty where it works."""
    try:
        if (torch.ones(3, device=device) * 2).sum().item() == 6:
            return ""
        reason = "it computes 3 * 2 wrongly"
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        if "no kernel image" in str(error):
            a, b = torch.cuda.get_device_capability(device)
            what = f"{torch.cuda.get_device_name(device)} (compute capability {a}.{b})"
            return f"{what} is too old for this PyTorch ({torch.__version__}). Install\n  {OLD}"
    return f"a first kernel on {device} failed ({reason}). Look with nvidia-smi whether somebody else uses the GPU"
