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
from torchvision.transforms.v2.functional import is_pure_tensor

from common.generation.controls import begun, clamped, path_of, solved, steered_to
from common.generation.controls import load as load_controls
from common.generation.rain import RainMaker, Steer, grey_of
from common.training.checkpoint import load_generator
from common.weights import GENERATOR


class RainAugment(v2.Transform):
    """Adds generated rain to images; boxes, masks and labels pass untouched, and the input is never changed.

    Images are tensors or tv_tensors.Image, (..., C, H, W) with C of 3 or 1, uint8 or floats in [0, 1], on any device;
    type, dtype and device stay. Every image of a batch draws for itself. Several tv_tensors.Image of one sample get the
    same rain where they have the same size; of plain tensors only the first is an image, as everywhere in torchvision.

    Args:
        checkpoint: weights of RNet and G (ED_state_N.pt), of any size; 'default': those that come with the project.
        p: probability of rain for an image.
        intensity: factor of the rain, a number or the range (low, high) to draw it from; 0 to 2. None is (0.5, 1.5), or
            1 where density or brightness are set: it would scale these.
        coherence: how alike the rain is all over an image, 0 to 1.
        grey: rain without colours.
        angle, density, thickness, brightness: of the rain (see ``measures.Measures``), a number or the range (low,
            high) to draw it from; None leaves it to chance. They need NAME.controls.json beside the checkpoint, made by
            ``python -m common.generation.controls``, whose report says how near the rain comes. Beyond the reach of the
            generator they warn and clamp.
        seed: None draws from torch's generator, which DataLoader seeds anew for every worker and epoch. A number gives
            a stream of its own: the same in every run of one process; in workers it also depends on the DataLoader's
            seed, so that neither workers nor epochs repeat each other (torch.manual_seed makes that the same again).

    Raises:
        UserError: the checkpoint is missing or the wrong one.
        ValueError: an argument or an image is out of its range.
        TypeError: an image is no tensor, or neither uint8 nor float.
    """

    _transformed_types = (is_pure_tensor, tv_tensors.Image)

    def __init__(
        self,
        checkpoint: str | Path = "default",
        p: float = 0.5,
        intensity: float | Sequence[float] | None = None,
        coherence: float = 0.5,
        grey: bool = False,
        seed: int | None = None,
        angle: float | Sequence[float] | None = None,
        density: float | Sequence[float] | None = None,
        thickness: float | Sequence[float] | None = None,
        brightness: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if intensity is None:
            intensity = (0.5, 1.5) if density is None and brightness is None else 1
        low, high = _range("intensity", intensity, 0, 2)
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability from 0 to 1, got {p}")
        if not 0 <= coherence <= 1:
            raise ValueError(f"coherence must be a number from 0 to 1, got {coherence}")
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
            raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, or None, got {seed}")
        self.p, self.intensity, self.coherence, self.grey, self.seed = p, (low, high), coherence, grey, seed
        path = GENERATOR if checkpoint == "default" else Path(checkpoint).expanduser()
        self._maker = RainMaker(load_generator(path, "checkpoint").requires_grad_(False))
        given = {"angle": angle, "density": density, "thickness": thickness, "brightness": brightness}
        ends = {"angle": (-90, 90), "density": (0, 1), "thickness": (0, 1e3), "brightness": (0, 1)}
        knobs = {name: _range(name, value, *ends[name]) for name, value in given.items() if value is not None}
        self._learn(knobs, path_of(path))
        self._calls = 0

    def _learn(self, knobs: dict[str, tuple[float, float]], path: Path) -> None:
        """Set up the knobs: ranges within reach, and by how much their curves are off when all are set together."""
        self._controls, self.knobs, self._correction = None, {}, {}
        if not knobs:
            return
        self._controls = load_controls(path, self._maker.netED, "checkpoint")
        bounds = []
        for side in (0, 1):
            values, warnings_ = clamped(self._controls, {name: ends[side] for name, ends in knobs.items()})
            bounds.append(values)
            for text in warnings_ if side == 0 or bounds[0] != values else ():
                warnings.warn(f"RainAugment: {text}", stacklevel=3)
        self.knobs = {name: (bounds[0][name], bounds[1][name]) for name in knobs}
        middle = {name: sum(ends) / 2 for name, ends in self.knobs.items()}
        asked, _ = solved(self._maker, self._controls, middle)
        first = begun(self._controls, middle)
        self._correction = {name: value - first[name] for name, value in asked.items()}

    def _turned(self, rng: np.random.RandomState) -> tuple[Steer | None, float]:
        """What steers the codes of one image, and by how much its layer is sheared."""
        if self._controls is None:
            return None, 0.0
        asked = begun(self._controls, {name: rng.uniform(*ends) for name, ends in self.knobs.items()})
        asked = {name: value + self._correction[name] for name, value in asked.items()}
        return steered_to(self._controls, asked), asked.get("lean", 0.0)

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        pictures = [value for value in flat_inputs if isinstance(value, PIL.Image.Image)]
        if pictures or not any(is_pure_tensor(value) or isinstance(value, tv_tensors.Image) for value in flat_inputs):
            kinds = ", ".join(sorted({type(value).__name__ for value in flat_inputs})) or "nothing"
            raise TypeError(f"RainAugment takes tensors, got {kinds}; put v2.ToImage() before it")

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        if self.seed is None:
            return {"draw": torch.randint(2**32, (4,)).tolist()}
        worker = get_worker_info()
        self._calls += 1
        other = worker.seed if worker else 0
        return {"draw": [self.seed, other % 2**32, other // 2**32 % 2**32, self._calls % 2**32]}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        _check(inpt)
        if self._maker.device != inpt.device:
            self._maker.to(inpt.device)
        rng = np.random.RandomState(params["draw"])
        if not inpt.numel():  # an empty batch
            return inpt
        images = inpt.as_subclass(Tensor).reshape(-1, *inpt.shape[-3:])
        rainy = torch.stack([self._rained_on(image, rng) if rng.uniform() < self.p else image for image in images])
        return tv_tensors.wrap(rainy.reshape(inpt.shape), like=inpt)

    def _rained_on(self, clean: Tensor, rng: np.random.RandomState) -> Tensor:
        channels, height, width = clean.shape
        intensity = rng.uniform(*self.intensity)
        layer = intensity * self._maker.layer(height, width, self.coherence, rng, *self._turned(rng))
        layer = grey_of(layer) if self.grey or channels == 1 else layer
        if clean.dtype == torch.uint8:
            return (clean + 255 * layer[:channels]).round().clamp(0, 255).to(clean.dtype)
        wide = torch.promote_types(clean.dtype, torch.float32)
        return (clean.to(wide) + layer[:channels]).clamp(0, 1).to(clean.dtype)


def _range(name: str, value: float | Sequence[float], low: float, high: float) -> tuple[float, float]:
    """A number or a pair of numbers as a pair, from low to high."""
    text = f"{name} must be a number from {low} to {high}, or (low, high) of such, got {value}"
    try:
        first, last = map(float, np.broadcast_to(np.asarray(value, float), 2))
    except (TypeError, ValueError):
        raise ValueError(text) from None
    if not low <= first <= last <= high:
        raise ValueError(text)
    return first, last


def _check(image: Tensor) -> None:
    if image.ndim < 3 or image.shape[-3] not in (1, 3) or 0 in image.shape[-2:]:
        raise ValueError(f"RainAugment takes images (..., C, H, W) with C of 3 or 1, got {tuple(image.shape)}")
    if image.dtype == torch.uint8:
        return
    if not image.is_floating_point():
        raise TypeError(f"RainAugment takes uint8 or floats, got {image.dtype}; put v2.ToDtype(...) before it")
    if image.numel() and not (image.min() >= -0.5 and image.max() <= 1.5):  # a little beyond is what resizing leaves
        raise ValueError(
            f"RainAugment takes floats in [0, 1], got {image.min():.2f} to {image.max():.2f}; "
            "put it before v2.Normalize, or scale to [0, 1]"
        )
