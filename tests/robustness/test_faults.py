"""Kills, full and read-only disks, files that vanish or change, too little memory: no saved work is lost."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch

from common import cli
from common.data import compose, pack
from common.data.images import read_image, write_image
from common.errors import UserError
from common.evaluation import curves, derain_folder, metrics, report
from common.generation import export
from common.models import Derain
from common.training import joint
from for_syn import generate_rain, test_disentanglement, test_interpolation, test_syn_joint
from for_syn import train_syn_joint as script
from tests.conftest import folders, photo, write_pairs
from tests.golden import fill
from tests.robustness import faults
from tests.robustness.faults import JOINT, OFTEN, TINY
from tests.runs import assert_same_run, differing, load, same

STEPS = ["--iters_per_epoch", "6", "--save_every", "2", "--workers", "0"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks as tiny as these are slower with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outcome(main, *words):
    """Exit code of a command; an error without a message comes through."""
    return cli.run(lambda: main(list(map(str, words))))


def train(data, model, *more):
    """Exit code of a joint training of three epochs with six steps each."""
    return outcome(script.main, *folders(data, model), *TINY, *JOINT, *STEPS, *more)


def position(model):
    state = load(model / "train_state_last.pt")
    return state["epoch"], state["step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Pairs in data/, and in model/ an undisturbed training on them."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(write_pairs(folder / "data"), folder / "model") == 0
    return folder


def at_step(number, patch, action):
    """Call ``action`` before that step of joint training, from 1 on."""
    real, calls = joint.d_step, []

    def d_step(*args, **more):
        calls.append(1)
        if len(calls) == number:
            action()
        return real(*args, **more)

    patch.setattr(joint, "d_step", d_step)


# --- kills ---------------------------------------------------------------------------------------------------------


def test_nothing_is_lost_by_kills(tmp_path):
    kinds = [kind for kind in faults.KINDS if kind != faults.CLOCK]
    result = faults.torment(tmp_path, 12, ["joint"], kinds, seed=1)
    assert result.problems == [] and result.kills.total() == 12 and result.resumes > 6
    assert all(result.kills[kind] for kind in kinds), result


def test_one_bit_that_differs_is_noticed():
    one = {"net": [torch.tensor([0.0, 2.0])], "epoch": 3}
    assert same(one, {"net": [torch.tensor([0.0, 2.0])], "epoch": 3})
    for other in ({"net": [torch.tensor([-0.0, 2.0])], "epoch": 3}, {"net": [], "epoch": 3}, one | {"epoch": 4}):
        assert not same(one, other) and differing(one, other)


# --- disks ---------------------------------------------------------------------------------------------------------


class Disk:
    """A file system of 16 MB, mounted at a folder."""

    def __init__(self, folder):
        self.folder = folder

    def mount(self, *options):
        done = subprocess.run(["mount", *options, self.folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    @contextlib.contextmanager
    def full(self, leave=0):
        """Within it so many bytes are left (whole pages)."""
        ballast = self.folder / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            file.truncate(file.tell() - leave)
        yield
        ballast.unlink()


@pytest.fixture
def disk(tmp_path):
    if not shutil.which("mount"):
        pytest.skip("no mount here")
    (tmp_path / "disk").mkdir()
    made = Disk(tmp_path / "disk")
    made.mount("-t", "tmpfs", "-o", "size=16m", "tmpfs")
    yield made
    subprocess.run(["umount", "-l", made.folder], check=True)


@contextlib.contextmanager
def files_up_to(count):
    """No file can grow beyond so many bytes: a quota that works without a file system of its own."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("trouble", ["full", "quota"])
@pytest.mark.parametrize("file", ["state", "weights"])
def test_a_training_that_can_not_save_goes_on_later(whole, tmp_path, monkeypatch, capsys, request, trouble, file):
    if trouble == "full":
        disk = request.getfixturevalue("disk")
        model, context, reason = disk.folder / "model", disk.full(), "No space left on device"
    else:
        model, context, reason = tmp_path / "model", files_up_to(3000), "File too large"
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        # Weights are saved after the second epoch.
        at_step(9 if file == "state" else 12, patch, lambda: stack.enter_context(context))
        more = ["--log_dir", tmp_path / "logs", *(OFTEN if file == "state" else [])]
        assert train(whole / "data", model, *more) == 1
    name = "train_state_last.pt" if file == "state" else "DerainNet_state_2.pt"
    told = capsys.readouterr().err
    assert f"error: {model / name}: can't be saved ({reason}); check the disk" in told
    assert "The last good state is" in told and not list(model.glob("*.tmp"))
    assert position(model) == ((1, 2) if file == "state" else (1, 0))
    assert train(whole / "data", model, *more) == 0
    assert_same_run(whole / "model", model)


