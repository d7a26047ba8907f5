"""Whether the GPU of this machine can be used, and if not, why, and which command helps."""

import contextlib
import os
import subprocess
import sys

import torch

# PyPI's wheels are for CUDA 13: GPUs from Turing (T4, GTX 16xx, RTX 20xx) and drivers from 580 on. The last wheels for
# older ones (CUDA 12.6: Maxwell to Hopper, drivers from 525 on) are those of PyTorch 2.14.
DRIVER = 580
PIP = f"{sys.executable} -m pip install --force-reinstall "
INDEX = " torchvision --index-url https://download.pytorch.org/whl/"
NEW, OLD = f"{PIP}torch{INDEX}cu130", f'{PIP}"torch>=2.11,<2.15"{INDEX}cu126'


def driver() -> str:
    """Version of this machine's NVIDIA driver; empty where there is none, or where its GPUs are hidden on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return ""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=True).stdout.split()
        return said[0] if said else ""
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
