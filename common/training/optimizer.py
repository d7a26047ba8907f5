"""Adam for all trainings, and its rate."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Adam, Optimizer


def adam(parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> Adam:
    """Adam with PyTorch's eps, of the parameters that learn; fused on a GPU. Its rate is kept in ``initial_lr`` too."""
    parameters = [p for p in parameters if p.requires_grad]
    optimizer = Adam(parameters, lr, betas, fused=True if any(p.is_cuda for p in parameters) else None)
    for group in optimizer.param_groups:
        group["initial_lr"] = lr
    return optimizer


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor: a recording reads it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
