"""What makes the same work faster: precision, compilation, order and reuse of memory; and the plain setting.

The plain setting is the reference's way of computing. Nobody wants it but ``python -m common.benchmark``, which
measures what the rest gains.
"""

import contextlib
import ctypes
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.models.prenet import Body

MEBI = 2**20


@dataclass(frozen=True)
class Speed:
    """How a derainer is called in training.

    Attributes:
        precision: 'fp32', or 'bf16' for autocast of the derainer alone; losses, D and Adam stay fp32.
        compile: torch.compile the derainer.
        plain: gradients even where none is needed, a convolution for each gate, one order of memory.
    """

    precision: str = "fp32"
    compile: bool = False
    plain: bool = False

    def prepare(self, net: nn.Module, device: torch.device) -> None:
        """Set the switches of a network before its first step.

        Raises:
            UserError: see ``require_fast``.
        """
        require_fast(self.precision, device)
        fuse(net, not self.plain)
        if self.compile:
            compile_net(net, device)

    def needs_grad(self, learns: bool) -> bool:
        """Whether a step is computed with gradients: where the network learns; plainly everywhere."""
        return learns or self.plain

    def order(self, rainy: Tensor) -> Tensor:
        """The batch as a derainer is given it: without gradients, convolutions are faster channels_last."""
        plain = self.plain or torch.is_grad_enabled()
        return rainy if plain else rainy.contiguous(memory_format=torch.channels_last)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """See ``autocast``."""
        return autocast(device, self.precision)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Within it convolutions and matrix products run in bfloat16 for 'bf16', and as they are for 'fp32'."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def require_fast(precision: str, device: torch.device) -> None:
    """Refuse bf16 where it would not be faster but a hundred times slower.

    Raises:
        UserError: the processor has no instructions for it.
    """
    if precision != "bf16":
        return
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
    if not native:
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
        raise UserError(
            f"--precision bf16: {what} has no bfloat16 instructions, it would be many times slower; take fp32"
        )


def fuse(net: nn.Module, fused: bool) -> None:
    """One convolution for the four gates of PReNet and BNet, or four; other networks have no such switch."""
    for module in net.modules():
        if isinstance(module, Body):
            module.fused = fused


def compile_net(net: nn.Module, device: torch.device) -> None:
    """torch.compile a network in place (names of its weights stay); says so and goes on without where that fails."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.zeros(8, device=device))
    except Exception as error:  # no C++ compiler or Triton, a Python that is too new, ...
        lines = [line for line in str(error).splitlines() if line.strip() and "backend=" not in line]
        reason = (lines or [type(error).__name__])[0]
        print(f"--compile: not possible here, going on without ({reason[:200]})")
        return
    print("--compile: the first steps, or the first image of a size, take up to a minute", flush=True)
    net.compile()


def uncompiled(net: nn.Module) -> contextlib.AbstractContextManager:
    """Within it a compiled network runs as it was written: for sizes that are not worth a minute of compiling."""
    compiled = net._compiled_call_impl is not None
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


def keep_memory(keep: bool = True) -> bool:
    """Let the C library keep freed memory for the next maps of a network, instead of asking the system page by page.

    Linux with glibc; elsewhere nothing happens. The largest maps gain most: a tenth of the time of deraining.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError):  # another C library
        return False
    if not keep:
        malloc_trim(0)  # give back what was kept
    trim, mmap = -1, -3  # malloc.h: M_TRIM_THRESHOLD, for which -1 is never, and M_MMAP_THRESHOLD
    if keep:  # a threshold that it refuses would stay at 128 KiB, since setting any ends glibc's own adjustment
        return bool((mallopt(mmap, 1024 * MEBI) or mallopt(mmap, 32 * MEBI)) and mallopt(trim, -1))
    return bool(mallopt(mmap, 32 * MEBI) and mallopt(trim, 64 * MEBI))  # where that adjustment ends up with such maps
