"""What makes the same work faster: precision, compilation, recording, order of memory; and the plain setting.

The plain setting is the reference's way of computing. Nobody wants it but ``python -m common.benchmark``, which
measures what the rest gains.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from common import graphs
from common.errors import UserError
from common.models.prenet import Body

# What a precision changes on a GPU. Weights, losses and the averages of Adam are fp32 in each.
ARITHMETIC = {
    "auto": "factors in convolutions rounded to 10 bits (TF32), as PyTorch does by itself; fp32 is exact and slower",
    "fp32": "convolutions and matrix products in full fp32",
    "tf32": "factors in convolutions and matrix products of all networks rounded to 10 bits (TF32)",
    "bf16": "the derainer in bfloat16 (8 bits), factors in the other networks rounded to 10 bits (TF32)",
}
TENSOR_CORES = ("tf32", "bf16")  # precisions in which products are rounded, too
_tensor_cores = True  # whether a GPU rounds in convolutions, see ``set_arithmetic``


@dataclass(frozen=True)
class Speed:
    """How the networks of a training are called.

    Attributes:
        precision: 'fp32'; 'auto' or 'tf32', on GPUs alone; or 'bf16', autocast of the derainer. Losses, Adam stay fp32.
        compile: torch.compile the derainer.
        record: on a GPU, record whole steps and replay them, see common/training/proof.py.
        plain: gradients even where none is needed, a convolution for each gate, one order of memory, no recording,
            and on a GPU the precision that PyTorch takes by itself.
        again: steps after which a recorded one is compared again; an epoch's.
    """

    precision: str = "fp32"
    compile: bool = False
    record: bool = True
    plain: bool = False
    again: int = 3000

    def switch(self) -> None:
        """Set the switches of PyTorch."""
        set_arithmetic("auto" if self.plain else self.precision)
        torch.backends.cudnn.benchmark = not self.plain  # batches are of one size

    def prepare(self, net: nn.Module, device: torch.device, say: bool = False) -> None:
        """Set the switches of a derainer, and those of PyTorch, before the first step.

        Args:
            say: print what the precision means here.

        Raises:
            UserError: see ``require_fast``.
        """
        require_fast(self.precision, device)
        if say and (text := describe(self.precision, device)):
            print(text)
        self.switch()
        fuse(net, not self.plain)
        if not self.plain and device.type == "cuda" and self.precision != "fp32":
            for module in net.modules():
                if isinstance(module, Body):
                    module.to(memory_format=torch.channels_last)  # see ``order``
        if self.compile:
            compile_net(net, device)

    def adam(self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> Adam:
        """Adam with PyTorch's eps; one that can be recorded where that is done.

        Its rate is kept in ``initial_lr`` as well: that of a recorded one is a tensor, see ``set_rate``.
        """
        parameters = list(parameters)
        if parameters and self.recorder(parameters[0].device):
            rate = torch.tensor(lr, dtype=torch.float32, device=parameters[0].device)
            optimizer = Adam(parameters, rate, betas, fused=True, capturable=True)
        else:
            optimizer = Adam(parameters, lr, betas)
        for group in optimizer.param_groups:
            group["initial_lr"] = lr
        return optimizer

    def recorder(self, device: torch.device) -> graphs.Recorder | None:
        """What records steps on a device; None where they are run."""
        return graphs.recorder(device) if self.record and not self.plain else None

    def needs_grad(self, learns: bool) -> bool:
        """Whether a step is computed with gradients: where the network learns; plainly everywhere."""
        return learns or self.plain

    def order(self, rainy: Tensor) -> Tensor:
        """The batch as a derainer of ours is given it, see ``order``."""
        return rainy if self.plain else order(rainy)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """See ``autocast``."""
        return autocast(device, self.precision)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor, which a recording has its place of."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


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


@contextlib.contextmanager
def unprepared(net: nn.Module) -> Iterator[None]:
    """Within it nothing is prepared for a size: not worth it for those that come once, a minute of compiling least."""
    compiled = net._compiled_call_impl is not None
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
            yield
    finally:
        torch.backends.cudnn.benchmark = before
