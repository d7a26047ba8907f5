"""Generators in half precision: half the bytes, the same names, the same rain but for rounding, wherever they load."""

import pytest
import torch

from common import cli
from common.data.images import read_image, write_image
from common.generation import RainAugment, export
from common.models import EDNet
from common.training.checkpoint import load_generator
from for_syn import generate_rain, test_disentanglement, train_syn_aug
from tests.conftest import folders, photo
from tests.golden import fill


@pytest.fixture
def full(tmp_path):
    """A generator whose weights float16 can't hold exactly."""
    path = tmp_path / "full.pt"
    torch.save(fill(EDNet(nz=5, nef=4, patch_size=16), 1).state_dict(), path)
    return path


def run(*words):
    return cli.run(lambda: export.main(list(map(str, words))))


def test_half_the_bytes_and_the_same_rain_but_for_rounding(full, tmp_path, capsys):
    assert run("--netED", full, "--out", tmp_path / "new" / "half.pt") == 0
    half = tmp_path / "new" / "half.pt"
    state, whole = torch.load(half, weights_only=True), torch.load(full, weights_only=True)
    assert state.keys() == whole.keys() and {value.dtype for value in state.values()} == {torch.float16}
    for name, value in whole.items():
        torch.testing.assert_close(state[name].float(), value, rtol=2**-11, atol=2**-24)
    a, b = (load_generator(path, "--netED") for path in (full, half))
    assert {p.dtype for p in b.parameters()} == {torch.float32}
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    off = (a.sample(z) - b.sample(z)).abs().max()
    assert 0 < off < 0.01 * a.sample(z).max()
    assert "patches of 16 px, nz 5, nef 4" in capsys.readouterr().out


def test_the_papers_sizes_take_less_than_12_mb(tmp_path):
    torch.save(EDNet().state_dict(), tmp_path / "ED.pt")
    for _ in range(2):
        assert run("--netED", tmp_path / "ED.pt", "--out", tmp_path / "half.pt", "--overwrite") == 0
    assert 11e6 < (tmp_path / "half.pt").stat().st_size < 12e6


def test_half_precision_loads_wherever_a_generator_does(full, tmp_path, pairs_folder, quick):
    half = tmp_path / "half.pt"
    assert run("--netED", full, "--out", half) == 0
    write_image(tmp_path / "photos" / "a.png", photo(40, 50, 0))
    cpu = ["--use_gpu", "false", "--netED", str(half)]
    out = ["--data_path", str(tmp_path / "photos"), "--save_path", str(tmp_path / "pairs")]
    assert generate_rain.main([*out, *cpu]) == 0
    assert (
        read_image(tmp_path / "pairs" / "rain" / "a.png") > read_image(tmp_path / "pairs" / "norain" / "a.png")
    ).any()
    assert test_disentanglement.main([*cpu, "--figure", "generated", "--save_fake", str(tmp_path / "sheet")]) == 0
    small = ["--batchSize", "3", "--niter", "1", "--iters_per_epoch", "1", "--recurrent_iter", "1", "--workers", "0"]
    train_syn_aug.main([*folders(pairs_folder, tmp_path / "m"), *cpu, *small])
    assert (tmp_path / "m" / "Aug_DerainNet_state_1.pt").exists()
    rainy = RainAugment(half, p=1.0)(torch.zeros(3, 40, 40))
    assert rainy.dtype == torch.float32 and rainy.max() > 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["--netED", "no.pt", "--out", "x.pt"], "there is no"),
        (["--netED", "full.pt", "--out", "other.pt"], "other.pt exists; --overwrite replaces"),
    ],
)
def test_mistakes(full, monkeypatch, capsys, words, message):
    monkeypatch.chdir(full.parent)
    (full.parent / "other.pt").write_bytes(b"x")
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert (full.parent / "other.pt").read_bytes() == b"x"
