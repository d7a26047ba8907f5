"""RainAugment in other people's pipelines: what it changes, what it leaves alone, workers, pickling."""

import functools
import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import common
from common.errors import UserError
from common.generation import transform
from common.generation.measures import direction, measure
from tests.drawn import Drawer

RainAugment = functools.partial(common.RainAugment, size=64)  # a bank that is soon made
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def drawn(monkeypatch):
    """RainAugment with drawn streaks in place of a generator's; call it with its arguments."""
    made = []

    def load(path, name):
        made.append(Drawer(spread=25))
        return made[-1]

    monkeypatch.setattr(transform, "load_generator", load)

    def augment(**arguments):
        found = RainAugment(**arguments)
        found.drawer = made[-1]
        return found

    return augment


def angle_of(image):
    return direction(image.mean(0).numpy())


@pytest.mark.parametrize(
    "dtype, shape",
    [
        (torch.uint8, (3, 20, 30)),
        (torch.float32, (4, 3, 16, 16)),
        (torch.float64, (2, 2, 3, 17, 9)),
        (torch.bfloat16, (1, 1, 64)),
    ],
)
def test_adds_rain_and_keeps_all_else(generator, dtype, shape):
    image = torch.rand(shape).mul(0.5)
    image = image.mul(255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    before = image.clone()
    rainy = RainAugment(generator, p=1, seed=1)(image)
    assert rainy.shape == image.shape and rainy.dtype == dtype and torch.equal(image, before)
    assert (rainy >= image).all() and (rainy > image).any() and type(rainy) is torch.Tensor
    assert rainy.max() <= (255 if dtype == torch.uint8 else 1)


def test_the_same_rain_in_every_dtype(generator):
    image = torch.randint(0, 200, (3, 40, 40), dtype=torch.uint8)
    eight = RainAugment(generator, p=1, seed=3)(image).int()
    floats = RainAugment(generator, p=1, seed=3)(image / 255)
    assert (eight - (255 * floats).round().int()).abs().max() <= 1


def test_floats_beyond_0_and_1_as_cubic_resizing_leaves_them(generator):
    noise = torch.randint(0, 2, (3, 24, 24), generator=torch.Generator().manual_seed(0)).float()
    resized = v2.functional.resize(noise, [60, 60], v2.InterpolationMode.BICUBIC, antialias=False)
    assert resized.min() < -0.3 and resized.max() > 1.3
    rainy = RainAugment(generator, p=1, seed=1)(resized)
    assert rainy.min() >= 0 and rainy.max() <= 1 and (rainy >= resized.clamp(0, 1)).all()
    assert torch.equal(RainAugment(generator, p=0)(resized), resized)
    with pytest.raises(ValueError, match="got -0.60 to 0.40; put it before v2.Normalize"):
        RainAugment(generator, p=1)(resized.clamp(0, 1) - 0.6)


def test_images_of_a_sample_and_nothing_else(generator):
    size = (32, 32)
    sample = {
        "image": tv_tensors.Image(torch.zeros(3, *size)),
        "boxes": tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 9, 9]]), format="XYXY", canvas_size=size),
        "mask": tv_tensors.Mask(torch.ones(size, dtype=torch.uint8)),
        "label": 3,
        "scores": torch.rand(3, 5, 5),
    }
    result = RainAugment(generator, p=1, seed=0)(sample)
    assert isinstance(result["image"], tv_tensors.Image) and result["image"].max() > 0
    assert all(result[key] is sample[key] for key in ("boxes", "mask", "label", "scores"))
    image, label = RainAugment(generator, p=1, seed=0)(torch.zeros(3, 20, 20), torch.zeros(3))
    assert image.max() > 0 and label.max() == 0
    first, second = RainAugment(generator, p=1, seed=0)([tv_tensors.Image(torch.zeros(3, 20, 20))] * 2)
    assert torch.equal(first, second)


def test_probability_intensity_and_grey(generator):
    batch = torch.zeros(200, 3, 16, 16)
    rained = RainAugment(generator, p=0.3, seed=2)(batch).amax((1, 2, 3)) > 0
    assert 40 < rained.sum() < 80
    assert RainAugment(generator, p=0, seed=2)(batch).max() == 0
    weak, strong = (RainAugment(generator, p=1, intensity=i, seed=2)(batch).mean() for i in (0.25, 0.5))
    assert strong == pytest.approx(2 * weak.item(), rel=0.05)
    grey = RainAugment(generator, p=1, grey=True, seed=2)(batch)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])


