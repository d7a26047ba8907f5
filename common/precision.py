"""What --precision means: how a GPU, or a CPU that can, rounds factors; and the order of memory for it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

# What a precision changes on a GPU. Weights, losses and the averages of Adam are fp32 in each.
ARITHMETIC = {
    "auto": "factors in convolutions rounded to 10 bits (TF32), as PyTorch does by itself; fp32 is exact and slower",
    "fp32": "convolutions and matrix products in full fp32",
    "tf32": "factors in convolutions and matrix products of all networks rounded to 10 bits (TF32)",
    "bf16": "the derainer in bfloat16 (8 bits), factors in the other networks rounded to 10 bits (TF32)",
}
TENSOR_CORES = ("tf32", "bf16")  # precisions in which products are rounded, too
_tensor_cores = True  # whether a GPU rounds in convolutions, see ``set_arithmetic``


def set_arithmetic(precision: str) -> None:
    """How a GPU computes convolutions and products of fp32; 'auto': PyTorch's own choice, TF32 in convolutions alone.

    PyTorch's older switches (``allow_tf32``) can't be read or set beside these: it raises RuntimeError.
    """
    global _tensor_cores
    _tensor_cores = precision != "fp32"
    convolutions, products = ("tf32" if rounded else "ieee" for rounded in (_tensor_cores, precision in TENSOR_CORES))
    cudnn: Any = torch.backends.cudnn  # mypy does not know its parts
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = convolutions
    torch.backends.cuda.matmul.fp32_precision = products


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """Within it a GPU rounds no factors, forth or back, whatever the precision."""
    cudnn: Any = torch.backends.cudnn
    conv = cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before


def order(x: Tensor) -> Tensor:
    """A batch in the order of memory in which the convolutions of PReNet are fastest.

    channels_last for tensor cores, which compute all but full fp32, and on a CPU where there are no gradients.
    """
    if x.device.type == "cuda":
        last = _tensor_cores or torch.is_autocast_enabled("cuda")
    else:
        last = not torch.is_grad_enabled()
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Within it convolutions and matrix products run in bfloat16 for 'bf16', and as they are for 'fp32'."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; on CPUs AVX-512 bf16, AMX and others."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)


def require_fast(precision: str, device: torch.device) -> None:
    """Refuse bf16 where it would not be faster but a hundred times slower.

    Raises:
        UserError: the processor has no instructions for it.
    """
    if precision == "bf16" and not has_bfloat16(device):
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
        raise UserError(
            f"--precision bf16: {what} has no bfloat16 instructions, it would be many times slower; take fp32"
        )


def describe(precision: str, device: torch.device) -> str:
    """What a precision means on a device, in a line; empty where that is fp32 on a CPU: there is nothing to say."""
    if device.type == "cuda":
        old = precision in ("auto", "tf32") and not torch.cuda.is_tf32_supported()
        return f"--precision {precision}: " + (
            "this GPU has no TF32, it computes in fp32" if old else ARITHMETIC[precision]
        )
    texts = {"tf32": "only GPUs have TF32; computing in fp32", "bf16": "the derainer in bfloat16 (8 bits)"}
    return f"--precision {precision}: {texts[precision]}" if precision in texts else ""