def test_a_training_survives_logs_that_can_not_be_written(whole, tmp_path, disk, monkeypatch, capsys):
    logs = disk.folder / "logs"
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        at_step(4, patch, lambda: stack.enter_context(disk.full()))
        at_step(14, patch, stack.close)
        assert train(whole / "data", tmp_path / "model", "--log_dir", logs, "--log_every", 1) == 0
    assert capsys.readouterr().err.count(f"warning: --log_dir: {logs} can't be written to (No space left") == 1
    assert_same_run(whole / "model", tmp_path / "model")
    assert [line[:2] for line in (logs / "log.csv").read_text().splitlines()[1:]] == ["1,", "2,", "3,"]
    shutil.rmtree(logs)
    with disk.full():
        more = ["--log_dir", logs, "--niter", 4]
        assert train(whole / "data", tmp_path / "model", *more) == 2  # before the first step
    assert f"error: --log_dir: {logs} can't be written to (No space left" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_training_survives_output_that_can_not_be_written(whole, tmp_path, monkeypatch):
    nowhere = io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True)  # noqa: SIM115
    with monkeypatch.context() as patch:
        at_step(3, patch, lambda: [patch.setattr(sys, name, nowhere) for name in ("stdout", "stderr")])
        assert train(whole / "data", tmp_path / "model") == 0
    assert_same_run(whole / "model", tmp_path / "model")


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
def test_an_image_is_whole_or_missing_on_a_full_disk(tmp_path, disk, ending):
    pixels = np.random.RandomState(0).randint(0, 256, (120, 160, 3)).astype(np.uint8)
    write_image(tmp_path / f"whole{ending}", pixels)
    expected, path = (tmp_path / f"whole{ending}").read_bytes(), disk.folder / f"x{ending}"
    for pages in range(len(expected) // 4096 + 2):
        with disk.full(leave=4096 * pages), contextlib.suppress(UserError):
            write_image(path, pixels)
        assert not path.exists() or path.read_bytes() == expected
        assert {p.name for p in disk.folder.iterdir()} <= {path.name}
        path.unlink(missing_ok=True)


@pytest.fixture
def commands(whole, tmp_path, generator, monkeypatch):
    """Every command that writes pictures or tables, by name: (main, flags, the flag of its result)."""
    data, net = whole / "data", tmp_path / "Derain.pt"
    torch.save(fill(Derain(1), 2).state_dict(), net)
    monkeypatch.setattr(curves, "draw", lambda *_: np.zeros((9, 9, 3), np.uint8))
    pairs, cpu, ED = (
        ["--data_path", data / "rain", "--gt_path", data / "norain"],
        ["--use_gpu", "no"],
        ["--netED", generator],
    )
    mixed = ["--clean", data / "norain", "--streaks", data / "rain", "--num", 6]
    sheet = ["--rainy", data / "rain", "--derained", data / "norain", "--clean", data / "norain"]
    between = [*pairs, *ED, *cpu, "--save_patch", tmp_path / "a", "--save_inputfake", tmp_path / "b"]
    return {
        "derain": (test_syn_joint.main, [*pairs, "--netDerain", net, "--stage", 1, *cpu], "--save_path"),
        "metrics": (metrics.main, ["--pred", data / "rain", "--gt", data / "norain"], "--csv table.csv"),
        "rain": (generate_rain.main, [*ED, "--data_path", data / "norain", *cpu, "--save_layer"], "--save_path"),
        "compose": (compose.main, mixed, "--out"),
        "compose a pack": (compose.main, mixed, "--out set.h5"),
        "pack": (pack.main, pairs, "--out set.h5"),
        "interpolation": (test_interpolation.main, between, "--save_rainfake"),
        "sweeps": (test_disentanglement.main, [*ED, *cpu, "--manualSeed", 1], "--save_fake"),
        "report": (report.main, sheet, "--out sheet.png"),
        "curves": (curves.main, ["--log_dir", whole / "model_logs"], "--out curves.png"),
        "export": (export.main, ED, "--out half.pt"),
        "page": (report.main, ["--show", data / "rain" / "8.png", "Rain."], "--out"),
    }


NAMES = ["derain", "metrics", "rain", "compose", "compose a pack", "pack", "interpolation", "sweeps", "report"]
NAMES += ["curves", "export", "page"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("trouble", ["full", "read-only"])
@pytest.mark.parametrize("name", NAMES)
def test_results_that_can_not_be_written_are_one_message(commands, disk, capsys, name, trouble):
    main, flags, target = commands[name]
    flag, _, file = target.partition(" ")
    folder = disk.folder / "results"
    folder.mkdir()
    if trouble == "read-only":
        disk.mount("-o", "remount,ro")
    with disk.full() if trouble == "full" else contextlib.nullcontext():
        assert outcome(main, *flags, flag, folder / file) in (1, 2)
    told = capsys.readouterr().err
    assert "error: " in told and str(folder) in told and "Traceback" not in told
    assert ("No space left" if trouble == "full" else "Read-only file system") in told or "GB are free" in told
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["rain", "compose", "compose a pack", "pack"])
def test_after_a_full_disk_the_same_command_goes_on(commands, tmp_path, disk, capsys, name):
    main, flags, target = commands[name]
    flag, _, file = target.partition(" ")
    folder, undisturbed = disk.folder / "results", tmp_path / "undisturbed"
    assert outcome(main, *flags, flag, undisturbed / file) == 0
    with disk.full(leave=16384):
        assert outcome(main, *flags, flag, folder / file) in (1, 2)
    told = capsys.readouterr().err
    assert "error: " in told and str(folder) in told
    for path in folder.rglob("*.png"):
        read_image(path)
    assert outcome(main, *flags, flag, folder / file) == 0

    def content(folder):
        if file:
            return [np.concatenate(pair.read()).tobytes() for pair in pack.Pack(folder / file)]
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert content(folder) == content(undisturbed)


# --- images that vanish or change ----------------------------------------------------------------------------------

CHANGES = {  # how -> (the change, the message)
    "vanishes": (lambda path: path.unlink(), "no such file"),
    "is cut short": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "can't be read as an image"),
    "turns into garbage": (lambda path: path.write_bytes(b"garbage" * 99), "can't be read as an image"),
    "has another size": (lambda path: write_image(path, photo(30, 30, 1)), "30x30"),
}


