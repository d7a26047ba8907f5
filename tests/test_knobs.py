"""Knobs on drawn streaks: each reaches what is asked and leaves the others alone."""

import numpy as np
import pytest

from common.errors import UserError
from common.generation import knob_flags, knobs
from common.generation.knobs import missed, set_knobs
from common.generation.measures import Measures, measure
from common.generation.rain import RainMaker, exposed
from common.models import EDNet
from for_syn import generate_rain
from tests.drawn import Drawer
from tests.golden import fill

pytestmark = pytest.mark.usefixtures("quick")
SIDE = 192
# What is asked may be missed by so much: degrees, and shares; a streak more or less, for the density.
NEAR = {
    "angle": {"abs": 1},
    "density": {"rel": 0.1, "abs": 0.004},
    "thickness": {"rel": 0.1},
    "brightness": {"rel": 0.05},
}
# What is left alone may move by so much: streaks fall at other places, so that their number differs by chance.
APART = {"angle": {"abs": 2}, "density": {"rel": 0.3}, "thickness": {"rel": 0.08}, "brightness": {"rel": 0.12}}


def made(values, seed=0, side=SIDE, scale=1.0):
    shower = RainMaker(Drawer()).shower(0.5, np.random.RandomState(seed))
    return set_knobs(shower, side, side, values, scale).pixels()


def measured(layer):
    return measure(np.minimum(layer, 1).transpose(2, 0, 1))._asdict()


