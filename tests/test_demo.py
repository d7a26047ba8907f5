"""The demo's procedural rain and its picture."""

import numpy as np

from common.data import demo
from common.data.images import read_image, to_float, write_image
from common.evaluation.metrics import psnr


def test_layers_are_seeded_bounded_and_as_dense_and_bright_as_asked():
    one, again, other = (demo.rain_layer((200, 150), seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert one.shape == (200, 150, 1) and one.min() >= 0 and one.max() <= 1
    light, heavy = (np.mean(demo.rain_layer((300, 300), 0, density=d) > 0.02) for d in (0.05, 0.2))
    assert 0.03 < light < 0.09 and 0.12 < heavy < 0.3
    dim, bright = (demo.rain_layer((300, 300), 0, brightness=b).max() for b in (0.1, 0.4))
    assert bright > 2 * dim


def test_rain_is_added_and_clipped_and_leaves_the_rest_alone():
    clean = np.full((40, 40, 3), 200, np.uint8)
    layer = demo.rain_layer((40, 40), 0, brightness=0.5)
    rainy = demo.add_rain(clean, layer)
    assert rainy.max() == 255 and np.array_equal(rainy[layer[..., 0] == 0], clean[layer[..., 0] == 0])


def test_the_set_is_split_by_photo_and_its_rain_is_light_to_medium(tmp_path):
    assert demo.main(["--out", str(tmp_path), "--seed", "3"]) == 0
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")}
    assert "train/rain/astronaut_v04.png" in names and "test/norain/chelsea.png" in names
    assert not any(name.startswith("train") and test in name for name in names for test in demo.TEST)
    assert len(names) == 2 * (4 * len(demo.TRAIN) + len(demo.TEST))
    pictures = [read_image(tmp_path / "test" / kind / "chelsea.png") for kind in ("rain", "norain")]
    assert 18 < psnr(*map(to_float, pictures)) < 27


def test_the_page(tmp_path, capsys):
    picture = tmp_path / "a b.png"
    write_image(picture, np.zeros((4, 4, 3), np.uint8))
    flags = ["--out", str(tmp_path / "out"), "--show", str(picture), 'It says "5 > 4".', str(picture), "Again."]
    assert demo.main(flags) == 0 and "index.html" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"01.png", "02.png", "index.html"}
    assert (tmp_path / "out" / "01.png").read_bytes() == picture.read_bytes()
    page = (tmp_path / "out" / "index.html").read_text()
    assert '<img src="01.png" alt="">' in page and "It says &#34;5 &gt; 4&#34;." in page
