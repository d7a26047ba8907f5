"""--precision: how a GPU, or a CPU that can, rounds factors; and the memory layout for it."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .derainer import is_prenet
from .errors import UserError

# What a precision changes on a GPU. Weights, losses and the averages of Adam are fp32 in each.
ARITHMETIC = {
    "auto": "factors in convolutions rounded to 10 bits (TF32), PyTorch's default; fp32 is exact and slower",
    "fp32": "convolutions and matrix products in full fp32",
    "tf32": "factors in convolutions and matrix products of all networks rounded to 10 bits (TF32)",
    "bf16": "the derainer in bfloat16 (8 bits), factors in the other networks rounded to 10 bits (TF32)",
}


def prepare(net: nn.Module, device: torch.device, precision: str, training: bool = False) -> None:
    """Set precision and memory layout of a derainer, once, before its first step; says what the precision means.

    In training a CPU keeps PyTorch's usual layout. UserError: bf16 on a processor without instructions for it, where it
    would be a hundred times slower.
    """
    if precision == "bf16" and not has_bfloat16(device):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
        raise UserError(
            f"--precision bf16: {name} has no bfloat16 instructions, it would be many times slower; take fp32"
        )
    set_arithmetic(precision)
    if device.type == "cuda":
        old = precision in ("auto", "tf32") and not torch.cuda.is_tf32_supported()
        print(
            f"--precision {precision}: {'this GPU has no TF32, it computes in fp32' if old else ARITHMETIC[precision]}"
        )
    elif precision != "bf16" and not training and is_prenet(net) and has_bfloat16(device):
        print("this processor has bfloat16 instructions: --precision bf16 takes about half the time (docs/scaling.md)")
    if precision == "bf16":
        net.forward = torch.autocast(device.type, torch.bfloat16)(net.forward)
    if is_prenet(net):
        if precision != "fp32" if device.type == "cuda" else not training:
            net.to(memory_format=torch.channels_last)
        net.register_forward_pre_hook(lambda net, inputs: tuple(map(order, inputs)))


def set_arithmetic(precision: str) -> None:
    """How a GPU computes convolutions and products of fp32; 'auto': PyTorch's own choice, TF32 in convolutions alone.

    PyTorch's older switches (``allow_tf32``) can't be read or set beside these: it raises RuntimeError.
    """
    cudnn = torch.backends.cudnn
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision in ("tf32", "bf16") else "ieee"


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """Within it a GPU rounds no factors of convolutions, whatever the precision."""
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before


def order(x: Tensor) -> Tensor:
    """A batch in the memory layout in which the convolutions of PReNet are fastest.

    channels_last for tensor cores, which compute all but full fp32, and on a CPU where there are no gradients.
    """
    if x.device.type == "cuda":
        last = torch.backends.cudnn.conv.fp32_precision == "tf32" or torch.is_autocast_enabled("cuda")
    else:
        last = not torch.is_grad_enabled()
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; on CPUs AVX-512 bf16, AMX and others."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(value for name, value in torch.cpu.get_capabilities().items() if "bf16" in name)