@pytest.fixture
def copied(whole, tmp_path):
    """Pairs that a test may damage."""
    return shutil.copytree(whole / "data", tmp_path / "copied")


@pytest.mark.parametrize("how, workers", [*((how, 0) for how in CHANGES), ("vanishes", 1)])
def test_an_image_changes_during_training(whole, copied, tmp_path, monkeypatch, capsys, how, workers):
    path, (change, message) = copied / "rain" / "9.png", CHANGES[how]
    good = path.read_bytes()
    with monkeypatch.context() as patch:
        at_step(2, patch, lambda: change(path))
        assert train(copied, tmp_path / "model", "--cache", "none", "--workers", workers) == 1
    told = capsys.readouterr().err
    assert f"error: {path}" in told and message in told and "The last good state is" in told
    assert position(tmp_path / "model")[1] >= 2
    path.write_bytes(good)
    assert train(copied, tmp_path / "model") == 0
    assert_same_run(whole / "model", tmp_path / "model")


@pytest.mark.parametrize("how, folder", [("vanishes", "rain"), ("has another size", "norain")])
def test_an_image_of_the_validation_changes_during_training(whole, copied, tmp_path, monkeypatch, capsys, how, folder):
    change, message = CHANGES[how]
    at_step(1, monkeypatch, lambda: change(copied / folder / "9.png"))
    val = ["--val_data_path", copied / "rain", "--val_gt_path", copied / "norain"]
    assert train(whole / "data", tmp_path / "model", *val) == 1
    told = capsys.readouterr().err
    assert "error: validation: " in told and "9.png" in told and message in told and "The last good state is" in told
    assert position(tmp_path / "model") == (0, 6)  # the steps of the epoch are not lost


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("folder", ["rain", "norain"])
def test_an_image_changes_during_deraining(copied, tmp_path, commands, monkeypatch, capsys, how, folder):
    real, (change, message) = derain_folder.write_image, CHANGES[how]

    def write(path, pixels):
        if path.name == "8.png":
            change(copied / folder / "9.png")
        real(path, pixels)

    monkeypatch.setattr(derain_folder, "write_image", write)
    main, flags, _ = commands["derain"]
    flags = ["--data_path", copied / "rain", "--gt_path", copied / "norain", *flags[4:]]
    assert outcome(main, *flags, "--save_path", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "1 of 4 images could not be derained or measured" in told and "9.png" in told and message in told
    assert {"8.png", "10.png", "11.png", "metrics.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "metrics.csv").read_text().count("\n") == 5  # a head, three images, the mean


# --- too little memory ---------------------------------------------------------------------------------------------

LACKS = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("whose", LACKS)
def test_training_without_memory(whole, tmp_path, monkeypatch, capsys, whose):
    with monkeypatch.context() as patch:
        at_step(9, patch, mock.Mock(side_effect=LACKS[whose]))
        assert train(whole / "data", tmp_path / "model", *OFTEN) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory (") and "smaller --batchSize, --patchSize" in told
    assert "The last good state is" in told
    assert train(whole / "data", tmp_path / "model") == 0
    assert_same_run(whole / "model", tmp_path / "model")


def test_deraining_without_memory_for_one_image(commands, tmp_path, monkeypatch, capsys):
    real, lacks = derain_folder.derain_pixels, iter([None, LACKS["GPU"], None, None])

    def derain_pixels(*args):
        if lack := next(lacks):
            raise lack
        return real(*args)

    monkeypatch.setattr(derain_folder, "derain_pixels", derain_pixels)
    main, flags, _ = commands["derain"]
    assert outcome(main, *flags, "--save_path", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "1 of 4 images" in told and "9.png: 21x24 px do not fit into memory; try --tile 256" in told
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
