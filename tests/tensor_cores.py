"""TF32 tensor cores on the CPU: rounds the factors of convolutions and products as PyTorch's switches say."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

CONVOLUTIONS = {"convolution", "convolution_backward", "_convolution", "convolution_overrideable"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}  # a matrix times a vector runs elsewhere, and in full


def ten_bits(x):
    """Round fp32 to the nearest TF32 number, which has 10 bits after the leading one."""
    if x.dtype != torch.float32:
        return x
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class TensorCores(TorchDispatchMode):
    """Within it the CPU computes as a GPU with TF32; ``rounded`` counts the operations with rounded factors."""

    rounded = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        conv, product = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
        if (name in CONVOLUTIONS and conv == "tf32") or (name in PRODUCTS and product == "tf32"):
            self.rounded += 1
            args = tree_map_only(torch.Tensor, ten_bits, args)
        return function(*args, **(kwargs or {}))
