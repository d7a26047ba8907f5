"""RainAugment in other people's pipelines: what it changes, what it leaves alone, workers, pickling."""

import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from common.errors import UserError
from common.generation import RainAugment

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def checkpoint(generator):
    return generator


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 20, 30), (4, 3, 16, 16), (2, 2, 3, 17, 9), (1, 20, 30)])
def test_adds_rain_and_keeps_all_else(checkpoint, dtype, shape):
    image = torch.rand(shape).mul(0.5)
    image = image.mul(255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    before = image.clone()
    rainy = RainAugment(checkpoint, p=1, seed=1)(image)
    assert rainy.shape == image.shape and rainy.dtype == dtype and torch.equal(image, before)
    assert (rainy >= image).all() and (rainy > image).any() and type(rainy) is torch.Tensor
    assert rainy.max() <= (255 if dtype == torch.uint8 else 1)


def test_the_same_rain_in_every_dtype(checkpoint):
    image = torch.randint(0, 200, (3, 40, 40), dtype=torch.uint8)
    eight = RainAugment(checkpoint, p=1, seed=3)(image).int()
    floats = RainAugment(checkpoint, p=1, seed=3)(image / 255)
    assert (eight - (255 * floats).round().int()).abs().max() <= 1


def test_images_of_a_sample_and_nothing_else(checkpoint):
    size = (32, 32)
    sample = {
        "image": tv_tensors.Image(torch.zeros(3, *size)),
        "boxes": tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 9, 9]]), format="XYXY", canvas_size=size),
        "mask": tv_tensors.Mask(torch.ones(size, dtype=torch.uint8)),
        "label": 3,
        "scores": torch.rand(3, 5, 5),
    }
    result = RainAugment(checkpoint, p=1, seed=0)(sample)
    assert isinstance(result["image"], tv_tensors.Image) and result["image"].max() > 0
    assert all(result[key] is sample[key] for key in ("boxes", "mask", "label", "scores"))
    image, label = RainAugment(checkpoint, p=1, seed=0)(torch.zeros(3, 20, 20), torch.zeros(3))
    assert image.max() > 0 and label.max() == 0
    first, second = RainAugment(checkpoint, p=1, seed=0)([tv_tensors.Image(torch.zeros(3, 20, 20))] * 2)
    assert torch.equal(first, second)


def test_probability_intensity_grey_and_coherence(checkpoint):
    batch = torch.zeros(200, 3, 16, 16)
    rained = RainAugment(checkpoint, p=0.3, seed=2)(batch).amax((1, 2, 3)) > 0
    assert 40 < rained.sum() < 80
    assert RainAugment(checkpoint, p=0, seed=2)(batch).max() == 0
    weak, strong = (RainAugment(checkpoint, p=1, intensity=i, seed=2)(batch).mean() for i in (0.25, 0.5))
    assert strong == pytest.approx(2 * weak.item(), rel=0.05)
    grey = RainAugment(checkpoint, p=1, grey=True, seed=2)(batch)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    one = RainAugment(checkpoint, p=1, coherence=1, intensity=0.1, seed=2)(torch.zeros(3, 16 * 40, 16))
    none = RainAugment(checkpoint, p=1, coherence=0, intensity=0.1, seed=2)(torch.zeros(3, 16 * 40, 16))
    assert (one[:, 320:].mean() / one[:, :320].mean()).item() == pytest.approx(1, abs=0.1) and not torch.equal(
        one, none
    )


def test_streams(checkpoint):
    image = torch.zeros(3, 20, 20)
    ours, same, other = (RainAugment(checkpoint, p=1, seed=seed) for seed in (5, 5, 6))
    first, second = ours(image), ours(image)
    assert not torch.equal(first, second) and torch.equal(same(image), first) and torch.equal(same(image), second)
    assert not torch.equal(other(image), first)
    free = RainAugment(checkpoint, p=1)
    torch.manual_seed(1)
    first, second = free(image), free(image)
    torch.manual_seed(1)
    assert torch.equal(free(image), first) and not torch.equal(first, second)


def test_pickle_and_compose(checkpoint):
    transform = v2.Compose([RainAugment(checkpoint, p=1, seed=5), v2.ToDtype(torch.float32, scale=True)])
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(again(image), transform(image)) and "p=1" in repr(transform)


class Black(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.transform(torch.zeros(3, 16, 16))


@pytest.mark.parametrize("seed", [None, 7])
def test_workers_and_epochs_do_not_repeat_each_other(checkpoint, seed):
    def two_epochs():
        torch.manual_seed(0)
        data = Black(RainAugment(checkpoint, p=1, seed=seed))
        loader = DataLoader(data, batch_size=4, num_workers=2)
        return torch.cat([batch for _ in range(2) for batch in loader])

    rains = two_epochs()
    assert len({rain.numpy().tobytes() for rain in rains}) == 16
    assert torch.equal(rains, two_epochs())


def test_gradients_pass(checkpoint):
    image = torch.full((3, 20, 20), 0.1, requires_grad=True)
    RainAugment(checkpoint, p=1, intensity=0.1, seed=1)(image).sum().backward()
    assert (image.grad == 1).float().mean() > 0.9


@pytest.mark.parametrize(
    "value, error, message",
    [
        (torch.zeros(4, 20, 20), ValueError, r"C of 3 or 1, got \(4, 20, 20\)"),
        (torch.zeros(20, 20), ValueError, "C, H, W"),
        (torch.zeros(3, 0, 20), ValueError, "C, H, W"),
        (torch.zeros(3, 20, 20, dtype=torch.int64), TypeError, "uint8 or floats, got torch.int64"),
        (torch.full((3, 20, 20), -2.0), ValueError, r"floats in \[0, 1\], got -2.00 to -2.00; put it before v2.Norm"),
        (torch.full((3, 20, 20), torch.nan), ValueError, r"floats in \[0, 1\]"),
        (np.zeros((8, 8, 3), np.uint8), TypeError, "got ndarray; put v2.ToImage"),
        (PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)), TypeError, "ToImage"),
    ],
)
def test_refused_images(checkpoint, value, error, message):
    with pytest.raises(error, match=message):
        RainAugment(checkpoint, p=1)(value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"p": 1.5}, "p must be a probability"),
        ({"intensity": (1, 0.5)}, "intensity must be"),
        ({"intensity": 3}, "intensity must be"),
        ({"coherence": -1}, "coherence must be"),
        ({"intensity": (0, 1, 2)}, "intensity must be"),
        ({"intensity": "ab"}, "intensity must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 1.5}, "seed must be"),
    ],
)
def test_refused_arguments(checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        RainAugment(checkpoint, **arguments)
    with pytest.raises(UserError, match="checkpoint: there is no"):
        RainAugment("nowhere.pt")


def test_without_rain_nothing_changes(checkpoint):
    for image in (torch.rand(3, 20, 20, dtype=torch.float64), torch.rand(2, 3, 20, 20).half(), torch.zeros(0, 3, 9, 9)):
        assert torch.equal(RainAugment(checkpoint, p=1, intensity=0)(image), image)