def test_streams(generator):
    image = torch.zeros(3, 20, 20)
    ours, same, other = (RainAugment(generator, p=1, seed=seed) for seed in (5, 5, 6))
    first, second = ours(image), ours(image)
    assert not torch.equal(first, second) and torch.equal(same(image), first) and torch.equal(same(image), second)
    assert not torch.equal(other(image), first)
    free = RainAugment(generator, p=1)
    torch.manual_seed(1)
    first, second = free(image), free(image)
    torch.manual_seed(1)
    assert torch.equal(free(image), first) and not torch.equal(first, second)


def test_pickle_and_compose(generator):
    transform = v2.Compose([RainAugment(generator, p=1, seed=5), v2.ToDtype(torch.float32, scale=True)])
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
def test_workers_and_epochs_do_not_repeat_each_other(generator, seed):
    def two_epochs():
        torch.manual_seed(0)
        data = Black(RainAugment(generator, p=1, seed=seed))
        loader = DataLoader(data, batch_size=4, num_workers=2)
        return torch.cat([batch for _ in range(2) for batch in loader])

    rains = two_epochs()
    assert len({rain.numpy().tobytes() for rain in rains}) == 16
    assert torch.equal(rains, two_epochs())


def test_gradients_pass(generator):
    image = torch.full((3, 20, 20), 0.1, requires_grad=True)
    RainAugment(generator, p=1, intensity=0.1, seed=1)(image).sum().backward()
    assert (image.grad == 1).float().mean() > 0.9


