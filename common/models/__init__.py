"""The networks of VRGNet. They import nothing but torch and never choose a device."""

from .discriminator import Discriminator
from .prenet import Derain, PReNet
from .vrgnet import EDNet

__all__ = ["Derain", "Discriminator", "EDNet", "PReNet"]
