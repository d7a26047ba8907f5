"""Generated rain as a torchvision transform, for training pipelines of other projects."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..training.checkpoint import load_generator
from ..weights import GENERATOR
from .bank import FIRST, SIDE, RainBank, added
from .knobs import REACH
from .rain import ROOM, RainMaker, auto_scale


class RainAugment(v2.Transform):
    """Adds generated rain to images; boxes, masks and labels pass untouched, and the input is never changed.

    Images are tensors, tv_tensors.Image or tv_tensors.Video, (..., C, H, W) with C of 3 or 1, uint8 or floats in
    [0, 1], on any device, or PIL images (RGB or L); type, dtype and device stay. Floats are clamped where it rains.
    Each image of a batch has its own rain, images of one size in one sample the same. Of plain tensors in a sample only
    the first one is an image, as everywhere in torchvision. The bank of layers, large images, videos: docs/rain.md.

    Args:
        checkpoint: weights of RNet and G (ED_state_N.pt); 'default': those that come with the project.
        p: probability of rain for an image.
        intensity: factor of the rain, a number or the range (low, high) to draw it from; 0 to 2. None is (0.5, 1.5), or
            1 where density or brightness are set: it would scale these.
        coherence: how alike the rain is all over a layer, 0 to 1.
        grey: rain without colours.
        seed: None draws from torch's generator, which DataLoader seeds anew for every worker and epoch. A number gives
            the same stream in every run of one process; in workers it also depends on the DataLoader's seed.
        size: longer side in px of the largest image that takes its rain from the bank.
        layers: showers in an image, whose rain is added, a number or the range (low, high) to draw it from.
        knobs: angle, density, thickness, brightness of each shower (see ``measures.Measures``) and tint (0: as it is;
            1: the colour takes a channel away), each a number or the range (low, high) to draw it from, within
            ``knobs.REACH``.

    Raises:
        UserError: the checkpoint is missing or the wrong one.
        ValueError, TypeError: an argument or an image is out of its range, or of another type.
    """

    _transformed_types = (F.is_pure_tensor, tv_tensors.Image, tv_tensors.Video, PIL.Image.Image)

    def __init__(
        self,
        checkpoint: str | Path = "default",
        p: float = 0.5,
        intensity: float | Sequence[float] | None = None,
        coherence: float = 0.5,
        grey: bool = False,
        seed: int | None = None,
        *,
        size: int = 256,
        layers: int | Sequence[int] = 1,
        **knobs: float | Sequence[float] | None,
    ) -> None:
        super().__init__()
        reach = REACH | {"tint": (0, 1)}
        if wrong := [name for name in knobs if name not in reach]:
            raise TypeError(f"RainAugment has no argument {wrong[0]}; the knobs are {', '.join(reach)}")
        for name, value in (("p", p), ("coherence", coherence)):
            if np.ndim(value) or not 0 <= value <= 1:
                raise ValueError(f"{name}: expected one number, from 0 to 1; got {value}")
        knobs = {name: _range(name, ends, *reach[name]) for name, ends in knobs.items() if ends is not None}
        if intensity is None:
            intensity = 1 if knobs.keys() & {"density", "brightness"} else (0.5, 1.5)
        self.p, self.size, self.seed, self.knobs = p, size, seed, knobs
        ends = _range("layers", layers, 0, 8)
        knobs["layers"] = tuple(map(int, ends))
        if knobs["layers"] != ends:
            raise ValueError(f"layers: expected whole numbers, got {layers}")
        path = GENERATOR if checkpoint == "default" else Path(checkpoint).expanduser()
        maker = RainMaker(load_generator(path, "checkpoint").float())  # whatever torch's default dtype is
        start = torch.randint(2**32, (1,)).item() if seed is None else seed
        gains = _range("intensity", intensity, 0, 2)
        self.bank = RainBank(maker, round(SIDE * size) + ROOM, [start], knobs, gains, coherence, grey)
        for k in range(FIRST):  # workers get them with the transform
            self.bank.layer(k)
        self._start, self._calls, self._crops, self._warned = start, 0, 0, False

    def extra_repr(self) -> str:
        """What ``print`` shows: the arguments."""
        return ", ".join([super().extra_repr(), *(f"{name}={ends}" for name, ends in self.knobs.items())])

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        images = tuple(kind for kind in self._transformed_types if isinstance(kind, type))
        if not any(F.is_pure_tensor(value) or isinstance(value, images) for value in flat_inputs):
            kinds = ", ".join(sorted({type(value).__name__ for value in flat_inputs})) or "nothing"
            raise TypeError(f"RainAugment takes tensors and PIL images, got {kinds}; put v2.ToImage() before it")

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        worker = get_worker_info()
        other = (worker.seed % 2**32, worker.seed // 2**32 % 2**32) if worker else (0, 0)
        self.bank.seed = self._start, *other
        if self.seed is None:
            return {"draw": torch.randint(2**32, (4,)).tolist()}
        self._calls += 1
        return {"draw": [self.seed, *other, self._calls % 2**32]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, PIL.Image.Image):
            if inpt.mode not in ("RGB", "L"):
                raise TypeError(f"RainAugment takes PIL images of mode RGB or L, got {inpt.mode}; convert it")
            return F.to_pil_image(self.transform(F.pil_to_tensor(inpt), params))
        _check(inpt)
        rng = np.random.RandomState(params["draw"])
        if not inpt.numel():  # an empty batch
            return inpt
        frames = inpt.shape[-4] if isinstance(inpt, tv_tensors.Video) else 1
        images = inpt.as_subclass(Tensor).reshape(-1, frames, *inpt.shape[-3:])
        rainy = torch.stack([self._rained_on(clip, rng) if rng.uniform() < self.p else clip for clip in images])
        return tv_tensors.wrap(rainy.reshape(inpt.shape), like=inpt)

    def _rained_on(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
        """One rain on all frames (T, C, H, W)."""
        frames, channels, height, width = clip.shape
        large = None
        if max(height, width) > self.size:
            if not self._warned:
                text = f"an image of {width}x{height} is larger than size={self.size} and gets layers of its own, which"
                warnings.warn(f"RainAugment: {text} takes seconds; give size={max(height, width)}", stacklevel=2)
                self._warned = True
            large = height + height // 2 * (frames > 1), width, *auto_scale(height, width)  # room to fall
        else:
            self._crops += 1
        showers = self.bank.showers(self._crops, rng, large)
        crops = np.stack([added(showers, height, width, rng) for _ in clip])
        layer = torch.from_numpy(crops).permute(0, 3, 1, 2).to(clip.device)
        layer = layer.amax(1, keepdim=True) if channels == 1 else layer
        if clip.dtype == torch.uint8:
            return (clip + 255 * layer).round().clamp(0, 255).to(clip.dtype)
        wide = torch.promote_types(clip.dtype, torch.float32)
        return (clip.to(wide) + layer).clamp(0, 1).to(clip.dtype)


def _range(name: str, value: Any, low: float, high: float) -> tuple[float, float]:
    """A number or a pair of numbers as a pair, from low to high."""
    first, last = map(float, np.broadcast_to(np.asarray(value, float), 2))
    if not low <= first <= last <= high:
        raise ValueError(f"{name}: expected a number or (low, high), from {low} to {high}; got {value}")
    return first, last


def _check(image: Tensor) -> None:
    if image.ndim < 3 or image.shape[-3] not in (1, 3) or 0 in image.shape[-2:]:
        raise ValueError(f"RainAugment takes images (..., C, H, W) with C of 3 or 1, got {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"RainAugment takes uint8 or floats, got {image.dtype}; put v2.ToDtype(...) before it")
    if image.is_floating_point() and not torch.isfinite(image).all():
        raise ValueError("RainAugment takes floats in [0, 1], got some that are not finite (nan or inf)")
    # Cubic resizing leaves values a little outside of [0, 1].
    if image.is_floating_point() and image.numel() and not (image.min() >= -0.5 and image.max() <= 1.5):
        found = f"{image.min():.2f} to {image.max():.2f}"
        raise ValueError(f"RainAugment takes floats in [0, 1], got {found}; put it before v2.Normalize")
