"""Adam for all trainings, and its state in checkpoints."""

from collections.abc import Iterable

import torch
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


def state_of(optimizer: Optimizer) -> dict:
    """The state of an optimizer from which one on any device can go on."""
    state = optimizer.state_dict()
    groups = [group | {"lr": float(group["lr"])} for group in state["param_groups"]]
    return state | {"param_groups": groups}


def load_state(optimizer: Optimizer, stored: dict) -> None:
    """Go on from a ``state_of``; the kind of optimizer and its rates stay.

    Raises:
        ValueError: it was of other parameters.
    """
    groups = zip(stored["param_groups"], optimizer.state_dict()["param_groups"], strict=True)
    groups = [own | {"params": theirs["params"]} for theirs, own in groups]
    optimizer.load_state_dict(stored | {"param_groups": groups})
    for weight, state in optimizer.state.items():  # in the weight's memory layout, which fused Adam asks for
        state |= {k: torch.empty_like(weight).copy_(v) for k, v in state.items() if k != "step"}