@pytest.fixture(scope="module")
def natural():
    """What rain measures where no knob is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.generation.rain.POOL", 64)
        return measured(made({}, 1, 2 * SIDE))


@pytest.mark.parametrize(
    "name, value",
    [
        *(("angle", value) for value in (-45, 0, 45)),
        *(("density", value) for value in (0.02, 0.1, 0.3)),
        *(("thickness", value) for value in (1.5, 3, 6)),
        *(("brightness", value) for value in (0.05, 0.15, 0.25)),
    ],
)
def test_a_knob_reaches_what_is_asked_and_leaves_the_others(natural, name, value):
    after = measured(made({name: value}, 1))
    assert after[name] == pytest.approx(value, **NEAR[name])
    for other in Measures._fields:
        if other != name and (name, other) != ("thickness", "density"):  # few thick streaks fit into a small picture
            assert after[other] == pytest.approx(natural[other], **APART[other]), other


@pytest.mark.parametrize(
    "values",
    [
        {"angle": -30, "density": 0.25, "thickness": 3, "brightness": 0.1},
        {"angle": 20, "brightness": 0.25},
        {"density": 0.15, "thickness": 4},
    ],
)
def test_knobs_together(values):
    after = measured(made(values, 3, 3 * SIDE // 2))
    for name, value in values.items():
        assert after[name] == pytest.approx(value, **NEAR[name]), name


def test_scale_multiplies_the_thickness():
    one, two = (measured(made({"thickness": 2, "density": 0.15}, 4, int(SIDE * s), s)) for s in (1, 2))
    assert one["thickness"] == pytest.approx(2, rel=0.1) and two["thickness"] == pytest.approx(4, rel=0.1)
    assert two["density"] == pytest.approx(0.15, rel=0.1)


@pytest.mark.parametrize(
    "words, limits",
    [
        (["--angle", "-10", "80"], "-60 to 60"),
        (["--density", "0.001"], "0.01 to 0.6"),
        (["--thickness", "7"], "1.2 to 6"),
        (["--brightness", "0.26"], "0.03 to 0.25"),
        (["--tint", "1.5"], "0 to 1"),
    ],
)
def test_beyond_their_reach_knobs_are_refused(words, limits, capsys):
    with pytest.raises(SystemExit):
        generate_rain.parse_args(["--data_path", "x", *words])
    told = f"argument {words[0]}: expected a number from {limits}, got '{words[-1]}'; "
    assert told in capsys.readouterr().err
    assert generate_rain.parse_args(["--data_path", "x", words[0], *limits.split(" to ")])


def test_knobs_that_hinder_each_other_warn():
    """By the median over the pictures; a quarter of the value is much, a few hundredths of the reach are not."""

    def reached(*densities, brightness=0.05, **wanted):
        values = {"angle": 40.0, "density": 0.4, "brightness": 0.05} | wanted
        return [(values, Measures(0.0, density, 2.0, brightness)) for density in densities]

    dense, bright = "density 0.4 is missed, the rain has 0.25", "brightness 0.05 is missed, the rain has 0.2"
    assert missed(reached(0.1, 0.25, 0.4)) == [dense]
    assert missed(reached(0.1, 0.31, 0.4)) == [] == missed([])
    assert missed(reached(0.25, brightness=0.2)) == [dense, bright]
    ranges = reached(0.1) + reached(0.2, density=0.2) + reached(0.05, density=0.05)
    assert missed(ranges) == []  # each picture is compared with what was drawn for it
    assert missed([({"density": 0.01}, Measures(0.0, 0.02, 2.0, 0.1))]) == []  # one streak more
    assert missed([({"thickness": 4.0}, Measures(0.0, 0.0, float("nan"), float("nan")))]) == []
    alone = missed([({"density": 0.6}, Measures(0.0, 0.3, 2.0, 0.1))])
    assert alone == ["density 0.6 is missed, the rain has 0.3"]


def mirrored(layer, depth=24):
    """Largest correlation of a rim of the layer with the mirror image of what lies inside of it, of all four sides."""
    found = []
    for turn in range(4):
        side = np.rot90(layer.max(2), turn)
        for at in range(8, depth):  # where the mirror stands
            rim, inside = side[:at][::-1], side[at + 1 : 2 * at + 1]
            found.append(np.corrcoef(rim.ravel(), inside.ravel())[0, 1])
    return max(found)


@pytest.mark.parametrize(
    "values",
    [
        {"brightness": 0.25},
        {"thickness": 3, "density": 0.5, "brightness": 0.25, "angle": 30},
        {"angle": 30, "density": 0.6, "thickness": 6},
        {"thickness": 1.2},
    ],
)
def test_nothing_is_mirrored_into_a_picture(values):
    """And no border is black: the source is large enough, whatever the knobs do to the thickness."""
    for seed in range(2):
        shower = RainMaker(Drawer()).shower(0.5, np.random.RandomState(seed))
        made = set_knobs(shower, 160, 240, values)
        assert made.scale >= made.least_scale() * (1 - 1e-9)
        layer = made.pixels()
        assert mirrored(layer) < 0.8
        rims = [layer[:12], layer[-12:], layer[:, :12], layer[:, -12:]]
        assert all(rim.mean() > 0.2 * layer.mean() for rim in rims)
    reflected = np.pad(layer, ((20, 0), (0, 0), (0, 0)), mode="reflect")
    assert mirrored(reflected) > 0.99  # the measure sees it


def test_bright_streaks_keep_their_profile():
    """Brightened rain rises to less than white and never reaches it in a flat stroke; darker rain is in proportion."""
    ramp = np.linspace(0, 1, 101, dtype=np.float32)
    assert np.array_equal(exposed(ramp, 1.0), ramp) and np.allclose(exposed(ramp, 0.5), ramp / 2)
    bright = exposed(ramp, 5.0)
    assert np.allclose(bright[:8], 5 * ramp[:8]) and (np.diff(bright[:40]) > 0).all()
    assert bright[:70].max() < 0.71 and (bright >= ramp).all()
    assert np.allclose(exposed(ramp, 1.001), ramp, atol=1e-3)


def test_no_knob_leaves_the_rain_as_it_is():
    shower = RainMaker(Drawer()).shower(0.5, np.random.RandomState(0))
    assert np.array_equal(made({}), shower.layer(SIDE, SIDE).pixels())


def test_streaks_are_left_out_whole_and_one_by_one():
    """Parallel streaks that do not touch: each is there as it was, or not at all."""
    one = np.zeros((80, 24), np.float32)
    one[20:60] = 0.4 * np.exp2(-((np.arange(24) - 12.0) ** 2))
    source = np.tile(one, (10, 10))[..., None] * np.float32(1)
    inside = np.ones(source.shape[:2], bool)
    found, nothing = knobs._Streaks(source, 0, inside, np.random.RandomState(1)), np.zeros_like(source)
    whole, before = (source > 0.02).mean(), None
    for share in (0.1, 0.5, 0.9, 1):
        kept, enough = found.kept(0.02, share * whole, nothing)
        assert enough
        cells = (kept / np.maximum(source, 1e-9)).reshape(10, 80, 10, 24).transpose(0, 2, 1, 3)[..., 20:60, 10:15]
        left = cells.mean((2, 3))
        assert np.isin(left, (0, 1)).all() and abs(left.mean() - share) <= 0.011
        assert before is None or (before <= left).all()  # a denser rain has the streaks of a thinner one
        before = left
    assert np.array_equal(found.kept(0.02, 0.5, nothing)[0], source) and not found.kept(0.02, 0.5, nothing)[1]
    half = found.kept(0.02, 0.5 * whole, nothing)[0].reshape(10, 80, 10, 24).max((1, 3)) > 0
    assert half.mean(0).std() < 0.25 and half.mean(1).std() < 0.25  # all over the layer, 0.16 by chance


def test_no_rain_at_all_is_left_alone():
    net = EDNet(nz=8, nef=4, patch_size=16)
    for parameter in net.decoder.parameters():
        parameter.data.zero_()
    shower = RainMaker(net).shower(0.5, np.random.RandomState(0))
    layer = set_knobs(shower, 40, 50, {"angle": 10, "density": 0.2, "thickness": 2, "brightness": 0.1})
    assert layer.pixels().shape == (40, 50, 3) and layer.pixels().max() == 0 and shower.wind == 0


def test_dense_rain_is_of_several_textures():
    """No layer comes again turned upside down."""
    layer = made({"density": 0.5}, 2, 200).max(2)
    assert np.corrcoef(layer.ravel(), layer[::-1, ::-1].ravel())[0, 1] < 0.3


def test_thin_pictures_have_rain():
    for size in ((1, 300), (300, 1)):
        shower = RainMaker(Drawer()).shower(0.5, np.random.RandomState(0))
        assert set_knobs(shower, *size, {"density": 0.3}).pixels().max() > 0.05


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (17, 40)])
def test_small_pictures(size):
    values = {"angle": 50, "density": 0.6, "thickness": 6, "brightness": 0.25}
    shower = RainMaker(fill(EDNet(nz=8, nef=4, patch_size=16), 6)).shower(0.5, np.random.RandomState(0))
    layer = set_knobs(shower, *size, values).pixels()
    assert layer.shape == (*size, 3) and layer.min() >= 0 and np.isfinite(layer).all()


def test_the_same_seed_gives_the_same_bytes():
    one, again, other = (made({"angle": 10, "density": 0.2}, seed, 100) for seed in (5, 5, 6))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_flags(capsys):
    args = generate_rain.parse_args(["--data_path", "x", "--angle", "-10", "--density", "0.1", "0.2", "--scale", "2"])
    assert knob_flags.knobs(args) == {"angle": (-10, -10), "density": (0.1, 0.2)} and args.scale == 2
    assert generate_rain.parse_args(["--data_path", "x", "--scale", "auto"]).scale is None
    args = generate_rain.parse_args(["--data_path", "x", "--preset", "heavy", "--angle", "5"])
    assert knob_flags.knobs(args) == knob_flags.PRESETS["heavy"] | {"angle": (5, 5)}
    assert "--preset heavy: --angle 5 --density" in capsys.readouterr().out
    for preset in knob_flags.PRESETS.values():
        for name, (low, high) in preset.items():
            assert knob_flags.KNOBS[name][0] <= low <= high <= knob_flags.KNOBS[name][1]
    for words in (["--angle", "9", "-9"], ["--layers", "1", "2", "3"]):
        with pytest.raises(UserError, match=f"{words[0]}: give a number, or a lower and a higher one; got "):
            knob_flags.knobs(generate_rain.parse_args(["--data_path", "x", *words]))
    for words in (["--layers", "9"], ["--scale", "0"], ["--scale", "much"]):
        with pytest.raises(SystemExit):
            generate_rain.parse_args(["--data_path", "x", *words])
        assert words[0] in capsys.readouterr().err
