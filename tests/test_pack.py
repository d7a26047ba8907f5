"""Packs: the format, the same crops as from files, damage, kills, readers side by side."""

import fcntl
import multiprocessing
import pickle
import time

import h5py
import numpy as np
import pytest
import torch

from common import lock
from common.data import cache, pack
from common.data.images import write_image
from common.data.pack import is_pack, load, main, write
from common.data.pairs import fingerprint
from common.data.patches import PatchDataset, training_set
from common.errors import UserError
from tests.conftest import crops, flags, pairs_of, spa_list


@pytest.fixture
def packed(pairs_folder, tmp_path):
    """A pack of pairs_folder."""
    write(pairs_of(pairs_folder), tmp_path / "set.h5", 2)
    return tmp_path / "set.h5"


def command(folder, out, *more):
    """The flags that make a pack of rain/ and norain/."""
    return ["--data_path", f"{folder}/rain", "--gt_path", f"{folder}/norain", "--out", str(out), *more]


def same_pixels(pairs, others):
    return all(np.array_equal(a.read(), b.read()) for a, b in zip(pairs, others, strict=True))


def test_round_trip(pairs_folder, packed, tmp_path, capsys):
    pairs, found = pairs_of(pairs_folder), load(packed)
    assert [pair.name for pair in found] == [pair.name for pair in pairs] and fingerprint(found) == fingerprint(pairs)
    assert same_pixels(found, pairs) and [a.format() for a in found] == [a.format() for a in pairs]
    assert torch.equal(crops(PatchDataset(pairs, 16, 3)), crops(PatchDataset(found, 16, 3)))
    assert main(["--verify", str(packed)]) == 0 and "set.h5: 4 pairs" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir() if "set" in p.name] == ["set.h5"]


def test_the_format_as_it_is_documented(tmp_path):
    first, second = np.arange(6 * 5 * 4), 500 * np.arange(6 * 4 * 5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["values"] = np.concatenate([first, second]).astype(np.uint16)
        file["sizes"], file["sums"] = np.array([[5, 4], [4, 5]]), np.zeros(2, np.uint32)
        file["names"] = np.frombuffer("a.png\0ä.png".encode(), np.uint8)
        file.attrs["version"] = 2
    a, b = load(tmp_path / "a.h5")
    assert (a.name, b.name) == ("a.png", "ä.png")
    assert a.format() == (5, 4, np.uint16) and b.format() == (4, 5, np.uint16)
    assert np.array_equal(a.read()[0], first.reshape(6, 5, 4)[:3].transpose(1, 2, 0))
    assert np.array_equal(b.read()[1], second.reshape(6, 4, 5)[3:].transpose(1, 2, 0))
    assert np.array_equal(b.crop((0.99, 0.5), 3), second.reshape(6, 4, 5)[:, 1:, 1:4])


def test_packs_that_a_training_can_not_take(packed, tmp_path):
    with pytest.raises(UserError, match="--gt_path: the pack .* holds the clean images, too"):
        training_set(flags(packed, tmp_path, given={"gt_path"}), "")
    with pytest.raises(UserError, match="set.h5 has images of 20 px, smaller than the 32 px patch"):
        training_set(flags(packed, None, 32), "")


def test_a_list_and_its_small_sample(pairs_folder, tmp_path):
    pairs = spa_list(pairs_folder, "".join(f"rain/{i}.png norain/{i}.png\n" for i in (9, 8, 11, 10)))
    out = tmp_path / "spa.h5"
    assert main(["--data_path", str(pairs_folder), "--out", str(out)]) == 0
    assert [pair.name for pair in load(out)] == ["rain/9.png", "rain/8.png", "rain/11.png", "rain/10.png"]
    assert fingerprint(load(out)) == fingerprint(pairs) == fingerprint(list(pairs)) != fingerprint(list(pairs)[::-1])
    listed, packed = (training_set(flags(p, train_num=2, seed=5), "") for p in (pairs_folder, out))
    assert listed[0].fingerprint() == packed[0].fingerprint() and torch.equal(crops(listed[0]), crops(packed[0]))
    assert packed[1] == "spa.h5, 4 pairs, 2 of them drawn with --seed 5"


def test_a_pack_of_images_that_hold_both_halves(pairs_folder, tmp_path):
    for pair in pairs_of(pairs_folder):
        write_image(tmp_path / "set" / pair.name, np.concatenate(pair.read()[::-1], 1))
    out = tmp_path / "a.h5"
    assert main(["--data_path", str(tmp_path / "set"), "--side_by_side", "right", "--out", str(out)]) == 0
    assert same_pixels(load(out), pairs_of(pairs_folder))


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda file: file.attrs.modify("version", 3), "it is of version 3"),
        (lambda file: file["names"].write_direct(np.zeros(1, np.uint8), dest_sel=4), "its parts do not fit together"),
    ],
)
def test_packs_of_other_versions_and_damaged_ones(packed, change, reason):
    with h5py.File(packed, "r+") as file:
        change(file)
    with pytest.raises(UserError, match=rf"set.h5: is no whole pack of version 2 \(.*{reason}.*\); pack it again"):
        load(packed)


def test_verify_finds_changed_pixels(packed):
    with h5py.File(packed, "r+") as file:
        file["values"][6 * 20 * 24] ^= 1  # the first one of the second pair
    with pytest.raises(UserError, match="--verify: 1 of 4 pairs are damaged:\n  9.png\nPack them again."):
        main(["--verify", str(packed)])


