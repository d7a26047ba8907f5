"""Rain layers to learn from: which way they turn, what they keep, O - B of pairs, and rain on photos."""

import cv2
import numpy as np
import pytest
from PIL import Image

from common.data import compose
from common.data.demo import rain_layer
from common.data.images import read_image, write_image
from common.data.layers import GAIN, SCALE, TURN, inner_size, layer_set, rain_of, read_layer, variant, variants, warped
from common.data.pairs import find_pairs
from common.data.patches import to_batch
from common.errors import UserError
from common.generation.measures import measure
from experiments.distance import eight_bits, read_layers
from tests.conftest import flags, photo


def sets(folder, patch=16, part="train", **more):
    values = {"streaks": None, "hold_out": 0, "variants": 2, "manualSeed": 4, "turn": TURN} | more
    return layer_set(flags(folder / "rain", folder / "norain", patch, **values), "", part)[0]


@pytest.mark.parametrize("angle, turn, scale", [(0, -15, 1.0), (10, 8, 1.0), (0, 0, 1.25)])
def test_streaks_that_are_turned_and_scaled(angle, turn, scale):
    """A positive turn brings the lower ends to the right."""
    layer = rain_layer((240, 200), 3, angle=angle, length=24, width=3.0, density=0.1)[..., 0]
    before, after = measure(layer), measure(warped(layer, turn, scale))
    assert after.angle == pytest.approx(before.angle + turn, abs=1)
    assert after.thickness == pytest.approx(scale * before.thickness, rel=0.1)


