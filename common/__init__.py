"""Learning rain from data, making rainy/clean pairs from it, and removing rain (VRGNet, CVPR 2021).

The words and symbols of the code: docs/method.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation.derain import derain
    from .generation.transform import RainAugment

__all__ = ["RainAugment", "derain"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What programs of others import; it needs PyTorch, which takes seconds to import."""
    if name == "RainAugment":
        from .generation.transform import RainAugment

        return RainAugment
    if name == "derain":
        from .evaluation.derain import derain

        return derain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
