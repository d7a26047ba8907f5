"""What makes the same work faster: precision, compilation, recording; and the plain setting.

The plain setting is the reference's way of computing. Nobody wants it but ``python -m common.benchmark``, which
measures what the rest gains.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam

from . import graphs
from .models.prenet import Body
from .precision import autocast, describe, order, require_fast, set_arithmetic


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
