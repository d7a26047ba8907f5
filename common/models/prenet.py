"""PReNet (Ren et al., CVPR 2019): one recurrent body with two heads, the plain derainer and the Gaussian BNet.

Structure and checkpoint names: docs/method.md, 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 32
HALO_PER_STAGE = 13  # receptive field of one stage: 1 (conv0) + 1 (gates) + 10 (residual blocks) + 1 (conv), in px


def init_weights(module: nn.Module) -> None:
    """Draw the weights of every convolution from N(0, 0.02^2); biases keep PyTorch's default. Use with ``apply``."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, 1, 1))  # in a Sequential for the checkpoint names


class Body(nn.Module):
    """The weights of one stage, shared by all stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = _conv(6, CHANNELS)
        for k in range(1, 6):
            convs = [nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1), nn.ReLU(True), nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)]
            setattr(self, f"res_conv{k}", nn.Sequential(*convs, nn.ReLU(True)))
        self.conv_i = _conv(2 * CHANNELS, CHANNELS)
        self.conv_f = _conv(2 * CHANNELS, CHANNELS)
        self.conv_g = _conv(2 * CHANNELS, CHANNELS)
        self.conv_o = _conv(2 * CHANNELS, CHANNELS)
        self.conv = _conv(CHANNELS, 3)

    def gates(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of one convolution for the gates i, g, o, f; made once per forward."""
        convs = [conv[0] for conv in (self.conv_i, self.conv_g, self.conv_o, self.conv_f)]
        return torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs])

    def lstm(
        self, x: Tensor, h: Tensor | None, c: Tensor | None, gates: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The LSTM cell: x (N, 32, H, W), h and c -> the new h and c. In the first stage h and c are None: zeros."""
        weight, bias = gates
        if h is None:  # f would be multiplied by c = 0, and half of the weights by h = 0
            weight, bias = weight[: 3 * CHANNELS, :CHANNELS], bias[: 3 * CHANNELS]
        else:
            x = torch.cat((x, h), 1)  # (N, 64, H, W)
        all_gates = F.conv2d(x, weight, bias, padding=1)
        i, g, o, *f = all_gates.split(CHANNELS, 1)
        if torch.is_grad_enabled():
            g = torch.tanh(g)
            i, o, *f = (torch.sigmoid(gate) for gate in (i, o, *f))
        else:  # inference: in place, all gates at once; their parts alone take three times as long (channels_last)
            g = torch.tanh_(g.clone())
            torch.sigmoid_(all_gates)
        c = i * g if h is None else f[0] * c + i * g
        return o * torch.tanh(c), c

    def features(
        self, rainy: Tensor, x: Tensor, h: Tensor | None, c: Tensor | None, gates: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One stage up to its output convolution: (N, 32, H, W) features and the new h and c."""
        x = torch.relu_(self.conv0(torch.cat((rainy, x), 1)))  # (N, 6, H, W) -> (N, 32, H, W)
        h, c = self.lstm(x, h, c, gates)
        x = h
        for block in (self.res_conv1, self.res_conv2, self.res_conv3, self.res_conv4, self.res_conv5):
            x = torch.relu_(block(x) + x)
        return x, h, c


class PReNet(Body):
    """Derainer head of 1 stage or more: the checkpoint format of augmented training and of PReNet's own release."""

    def __init__(self, recurrent_iter: int = 6) -> None:
        super().__init__()
        self.stages = recurrent_iter
        self.halo = HALO_PER_STAGE * recurrent_iter  # how far one output pixel sees, in px

    def forward(self, rainy: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Rainy (N, 3, H, W) in [0, 1], H and W >= 1 -> (derained, the outputs of all stages), unclamped."""
        x, h, c, gates, outputs = rainy, None, None, self.gates(), []
        for _ in range(self.stages):
            features, h, c = self.features(rainy, x, h, c, gates)
            x = self.conv(features) + rainy
            outputs.append(x)
        return x, outputs


class _GaussianPReNet(Body):
    def __init__(self, stages: int) -> None:
        super().__init__()
        self.convfinal = _conv(CHANNELS, 6)
        self.stages = stages

    def forward(self, rainy: Tensor) -> tuple[Tensor, Tensor]:
        x, h, c, gates = rainy, None, None, self.gates()
        for _ in range(self.stages - 1):
            features, h, c = self.features(rainy, x, h, c, gates)
            x = self.conv(features) + rainy
        features, h, c = self.features(rainy, x, h, c, gates)
        mean, logvar = self.convfinal(features).split(3, 1)  # (N, 6, H, W) -> twice (N, 3, H, W)
        return mean + rainy, logvar


class Derain(nn.Module):
    """BNet of 1 stage or more: PReNet with a Gaussian head, the posterior of the clean background (``derainet.*``)."""

    def __init__(self, stage: int = 6) -> None:
        super().__init__()
        self.derainet = _GaussianPReNet(stage)  # T3: the number is honoured
        self.halo = HALO_PER_STAGE * stage  # see PReNet
        self.apply(init_weights)

    def forward(self, rainy: Tensor) -> tuple[Tensor, Tensor]:
        """Rainy (N, 3, H, W) in [0, 1], H and W >= 1 -> (mu_b, logvar_b), each (N, 3, H, W), unclamped."""
        return self.derainet(rainy)
