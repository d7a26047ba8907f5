"""Crops, and the caches that they come from: the same whatever reads them."""

import numpy as np
import pytest
import torch

from common.data import cache
from common.data.cache import choose, gather
from common.data.images import to_float, write_image
from common.data.pairs import CHECK_ALL
from common.data.patches import CropSampler, PatchDataset, crop_loader, listed_set, to_batch, training_set
from common.errors import UserError
from for_syn import train_syn_joint
from tests.conftest import CPU, crops, decoded, flags, pairs_of, photo, spa_list
from tests.runs import arguments, load, same


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
    for where in ("ram", "gpu"):  # the second one on the CPU, but by its own path
        assert torch.equal(files, crops(PatchDataset(pairs, 16, 3, decoded(pairs, where))))
    assert not torch.equal(files, crops(PatchDataset(pairs, 16, 3), seed=4))


def test_same_crops_where_some_files_have_16_bits(tmp_path):
    import cv2

    for name, folder in (("1", "rain"), ("2", "norain")):  # a deep one on either side
        for other in ("rain", "norain"):
            write_image(tmp_path / other / f"{name}.png", photo(20, 24, 5))
        deep = np.random.RandomState(0).randint(0, 65536, (20, 24, 3)).astype(np.uint16)
        cv2.imwrite(str(tmp_path / folder / f"{name}.png"), deep)
    write_image(tmp_path / "rain" / "3.png", photo(20, 24, 7))
    write_image(tmp_path / "norain" / "3.png", photo(20, 24, 8))
    pairs = pairs_of(tmp_path)
    files, ram, gpu = (PatchDataset(pairs, 16, 3, d) for d in (None, decoded(pairs), decoded(pairs, "gpu")))
    assert torch.equal(crops(files), crops(ram)) and torch.equal(crops(files), crops(gpu))
    eight = files.images.tolist().index(2)
    assert files.__getitems__([(eight, 0.1, 0.9)]).dtype == torch.uint8  # as it is, and in a mixed batch widened
    assert all(map(torch.equal, files[eight, 0.1, 0.9], ram[eight, 0.1, 0.9]))
    assert all(map(torch.equal, files[eight, 0.1, 0.9], gpu[eight, 0.1, 0.9]))
    assert files[eight, 0.1, 0.9][0].mul(255).sub(files[eight, 0.1, 0.9][0].mul(255).round()).abs().max() < 1e-4


def test_gather_cuts_what_slices_cut(pairs_folder):
    """The path of --cache gpu, on the CPU."""
    pairs = pairs_of(pairs_folder)
    slices, on_device = decoded(pairs), decoded(pairs, "gpu")
    assert on_device.on_device and not slices.on_device
    numbers, places = [0, 3, 2, 3, 1], [(0, 0), (0.999, 0.999), (0.3, 0.7), (0.5, 0), (0.01, 0.6)]
    for p in (16, 4):
        a, b = slices.crops(numbers, places, p), on_device.crops(numbers, places, p)
        assert torch.equal(a, b) and a.shape == (5, 6, p, p) and a.dtype == torch.uint8
    values = torch.arange(2 * 6 * 3 * 5)
    found = gather(values, torch.tensor([[90 + 5 + 1], [15], [5]]), 2)
    assert torch.equal(found[0], values[90:].view(6, 3, 5)[:, 1:3, 1:3])


def _read(queue, dataset):
    queue.put(dataset.__getitems__([(0, 0.2, 0.4), (3, 0.9, 0.9)]).numpy())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_see_the_images_without_a_copy(pairs_folder, method):
    pairs = pairs_of(pairs_folder)
    dataset = PatchDataset(pairs, 16, 3, decoded(pairs))
    context = torch.multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=_read, args=(queue, dataset))
    process.start()
    found = queue.get()
    process.join()
    assert np.array_equal(found, dataset.__getitems__([(0, 0.2, 0.4), (3, 0.9, 0.9)]).numpy())


def test_choice_of_the_cache(pairs_folder, monkeypatch, capsys):
    pairs = pairs_of(pairs_folder)
    needed = sum(6 * 24 * (20 + i) for i in range(4))

    def chosen(free, **more):
        monkeypatch.setattr(cache, "free_memory", lambda: free)
        return choose(flags("x", **more), pairs, CPU)

    assert chosen(3 * needed, cache="auto") == "ram" and chosen(3 * needed - 3, cache="auto") == "none"
    assert "they are read again and again" in capsys.readouterr().out
    assert chosen(2 * needed, cache="ram") == "ram" and chosen(2 * needed, cache="none") == "none"
    assert chosen(9 * needed, cache="gpu") == "ram" and "--cache gpu: no GPU is used" in capsys.readouterr().out
    assert chosen(9 * needed, cache="ram", dry_run=True) == "none"
    with pytest.raises(UserError, match="--cache ram: .* GiB .*--cache none"):
        chosen(needed, cache="ram")


