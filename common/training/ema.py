"""A moving average (EMA) of a network's weights while it trains; of a generator it makes better rain."""

import copy

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """Exponential moving average: average = decay * average + (1 - decay) * weights.

    Args:
        net: the network that learns; the average begins with its present weights.
        decay: share of the average that stays in an update, in [0, 1).
        every: steps from one update to the next, those in which the network learns.
        ramp: raise the decay to its value over the first steps, so that the start is soon forgotten.
    """

    def __init__(self, net: nn.Module, decay: float, every: int = 1, ramp: bool = False) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._source, self._weights = list(net.parameters()), list(self.net.parameters())
        self._decay, self._every, self._ramp = decay, every, ramp

    def update(self, index: int) -> None:
        """Take in the weights after step ``index``, counted from 0 over the whole training."""
        if index % self._every == 0:
            decay = min(self._decay, (1 + index) / (10 + index)) if self._ramp else self._decay
            get_ema_multi_avg_fn(decay)(self._weights, self._source, None)