@pytest.mark.parametrize("height, width, degrees", [(60, 60, -15), (40, 90, 11), (90, 40, 40)])
def test_turned_layers_have_no_empty_corners(height, width, degrees):
    full = warped(np.ones((height, width), np.float32), degrees, 1.0)
    assert full.min() > 0.999
    outside = np.zeros((height + 200, width + 200), np.float32)
    outside[100:-100, 100:-100] = 1  # nothing is mirrored in here: the picture is turned within black
    matrix = cv2.getRotationMatrix2D((outside.shape[1] / 2 - 0.5, outside.shape[0] / 2 - 0.5), degrees, 1.0)
    turned = cv2.warpAffine(outside, matrix, outside.shape[::-1])
    top, left = ((side - part) // 2 for side, part in zip(outside.shape, full.shape, strict=True))
    assert turned[top + 1 : top + full.shape[0] - 1, left + 1 : left + full.shape[1] - 1].min() > 0.99


def test_the_largest_rectangle_within_a_turned_one():
    assert inner_size(30, 50, 0) == pytest.approx((30, 50))
    assert inner_size(30, 30, 45) == pytest.approx((30 / 2**0.5, 30 / 2**0.5))
    assert inner_size(30, 50, 20) == pytest.approx(inner_size(30, 50, -20))
    assert inner_size(30, 500, 20) == pytest.approx(inner_size(500, 30, 20)[::-1])


def test_variants_keep_to_their_ranges_and_to_the_seed():
    layer = np.full((60, 80, 1), 100, np.uint8)
    made = [variant(layer, np.random.RandomState(i), 16) for i in range(40)]
    levels = [int(picture.max()) for picture in made]
    assert 100 * GAIN[0] - 1 <= min(levels) < 88 and 112 < max(levels) <= 100 * GAIN[1] + 1
    smallest = min(min(inner_size(60, 80, TURN)), 60) * SCALE[0]
    assert all(smallest - 3 <= min(picture.shape[:2]) <= 60 * SCALE[1] for picture in made)
    assert np.array_equal(made[3], variant(layer, np.random.RandomState(3), 16))
    tight = [variant(layer[:, :width], np.random.RandomState(i), 60) for width in (60, 80) for i in range(20)]
    assert all(min(picture.shape[:2]) >= 60 for picture in tight)  # no room to turn


def test_rain_of_pairs_is_o_minus_b_and_not_below_0(tmp_path):
    clean = photo(20, 22, 0)
    rainy = np.clip(clean.astype(int) + np.random.RandomState(0).randint(-30, 90, (20, 22, 3)), 0, 255)
    write_image(tmp_path / "rain" / "a.png", rainy.astype(np.uint8))
    write_image(tmp_path / "norain" / "a.png", clean)
    (pair,), _ = find_pairs(tmp_path / "rain", tmp_path / "norain", "--a, --b")
    rain, lost = rain_of(pair)
    assert np.array_equal(rain, np.maximum(rainy - clean, 0)) and np.array_equal(
        lost[..., 0] > 0, (rainy == 255).any(2)
    )
    assert [layer.pixels.shape[2] for layer in sets(tmp_path).pairs] == [3, 3]


@pytest.mark.parametrize(("noise", "colours", "channels"), [(2, (1, 1, 1), 1), (0, (1, 0.9, 0.8), 3)])
def test_the_noise_of_a_camera_is_no_colour(tmp_path, noise, colours, channels):
    layer = 255 * rain_layer((60, 80), 0, brightness=0.2, density=0.3)
    noise = np.random.RandomState(0).randint(-noise, noise + 1, (60, 80, 3))
    rainy = (20 + np.rint(layer * colours + noise * (layer > 4))).astype(np.uint8)
    write_image(tmp_path / "rain" / "a.png", rainy)
    write_image(tmp_path / "norain" / "a.png", np.full_like(rainy, 20))
    (pair,), _ = find_pairs(tmp_path / "rain", tmp_path / "norain", "--a, --b")
    rain, _ = rain_of(pair)
    assert rain.shape[2] == channels and np.abs(rain.mean(2) - (layer * colours).mean(2)).max() <= 2.5


def test_rain_that_was_cut_at_white_is_found_or_avoided(tmp_path):
    clean = np.full((40, 200, 3), (10, 100, 230), np.uint8)
    clean[:, :40] = 250  # here all channels are cut
    layer = rain_layer((40, 200), 0, brightness=0.5)
    layer = np.rint(255 * layer).astype(np.uint8)
    write_image(tmp_path / "rain" / "a.png", cv2.add(clean, np.repeat(layer, 3, 2)))
    write_image(tmp_path / "norain" / "a.png", clean)
    (pair,), _ = find_pairs(tmp_path / "rain", tmp_path / "norain", "--a, --b")
    rain, lost = rain_of(pair)
    assert np.array_equal(rain[:, 40:], layer[:, 40:]) and lost[:, 40:].max() == 0 and lost[:, :40].max() == 255
    (whole,) = sets(tmp_path, variants=0).pairs
    crops = [whole.crop((0.5, k / 30), 16)[0] for k in range(30)]
    windows = np.lib.stride_tricks.sliding_window_view(layer[..., 0], (16, 16)).reshape(-1, 16, 16)
    assert all((crop == windows).mean((1, 2)).max() >= 0.98 for crop in crops)  # each is the true rain of some place


def test_streaks_on_nothing_are_streaks_on_black(tmp_path):
    """White pixels whose alpha channel is the rain, as programs of drawing save it."""
    rain = np.zeros((20, 20, 1), np.uint8)
    rain[5:9] = 80
    Image.fromarray(np.concatenate((np.full((20, 20, 3), 255, np.uint8), rain), 2)).save(tmp_path / "a.png")
    assert np.array_equal(read_layer(tmp_path / "a.png"), rain)
    assert np.array_equal(compose._streaks(tmp_path / "a.png"), rain.repeat(3, 2))
    assert np.array_equal(eight_bits(read_layers(tmp_path, 16)[0]), rain[..., 0])


def test_layers_that_are_grey_take_one_channel(streaks_folder):
    for layer in variants(sorted(streaks_folder.iterdir()), 1, 0, 16):
        assert layer.pixels.shape[2] == 1
        rainy, clean = np.split(layer.crop((0.5, 0.5), 16), 2)
        assert not clean.any() and (rainy == rainy[:1]).all()


def test_on_photos_rainy_is_clean_plus_the_layer(streaks_folder, pairs_folder):
    more = {"streaks": str(streaks_folder), "clean": str(pairs_folder / "norain")}
    dataset, met = sets(pairs_folder, **more), set()
    photos = [read_image(pairs_folder / "norain" / f"{i + 8}.png").astype(int) for i in range(4)]
    for row, column in np.random.RandomState(0).rand(60, 2):
        for layer in dataset.pairs:
            rainy, clean = np.split(layer.crop((row, column), 16).astype(int), 2)
            top, left = (int(x * (side - 15)) for x, side in zip((row, column), layer.pixels.shape, strict=False))
            rain = layer.pixels[top : top + 16, left : left + 16, 0].astype(int)
            assert np.array_equal(rainy, np.minimum(clean + rain, 255))
        met |= {place_in(photo, clean.transpose(1, 2, 0), i) for i, photo in enumerate(photos)} - {None}
    assert {i for i, _, _ in met} == {0, 1, 2, 3} and len(met) > 50  # all photos, everywhere
    assert {0, 8} <= {top for _, top, _ in met}


def place_in(photo, crop, number):
    """(number, row, column) where the crop is cut out of the photo, or None."""
    windows = np.lib.stride_tricks.sliding_window_view(photo, crop.shape)[:, :, 0]
    found = np.argwhere((windows == crop).all((2, 3, 4)))
    return (number, *found[0].tolist()) if len(found) else None


def test_of_pairs_the_clean_images_are_the_photos(pairs_folder):
    dataset = sets(pairs_folder, hold_out=1, part="held_out", clean=None)
    (layer,) = dataset.pairs  # as it is, on the photo that was held out with it
    (held_out,) = layer.photos
    assert layer.name == "8.png" and np.array_equal(held_out, read_image(pairs_folder / "norain" / "8.png"))
    left = sets(pairs_folder, hold_out=1, clean=None)
    assert len(left.pairs) == 3 * 2 and len(left.pairs[0].photos) == 3
    rainy, clean = to_batch(left.__getitems__([(n, 0.5, 0.5) for n in range(4)]))
    assert rainy.shape == (4, 3, 16, 16) and (rainy >= clean).all() and (rainy > clean).any()


def test_mistakes(pairs_folder, streaks_folder, tmp_path):
    write_image(tmp_path / "small" / "a.png", photo(20, 9, 0))
    for more, told in (
        ({"streaks": str(tmp_path / "nowhere")}, "--streaks: .*nowhere is not a folder. Name a folder of pictures"),
        ({"streaks": str(streaks_folder), "hold_out": 3}, "--hold_out: .* leaves none"),
        ({"streaks": str(streaks_folder), "patch": 32}, "0.png is 26x30, smaller than the 32 px patch"),
        ({"streaks": str(streaks_folder), "clean": None}, "--streaks, --clean: give both"),
        ({"clean": str(tmp_path)}, "--streaks, --clean: give both"),
        ({"streaks": str(streaks_folder), "clean": str(tmp_path / "small")}, "a.png is 9x20, smaller than the 16 px"),
    ):
        with pytest.raises(UserError, match=told):
            sets(pairs_folder, **more)
