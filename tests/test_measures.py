"""Rain that is drawn with known angle, density, thickness and brightness is measured as that."""

import cv2
import numpy as np
import pytest

from common.data.demo import rain_layer
from common.generation.measures import direction, measure, widths

FINE = 8  # drawn so many times larger, then averaged


def drawn(angle, width, number=30, length=40, side=256, peak=0.5, seed=0):
    """Straight streaks with hard ends that do not touch, antialiased: (side, side) float32."""
    rng, large = np.random.RandomState(seed), np.zeros((side * FINE, side * FINE), np.uint8)
    turn = np.radians(angle)
    length, width = length - 1 / FINE, width - 1 / FINE  # fillPoly also fills the pixels on its edge
    along, across = np.array([np.sin(turn), np.cos(turn)]), np.array([np.cos(turn), -np.sin(turn)])
    places = []
    while len(places) < number:
        place = rng.uniform(length, side - length, 2)
        gap = [(abs((place - other) @ across), abs((place - other) @ along)) for other in places]
        if all(a > 2 * width + 4 or b > length + 4 for a, b in gap):
            places.append(place)
            corners = [
                place + s * along * length / 2 + t * across * width / 2 for s, t in ((1, 1), (1, -1), (-1, -1), (-1, 1))
            ]
            cv2.fillPoly(large, [np.round((np.array(corners) + 0.5) * FINE - 0.5).astype(np.int32)], 255)
    return cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) * np.float32(peak / 255)


@pytest.mark.parametrize("angle", [-80, -45, -20, -7.5, 0, 3, 12, 30, 45, 60, 89])
@pytest.mark.parametrize("width", [1.5, 3])
def test_angle_of_drawn_streaks(angle, width):
    """The lower end of a positive angle lies to the right."""
    assert measure(drawn(angle, width)).angle == pytest.approx(angle, abs=1)


def test_angle_is_that_of_the_projects_procedural_rain():
    for angle in (-25, -10, 0, 8, 20):
        layers = [rain_layer((128, 128), seed, angle=angle)[..., 0] for seed in range(4)]
        assert np.mean([direction(layer) for layer in layers]) == pytest.approx(angle, abs=1)


@pytest.mark.parametrize(
    "width, peak", [(1.5, 0.5), (2, 0.5), (3, 0.1), (3, 0.3), (3, 0.9), (4.5, 0.5), (6, 0.5), (9, 0.5)]
)
@pytest.mark.parametrize("angle", [0, 10, -33, 90])
def test_thickness_of_drawn_streaks(width, peak, angle):
    assert measure(drawn(angle, width, number=12, peak=peak)).thickness == pytest.approx(width, abs=0.5)


def test_thickness_of_faded_procedural_streaks():
    for width in (1.5, 2.5, 4):
        layer = rain_layer((256, 256), 1, width=width, density=0.03)[..., 0]
        assert measure(layer).thickness == pytest.approx(width, abs=0.5)


@pytest.mark.parametrize("number", [6, 12, 24])
@pytest.mark.parametrize("angle", [0, 20])
def test_density_and_brightness_of_drawn_streaks(number, angle):
    width, length, side = 8, 40, 256
    found = measure(drawn(angle, width, number, length, side, peak=0.4))
    rim = 0.5 * 2 * (width + length)  # pixels that a streak covers in part are rainy, too
    assert found.density == pytest.approx(number * (width * length + rim) / side**2, rel=0.1)
    assert found.brightness == pytest.approx(0.4 * width * length / (width * length + rim), rel=0.1)


def test_channels_count_as_the_specification_says():
    layer = np.zeros((3, 32, 32), np.float32)
    layer[0, :, 10:12] = 0.05  # rainy by the maximum, not by the mean
    found = measure(layer)
    assert found.density == 2 / 32 and found.brightness == pytest.approx(0.05 / 3)


def test_no_rain_and_flat_rain():
    none, flat = measure(np.zeros((16, 16), np.float32)), measure(np.full((16, 16), 0.3, np.float32))
    assert none.density == 0 and all(np.isnan(value) for value in (none.angle, none.thickness, none.brightness))
    assert flat.density == 1 and np.isnan(flat.angle) and flat.brightness == pytest.approx(0.3)
    assert len(widths(np.zeros((9, 9), np.float32), 0)) == 0


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (1, 40), (7, 3)])
def test_tiny_layers(size):
    layer = np.random.RandomState(0).rand(*size).astype(np.float32)
    assert 0 <= measure(layer).density <= 1