@pytest.mark.parametrize(
    "value, error, message",
    [
        (torch.zeros(4, 20, 20), ValueError, r"C of 3 or 1, got \(4, 20, 20\)"),
        (torch.zeros(20, 20), ValueError, "C, H, W"),
        (torch.zeros(3, 20, 20, dtype=torch.int64), TypeError, "uint8 or floats, got torch.int64"),
        (torch.full((3, 20, 20), -2.0), ValueError, r"floats in \[0, 1\], got -2.00 to -2.00; put it before v2.Norm"),
        (torch.full((3, 8, 8), float("nan")), ValueError, "not finite"),
        (np.zeros((8, 8, 3), np.uint8), TypeError, "got ndarray; put v2.ToImage"),
        (PIL.Image.fromarray(np.zeros((8, 8, 4), np.uint8)), TypeError, "mode RGB or L, got RGBA; convert it"),
    ],
)
def test_refused_images(generator, value, error, message):
    with pytest.raises(error, match=message):
        RainAugment(generator, p=1)(value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"p": 1.5}, "p: expected one number, from 0 to 1; got 1.5"),
        ({"p": (0.2, 0.5)}, r"p: expected one number, from 0 to 1; got \(0.2, 0.5\)"),
        ({"coherence": (0, 1)}, "coherence: expected one number, from 0 to 1"),
        ({"intensity": 3}, "intensity: expected a number or .low, high., from 0 to 2"),
        ({"angle": (10, -10)}, "angle: expected a number or .low, high."),
        ({"angle": (-10, 80)}, r"angle: expected .* from -60 to 60; got \(-10, 80\)"),
        ({"brightness": 0.3}, "brightness: expected .* from 0.03 to 0.25; got 0.3"),
        ({"tint": 1.5}, "tint: expected .* from 0 to 1; got 1.5"),
        ({"width": 3}, "no argument width; the knobs are angle, density, thickness, brightness, tint"),
    ],
)
def test_refused_arguments(generator, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        RainAugment(generator, **arguments)


def test_a_missing_checkpoint_is_refused():
    with pytest.raises(UserError, match="checkpoint: there is no"):
        RainAugment("nowhere.pt")


def test_without_rain_nothing_changes(generator):
    for image in (torch.rand(3, 20, 20, dtype=torch.float64), torch.rand(2, 3, 20, 20).half(), torch.zeros(0, 3, 9, 9)):
        assert torch.equal(RainAugment(generator, p=1, intensity=0)(image), image)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_PIL_images(generator, mode):
    pixels = np.random.RandomState(0).randint(0, 150, (20, 30, 3)[: 2 + (mode == "RGB")], dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    rainy = RainAugment(generator, p=1, seed=3)(image)
    assert isinstance(rainy, PIL.Image.Image) and rainy.mode == mode and rainy.size == (30, 20)
    assert np.array_equal(np.asarray(image), pixels)
    same = RainAugment(generator, p=1, seed=3)(v2.functional.pil_to_tensor(image))
    assert torch.equal(v2.functional.pil_to_tensor(rainy), same) and (same > v2.functional.pil_to_tensor(image)).any()


def test_a_video_has_one_wind_and_its_rain_moves(drawn):
    augment, winds = drawn(p=1, seed=1, size=128), []
    for _ in range(12):
        video = augment(tv_tensors.Video(torch.zeros(5, 3, 96, 128)))
        assert isinstance(video, tv_tensors.Video) and video.shape == (5, 3, 96, 128)
        assert len({frame.numpy().tobytes() for frame in video}) == 5
        angles = [angle_of(frame) for frame in video]
        winds.append(np.mean(angles))
        assert np.ptp(angles) < 12
    assert np.std(winds) > 6
    two = augment(tv_tensors.Video(torch.zeros(2, 3, 3, 40, 50)))
    assert two.shape == (2, 3, 3, 40, 50) and not torch.equal(two[0], two[1])


def test_no_two_crops_are_alike(drawn):
    """Drawn 100 times from the two layers of the beginning: no crop agrees with another at the same place."""
    augment = drawn(p=1, intensity=1, seed=3, size=64)
    crops = torch.cat([augment(torch.zeros(10, 3, 64, 64))[:, 0] for _ in range(10)]).flatten(1)
    assert len(augment.bank._layers) == 2
    crops = crops - crops.mean(1, keepdim=True)
    crops = crops / crops.norm(dim=1, keepdim=True)
    alike = (crops @ crops.T)[~torch.eye(100, dtype=bool)]
    assert alike.max() < 0.95 and alike.abs().mean() < 0.15


def test_images_larger_than_the_bank_get_a_layer_of_their_own(drawn):
    augment = drawn(p=1, seed=4, size=32)
    before, bank = augment.drawer.calls, [id(layer) for layer, _ in augment.bank._layers.values()]
    with pytest.warns(UserWarning, match="an image of 160x100 is larger than size=32 .* give size=160") as said:
        large = augment(torch.zeros(2, 3, 100, 160))[1]
    assert len(said) == 1
    assert augment.drawer.calls > before and [id(layer) for layer, _ in augment.bank._layers.values()] == bank
    assert large.shape == (3, 100, 160)
    assert (large.amax(0).reshape(2, 50, 4, 40).amax((1, 3)) > 0.05).all()  # all over the image
    before = augment.drawer.calls
    assert augment(torch.zeros(3, 32, 9)).max() > 0 and augment.drawer.calls == before
    for shape in ((3, 1, 300), (3, 300, 1), (3, 2, 90)):
        assert augment(torch.zeros(shape)).shape == shape


def test_under_autocast_and_other_default_types(generator):
    """Layers are made in fp32, whatever surrounds the call."""
    image, plain = torch.zeros(40, 3, 16, 16), RainAugment(generator, p=1, seed=3)
    expected = [plain(image) for _ in range(8)]  # 320 crops: a layer is added
    assert len(plain.bank._layers) == 3
    with torch.autocast("cpu", torch.bfloat16):
        augment = RainAugment(generator, p=1, seed=3)
        assert all(torch.equal(augment(image), one) for one in expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(RainAugment(generator, p=1, seed=3)(image), expected[0])
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_number_of_layers(drawn):
    many = drawn(seed=2, layers=(2, 3))
    assert {len(many.bank.showers(0, np.random.RandomState(k))) for k in range(20)} == {2, 3}
    assert "layers=(2, 3)" in repr(many)
    with pytest.raises(ValueError, match="layers: expected whole numbers"):
        drawn(layers=(1, 2.5))


def test_repr_names_the_knobs(generator):
    assert "angle=(-5.0, 5.0), density=(0.2, 0.2)" in repr(RainAugment(generator, angle=(-5, 5), density=0.2))


def test_knobs(drawn):
    wanted = {"angle": (10, 30), "density": (0.15, 0.25), "thickness": 3, "brightness": (0.1, 0.2)}
    augment = drawn(p=1, seed=6, size=128, **wanted)
    assert augment.bank.intensity == (1, 1)  # it would scale density and brightness
    found = np.array([measure(augment(torch.zeros(3, 128, 128)).numpy()) for _ in range(20)])
    angle, density, thickness, brightness = found.T
    assert angle.min() > 7 and angle.max() < 33 and np.ptp(angle) > 8
    assert np.median(thickness) == pytest.approx(3, rel=0.1)
    assert 0.1 < np.median(density) < 0.3 and 0.08 < np.median(brightness) < 0.22
    large = measure(drawn(p=1, seed=6, size=32, **wanted)(torch.zeros(3, 128, 128)).numpy())
    assert 4 < large.angle < 36 and 0.13 < large.density < 0.28 and large.thickness == pytest.approx(3, rel=0.1)


def test_winds_of_the_bank_are_those_of_the_generator(drawn):
    augment = drawn(p=1, seed=7, size=32)
    angles = [angle_of(augment(torch.zeros(3, 32, 32))) for _ in range(60)]
    assert np.nanstd(angles) > 5 and 0.25 < np.mean(np.array(angles) > 0) < 0.75  # mirrored: to either side
