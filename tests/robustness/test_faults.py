"""Kills, full disks, images that vanish, too little memory: no saved work is lost."""

import contextlib
import itertools
import multiprocessing
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch

from common import cli
from common.data import pack
from common.data.images import write_image
from common.errors import UserError
from common.evaluation import derain_folder, metrics
from common.models import Derain
from common.training import joint, log
from common.training.folder import TrainingFolder
from for_syn import generate_rain, test_disentanglement, test_syn_joint
from for_syn import train_syn_joint as script
from tests.conftest import files, folders, write_pairs
from tests.golden import fill
from tests.robustness import faults
from tests.robustness.faults import JOINT, OFTEN, TINY
from tests.runs import assert_same_run, load, log_of

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
    # In a process of its own: PyTorch forbids forks of one that has computed gradients, as other tests do.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        result = pool.submit(faults.torment, tmp_path, 12, ["joint"], seed=1).result()
    assert result.problems == [] and result.kills.total() == 12 and result.resumes > 6
    assert all(result.kills[kind] for kind in faults.KINDS), result


class Killed(BaseException):
    """Ends a training at a moment that ``faults.py`` hits rarely."""


@pytest.mark.parametrize(
    ("place", "name", "number", "again"),
    [
        (TrainingFolder, "files", 1, ["--overwrite"]),  # before the earlier run's files are deleted
        (TrainingFolder, "save_state", 1, ["--overwrite"]),  # when they are
        (log.Log, "epoch", 1, []),  # weights of epoch 1 are there
        (TrainingFolder, "save_state", 2, []),  # and their row in log.csv
    ],
)
def test_a_kill_in_the_first_epoch_leaves_nothing_in_the_way(whole, tmp_path, monkeypatch, place, name, number, again):
    model, real, calls = tmp_path / "model", getattr(place, name), itertools.count(1)
    for end in ("", "_logs"):  # of an earlier run
        shutil.copytree(f"{whole}/model{end}", f"{model}{end}")
    shutil.copy(model / "D_state_3.pt", model / "D_state_9.pt")

    def kill(*args):
        if next(calls) == number:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(place, name, kill)
        train(whole / "data", model, "--overwrite", "--save_every", 1)
    (model / "train_state_last.pt.tmp").write_bytes(b"x")
    assert train(whole / "data", model, *again, "--save_every", 1) == 0
    for path in model.glob("*_state_1.pt"):  # the other training saved every second epoch
        path.unlink()
    assert_same_run(whole / "model", model)
    assert log_of(whole / "model") == log_of(model) and not list(model.glob("*.tmp"))


def test_what_is_left_of_a_first_write_is_not_in_the_way(whole, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "train_state_last.pt.tmp").write_bytes(b"half")
    assert train(whole / "data", tmp_path / "model", "--niter", 1) == 0


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


@pytest.mark.parametrize("file", ["state", "weights"])
def test_a_training_that_can_not_save_goes_on_later(whole, tmp_path, monkeypatch, capsys, file):
    name, step, before = {
        "state": ("train_state_last.pt", 9, (1, 2)),
        "weights": ("DerainNet_state_2.pt", 12, (1, 0)),  # they are saved after the second epoch
    }[file]
    model, more = tmp_path / "model", OFTEN if file == "state" else []
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        at_step(step, patch, lambda: stack.enter_context(files_up_to(10**5)))
        assert train(whole / "data", model, *more) == 1
    told = capsys.readouterr().err
    assert f"error: {model / name}: can't be written (File too large); check the path" in told
    assert "The last good state is" in told and not list(model.glob("*.tmp"))
    assert position(model) == before
    assert train(whole / "data", model, *more) == 0
    assert_same_run(whole / "model", model)


@pytest.mark.parametrize("ending", [".png", ".jpg"])
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
def commands(whole, tmp_path, generator):
    """Commands that write pictures, tables or packs, by name: (main, flags, the flag of its result)."""
    data, net, cpu, ED = whole / "data", tmp_path / "Derain.pt", ["--use_gpu", "no"], ["--netED", generator]
    torch.save(fill(Derain(1), 2).state_dict(), net)
    pairs = ["--data_path", data / "rain", "--gt_path", data / "norain"]
    return {
        "derain": (test_syn_joint.main, [*pairs, "--netDerain", net, "--stage", 1, *cpu], "--save_path"),
        "metrics": (metrics.main, ["--pred", data / "rain", "--gt", data / "norain"], "--csv table.csv"),
        "rain": (generate_rain.main, [*ED, "--data_path", data / "norain", *cpu, "--save_layer"], "--save_path"),
        "pack": (pack.main, pairs, "--out set.h5"),
        "sweeps": (test_disentanglement.main, [*ED, *cpu, "--manualSeed", 1], "--save_fake"),
    }


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["derain", "metrics", "rain", "pack", "sweeps"])
def test_results_that_can_not_be_written_are_one_message(commands, disk, capsys, name):
    main, flags, target = commands[name]
    flag, _, file = target.partition(" ")
    folder = disk.folder / "results"
    folder.mkdir()
    with disk.full():
        assert outcome(main, *flags, flag, folder / file) in (1, 2)
    told = capsys.readouterr().err
    assert "error: " in told and str(folder) in told and "Traceback" not in told
    assert "No space left" in told or "GB are free" in told
    assert not files(folder)


@pytest.mark.usefixtures("quick")
def test_after_a_full_disk_the_same_command_goes_on(commands, tmp_path, disk):
    main, flags, flag = commands["rain"]
    folder, undisturbed = disk.folder / "results", tmp_path / "undisturbed"
    assert outcome(main, *flags, flag, undisturbed) == 0
    with disk.full(leave=16384):
        assert outcome(main, *flags, flag, folder) in (1, 2)
    assert outcome(main, *flags, flag, folder) == 0
    assert files(folder) == files(undisturbed)


# --- images that vanish ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_vanishes_during_training(whole, tmp_path, monkeypatch, capsys, workers):
    copied = shutil.copytree(whole / "data", tmp_path / "copied")
    path = copied / "rain" / "9.png"
    good = path.read_bytes()
    with monkeypatch.context() as patch:
        at_step(2, patch, path.unlink)
        assert train(copied, tmp_path / "model", *OFTEN, "--cache", "none", "--workers", workers) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {path}: ") and "The last good state is" in told
    path.write_bytes(good)
    assert train(copied, tmp_path / "model") == 0
    assert_same_run(whole / "model", tmp_path / "model")


# --- too little memory ---------------------------------------------------------------------------------------------


def test_what_failed_in_the_first_step_starts_with_other_options(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(1, patch, mock.Mock(side_effect=MemoryError()))
        assert train(whole / "data", tmp_path / "model") == 1
    assert position(tmp_path / "model") == (0, 0)
    (tmp_path / "model" / "ED_state_9.pt").write_bytes(b"from elsewhere")
    other = ["--log_dir", f"{whole}/model_logs"]
    assert train(whole / "data", tmp_path / "model", "--batchSize", 1, "--niter", 1, *other) == 2
    assert train(whole / "data", tmp_path / "model", "--batchSize", 1, "--niter", 1) == 0
    assert (tmp_path / "model" / "ED_state_9.pt").exists()


def test_deraining_without_memory_for_one_image(commands, tmp_path, monkeypatch, capsys):
    real, lacks = derain_folder.derain_pixels, iter([None, MemoryError(), None, None])

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
