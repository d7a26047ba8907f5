"""One layer of generated rain for a picture of any size, out of a generator of patches.

Patches of many codes overlap and blend under windows whose squares sum to 1: about the mean of the picture's rain, the
blend has the mean and the variance of its patches. The generator learned each place of its patch by itself, and dims
towards the rim (zero padding); so patches are first levelled to the statistics of their central half, place by place.
Random shifts and wavering borders see to it that nothing repeats with the pitch. Blending makes rain a little denser
and softer; one factor and one threshold, measured once for a generator, undo that.
"""

import hashlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.models import EDNet

RAINY = 0.02  # a pixel is rainy where the maximum over the channels is above it (SPEC section 6)
BATCH = 2**18  # px of patches at a time, whatever the picture, so that the same codes give the same bytes
LEVELLING = 2**18  # px of a picture's patches that tell its statistics, place by place
SAMPLES = 2**22  # px of patches that tell the mean and the density of all rain
TRIAL = 1024  # px: side of the layer that factor and threshold are measured on
VERSION = 1  # goes up when the same codes give another layer
Steer = Callable[[Tensor], Tensor]
GAIN = 3  # a place of the patch is made so many times stronger at most


class RainMaker:
    """Makes rain layers of any size. Making one takes about a second, for measuring the generator.

    Args:
        netED: RNet and G, on the device that the layers are to be on; set to eval mode and frozen.

    Raises:
        UserError: it makes values that are not finite.
    """

    @torch.no_grad()
    def __init__(self, netED: EDNet) -> None:
        self.netED = netED.eval().requires_grad_(False)
        p = netED.patch_size
        self.pitch, self.side = 5 * p // 8, 7 * p // 8  # px: from window to window, and across a window
        self.overlap = self.side - self.pitch
        self.ramp, self.wave = 3 * p / 16, p / 32  # px: across the blend, and how far its middle wavers to either side
        rng = np.random.RandomState(0)
        shared = np.zeros(netED.nz)
        patches = sampled(self.netED, draw_codes(SAMPLES // p**2, shared, 0, rng))
        centre = central_half(patches)
        self.mean = centre.mean()
        if not torch.isfinite(patches.std()):
            raise UserError(
                "this generator makes values that are not finite; its training went wrong, take another one"
            )
        self.factor, self.threshold = 1.0, 0.0
        self._undo_blending(density(centre), rng)

    @property
    def device(self) -> torch.device:
        """Where the layers are made."""
        return self.mean.device

    def to(self, device: torch.device) -> "RainMaker":
        """Move to another device, in place."""
        self.netED.to(device)
        self.mean = self.mean.to(device)
        return self

    def _undo_blending(self, wanted: float, rng: np.random.RandomState) -> None:
        """Set factor and threshold: the layer then has the density of the patches, and about its mean and spread."""
        bands = [(band, share) for _, band, share in self._bands(TRIAL, TRIAL, 0, rng)]
        layer, share = torch.cat([band for band, _ in bands], 1), bands[0][1]
        low, high = 0.0, 2 * self.mean.item()
        for _ in range(20):
            threshold = (low + high) / 2
            kept = (layer - threshold * share).clamp(min=0)
            if kept.std() <= 1e-4 * kept.mean():  # no rain left, or the same everywhere
                high = threshold
                continue
            factor = (layer.mean() / kept.mean() * layer.std() / kept.std()).sqrt().item()
            if density(factor * kept[None]) > wanted:
                low = threshold
            else:
                high = threshold
            self.factor, self.threshold = factor, factor * threshold

    def _finished(self, band: Tensor, share: Tensor) -> Tensor:
        """The blend after factor and threshold, which is lower for a lighter rain."""
        return (self.factor * band - self.threshold * share).clamp(min=0)

    def layer(
        self,
        height: int,
        width: int,
        coherence: float,
        rng: np.random.RandomState,
        steer: Steer | None = None,
        lean: float = 0.0,
    ) -> Tensor:
        """The rain layer of a picture, (nc, height, width) >= 0; see ``tiles``."""
        whole = torch.empty(self.netED.nc, height, width, device=self.device)
        for rows, columns, tile in self.tiles(height, width, coherence, rng, steer, lean):
            whole[:, rows, columns] = tile
        return whole

    @torch.no_grad()
    def tiles(
        self,
        height: int,
        width: int,
        coherence: float,
        rng: np.random.RandomState,
        steer: Steer | None = None,
        lean: float = 0.0,
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """The rain layer of a picture, band by band across its longer side, so that memory stays small.

        Args:
            height, width: of the picture in px, from 1 on. One that fits into a patch gets the patch G(z) as it is.
            coherence: correlation of any two codes of the picture, 0 (unrelated) to 1 (equal). They are
                z = sqrt(coherence) * shared + sqrt(1 - coherence) * own, each N(0, I): one rain, with fresh detail.
            rng: RandomState, whose stream NumPy keeps the same for good.
            steer: moves codes (N, nz) after they are drawn, see ``controls.steering``.
            lean: px to the right for each px down by which the layer is sheared. Unless it is 0, a picture that fits
                into a patch is blended as well.

        Yields:
            Rows and columns of the picture, and the rain there, (nc, rows, columns) >= 0.
        """
        if lean:  # in bands of rows, each of which is moved as a whole
            for rows, band, share in self._bands(height, width + room(lean, height), coherence, rng, steer):
                yield rows, slice(0, width), leaning(self._finished(band, share), rows.start, height, width, lean)
        elif max(height, width) <= self.netED.patch_size:
            codes = draw_codes(1, rng.standard_normal(self.netED.nz), coherence, rng)
            patch = sampled(self.netED, steer(codes) if steer else codes)[0]
            yield slice(0, height), slice(0, width), patch[:, :height, :width]
        elif height >= width:
            for rows, band, share in self._bands(height, width, coherence, rng, steer):
                yield rows, slice(0, width), self._finished(band, share)
        else:
            for columns, band, share in self._bands(width, height, coherence, rng, steer, turned=True):
                yield slice(0, height), columns, self._finished(band, share).mT

    def _bands(
        self,
        length: int,
        breadth: int,
        coherence: float,
        rng: np.random.RandomState,
        steer: Steer | None = None,
        turned: bool = False,
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """A blend of length x breadth px in bands, and how its mean compares to that of all rain.

        Args:
            turned: for rain that falls along the breadth.
        """
        shared = rng.standard_normal(self.netED.nz)

        def drawn(number: int) -> Tensor:
            codes = draw_codes(number, shared, coherence, rng)
            return sampled(self.netED, steer(codes) if steer else codes)

        samples = max(16, LEVELLING // self.netED.patch_size**2)
        mean, place, gain = levels(drawn(samples))
        share = mean / self.mean.clamp(min=1e-12)
        number = -(-breadth // self.pitch) + 1
        tail, start = None, 0  # what of the band before is still to be blended
        while start < length:
            patches = drawn(number)
            windows = self._windows((patches - place) * gain, rng)
            left = rng.randint(self.pitch)  # the windows of one band do not stand above those of the next
            band = self._blended(windows.mT if turned else windows, rng)[:, :, left : left + breadth]
            head = band[:, : self.overlap]
            if tail is not None:
                head = self._faded(tail.mT, head.mT, breadth, rng).mT
            ready = torch.cat((head, band[:, self.overlap : self.pitch]), 1)[:, : length - start]
            yield slice(start, start + ready.shape[1]), ready + mean, share
            start, tail = start + ready.shape[1], band[:, self.pitch :]

    def _windows(self, patches: Tensor, rng: np.random.RandomState) -> Tensor:
        """(N, nc, side, side) out of patches (N, nc, p, p), each at a random place of its patch."""
        places = rng.randint(0, self.netED.patch_size - self.side, (len(patches), 2))  # a power of two: any phase alike
        cut = [patch[:, y : y + self.side, x : x + self.side] for patch, (y, x) in zip(patches, places, strict=True)]
        return torch.stack(cut)

    def _blended(self, windows: Tensor, rng: np.random.RandomState) -> Tensor:
        """Windows side by side, (nc, side, N * pitch + overlap); two at least."""
        o, s = self.overlap, self.pitch
        blends = self._faded(windows[:-1, :, :, s:], windows[1:, :, :, :o], self.side, rng)
        parts = [windows[0, :, :, :s]]
        for blend, window in zip(blends, windows[1:], strict=True):
            parts += [blend, window[:, :, o:s]]
        return torch.cat([*parts, windows[-1, :, :, s:]], 2)

    def _faded(self, a: Tensor, b: Tensor, length: int, rng: np.random.RandomState) -> Tensor:
        """From a to b across the last dimension, (..., length, overlap), by cosine and sine: the variance stays."""
        number = len(a) if a.ndim == 4 else 1
        middle = self.overlap / 2 + wavering(number, length, self.wave, self.netED.patch_size // 4, rng)
        across = torch.arange(self.overlap) + 0.5 - torch.from_numpy(middle)[..., None]  # (number, length, overlap)
        angle = ((across / self.ramp + 0.5).clamp(0, 1) * torch.pi / 2).to(a)[:, None]
        return a * angle.cos() + b * angle.sin() if a.ndim == 4 else a * angle[0].cos() + b * angle[0].sin()


def fingerprint(netED: EDNet) -> str:
    """SHA-256 of the generator's weights, whatever file they came in."""
    digest = hashlib.sha256()
    for key, value in sorted(netED.state_dict().items()):
        if key.startswith("decoder."):
            digest.update(key.encode() + value.float().cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def room(lean: float, height: int) -> int:
    """How many columns more than a picture has a layer needs that is sheared by ``leaning``."""
    return int(np.ceil(abs(lean) * (height - 1))) + 1


def leaning(band: Tensor, first: int, height: int, width: int, lean: float) -> Tensor:
    """Rows of a layer, each moved to the right by ``lean`` px more than the one above it, between pixels linearly.

    Args:
        band: (nc, rows, width + room(lean, height)).
        first: number of its first row in the picture, of ``height`` rows.

    Returns:
        (nc, rows, width).
    """
    y = torch.arange(first, first + band.shape[1], dtype=torch.float64)
    start = lean * (height - 1 - y) if lean > 0 else -lean * y  # where each row begins
    at = start.floor().long()[:, None] + torch.arange(width)
    part = (start - start.floor()).to(band)[:, None]
    left, right = (band.gather(2, index.to(band.device).expand(len(band), -1, -1)) for index in (at, at + 1))
    return left + (right - left) * part


@torch.no_grad()
def sampled(netED: EDNet, codes: Tensor) -> Tensor:
    """Rain codes (N, nz), however many, to rain layers (N, nc, p, p) >= 0 on the generator's device."""
    parts = codes.to(next(netED.parameters()).device).split(max(1, BATCH // netED.patch_size**2))
    return torch.cat([netED.sample(part) for part in parts])


def draw_codes(number: int, shared: np.ndarray, coherence: float, rng: np.random.RandomState) -> Tensor:
    """(number, nz) float32 codes sqrt(coherence) * shared + sqrt(1 - coherence) * own; ``shared`` is (nz,)."""
    own = rng.standard_normal((number, len(shared)))
    return torch.from_numpy((coherence**0.5 * shared + (1 - coherence) ** 0.5 * own).astype(np.float32))


def central_half(patches: Tensor) -> Tensor:
    """(N, nc, p, p) -> (N, nc, p/2, p/2): what the rim, where G pads with zeros, does not reach."""
    p = patches.shape[-1]
    return patches[..., p // 4 : p - p // 4, p // 4 : p - p // 4]


def density(layers: Tensor) -> float:
    """Share of rainy pixels of layers (N, nc, H, W)."""
    return (layers.amax(1) > RAINY).double().mean().item()


def grey_of(layer: Tensor) -> Tensor:
    """The maximum over the channels in all of them, as interpolation shows rain: (nc, H, W) to the same shape."""
    return layer.amax(0, keepdim=True).expand_as(layer)


def wavering(number: int, length: int, height: float, step: int, rng: np.random.RandomState) -> np.ndarray:
    """Smooth random lines (number, length), within +-height, with a knot every ``step`` px."""
    knots = rng.uniform(-height, height, (number, length // step + 2))
    place = np.arange(length) / step
    i = place.astype(int)
    share = (1 - np.cos(np.pi * (place - i))) / 2
    return knots[:, i] * (1 - share) + knots[:, i + 1] * share


def levels(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What makes rain patches alike at every place: (x - place) * gain has mean 0 and the spread of their central half.

    Returns:
        The mean of the central half; place and gain, each (p, p), smoothed, since it is measured on few patches.
    """

    def smoothed(values: Tensor) -> Tensor:
        sigma = patches.shape[-1] / 16
        blurred = cv2.GaussianBlur(values.mean((0, 1)).cpu().numpy(), (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        return torch.from_numpy(blurred).to(values)

    centre, place = central_half(patches), smoothed(patches)
    spread = smoothed((patches - place) ** 2).clamp(min=1e-12).sqrt()
    return centre.mean(), place, (centre.std() / spread).clamp(max=GAIN)
