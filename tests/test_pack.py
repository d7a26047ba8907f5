"""Packs: round trip, version 1 of the format, damage, kills, readers side by side."""

import fcntl
import json
import multiprocessing
import os
import time

import cv2
import h5py
import numpy as np
import pytest
import torch

from common import lock
from common.data import pack
from common.data.images import write_image
from common.data.pack import Pack, is_pack, main, write
from common.data.pairs import Pair, fingerprint
from common.data.patches import PatchDataset, listed_set, training_set
from common.errors import UserError
from for_spa import train_spa_smallsample_noaug
from for_syn import train_syn_joint
from tests.conftest import CPU, crops, decoded, flags, folders, pairs_of, photo, spa_list
from tests.golden import GOLDEN


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
    pairs, found = pairs_of(pairs_folder), Pack(packed)
    assert len(found) == 4 and [pair.name for pair in found] == [pair.name for pair in pairs]
    assert fingerprint(found) == fingerprint(pairs) and found[-1].name == found[3].name
    assert same_pixels(found, pairs) and [a.format() for a in found] == [a.format() for a in pairs]
    with pytest.raises(IndexError):
        found[4]
    assert found.damaged() == [] and found.smallest() == 20
    assert main(["--verify", str(packed)]) == 0 and "set.h5: 4 pairs" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("set")] == ["set.h5"]


def test_version_1_stays_readable():
    """A pack of four pairs of which one was left out; its rainy values are the clean ones plus 100."""
    found = Pack(GOLDEN / "pack_v1.h5")
    assert [pair.name for pair in found] == ["a.png", "c.png", "d.png"] and found.fingerprint() == "aab6c9d7089b"
    assert [pair.format() for pair in found] == [(5, 4, np.uint8), (6, 4, np.uint8), (6, 4, np.uint16)]
    ramps = [np.arange(h * 12).reshape(h, 4, 3) for h in (5, 6, 6)]
    (a, a_clean), (c, c_clean), (d, d_clean) = (pair.read() for pair in found)
    assert np.array_equal(a_clean, ramps[0]) and np.array_equal(c_clean, ramps[1] + 20)
    assert np.array_equal(a, ramps[0] + 100) and np.array_equal(c, ramps[1] + 120)
    assert np.array_equal(d, 900 * ramps[2]) and np.array_equal(d_clean, 257 * (ramps[2] + 30))
    assert found.damaged() == []


def test_same_crops_from_a_pack_and_from_its_images_in_ram(pairs_folder, packed):
    pairs, found = pairs_of(pairs_folder), Pack(packed)
    files = crops(PatchDataset(pairs, 16, 3))
    assert torch.equal(files, crops(PatchDataset(found, 16, 3)))
    assert torch.equal(files, crops(PatchDataset(found, 16, 3, decoded(found))))


def test_16_bits_stay(tmp_path):
    for folder in ("rain", "norain"):
        write_image(tmp_path / folder / "1.png", photo(20, 24, 1 + len(folder)))
        write_image(tmp_path / folder / "2.png", photo(20, 24, 2))
    cv2.imwrite(str(tmp_path / "rain" / "2.png"), np.random.RandomState(0).randint(0, 2**16, (20, 24, 3), np.uint16))
    write(pairs_of(tmp_path), tmp_path / "a.h5", 1)
    found = Pack(tmp_path / "a.h5")
    assert torch.equal(crops(PatchDataset(pairs_of(tmp_path), 16, 3)), crops(PatchDataset(found, 16, 3)))
    assert found.meta["datasets"][1] == "images_20x24_uint16" and found.damaged() == []


def test_training_from_a_pack_is_that_from_its_folders(pairs_folder, packed, tmp_path, capsys):
    small = "--stage 1 --patchSize 16 --nz 4 --nef 2 --ndf 4 --batchSize 2 --iters_per_epoch 4 --workers 0"
    small = [*small.split(), "--use_gpu", "false", "--manualSeed", "5", "--niter", "1"]
    train_syn_joint.main([*folders(pairs_folder, tmp_path / "files"), *small])
    for cache in ("none", "ram"):
        places = ["--model_dir", f"{tmp_path}/{cache}", "--log_dir", f"{tmp_path}/{cache}_logs"]
        train_syn_joint.main(["--data_path", str(packed), *small, *places, "--cache", cache])
        for net in ("DerainNet", "ED", "D"):
            a, b = (torch.load(tmp_path / name / f"{net}_state_1.pt") for name in ("files", cache))
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    places = ["--model_dir", f"{tmp_path}/files", "--log_dir", f"{tmp_path}/files_logs"]
    train_syn_joint.main(["--data_path", str(packed), *small, *places, "--niter", "2"])  # goes on with the pack
    assert "other data" not in capsys.readouterr().out
    with pytest.raises(UserError, match="--gt_path: the pack .* holds the clean images, too"):
        training_set(flags(packed, tmp_path, given={"gt_path"}), CPU, "")
    with pytest.raises(UserError, match="set.h5 has images of 20 px, smaller than the 32 px patch"):
        training_set(flags(packed, None, 32), CPU, "")