def test_by_itself_a_gpu_keeps_what_fits_in_a_third_of_it(pairs_folder, monkeypatch):
    pairs, gpu = pairs_of(pairs_folder), torch.device("cuda", 0)
    needed = sum(6 * 24 * (20 + i) for i in range(4))

    def chosen(free, **more):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
        return choose(flags("x", **more), pairs, gpu)

    assert chosen(3 * needed, cache="auto") == "gpu" and chosen(3 * needed - 3, cache="auto") == "ram"
    assert chosen(9 * needed, cache="ram") == "ram" and chosen(2 * needed, cache="gpu") == "gpu"
    with pytest.raises(UserError, match="--cache gpu: .* GiB .*--cache none"):
        chosen(needed, cache="gpu")


def test_a_batch_across_a_resumed_epoch_is_the_same_on_the_device(pairs_folder):
    pairs = pairs_of(pairs_folder)
    found = []
    for where in ("ram", "gpu"):
        dataset = PatchDataset(pairs, 16, 3, decoded(pairs, where))
        loader, close = crop_loader(dataset, CropSampler(2, 3, 3, 2, 3, skip=2), 0)
        found.append(torch.cat(list(loader)))
        close()
    assert len(found[0]) == 8 and torch.equal(*found)


def test_bad_files_are_found_while_decoding(pairs_folder):
    (pairs_folder / "rain" / "9.png").write_bytes((pairs_folder / "rain" / "9.png").read_bytes()[:200])
    write_image(pairs_folder / "norain" / "10.png", photo(24, 30, 0))
    with pytest.raises(UserError) as error:
        training_set(flags(pairs_folder / "rain", pairs_folder / "norain", cache="ram"), CPU, "")
    assert "2 of 4 pairs can't be used" in str(error.value) and "9.png" in str(error.value)
    assert "10.png is 22x24, its clean partner 10.png 30x24" in str(error.value)
    with pytest.raises(UserError, match="4 of 4 .*(.|\n)*8.png is 20x24, smaller than the 32 px patch"):
        training_set(flags(pairs_folder / "rain", pairs_folder / "norain", 32, cache="ram"), CPU, "")


def test_a_long_list_is_decoded_whole_where_it_fits(tmp_path, monkeypatch, capsys):
    write_image(tmp_path / "a.png", photo(20, 20, 1))
    write_image(tmp_path / "b.png", photo(20, 20, 0))
    spa_list(tmp_path, "a.png b.png\n" * (CHECK_ALL + 1))
    dataset, _ = listed_set(flags(tmp_path, cache="auto"), CPU, "")
    assert dataset.decoded is not None and "checked now" not in capsys.readouterr().out
    monkeypatch.setattr(cache, "free_memory", lambda: 10**6)
    dataset, _ = listed_set(flags(tmp_path, cache="auto"), CPU, "")
    printed = capsys.readouterr().out
    assert dataset.decoded is None and "200 of them checked now" in printed and "common.data.pack" in printed


def test_training_is_the_same_with_every_cache(pairs_folder, tmp_path, capsys):
    for name in ("none", "ram", "auto", "gpu"):
        train_syn_joint.main(arguments(pairs_folder, tmp_path / name, "--cache", name, "--niter", 1))
    for name in ("ram", "auto", "gpu"):
        for net in ("DerainNet", "ED", "D"):
            assert same(load(tmp_path / "none" / f"{net}_state_1.pt"), load(tmp_path / name / f"{net}_state_1.pt"))
    train_syn_joint.main(arguments(pairs_folder, tmp_path / "none", "--cache", "ram", "--niter", 2))
    assert "other data" not in capsys.readouterr().out


def test_an_epoch_whose_steps_are_done_gives_no_batch_on_the_device(pairs_folder):
    pairs = pairs_of(pairs_folder)
    dataset = PatchDataset(pairs, 16, 0, decoded(pairs, "gpu"))
    batches = list(crop_loader(dataset, CropSampler(2, 3, 0, 1, 2, skip=3), 0)[0])
    assert [len(batch) for batch in batches] == [2, 2, 2]
