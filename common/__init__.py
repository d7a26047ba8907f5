"""Learning rain from data, making rainy/clean pairs from it, and removing rain (VRGNet, CVPR 2021).

Glossary. Words stand at every boundary, the paper's symbols inside the equations:

======== ===================== ==========================================================================
symbol   name in the code      meaning
======== ===================== ==========================================================================
O        ``rainy``             rainy image, (N, 3, H, W), RGB in [0, 1]
B        ``clean``             its ground truth without rain, same shape and range
R        ``rain``              rain layer, O = B + R; R >= 0, not bounded above
b        ``mu_b, logvar_b``    posterior N(mu_b, exp(logvar_b)) of the background, from BNet
z        ``mu_z, logvar_z``    posterior N(mu_z, exp(logvar_z)) of the rain code, from RNet; ``z`` is a draw
eps0^2   ``eps2``              prior variance of the background
BNet     ``netDerain``         Bayesian PReNet, removes rain (files ``DerainNet_state_N.pt``)
RNet, G  ``netED``             encoder and generator of rain (files ``ED_state_N.pt``)
D        ``netD``              critic that tells real rainy images from generated ones (``D_state_N.pt``)
\\-       derainer              any network from a rainy image to a clean one
\\-       patch, crop           the square that the networks train on; the act of cutting it from an image
\\-       core, halo            the part of a tile that is kept; the margin around it that is thrown away
\\-       knob                  angle, density, thickness or brightness of rain, see generation/measures.py
\\-       rank, process         one of those that torchrun starts for a job; rank 0 is the one that saves
======== ===================== ==========================================================================
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation.derain import derain
    from .generation.transform import RainAugment

__all__ = ["RainAugment", "derain"]


def __getattr__(name: str) -> Any:
    """What programs of others import; it needs PyTorch, which takes seconds to import."""
    if name == "RainAugment":
        from .generation.transform import RainAugment

        return RainAugment
    if name == "derain":
        from .evaluation.derain import derain

        return derain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
