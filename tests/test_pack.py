"""Packs: round trip, damage of every kind, interruption, readers side by side."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch

from common.data import pack
from common.data.images import write_image
from common.data.pack import Pack, is_pack, main, write
from common.data.pairs import PairList, find_pairs, fingerprint
from common.data.patches import PatchDataset, listed_set, training_set
from common.errors import UserError
from for_spa import train_spa_smallsample_noaug
from for_syn import train_syn_joint
from tests.conftest import photo
from tests.golden import ROOT
from tests.test_pairs import CPU, flags, spa_list
from tests.test_patches import crops, decoded, pairs_of
from tests.test_training import SMALL, arguments, load, same


@pytest.fixture
def packed(pairs_folder, tmp_path):
    """A pack of pairs_folder."""
    out = tmp_path / "set.h5"
    assert write(pairs_of(pairs_folder), out, 2) == []
    return out


def test_round_trip(pairs_folder, packed, tmp_path, capsys):
    pairs, found = pairs_of(pairs_folder), Pack(packed)
    assert len(found) == 4 and [pair.name for pair in found] == [pair.name for pair in pairs]
    assert fingerprint(found) == fingerprint(pairs) and found[-1].name == found[3].name
    for a, b in zip(pairs, found, strict=True):
        assert all(map(np.array_equal, a.read(), b.read())) and a.format() == b.format()
    with pytest.raises(IndexError):
        found[4]
    assert found.damaged() == [] and found.smallest() == 20
    assert main(["--verify", str(packed)]) == 0 and "4 pairs of 4 sizes" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("set")] == ["set.h5"]


def test_same_crops_from_a_pack_and_from_its_images_in_ram(pairs_folder, packed):
    pairs, found = pairs_of(pairs_folder), Pack(packed)
    files = crops(PatchDataset(pairs, 16, 3))
    assert torch.equal(files, crops(PatchDataset(found, 16, 3)))
    assert torch.equal(files, crops(PatchDataset(found, 16, 3, decoded(found))))


def test_large_images_are_cut_out_of_few_chunks(tmp_path):
    for folder in ("rain", "norain"):
        write_image(tmp_path / folder / "1.png", photo(200, 321, len(folder)))
    out = tmp_path / "a.h5"
    write(pairs_of(tmp_path), out, 1)
    with h5py.File(out) as file:
        (name,) = (name for name in file if name.startswith("images"))
        assert name == "images_200x321_uint8" and file[name].chunks == (1, 6, 50, 54)
    rainy, clean = pairs_of(tmp_path)[0].read()
    for place in ((0, 0), (0.5, 0.3), (0.999, 0.999)):
        crop = Pack(out)[0].crop(place, 64)
        row, column = int(place[0] * 137), int(place[1] * 258)
        assert np.array_equal(crop[:3], rainy[row : row + 64, column : column + 64].transpose(2, 0, 1))
        assert np.array_equal(crop[3:], clean[row : row + 64, column : column + 64].transpose(2, 0, 1))


def test_16_bits_stay(tmp_path):
    import cv2

    for folder in ("rain", "norain"):
        write_image(tmp_path / folder / "1.png", photo(20, 24, 1))
        write_image(tmp_path / folder / "2.png", photo(20, 24, 2))
    cv2.imwrite(str(tmp_path / "rain" / "2.png"), np.random.RandomState(0).randint(0, 2**16, (20, 24, 3), np.uint16))
    write(pairs_of(tmp_path), tmp_path / "a.h5", 1)
    files, found = (PatchDataset(pairs, 16, 3) for pairs in (pairs_of(tmp_path), Pack(tmp_path / "a.h5")))
    assert torch.equal(crops(files), crops(found)) and Pack(tmp_path / "a.h5").meta["datasets"][1].endswith("uint16")
    assert Pack(tmp_path / "a.h5").damaged() == []


def test_training_from_a_pack_is_that_from_its_folders(pairs_folder, packed, tmp_path, capsys):
    train_syn_joint.main(arguments(pairs_folder, tmp_path / "files", "--niter", 1))
    for cache in ("none", "ram"):
        model = tmp_path / cache
        more = ["--model_dir", model, "--log_dir", f"{model}_l", "--manualSeed", 5, "--niter", 1, "--cache", cache]
        train_syn_joint.main(["--data_path", str(packed), *SMALL, *map(str, more)])
        for net in ("DerainNet", "ED", "D"):
            assert same(load(tmp_path / "files" / f"{net}_state_1.pt"), load(model / f"{net}_state_1.pt"))
    resume = ["--model_dir", str(tmp_path / "files"), "--resume", "-1", "--niter", "2", "--data_path", str(packed)]
    train_syn_joint.main(resume)
    assert "other data" not in capsys.readouterr().out
    with pytest.raises(UserError, match="--gt_path: the pack .* holds the clean images, too"):
        training_set(flags(packed, tmp_path, given={"gt_path"}), CPU, "")
    with pytest.raises(UserError, match="4 of 4 pairs are too small(.|\n)*8.png is smaller than the 32 px patch"):
        training_set(flags(packed, None, 32), CPU, "")


def test_a_list_and_its_small_sample(pairs_folder, tmp_path, capsys):
    spa_list(pairs_folder, "".join(f"rain/{i}.png norain/{i}.png\n" for i in (9, 8, 11, 10)))
    out = tmp_path / "spa.h5"
    assert main(["--data_path", str(pairs_folder), "--out", str(out)]) == 0
    pairs, found = PairList(pairs_folder), Pack(out)
    assert [pair.name for pair in found] == ["rain/9.png", "rain/8.png", "rain/11.png", "rain/10.png"]
    assert fingerprint(found) == fingerprint(pairs)
    chosen = [listed_set(flags(p, train_num=2, seed=5), CPU, "")[0] for p in (pairs_folder, out)]
    assert chosen[0].fingerprint() == chosen[1].fingerprint() and torch.equal(crops(chosen[0]), crops(chosen[1]))
    args = ["--data_path", out, "--train_num", 2, "--patchSize", 16, "--batchSize", 2, "--niter", 1, "--dry_run"]
    train_spa_smallsample_noaug.main([*map(str, args), "--model_dir", str(tmp_path / "m")])
    assert "spa.h5, 4 pairs, 2 of them drawn with --seed 5" in capsys.readouterr().out


def test_a_pack_of_images_that_hold_both_halves(pairs_folder, tmp_path, capsys):
    for pair in pairs_of(pairs_folder):
        write_image(tmp_path / "set" / pair.name, np.concatenate(pair.read()[::-1], 1))
    out = tmp_path / "a.h5"
    assert main(["--data_path", str(tmp_path / "set"), "--side_by_side", "right", "--out", str(out)]) == 0
    both = zip(Pack(out), pairs_of(pairs_folder), strict=True)
    assert all(np.array_equal(a, b) for packed, files in both for a, b in zip(packed.read(), files.read(), strict=True))


def test_a_pack_of_pairs_without_rain_is_refused(pairs_folder, tmp_path, capsys):
    rain, clean = pairs_folder / "rain", pairs_folder / "norain"
    flags = ["--data_path", str(rain), "--gt_path", str(clean), "--out", str(tmp_path / "a.h5")]
    (rain / "8.png").write_bytes((clean / "8.png").read_bytes())
    assert main(flags) == 0 and "1 of 4 pairs have no rain" in (err := capsys.readouterr().err) and "8.png" in err
    for path in rain.iterdir():
        path.write_bytes((clean / path.name).read_bytes())
    with pytest.raises(UserError, match="each rainy image is its own clean partner.*8.png: the same pixels"):
        main([*flags, "--overwrite"])
    with pytest.raises(UserError, match="--pair_by: real_world.txt says what pairs already"):
        spa_list(tmp_path, "1.png 2.png")
        main(["--data_path", str(tmp_path), "--out", str(tmp_path / "b.h5"), "--pair_by", "a{}", "b{}"])


# --- damage --------------------------------------------------------------------------------------------------------


def broken(packed, change):
    with h5py.File(packed, "r+") as file:
        change(file)
    with pytest.raises(UserError) as error:
        Pack(packed)
    assert "\n" not in str(error.value) and str(packed) in str(error.value)
    return str(error.value)


def set_meta(file, **values):
    meta = json.loads(file["meta"][:].tobytes()) | values
    del file["meta"]
    file["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)


def seal(file):
    """The right checksum for a wrong index."""
    digest = pack._sha256(file["meta"][:].tobytes(), file["names"][:], file["index"][:])
    file["sha256"][:] = np.frombuffer(digest, np.uint8)


@pytest.mark.parametrize("left", [0, 7, 100, 3000, 0.5, -1])
def test_truncated(packed, left):
    data = packed.read_bytes()
    packed.write_bytes(data[: int(len(data) * left) if isinstance(left, float) else left])
    with pytest.raises(UserError, match=r"set.h5: (can't be read as a pack|is damaged).*pack it again"):
        Pack(packed)


def test_other_versions_and_kinds(packed):
    text = broken(packed, lambda file: set_meta(file, version=2))
    assert "is a pack of version 2, this program reads 1; pack it again" in text
    assert "another kind of file" in broken(packed, lambda file: set_meta(file, kind="x"))


def test_checksum_and_bounds_of_the_index(packed, tmp_path):
    copy = tmp_path / "copy.h5"

    def changed(row, column, value, sealed):
        def change(file):
            file["index"][row, column] = value
            if sealed:
                seal(file)

        shutil.copy(packed, copy)
        return broken(copy, change)

    assert "the checksum of its index is wrong" in changed(0, 1, 1, False)
    for row, column, value in ((0, 1, 1), (0, 1, -1), (1, 0, 9), (1, 0, -1)):
        assert "its index does not fit its images" in changed(row, column, value, True)


def test_a_data_set_of_another_name(packed):
    def change(file):
        set_meta(file, datasets=[*json.loads(file["meta"][:].tobytes())["datasets"], "other"])
        seal(file)

    text = broken(packed, change)
    assert "is damaged ('other' is no name of a data set); pack it again" in text


def test_nothing_but_plain_numbers_is_accepted(packed, tmp_path):
    def with_(change, name="copy.h5"):
        shutil.copy(packed, tmp_path / name)
        return broken(tmp_path / name, change)

    def soft(file):
        file["x"] = h5py.SoftLink("/meta")

    def external(file):
        file["x"] = h5py.ExternalLink("set.h5", "/meta")

    def outside(file):
        del file["names"]
        file.create_dataset("names", (9,), "u1", external=[(str(tmp_path / "secret"), 0, 9)])

    def virtual(file):
        layout = h5py.VirtualLayout((9,), "u1")
        layout[:] = h5py.VirtualSource("set.h5", "names", (9,))[:]
        del file["names"]
        file.create_virtual_dataset("names", layout)

    def text(file):
        file["x"] = np.array(["a"], h5py.string_dtype())

    def reference(file):
        file.create_dataset("x", (1,), h5py.ref_dtype)

    def filtered(file):
        file.create_dataset("x", data=np.zeros(9, np.uint8), compression="gzip")

    for change in (soft, external, lambda file: file.create_group("x")):
        assert "x is a link or a group" in with_(change)
    for change in (outside, virtual, text, reference, filtered):
        assert "is not of plain numbers" in with_(change)


def test_verify_finds_changed_pixels(packed, capsys):
    with h5py.File(packed, "r+") as file:
        file["images_24x21_uint8"][0, 0, 3, 3] ^= 1
    assert main(["--verify", str(packed)]) == 1
    assert "1 pairs are damaged; pack them again:\n  9.png" in capsys.readouterr().err


def test_missing_and_other_files(tmp_path):
    with pytest.raises(UserError, match="gone.h5: there is no such pack; make it with"):
        training_set(flags(tmp_path / "gone.h5"), CPU, "")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(UserError, match="can't be read as a pack"):
        Pack(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(UserError, match="x is not of plain numbers"):
        Pack(tmp_path / "other.h5")
    (tmp_path / "noname").write_bytes(pack.SIGNATURE)
    assert is_pack(tmp_path / "noname") and is_pack("x.H5") and not is_pack(tmp_path) and not is_pack("rain")


# --- making --------------------------------------------------------------------------------------------------------


def test_bad_pairs_wait_to_be_mended_or_are_left_out(pairs_folder, tmp_path, capsys):
    out, bad = tmp_path / "set.h5", pairs_folder / "rain" / "9.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:-300])  # its header is whole
    command = ["--data_path", str(pairs_folder / "rain"), "--gt_path", str(pairs_folder / "norain"), "--out", str(out)]
    assert main(command) == 1 and not out.exists()
    assert "9.png: can't be decoded" in (err := capsys.readouterr().err) and "1 of 4 pairs can't be read" in err
    with pytest.raises(UserError, match="no whole pack"):
        Pack(out.with_name("set.h5.part"))
    bad.write_bytes(good)
    assert main(command) == 0 and "3 of 4 pairs are in it" in capsys.readouterr().out and len(Pack(out)) == 4
    with pytest.raises(UserError, match="set.h5 is there already; --overwrite replaces it"):
        main(command)
    bad.write_bytes(good[:40])  # not even that
    with pytest.raises(UserError, match="1 of 4 pairs can't be packed(.|\n)*9.png(.|\n)*--skip_bad"):
        main([*command, "--overwrite"])
    assert len(Pack(out)) == 4  # the old one is still there
    assert main([*command, "--overwrite", "--skip_bad"]) == 0 and "3 pairs, 1 left out" in capsys.readouterr().out
    found = Pack(out)
    assert [pair.name for pair in found] == ["8.png", "10.png", "11.png"] and found.damaged() == []
    bad.unlink()
    (pairs_folder / "norain" / "9.png").unlink()
    assert fingerprint(found) == fingerprint(pairs_of(pairs_folder))
    assert torch.equal(crops(PatchDataset(found, 16, 3)), crops(PatchDataset(pairs_of(pairs_folder), 16, 3)))


def slow_pack(folder, out):
    code = (
        "import os, signal, sys, time; from common.data import pack; os.chdir(sys.argv.pop(1))\n"
        "pack.FLUSH_SECONDS = 0.0; real = pack._decode\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also where the tests run in the background
        "pack._decode = lambda pair: open('begun', 'w').close() or time.sleep(0.2) or real(pair)\n"
        "from common import cli; sys.exit(cli.run(lambda: pack.main(sys.argv[1:])))"
    )
    words = [
        sys.executable,
        "-c",
        code,
        out.parent,
        "--data_path",
        folder / "rain",
        "--gt_path",
        folder / "norain",
        "--out",
        out,
    ]
    return subprocess.Popen([*words, "--workers", "1"], cwd=ROOT, stdout=-1, stderr=-1, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_pack_goes_on(tmp_path, how, capsys):
    for i in range(60):
        for folder in ("rain", "norain"):
            write_image(tmp_path / folder / f"{i}.png", photo(20, 20, i + len(folder)))
    out = tmp_path / "set.h5"
    process = slow_pack(tmp_path, out)
    part = tmp_path / "set.h5.part"
    while not part.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1.5)  # of twelve seconds, so that a machine that halts for a while does no harm
    process.send_signal(how)
    err = process.communicate()[1]
    assert part.exists() and not out.exists(), err
    if how == signal.SIGINT:
        assert process.returncode == 130 and re.search(r"\d+ of 60 pairs are in .* the same command goes on", err)
    done = None
    main(["--data_path", str(tmp_path / "rain"), "--gt_path", str(tmp_path / "norain"), "--out", str(out)])
    done = int(re.search(r"(\d+) of 60 pairs are in it", capsys.readouterr().out)[1])
    assert 0 < done < 60
    found, pairs = Pack(out), find_pairs(tmp_path / "rain", tmp_path / "norain", "a, b")[0]
    assert found.damaged() == [] and not part.exists()
    assert all(np.array_equal(a.read(), b.read()) for a, b in zip(found, pairs, strict=True))


def test_an_interrupted_pack_of_other_pairs(pairs_folder, tmp_path, monkeypatch):
    out = tmp_path / "set.h5"
    monkeypatch.setattr(pack, "_put", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="set.h5.part can't be written .No space left.*the same command goes on"):
        write(pairs_of(pairs_folder), out, 2)
    monkeypatch.undo()
    shutil.copy(pairs_folder / "rain" / "8.png", pairs_folder / "rain" / "12.png")
    shutil.copy(pairs_folder / "norain" / "8.png", pairs_folder / "norain" / "12.png")
    with pytest.raises(UserError, match="is of other pairs; --overwrite starts anew"):
        write(pairs_of(pairs_folder), out, 2)
    more = ["--gt_path", str(pairs_folder / "norain"), "--out", str(out)]
    assert main(["--data_path", str(pairs_folder / "rain"), *more, "--overwrite"]) == 0 and len(Pack(out)) == 5


def stopped(pairs, out, monkeypatch, after=2):
    """A pack that a full disk has interrupted."""
    real, done = pack._put, []

    def put(*args):
        if len(done) == after:
            raise OSError(28, "No space left on device")
        done.append(1)
        return real(*args)

    monkeypatch.setattr(pack, "_put", put)
    with pytest.raises(UserError, match="the same command goes on"):
        write(pairs, out, 1)
    monkeypatch.undo()


def test_two_sets_of_equal_names_are_not_mixed(pairs_folder, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    for i in range(4):
        for folder in ("rain", "norain"):
            write_image(other / folder / f"{i + 8}.png", photo(24, 20 + i, 90 + i + len(folder)))
    out = tmp_path / "set.h5"
    stopped(pairs_of(pairs_folder), out, monkeypatch)
    write(pairs_of(other), out, 1)
    assert "0 of 4 pairs are in it" in capsys.readouterr().out
    assert all(np.array_equal(a.read(), b.read()) for a, b in zip(Pack(out), pairs_of(other), strict=True))
    assert Pack(out).damaged() == []


def test_overwrite_goes_on_and_spares_what_is_not_ours(pairs_folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "set.h5"
    folders = ["--data_path", str(pairs_folder / "rain"), "--gt_path", str(pairs_folder / "norain")]
    command = [*folders, "--out", str(out), "--overwrite"]
    assert main(command) == 0
    stopped(pairs_of(pairs_folder), out, monkeypatch)
    assert main(command) == 0 and "2 of 4 pairs are in it" in capsys.readouterr().out and len(Pack(out)) == 4
    for name in ("mine.h5", "own.h5.part"):
        with h5py.File(tmp_path / name, "w") as file:
            file["science"] = np.zeros(9)
        with pytest.raises(UserError, match=f"--overwrite: .*{name} is no pack of ours"):
            main([*folders, "--out", str(tmp_path / name.removesuffix(".part")), "--overwrite"])
        with h5py.File(tmp_path / name) as file:
            assert "science" in file
    (tmp_path / "d.h5.part").mkdir()
    with pytest.raises(UserError, match="d.h5.part is a folder"):
        main([*folders, "--out", str(tmp_path / "d.h5")])
    (tmp_path / "precious").write_text("x")
    (tmp_path / "a.h5.part.tmp").symlink_to(tmp_path / "precious")
    assert main([*folders, "--out", str(tmp_path / "a.h5")]) == 0 and (tmp_path / "precious").read_text() == "x"
    assert not list(tmp_path.glob(".packing*"))


def test_a_pack_that_changes_while_it_is_read(packed):
    found = Pack(packed)
    found[0].crop((0, 0), 16)
    data = packed.read_bytes()
    packed.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="set.h5: can't be read any more .it has changed"):
        found[1].crop((0, 0), 16)


@pytest.mark.parametrize(
    "values",
    [
        {"fingerprint": None},
        {"fingerprint": "\x1b[31m"},
        {"fingerprint": {}},
        {"pairs": 4.0},
        {"datasets": {}},
        {"datasets": [1]},
    ],
)
def test_descriptions_of_another_kind(packed, values):
    def change(file):
        set_meta(file, **values)
        seal(file)

    assert "its description is of another kind" in broken(packed, change)


def test_a_small_file_that_claims_much(packed):
    def change(file):
        del file["names"]
        file.create_dataset("names", (10**10,), "u1", chunks=(1000,))

    assert "is not of plain numbers" in broken(packed, change)


def test_no_room(pairs_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pack.shutil, "disk_usage", lambda folder: os.terminal_size((0, 0)) and type("D", (), {"free": 9})
    )
    with pytest.raises(UserError, match=r"--out: about 0.00 GB are needed in .*, 0.00 GB are free"):
        write(pairs_of(pairs_folder), tmp_path / "a.h5", 1)
    assert not list(tmp_path.glob("a.h5*"))


def test_two_programs_write_one_pack(pairs_folder, tmp_path):
    out = tmp_path / "set.h5"
    process = slow_pack(pairs_folder, out)
    try:
        while not (tmp_path / "begun").exists() and process.poll() is None:  # it holds the file from then on
            time.sleep(0.01)
        with pytest.raises(UserError, match="another program writes"):
            write(pairs_of(pairs_folder), out, 1)
    finally:
        process.communicate()


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "--data_path, --out: give both"),
        (["--data_path", "x", "--out", "a.zip"], "a.zip should end with .h5"),
        (["--verify", "a.h5", "--out", "b.h5"], "--verify: it only reads a pack"),
        (["--data_path", "a.h5", "--out", "b.h5"], "a.h5 is a pack already"),
        (
            ["--data_path", "nowhere", "--out", "b.h5"],
            "nowhere is not a folder. For pairs in two folders give --gt_path",
        ),
    ],
)
def test_wrong_flags(args, message):
    with pytest.raises(UserError, match=message):
        main(args)


# --- reading -------------------------------------------------------------------------------------------------------


def _read_all(path, results):
    dataset = PatchDataset(Pack(path), 16, 3)
    results.put(crops(dataset).numpy().tobytes())


def test_readers_side_by_side_and_after_a_fork(packed):
    dataset = PatchDataset(Pack(packed), 16, 3)
    here = crops(dataset).numpy().tobytes()  # the file is open here while others read
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    readers = [context.Process(target=_read_all, args=(packed, results)) for _ in range(2)]
    for reader in readers:
        reader.start()
    found = [results.get() for _ in readers]
    for reader in readers:
        reader.join()
    assert found == [here, here]
    forked = multiprocessing.get_context("fork")
    queue = forked.SimpleQueue()
    child = forked.Process(target=lambda: queue.put(crops(dataset).numpy().tobytes()))
    child.start()
    assert queue.get() == here == crops(dataset).numpy().tobytes()
    child.join()


def test_a_pack_that_vanishes_says_so(packed):
    found = Pack(packed)
    packed.unlink()
    with pytest.raises(UserError, match="set.h5: can't be read any more"):
        found[0].crop((0, 0), 16)


def test_the_layout_of_638492_pairs_takes_seconds_and_little_memory(tmp_path):
    """A tenth of SPA-Data: the file is sparse, nothing is decoded."""
    import tracemalloc

    count = 63849
    index = np.stack([np.zeros(count), np.arange(count), np.full(count, -1)], 1).astype(np.int64)
    names = b"".join(b"real_world/rain/%06d.png\0" % i for i in range(count))
    meta = {
        "kind": pack.KIND,
        "version": 1,
        "pairs": count,
        "fingerprint": "0" * 12,
        "datasets": ["images_256x256_uint8"],
    }
    tracemalloc.start()
    pack._create(tmp_path / "big.h5", meta, names, index)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = os.stat(tmp_path / "big.h5")
    pixels = count * 6 * 256 * 256
    assert peak < 5e6 and pixels < size.st_size < 1.005 * pixels and size.st_blocks * 512 < 0.02 * pixels
    with h5py.File(tmp_path / "big.h5", "r+") as file:
        file["index"][:] = np.where(np.arange(3) == 2, 0, index)
        seal(file)
    found = Pack(tmp_path / "big.h5")
    assert len(found) == count and found[-1].name == "real_world/rain/063848.png" and found.smallest() == 256