def test_a_missing_pack(tmp_path):
    with pytest.raises(UserError, match="gone.h5: there is no such pack; make it with"):
        training_set(flags(tmp_path / "gone.h5"), "")
    (tmp_path / "folder.h5").mkdir()
    assert is_pack("x.H5") and not is_pack(tmp_path / "folder.h5") and not is_pack("rain")


# --- making --------------------------------------------------------------------------------------------------------


def test_bad_pairs_are_named(pairs_folder, tmp_path):
    out, bad = tmp_path / "set.h5", pairs_folder / "rain" / "9.png"
    assert main(command(pairs_folder, out)) == 0
    with pytest.raises(UserError, match="set.h5 is there already; --overwrite replaces it"):
        main(command(pairs_folder, out))
    for left in (-300, 40):  # with and without a whole header
        bad.write_bytes(bad.read_bytes()[:left])
        with pytest.raises(UserError, match="1 of 4 pairs can't be used(.|\n)*9.png: can't be(.|\n)*Mend"):
            main(command(pairs_folder, out, "--overwrite"))
        assert len(load(out)) == 4 and not list(tmp_path.glob("*.part"))  # the old one is as it was


def test_after_a_kill_the_same_command_starts_again(pairs_folder, tmp_path, monkeypatch):
    def endless(*images):
        (tmp_path / "begun").touch()
        time.sleep(60)

    part, out = tmp_path / "set.h5.part", tmp_path / "set.h5"
    with monkeypatch.context() as patch:
        patch.setattr(cache, "planes", endless)
        process = multiprocessing.get_context("fork").Process(target=write, args=(pairs_of(pairs_folder), out, 1))
        process.start()
    while not (tmp_path / "begun").exists() and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert part.exists() and not out.exists()
    with pytest.raises(UserError, match="is no whole pack"):
        load(part)
    with monkeypatch.context() as patch:  # what is left takes no room
        usage = type("Usage", (), {"free": property(lambda _: 0 if part.exists() else 1e9)})
        patch.setattr(pack.shutil, "disk_usage", lambda _: usage())
        assert main(command(pairs_folder, out)) == 0
    assert same_pixels(load(out), pairs_of(pairs_folder)) and not part.exists()


def test_the_second_command_leaves_the_first_alone(pairs_folder, tmp_path, monkeypatch):
    def planes(*images, real=cache.planes):
        if not refused:
            refused.append(True)
            with pytest.raises(UserError, match="--out: another run writes to .*set.h5 now"):
                main(command(pairs_folder, out))
        return real(*images)

    refused, out = [], tmp_path / "set.h5"
    monkeypatch.setattr(lock, "SECONDS", 0.1)
    monkeypatch.setattr(cache, "planes", planes)
    assert main(command(pairs_folder, out, "--workers", "1")) == 0 and refused
    assert same_pixels(load(out), pairs_of(pairs_folder)) and [p.name for p in tmp_path.glob("*.h5*")] == ["set.h5"]


@pytest.mark.parametrize(
    "error, raised, message",
    [
        (KeyboardInterrupt, KeyboardInterrupt, None),
        (OSError(28, "No space left on device"), UserError, "set.h5.part can't be written .*No space left on device"),
    ],
)
def test_an_interrupted_command_leaves_nothing(pairs_folder, tmp_path, monkeypatch, error, raised, message):
    def planes(*images):
        raise error

    monkeypatch.setattr(cache, "planes", planes)
    with pytest.raises(raised, match=message):
        main(command(pairs_folder, tmp_path / "set.h5"))
    assert not list(tmp_path.glob("set*"))


def test_no_room(pairs_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 9}))
    with pytest.raises(UserError, match="--out: 0.00 GB are free in .*; make room"):
        write(pairs_of(pairs_folder), tmp_path / "a.h5", 1)
    assert not list(tmp_path.glob("a.h5*"))


def test_wrong_flags(pairs_folder, tmp_path):
    for args, message in [
        ([], "--data_path, --out: give both"),
        (command(pairs_folder, tmp_path / "a.zip"), "a.zip should end with .h5"),
        (["--data_path", "no", "--out", "b.h5"], "no is not a folder. For pairs in two folders give --gt_path, too"),
        (["--data_path", "x", "--out", "b.h5", "--pair_by", "a{}", "b{}"], "real_world.txt says what pairs already"),
    ]:
        with pytest.raises(UserError, match=message):
            main(args)


# --- reading -------------------------------------------------------------------------------------------------------


def test_readers_side_by_side(packed):
    dataset = PatchDataset(load(packed), 16, 3)
    here = crops(dataset)  # the file is open here while others read
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    reader = context.Process(target=lambda: results.put(crops(dataset).numpy()))
    reader.start()
    assert np.array_equal(results.get(), here) and torch.equal(crops(dataset), here)
    reader.join()
    assert torch.equal(crops(pickle.loads(pickle.dumps(dataset))), here)  # as for a process that is spawned


def test_a_pack_is_read_without_a_lock(packed, pairs_folder):
    with open(packed) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as hard to get as one on NFS without locks
        assert same_pixels(load(packed), pairs_of(pairs_folder))


def test_a_pack_that_vanishes_says_so(packed):
    found = load(packed)
    packed.unlink()
    with pytest.raises(UserError, match="set.h5: can't be read any more .*No such file"):
        found[0].crop((0, 0), 16)
