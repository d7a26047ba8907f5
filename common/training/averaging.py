"""A moving average of a network's weights, kept beside it while it trains; of a generator it makes the better rain."""

import copy

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Exponential moving average: after each step, average = decay * average + (1 - decay) * weights.

    Args:
        net: the network that learns; what it has now is what the average begins with.
        decay: share of the average that stays in a step, in [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._source, self._weights = list(net.parameters()), list(self.net.parameters())
        self._decay = decay

    def update(self, decay: float | None = None) -> None:
        """Take in the weights after a step, by the usual decay or that of this step; does not wait for the device."""
        get_ema_multi_avg_fn(self._decay if decay is None else decay)(self._weights, self._source, None)
