"""The latent experiments: golden numbers, every file of them, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.images import read_image, write_image
from common.errors import UserError
from common.generation import latent
from common.models import EDNet
from for_spa import test_disentanglement as spa_disentanglement
from for_spa import test_interpolation as spa_interpolation
from for_syn import test_disentanglement, test_interpolation
from tests.conftest import photo, rows_of
from tests.golden import GOLDEN, fill


@pytest.fixture
def small(tmp_path):
    """A generator of 16 px with 5 dimensions, its file, and two pairs of 40x30 and 16x16 px."""
    net = fill(EDNet(nz=5, nef=4, patch_size=16), 1)
    torch.save(net.state_dict(), tmp_path / "ED.pt")
    for name, size, seed in (("9.png", (30, 40), 0), ("10.png", (16, 16), 1), ("11.png", (30, 40), 2)):
        write_image(tmp_path / "data" / "norain" / name, photo(*size, seed))
        write_image(tmp_path / "data" / "rain" / name, np.minimum(photo(*size, seed), 200) + 30)
    return tmp_path


def golden_net():
    return fill(EDNet(3, 128, 32), 13).eval()


def test_interpolation_is_the_reference():
    expected = np.load(GOLDEN / "latent.npz")
    codes = [torch.from_numpy(np.random.RandomState(s).standard_normal((1, 128)).astype(np.float32)) for s in (40, 41)]
    weights = (0.0, 0.25, 0.5, 0.95, 1.0)
    for w, rain in zip(weights, latent.interpolate(golden_net(), *codes, weights), strict=True):
        reference = expected[f"interp/gray_rain_{w}"]
        assert np.abs(rain.numpy() - reference).max() <= 1e-5 * reference.max(), w
    assert set(weights) <= set(latent.WEIGHTS) and len(latent.WEIGHTS) == 21


def test_sweeps_are_the_reference_with_the_base_code_kept():  # T2
    expected = np.load(GOLDEN / "latent.npz")
    z = latent.base_code(128, 10)
    assert np.array_equal(z.numpy(), expected["disent/z_seed10"])
    for d in (0, 5):  # 5 after 0: a base code that drifts fails here
        layers = latent.pixels(latent.sweep(golden_net(), z, d))
        for v in (-3.0, 0.2, 3.0):
            ours = layers[latent.VALUES.index(v)].astype(int)
            assert np.abs(ours - expected[f"disent/dim{d}_val{v}"]).max() <= 1
    assert np.array_equal(z.numpy(), expected["disent/z_seed10"])
    assert latent.VALUES[0] == -3 and latent.VALUES[-1] == 3 and latent.SEEDS == (10, 15, 20, 25, 30, 35, 40, 45, 50)


def interpolate(script, small, *flags):
    names = {"--save_patch": "patch", "--save_inputfake": "fake", "--save_rainfake": "rainfake"}
    saves = [part for flag, name in names.items() for part in (flag, str(small / "out" / name))]
    flags = ["--netED", str(small / "ED.pt"), *saves, *flags, "--use_gpu", "false"]
    data = ["--data_path", str(small / "data/rain"), "--gt_path", str(small / "data/norain")]
    return script.main([*data, *flags])


@pytest.mark.parametrize("script", [test_interpolation, spa_interpolation])
def test_files_of_an_interpolation(small, script, capsys):
    before = {path: path.read_bytes() for path in (small / "data").rglob("*.png")}
    assert interpolate(script, small, "--posterior", "mean") == 0
    out = small / "out"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    weights = [f"{k / 20:.2f}" for k in range(21)]
    expected = {f"patch/{what}{name}.png" for what in ("input", "gt", "rain") for name in ("9", "10")}
    expected |= {f"rainfake/{w}_rainfake.png" for w in weights} | {"rainfake/interpolation.png"}
    expected |= {f"fake/{w}_O{k}fake.png" for w in weights for k in (1, 2)}
    assert names == expected  # in name order, 9 and 10 are the first two of three
    assert "3 images; the first two by name" in capsys.readouterr().out
    # the crops are where RandomState(66) puts them, and are the same of rainy and clean
    rng = np.random.RandomState(66)
    row, column = rng.randint(0, 30 - 16 + 1), rng.randint(0, 40 - 16 + 1)
    clean = read_image(small / "data/norain/9.png")[row : row + 16, column : column + 16]
    assert np.array_equal(read_image(out / "patch/gt9.png"), clean)
    rainy = read_image(small / "data/rain/9.png")[row : row + 16, column : column + 16]
    difference = np.maximum(rainy.astype(int) - clean, 0)
    assert np.abs(read_image(out / "patch/rain9.png").astype(int) - difference).max() <= 1
    # w = 1 is A, whose rain lies on O1
    net = fill(EDNet(nz=5, nef=4, patch_size=16), 1)
    first, second = (read_image(small / "data/rain" / name)[r : r + 16, c : c + 16] for name, r, c in
                     (("9.png", row, column), ("10.png", 0, 0)))  # fmt: skip
    codes = net.encoder(torch.from_numpy(np.stack([first, second]) / np.float32(255)).permute(0, 3, 1, 2))[
        :, :5
    ].detach()
    for w, code in (("1.00", codes[:1]), ("0.00", codes[1:])):
        with torch.no_grad():
            rain = net.sample(code)[0].amax(0).numpy()
        shown = np.floor(255 * (np.floor(255 * rain.clip(0, 1)) / 255) ** 0.7)
        assert np.abs(read_image(out / f"rainfake/{w}_rainfake.png")[..., 0] - shown).max() <= 1
        fake = np.floor(255 * (clean / 255 + rain[..., None]).clip(0, 1))
        assert np.abs(read_image(out / f"fake/{w}_O1fake.png") - fake).max() <= 1
    sheet = read_image(out / "rainfake/interpolation.png")
    assert sheet.shape[1] > 21 * 64 and sheet.shape[0] > 3 * 64
    assert before == {path: path.read_bytes() for path in (small / "data").rglob("*.png")}


def test_two_images_of_one_name_have_files_each(small):
    for folder in ("rain", "norain"):
        (small / "data" / folder / "1").mkdir()
        for old, new in (("9.png", "1/0.jfif"), ("10.png", "1_0.png")):
            (small / "data" / folder / old).rename(small / "data" / folder / new)
    assert interpolate(test_interpolation, small, "--posterior", "mean") == 0
    expected = {f"{what}{letter}_1_0.png" for what in ("input", "gt", "rain") for letter in "AB"}  # lossless, too
    assert {path.name for path in (small / "out" / "patch").iterdir()} == expected


def test_the_posterior_is_drawn_from_the_seed(small):
    shown = []
    for flags in (["--manualSeed", "1"], ["--manualSeed", "1"], ["--manualSeed", "2"], ["--posterior", "mean"]):
        assert interpolate(test_interpolation, small, *flags) == 0
        shown.append((small / "out/rainfake/0.50_rainfake.png").read_bytes())
    assert shown[0] == shown[1] and len({*shown}) == 3


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data_path", "{}/data/one"], "--data_path: two rainy images are needed"),
        (["--nz", "7"], "--netED: .* of other sizes: --nz is 7, it has 5"),
        (["--patch_size", "64"], "--netED: .* of other sizes: --patch_size is 64, it has 16"),
        (["--netED", "{}/no.pt"], "--netED: there is no"),
        (["--pair_by", "x-{{}}", "{{}}"], "--pair_by: no name fits 'x-{}'"),
        (["--data_path", "{}/none"], "--data_path: .*none is not a folder. Put two rainy images"),
        (["--data_path", "{}/data/small", "--gt_path", "{}/data/plain"], "is 15x30, smaller than the 16 px patch"),
    ],
)
def test_refused_by_the_interpolation(small, flags, message):
    write_image(small / "data/one/9.png", photo(30, 40, 0))
    for name in "ab":
        write_image(small / f"data/small/{name}.png", photo(30, 15, 1))
        write_image(small / f"data/plain/{name}.png", photo(30, 15, 0))
    with pytest.raises(UserError, match=message):
        interpolate(test_interpolation, small, *[flag.format(small) for flag in flags])
    assert not (small / "out").exists()


def test_files_of_a_disentanglement(small, capsys, monkeypatch):
    monkeypatch.setattr(latent, "SEEDS", (10, 15, 50))
    flags = ["--netED", str(small / "ED.pt"), "--save_fake", str(small / "out"), "--use_gpu", "false"]
    assert test_disentanglement.main([*flags, "--dims", "4", "0", "--gif"]) == 0
    out = small / "out"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    files = ["fake.jpg", "sheet.png", "dim0.gif", "dim4.gif", *(f"{d}.png" for d in range(5))]
    assert names == {"ranking.csv"} | {f"seed{s}/{file}" for s in latent.SEEDS for file in files}
    # a strip shows the sweep, 3 white px between the tiles
    net = fill(EDNet(nz=5, nef=4, patch_size=16), 1)
    strip = read_image(out / "seed15/3.png")
    assert strip.shape == (16, 16 * 16 + 15 * 3, 3) and (strip[:, 16:19] == 255).all()
    z = torch.randn(1, 5, generator=torch.Generator().manual_seed(15))
    z[0, 3] = -2.6
    with torch.no_grad():
        tile = np.floor(255 * net.sample(z)[0].permute(1, 2, 0).numpy().clip(0, 1))
    assert np.abs(strip[:, 19:35] - tile).max() <= 1
    assert read_image(out / "seed15/fake.jpg").shape == (5 * 64 + 4 * 3, 16 * 64 + 15 * 3, 3)
    # to and fro without the ends twice
    with Image.open(out / "seed50/dim4.gif") as gif:
        assert gif.n_frames == 30 and min(gif.size) >= 256 and gif.info["loop"] == 0
        frames = []
        for k in range(30):
            gif.seek(k)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    assert all(np.abs(frames[k] - frames[30 - k]).max() <= 8 for k in range(1, 15))
    # the ranking is by the change, over all seeds
    rows = rows_of(out / "ranking.csv")
    assert sorted(int(r["dimension"]) for r in rows) == list(range(5)) and [r["rank"] for r in rows] == list("12345")
    means = [float(r["mean_change"]) for r in rows]
    assert means == sorted(means, reverse=True) and means[0] > means[-1]
    z = torch.randn(1, 5, generator=torch.Generator().manual_seed(15))
    layers = latent.sweep(net, z, int(rows[0]["dimension"])).clamp(0, 1).numpy()
    assert float(rows[0]["seed15"]) == pytest.approx(255 * np.abs(np.diff(layers, axis=0)).mean(), rel=1e-4)
    printed = capsys.readouterr().out
    assert f"{rows[0]['dimension']}: {means[0]:.2g}" in printed and str(out / "seed10" / "sheet.png") in printed


def test_a_seed_in_place_of_the_list_and_the_dimensions_that_matter(small):
    flags = ["--netED", str(small / "ED.pt"), "--save_fake", str(small / "out"), "--use_gpu", "false"]
    assert test_disentanglement.main([*flags, "--manualSeed", "7", "--gif"]) == 0
    assert [path.name for path in (small / "out").iterdir() if path.is_dir()] == ["seed7"]
    rows = rows_of(small / "out" / "ranking.csv")
    gifs = {path.name for path in (small / "out" / "seed7").glob("*.gif")}
    assert gifs == {f"dim{row['dimension']}.gif" for row in rows[:3]}


def test_random_rains(small, capsys):
    flags = ["--netED", str(small / "ED.pt"), "--save_fake", str(small / "out"), "--use_gpu", "false"]
    assert test_disentanglement.main([*flags, "--figure", "generated"]) == 0
    assert spa_disentanglement.main([*flags, "--figure", "diversity"]) == 0
    assert {path.name for path in (small / "out").iterdir()} == {"generated.png", "diversity.gif"}
    picture = read_image(small / "out/generated.png")
    assert picture.shape == (8 * 128 + 7 * 3, 8 * 128 + 7 * 3, 3)
    tiles = {picture[r * 131 : r * 131 + 128, c * 131 : c * 131 + 128].tobytes() for r in range(8) for c in range(8)}
    assert len(tiles) == 64
    with Image.open(small / "out/diversity.gif") as gif:
        assert gif.n_frames == 30
    printed = capsys.readouterr().out
    assert "generated.png" in printed and "diversity.gif" in printed


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--dims", "5", "--gif"], "--dims: there is no dimension 5; the code of this generator has 0 to 4"),
        (["--dims", "1"], "--dims: .*--gif"),
        (["--dims", "1", "--figure", "generated"], "--dims, --gif: .*--figure"),
        (["--dims", "1", "--gif", "--figure", "generated"], "--dims, --gif: .*--figure"),
        (["--nef", "8"], "--netED: .* of other sizes: --nef is 8, it has 4"),
        (["--netED", "{}/data/rain/9.png"], "--netED: .* is no PyTorch checkpoint"),
    ],
)
def test_refused_by_the_disentanglement(small, flags, message):
    given = ["--netED", str(small / "ED.pt"), "--save_fake", str(small / "out"), "--use_gpu", "false"]
    with pytest.raises(UserError, match=message):
        test_disentanglement.main([*given, *[flag.format(small) for flag in flags]])
    assert not (small / "out").exists()
