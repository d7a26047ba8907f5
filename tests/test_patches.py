"""Crops: the same whether they come from files, from RAM or from a pack."""

import cv2
import numpy as np
import pytest
import torch

from common.data import cache, pack
from common.data.cache import Decoded, decode
from common.data.images import to_float, write_image
from common.data.pairs import CHECK_ALL
from common.data.patches import PatchDataset, to_batch, training_set
from common.errors import UserError
from tests.conftest import crops, flags, pairs_of, photo, spa_list, write_pairs


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_floats_are_those_of_to_float(kind):
    values = np.arange(np.iinfo(kind).max + 1, dtype=kind)[: 6 * 40 * 40 * (np.iinfo(kind).max // 9600)]
    values = np.resize(values, (max(1, len(values) // 9600), 6, 40, 40))
    rainy, clean = to_batch(torch.from_numpy(values))
    assert rainy.dtype == torch.float32 and rainy.is_contiguous() and clean.is_contiguous()
    expected = to_float(values)
    assert np.array_equal(rainy.numpy(), expected[:, :3]) and np.array_equal(clean.numpy(), expected[:, 3:])


def test_same_crops_from_files_and_ram(pairs_folder):
    pairs = pairs_of(pairs_folder)
    files = crops(PatchDataset(pairs, 16, 3))
    assert len(torch.unique(files)) > 50
    assert all(x.is_contiguous() for x in PatchDataset(pairs, 16, 3)[0, 0, 0])  # or sums would round another way
    decoded = PatchDataset(decode(pairs, 16, ""), 16, 3)
    assert torch.equal(files, crops(decoded)) and decoded.fingerprint() == PatchDataset(pairs, 16, 3).fingerprint()
    assert not torch.equal(files, crops(PatchDataset(pairs, 16, 3), seed=4))


def test_same_crops_where_some_files_have_16_bits(tmp_path):
    for name, folder in (("1", "rain"), ("2", "norain")):  # a deep one on either side
        for other in ("rain", "norain"):
            write_image(tmp_path / other / f"{name}.png", photo(20, 24, 5))
        deep = np.random.RandomState(0).randint(0, 65536, (20, 24, 3)).astype(np.uint16)
        cv2.imwrite(str(tmp_path / folder / f"{name}.png"), deep)
    write_image(tmp_path / "rain" / "3.png", photo(20, 24, 7))
    write_image(tmp_path / "norain" / "3.png", photo(20, 24, 8))
    pairs = pairs_of(tmp_path)
    pack.write(pairs, tmp_path / "a.h5", 1)
    files, ram, packed = (PatchDataset(p, 16, 3) for p in (pairs, decode(pairs, 16, ""), pack.load(tmp_path / "a.h5")))
    assert torch.equal(crops(files), crops(ram)) and torch.equal(crops(files), crops(packed))
    eight = files.images.tolist().index(2)
    assert files.__getitems__([(eight, 0.1, 0.9)]).dtype == torch.uint8  # as it is, and in a mixed batch widened
    assert all(map(torch.equal, files[eight, 0.1, 0.9], ram[eight, 0.1, 0.9]))
    assert files[eight, 0.1, 0.9][0].mul(255).sub(files[eight, 0.1, 0.9][0].mul(255).round()).abs().max() < 1e-4


def test_choice_of_the_cache(pairs_folder, monkeypatch, capsys):
    pairs = pairs_of(pairs_folder)
    needed = sum(6 * 24 * (20 + i) for i in range(4))

    def is_kept(free, **more):
        monkeypatch.setattr(cache, "free_memory", lambda: free)
        return cache.is_wanted(flags("x", **more), pairs)

    assert is_kept(3 * needed, cache="auto") and not is_kept(3 * needed - 3, cache="auto")
    assert "they are read again and again, best from a pack (python -m common.data.pack)" in capsys.readouterr().out
    assert is_kept(2 * needed, cache="ram") and not is_kept(9 * needed, cache="none")
    assert not is_kept(9 * needed, cache="ram", dry_run=True)
    with pytest.raises(UserError, match="--cache ram: .* GiB .*--cache none"):
        is_kept(needed, cache="ram")


def test_bad_files_are_found_while_decoding(pairs_folder):
    (pairs_folder / "rain" / "9.png").write_bytes((pairs_folder / "rain" / "9.png").read_bytes()[:200])
    write_image(pairs_folder / "norain" / "10.png", photo(24, 30, 0))
    with pytest.raises(UserError) as error:
        training_set(flags(pairs_folder / "rain", pairs_folder / "norain", cache="ram"), "")
    assert "2 of 4 pairs can't be used" in str(error.value) and "9.png" in str(error.value)
    assert "10.png is 22x24, its clean partner 10.png 30x24" in str(error.value)
    with pytest.raises(UserError, match="4 of 4 .*(.|\n)*8.png is 20x24, smaller than the 32 px patch"):
        training_set(flags(pairs_folder / "rain", pairs_folder / "norain", 32, cache="ram"), "")


@pytest.mark.parametrize("pixels", [photo(24, 30, 0), 257 * photo(24, 21, 1).astype(np.uint16)])
def test_a_file_that_changes_before_it_is_decoded_is_named(pairs_folder, tmp_path, monkeypatch, pixels):
    def scan(pairs, real=cache.scan):
        found = real(pairs)
        for folder in ("rain", "norain"):
            cv2.imwrite(str(pairs_folder / folder / "9.png"), pixels)
        return found

    pairs = pairs_of(pairs_folder)
    monkeypatch.setattr(cache, "scan", scan)
    monkeypatch.setattr(pack, "scan", scan)
    for call in (lambda: decode(pairs, 16, ""), lambda: pack.write(pairs, tmp_path / "a.h5", 1)):
        write_pairs(pairs_folder)  # as they were
        with pytest.raises(UserError, match="1 of 4 pairs can't be used:\n  9.png: the file has changed"):
            call()


def test_a_long_list_is_decoded_whole_where_it_fits(tmp_path, capsys):
    write_image(tmp_path / "a.png", photo(20, 20, 1))
    write_image(tmp_path / "b.png", photo(20, 20, 0))
    spa_list(tmp_path, "a.png b.png\n" * (CHECK_ALL + 1))
    dataset, _ = training_set(flags(tmp_path, cache="auto"), "")
    assert isinstance(dataset.pairs, Decoded) and "checked now" not in capsys.readouterr().out
