"""The networks of VRGNet. They import nothing but torch and never choose a device."""

from common.models.discriminator import Discriminator
from common.models.prenet import Derain, PReNet
from common.models.vrgnet import EDNet

__all__ = ["Derain", "Discriminator", "EDNet", "PReNet"]