def test_a_list_and_its_small_sample(pairs_folder, tmp_path, capsys):
    pairs = spa_list(pairs_folder, "".join(f"rain/{i}.png norain/{i}.png\n" for i in (9, 8, 11, 10)))
    out = tmp_path / "spa.h5"
    assert main(["--data_path", str(pairs_folder), "--out", str(out)]) == 0
    assert [pair.name for pair in Pack(out)] == ["rain/9.png", "rain/8.png", "rain/11.png", "rain/10.png"]
    assert fingerprint(Pack(out)) == fingerprint(pairs)
    chosen = [listed_set(flags(p, train_num=2, seed=5), CPU, "")[0] for p in (pairs_folder, out)]
    assert chosen[0].fingerprint() == chosen[1].fingerprint() and torch.equal(crops(chosen[0]), crops(chosen[1]))
    args = ["--data_path", out, "--train_num", 2, "--patchSize", 16, "--batchSize", 2, "--niter", 1, "--dry_run"]
    train_spa_smallsample_noaug.main([*map(str, args), "--model_dir", str(tmp_path / "m")])
    assert "spa.h5, 4 pairs, 2 of them drawn with --seed 5" in capsys.readouterr().out


def test_a_pack_of_images_that_hold_both_halves(pairs_folder, tmp_path):
    for pair in pairs_of(pairs_folder):
        write_image(tmp_path / "set" / pair.name, np.concatenate(pair.read()[::-1], 1))
    out = tmp_path / "a.h5"
    assert main(["--data_path", str(tmp_path / "set"), "--side_by_side", "right", "--out", str(out)]) == 0
    assert same_pixels(Pack(out), pairs_of(pairs_folder))


def test_a_pack_of_pairs_without_rain_is_refused(pairs_folder, tmp_path):
    rain, out = pairs_folder / "rain", tmp_path / "a.h5"
    for path in rain.iterdir():
        path.write_bytes((pairs_folder / "norain" / path.name).read_bytes())
    with pytest.raises(UserError, match="each rainy image has the pixels of its clean partner"):
        main(command(pairs_folder, out))
    assert not out.exists()


# --- damage --------------------------------------------------------------------------------------------------------


def changed_meta(**values):
    def change(content):
        meta = json.loads(content["meta"].tobytes()) | values
        content["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)

    return change


def changed_index(content):
    content["index"][0, 1] = 1


@pytest.mark.parametrize(
    "change, message",
    [
        (changed_meta(version=2), "holds 'vrgnet pairs' of version 2, this program reads 'vrgnet pairs' of version 1"),
        (changed_index, "is damaged, the checksum of its index is wrong; pack it again"),
        (lambda content: content.pop("sha256"), "is no whole pack"),
    ],
)
def test_damaged_and_foreign_packs(packed, change, message):
    with h5py.File(packed) as file:
        content = {name: file[name][:] for name in file}
    change(content)
    with h5py.File(packed, "w") as file:  # written anew: HDF5 crashed at times when it deleted from a file
        for name, values in content.items():
            file[name] = values
    with pytest.raises(UserError, match=message) as error:
        Pack(packed)
    assert str(packed) in str(error.value)


@pytest.mark.parametrize("left", [0, 0.5])
def test_truncated(packed, left):
    data = packed.read_bytes()
    packed.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(UserError, match=r"set.h5: is no whole pack .*; pack it again"):
        Pack(packed)


def test_verify_finds_changed_pixels(packed):
    with h5py.File(packed, "r+") as file:
        file["images_24x21_uint8"][0, 0, 3, 3] ^= 1
    with pytest.raises(UserError, match="--verify: 1 of 4 pairs are damaged:\n  9.png\nPack them again."):
        main(["--verify", str(packed)])


def test_missing_and_other_files(tmp_path):
    with pytest.raises(UserError, match="gone.h5: there is no such pack; make it with"):
        training_set(flags(tmp_path / "gone.h5"), CPU, "")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(UserError, match="other.h5: is no whole pack"):
        Pack(tmp_path / "other.h5")
    os.rename(tmp_path / "other.h5", tmp_path / "other")
    (tmp_path / "text").write_text("no HDF5")
    assert is_pack(tmp_path / "other") and is_pack("x.H5")
    assert not is_pack(tmp_path) and not is_pack("rain") and not is_pack(tmp_path / "text")


# --- making --------------------------------------------------------------------------------------------------------


def test_bad_pairs_are_named(pairs_folder, tmp_path):
    out, bad = tmp_path / "set.h5", pairs_folder / "rain" / "9.png"
    assert main(command(pairs_folder, out)) == 0
    with pytest.raises(UserError, match="set.h5 is there already; --overwrite replaces it"):
        main(command(pairs_folder, out))
    for left in (-300, 40):  # with and without a whole header
        bad.write_bytes(bad.read_bytes()[:left])
        with pytest.raises(UserError, match="1 of 4 pairs can't be packed(.|\n)*9.png: can't be(.|\n)*Mend"):
            main(command(pairs_folder, out, "--overwrite"))
        assert len(Pack(out)) == 4 and not list(tmp_path.glob("*.part"))  # the old one is as it was


def _endless(pairs, out):
    def read(pair):
        (out.parent / "begun").touch()
        time.sleep(60)

    Pair.read = read
    write(pairs, out, 1)


def test_after_a_kill_the_same_command_starts_again(pairs_folder, tmp_path):
    out = tmp_path / "set.h5"
    process = multiprocessing.get_context("fork").Process(target=_endless, args=(pairs_of(pairs_folder), out))
    process.start()
    while not (tmp_path / "begun").exists() and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert (tmp_path / "set.h5.part").exists() and not out.exists()
    assert main(command(pairs_folder, out)) == 0
    assert same_pixels(Pack(out), pairs_of(pairs_folder)) and not (tmp_path / "set.h5.part").exists()


def test_the_second_command_leaves_the_first_alone(pairs_folder, tmp_path, monkeypatch):
    def planes(*images, real=pack.planes):
        if not refused:
            refused.append(True)
            with pytest.raises(UserError, match="--out: another run writes to .*set.h5 now"):
                main(command(pairs_folder, out))
        return real(*images)

    refused, out = [], tmp_path / "set.h5"
    monkeypatch.setattr(lock, "SECONDS", 0.1)
    monkeypatch.setattr(pack, "planes", planes)
    assert main(command(pairs_folder, out, "--workers", "1")) == 0 and refused
    assert same_pixels(Pack(out), pairs_of(pairs_folder)) and [p.name for p in tmp_path.glob("*.h5*")] == ["set.h5"]


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

    monkeypatch.setattr(pack, "planes", planes)
    with pytest.raises(raised, match=message):
        main(command(pairs_folder, tmp_path / "set.h5"))
    assert not list(tmp_path.glob("set*"))


def test_what_a_killed_command_left_takes_no_room(pairs_folder, tmp_path, monkeypatch):
    part, usage = tmp_path / "a.h5.part", type("Usage", (), {})
    part.touch()
    monkeypatch.setattr(
        pack.shutil, "disk_usage", lambda _: setattr(usage, "free", 0 if part.exists() else 1e9) or usage
    )
    write(pairs_of(pairs_folder), tmp_path / "a.h5", 1)
    assert len(Pack(tmp_path / "a.h5")) == 4


def test_no_room(pairs_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 9}))
    with pytest.raises(UserError, match="--out: 0.00 GB are free in .*; make room"):
        write(pairs_of(pairs_folder), tmp_path / "a.h5", 1)
    assert not list(tmp_path.glob("a.h5*"))


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "--data_path, --out: give both"),
        (["--data_path", "x", "--out", "a.zip"], "a.zip should end with .h5"),
        (["--data_path", "nowhere", "--out", "b.h5"], "nowhere is not a folder. For pairs in two folders give --gt_pa"),
        (["--data_path", "x", "--out", "b.h5", "--pair_by", "a{}", "b{}"], "real_world.txt says what pairs already"),
    ],
)
def test_wrong_flags(args, message):
    with pytest.raises(UserError, match=message):
        main(args)


# --- reading -------------------------------------------------------------------------------------------------------


def _read_all(dataset, results):
    results.put(crops(dataset).numpy().tobytes())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_readers_side_by_side(packed, method):
    dataset = PatchDataset(Pack(packed), 16, 3)
    here = crops(dataset).numpy().tobytes()  # the file is open here while others read
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    reader = context.Process(target=_read_all, args=(dataset, results))
    reader.start()
    assert results.get() == here == crops(dataset).numpy().tobytes()
    reader.join()


def test_a_pack_is_read_without_a_lock(packed, pairs_folder):
    with open(packed) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as hard to get as one on NFS without locks
        assert same_pixels(Pack(packed), pairs_of(pairs_folder))


def test_a_pack_that_vanishes_says_so(packed):
    found = Pack(packed)
    packed.unlink()
    with pytest.raises(UserError, match="set.h5: can't be read any more .*No such file"):
        found[0].crop((0, 0), 16)
