"""Faults: kills, disks that are full or read-only, files that vanish or change, no memory. What was saved stays."""

import builtins
import contextlib
import errno
import functools
import gc
import io
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from common import cli
from common.data import compose, pack
from common.data.images import read_image, write_image
from common.errors import TrainingStopped, UserError, is_dead_worker
from common.evaluation import curves, derain, derain_folder, metrics, report
from common.generation import export, photos
from common.generation.manifest import Manifest
from common.models import Derain
from common.training import checkpoint, joint, log
from for_syn import generate_rain, test_disentanglement, test_interpolation, test_syn_joint, train_syn_aug
from for_syn import train_syn_joint as script
from tests import faults
from tests.conftest import photo, write_pairs
from tests.golden import fill
from tests.test_training import arguments, assert_same_run, load, resume, train

OFTEN = ["--save_minutes", 1e-9]  # a state before every step


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks as tiny as these only wait for a second one, above all where other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outcome(main, *words):
    """Exit code of a command; an error that is not explained comes through."""
    return cli.run(lambda: main(list(map(str, words))))


# --- kills ---------------------------------------------------------------------------------------------------------


def test_nothing_is_lost_by_kills(tmp_path):
    kinds = [kind for kind in faults.KINDS if kind != faults.CLOCK]
    found = faults.torment(tmp_path, 15, ["joint"], kinds, seed=1, real=False)
    assert found.problems() == [] and found.kills.total() == 15 and found.resumes > 8
    assert all(found.kills[kind] for kind in kinds), found


def test_bits_that_differ_are_counted():
    one = {"net": [torch.tensor([1.0, 2.0])], "epoch": 3}
    assert faults.differing_bits(one, {"net": [torch.tensor([1.0, 2.0])], "epoch": 3}) == 0
    assert faults.differing_bits(one, {"net": [torch.tensor([1.0, -2.0])], "epoch": 4}) == 2
    assert faults.differing_bits(one, {"net": [], "epoch": 3}) == 1


def test_a_worker_that_dies_during_a_save_is_no_matter_of_the_disk(tmp_path, monkeypatch):
    checkpoint.save({"n": 1}, tmp_path / "x.pt")

    def dying(value, file):
        file.write(b"half")
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")  # from a handler of SIGCHLD

    monkeypatch.setattr(torch, "save", dying)
    with pytest.raises(RuntimeError, match="worker"):
        checkpoint.save({"n": 2}, tmp_path / "x.pt", keep=tmp_path / "before.pt")
    assert load(tmp_path / "x.pt") == {"n": 1} and [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_an_error_within_a_worker_is_not_taken_for_its_death():
    assert is_dead_worker(RuntimeError("DataLoader worker (pid(s) 5, 6) exited unexpectedly"))
    assert not is_dead_worker(RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nTraceback ..."))


def test_a_batch_that_can_not_be_handed_over_is_not_waited_for(pairs_folder, tmp_path, monkeypatch, capfd):
    def no_room(*args):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    def too_late(*_):
        raise TimeoutError

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", no_room)
    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(30)
    try:
        words = arguments(pairs_folder, tmp_path / "model", "--cache", "none", "--workers", 1)
        assert outcome(script.main, *words) == 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    told = capfd.readouterr().err
    assert "a worker can't hand over what it read: unable to allocate shared memory" in told and "/dev/shm" in told
    assert "error: a worker that reads the images died" in told and "Traceback" not in told


def test_the_state_before_counts_where_the_last_one_was_never_named(pairs_folder, tmp_path, monkeypatch):
    model = tmp_path / "model"
    train(pairs_folder, model, "--niter", 1)
    os.replace(model / "train_state_last.pt", model / "train_state_prev.pt")  # as a kill between two renames leaves it

    def lost(*args, **seen):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(joint, "d_step", lost)
    with pytest.raises(TrainingStopped, match=r"died .*The last good state is \S+train_state_prev.pt; go on with it: "):
        resume(model, "--resume", -1, "--niter", 2)


# --- disks ---------------------------------------------------------------------------------------------------------


class Disk:
    """A small file system of its own."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=16m", "tmpfs")

    def _mount(self, *options):
        done = subprocess.run(["mount", *options, self.folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def fill(self, leave=0):
        """Leave so many bytes (whole pages) and no more."""
        with open(self.folder / "ballast", "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            file.truncate(file.tell() - leave)

    def free(self):
        (self.folder / "ballast").unlink()

    def lock(self):
        self._mount("-o", "remount,ro")


@pytest.fixture
def disk(tmp_path):
    if not shutil.which("mount") or not hasattr(os, "geteuid"):
        pytest.skip("no mount here")
    found = Disk(tmp_path / "disk")
    yield found
    subprocess.run(["umount", "-l", found.folder], check=True)


@contextlib.contextmanager
def no_longer_than(count):
    """No file can grow beyond so many bytes: as a quota has it, wherever there are no other file systems."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))  # Python ignores the signal of it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def read_only(folder):
    """As a disk that the system has locked after an error: nothing in the folder can be changed, open files neither."""

    def refusing(real):
        def refuse(path, *rest, **more):
            inside = isinstance(path, (str, os.PathLike)) and str(path).startswith(str(folder))
            reads = real in (io.open, os.open) and rest[:1] in ((), ("r",), ("rb",), (os.O_RDONLY,))
            if inside and not reads:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, *rest, **more)

        return refuse

    with pytest.MonkeyPatch.context() as patch:
        places = [(builtins, "open"), (io, "open"), *((os, name) for name in ("open", "unlink", "replace", "mkdir"))]
        for place, name, refuse in [(place, name, refusing(getattr(place, name))) for place, name in places]:
            patch.setattr(place, name, refuse)
        yield


def at_step(number, monkeypatch, what):
    """Call ``what`` within that step of joint training, from 1 on."""
    real, calls = joint.d_step, []

    def d_step(*args, **seen):
        calls.append(1)
        if len(calls) == number:
            what()
        return real(*args, **seen)

    monkeypatch.setattr(joint, "d_step", d_step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Pairs, and a joint training of three epochs on them that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    train(write_pairs(folder / "data"), folder / "model", "--niter", 3)
    return folder


@pytest.mark.parametrize("trouble", ["full", "limit", "read-only"])
@pytest.mark.parametrize("where", ["state", "weights"])
def test_training_ends_where_it_can_not_save(whole, tmp_path, monkeypatch, capsys, request, trouble, where):
    stack = contextlib.ExitStack()
    if trouble == "full":
        disk = request.getfixturevalue("disk")
        model, begin, end = disk.folder / "model", disk.fill, disk.free
    else:
        model, end = tmp_path / "model", stack.close
        context = no_longer_than(3000) if trouble == "limit" else read_only(model)
        begin = functools.partial(stack.enter_context, context)
    flags = ["--niter", 3, "--log_dir", tmp_path / "logs", *(OFTEN if where == "state" else [])]
    with monkeypatch.context() as patch, stack:
        at_step(9 if where == "state" else 12, patch, begin)  # weights are saved after the second epoch
        code = outcome(script.main, *arguments(whole / "data", model, *flags))
        end()
    name = "train_state_last.pt" if where == "state" else "DerainNet_state_2.pt"
    reason = {"full": "No space left on device", "limit": "File too large", "read-only": "Read-only file system"}
    told = capsys.readouterr().err
    assert code == 1 and f"error: {model / name}: can't be saved ({reason[trouble]}); check the disk" in told
    assert "The last good state is" in told and f"--model_dir {model} --resume -1" in told
    assert not list(model.glob("*.tmp"))
    state = load(model / "train_state_last.pt")
    assert (state["epoch"], state["step"]) == ((1, 2) if where == "state" else (1, 0))
    assert outcome(script.main, "--model_dir", model, "--resume", -1) == 0
    assert_same_run(whole / "model", model)


def records(data):
    """The events in a file of TensorBoard: length, its checksum, content, its checksum."""
    found = []
    while data:
        length = int.from_bytes(data[:8], "little")
        content, checksums = data[12 : 12 + length], (data[8:12], data[12 + length : 16 + length])
        assert checksums == tuple(masked_crc32c(part).to_bytes(4, "little") for part in (data[:8], content))
        found.append(Event.FromString(content))
        data = data[16 + length :]
    return found


def test_logs_come_back_when_the_disk_has_room_again(whole, tmp_path, disk, monkeypatch, capsys):
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    logs = disk.folder / "logs"
    with monkeypatch.context() as patch:
        at_step(4, patch, disk.fill)
        at_step(14, patch, disk.free)
        train(whole / "data", tmp_path / "model", "--niter", 3, "--log_dir", logs, "--log_every", 1)
    assert capsys.readouterr().err.count(f"warning: --log_dir: {logs} can't be written to (No space left") == 1
    assert_same_run(whole / "model", tmp_path / "model")
    assert [line[:2] for line in (logs / "log.csv").read_text().splitlines()[1:]] == ["1,", "2,", "3,"]
    assert list(logs.glob(".*")) == []
    (events,) = (path.read_bytes() for path in logs.glob("events*"))
    found = records(events)
    assert found[0].file_version == "brain.Event:2" and {event.step for event in found} >= {0, 1, 2, 16, 17}
    assert set(range(18)) - {event.step for event in found}  # these there was no room for
    gc.collect()
    assert ignored == []


def test_logs_that_stay_without_room(whole, tmp_path, disk, monkeypatch, capsys):
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    logs = disk.folder / "logs"
    with monkeypatch.context() as patch:
        at_step(8, patch, disk.fill)
        train(whole / "data", tmp_path / "model", "--niter", 3, "--log_dir", logs, "--log_every", 1)
    assert_same_run(whole / "model", tmp_path / "model")
    gc.collect()
    assert ignored == [] and capsys.readouterr().err.count("can't be written to") == 1
    assert outcome(script.main, "--model_dir", tmp_path / "model", "--resume", -1, "--niter", 4) == 2  # not begun
    assert f"error: --log_dir: {logs} can't be written to (No space left" in capsys.readouterr().err
    assert (logs / "log.csv").read_text().count("\n") == 2 and (logs / "options.json").read_text().endswith("}\n")
    disk.free()
    resume(tmp_path / "model", "--resume", -1, "--niter", 4)
    assert [line[:2] for line in (logs / "log.csv").read_text().splitlines()[1:]] == ["1,", "4,"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_output_into_a_full_disk_does_not_stop_training(whole, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    nowhere = io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True)  # noqa: SIM115
    with monkeypatch.context() as patch:
        at_step(3, patch, lambda: [patch.setattr(sys, name, nowhere) for name in ("stdout", "stderr")])
        patch.setattr(log._Events, "write", lambda self, *x: full() if x[0].step > 2 else None)  # a warning, too
        train(whole / "data", tmp_path / "model", "--niter", 3)
    assert_same_run(whole / "model", tmp_path / "model")


def test_which_derainer_it_was_is_still_known_after_a_full_disk(whole, generator, disk, capsys):
    model = disk.folder / "model"
    words = ["--data_path", whole / "data/rain", "--gt_path", whole / "data/norain", "--log_dir", f"{model}_logs"]
    words += ["--model_dir", model, "--netED", generator, "--batchSize", 3, "--iters_per_epoch", 2, "--use_gpu", "no"]
    assert outcome(train_syn_aug.main, *words, "--recurrent_iter", 2, "--niter", 1) == 0
    before = (model / "Aug_DerainNet.json").read_bytes()
    shutil.rmtree(f"{model}_logs")
    disk.fill()
    more = ["--niter", 2, "--log_dir", disk.folder.parent / "logs"]
    assert outcome(train_syn_aug.main, "--model_dir", model, "--resume", -1, *more) == 1
    assert f"error: {model}/Aug_DerainNet.json: can't be written (No space left" in capsys.readouterr().err
    assert (model / "Aug_DerainNet.json").read_bytes() == before


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_an_image_is_whole_or_not_there_however_much_room_is_left(tmp_path, disk, ending):
    pixels = np.random.RandomState(0).randint(0, 256, (120, 160, 3)).astype(np.uint8)
    write_image(tmp_path / f"whole{ending}", pixels)
    expected, path = (tmp_path / f"whole{ending}").read_bytes(), disk.folder / f"x{ending}"
    for pages in range(len(expected) // 4096 + 2):
        disk.fill(leave=4096 * pages)
        with contextlib.suppress(UserError):
            write_image(path, pixels)
        assert not path.exists() or path.read_bytes() == expected
        assert {p.name for p in disk.folder.iterdir()} <= {"ballast", path.name}
        path.unlink(missing_ok=True)
    disk.free()


@pytest.fixture
def commands(whole, tmp_path, generator, monkeypatch):
    """Every command that writes pictures or tables, by name: (main, flags, the flag of what it writes)."""
    data, made = whole / "data", tmp_path / "made"
    net = made / "Derain.pt"
    made.mkdir()
    torch.save(fill(Derain(1), 2).state_dict(), net)
    monkeypatch.setattr(curves, "draw", lambda *_: np.zeros((9, 9, 3), np.uint8))
    pairs = ["--data_path", data / "rain", "--gt_path", data / "norain"]
    ED = ["--netED", generator]
    photos = [*ED, "--data_path", data / "norain", "--use_gpu", "no"]
    mixed = ["--clean", data / "norain", "--streaks", data / "rain", "--num", 6]
    seen = ["--rainy", data / "rain", "--derained", data / "norain", "--clean", data / "norain"]
    between = [*pairs, *ED, "--use_gpu", "no", "--save_patch", tmp_path / "a", "--save_inputfake", tmp_path / "b"]
    latent = [*ED, "--use_gpu", "no", "--manualSeed", 1]
    return {
        "derain": (test_syn_joint.main, [*pairs, "--netDerain", net, "--stage", 1, "--use_gpu", "no"], "--save_path"),
        "metrics": (metrics.main, ["--pred", data / "rain", "--gt", data / "norain"], "--csv table.csv"),
        "rain": (generate_rain.main, [*photos, "--save_layer"], "--save_path"),
        "compose": (compose.main, mixed, "--out"),
        "compose a pack": (compose.main, mixed, "--out set.h5"),
        "pack": (pack.main, pairs, "--out set.h5"),
        "interpolation": (test_interpolation.main, between, "--save_rainfake"),
        "sweeps": (test_disentanglement.main, latent, "--save_fake"),
        "animation": (test_disentanglement.main, [*latent, "--figure", "diversity"], "--save_fake"),
        "report": (report.main, seen, "--out sheet.png"),
        "curves": (curves.main, ["--log_dir", whole / "model_logs"], "--out curves.png"),
        "export": (export.main, ED, "--out half.pt"),
        "page": (report.main, ["--show", data / "rain" / "8.png", "Rain."], "--out"),
    }


NAMES = ["derain", "metrics", "rain", "compose", "compose a pack", "pack", "interpolation", "sweeps", "animation"]
NAMES += ["report", "curves", "export", "page"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("trouble", ["full", "read-only"])
@pytest.mark.parametrize("name", NAMES)
def test_results_that_can_not_be_written_are_one_message(commands, disk, capsys, name, trouble):
    main, flags, target = commands[name]
    flag, _, file = target.partition(" ")
    where = disk.folder / "results" / file if file else disk.folder / "results"
    (disk.folder / "results").mkdir()
    disk.fill() if trouble == "full" else disk.lock()
    assert outcome(main, *flags, flag, where) in (1, 2)
    told = capsys.readouterr().err
    assert "error: " in told and str(disk.folder / "results") in told and "Traceback" not in told
    assert ("No space left" if trouble == "full" else "Read-only file system") in told or "GB are free" in told
    assert not [path for path in disk.folder.rglob("*") if path.is_file() and path.name != "ballast"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["rain", "compose", "compose a pack", "pack"])
@pytest.mark.parametrize("leave", [4096, 16384, 28672])
def test_after_a_full_disk_the_same_command_goes_on(commands, tmp_path, disk, capsys, name, leave):
    main, flags, target = commands[name]
    flag, _, file = target.partition(" ")
    assert outcome(main, *flags, flag, tmp_path / "undisturbed" / file) == 0
    disk.fill(leave)
    code = outcome(main, *flags, flag, disk.folder / "results" / file)
    told = capsys.readouterr().err
    assert code in (1, 2) and "error: " in told and str(disk.folder / "results") in told
    for path in (disk.folder / "results").rglob("*.png"):
        read_image(path)
    disk.free()
    assert outcome(main, *flags, flag, disk.folder / "results" / file) == 0

    def content(folder):
        if file:
            return [np.concatenate(pair.read()).tobytes() for pair in pack.Pack(folder / file)]
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return files

    assert content(disk.folder / "results") == content(tmp_path / "undisturbed")


def test_a_table_that_can_not_be_written_leaves_the_one_before(whole, disk, capsys):
    words = ["--pred", whole / "data/rain", "--gt", whole / "data/norain", "--csv", disk.folder / "table.csv"]
    assert outcome(metrics.main, *words) == 0
    before = (disk.folder / "table.csv").read_bytes()
    disk.fill()
    assert outcome(metrics.main, *words) == 1 and "table.csv: can't be written (No space" in capsys.readouterr().err
    assert (disk.folder / "table.csv").read_bytes() == before
    disk.free()


@pytest.mark.usefixtures("quick")
def test_a_manifest_that_can_not_grow_says_so_itself(whole, tmp_path, generator, monkeypatch, capsys):
    words = ["--data_path", whole / "data/norain", "--save_path", tmp_path / "out", "--netED", generator]
    real = Manifest.append

    def append(self, row):
        with no_longer_than(self.path.stat().st_size + 5 if self.path.exists() else 1000):
            real(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "append", append)
        assert outcome(generate_rain.main, *words, "--use_gpu", "no") == 1
    assert f"error: {tmp_path}/out/manifest.csv: can't be written (File too large)" in capsys.readouterr().err
    assert outcome(generate_rain.main, *words, "--use_gpu", "no") == 0
    assert len(Manifest(tmp_path / "out").rows) == 4


# --- files that vanish or change -----------------------------------------------------------------------------------

CHANGES = {
    "vanishes": lambda path: path.unlink(),
    "is cut short": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "turns into garbage": lambda path: path.write_bytes(b"garbage" * 99),
    "has another size": lambda path: write_image(path, photo(30, 30, 1)),
    "is empty": lambda path: path.write_bytes(b""),
}
TOLD = {
    "vanishes": "no such file",
    "is cut short": "can't be decoded",
    "turns into garbage": "can't be read as an image",
    "has another size": "30x30",
    "is empty": "can't be read as an image",
}


@pytest.fixture
def copied(whole, tmp_path):
    """The pairs, to be spoilt."""
    return shutil.copytree(whole / "data", tmp_path / "copied")


@pytest.mark.parametrize("how, workers", [*((how, 0) for how in CHANGES), ("vanishes", 1)])
def test_a_file_changes_during_training(whole, copied, tmp_path, monkeypatch, capsys, how, workers):
    path = copied / "rain" / "9.png"
    good = path.read_bytes()
    with monkeypatch.context() as patch:
        at_step(2, patch, lambda: CHANGES[how](path))
        words = arguments(copied, tmp_path / "model", "--niter", 3, "--cache", "none", "--workers", workers)
        assert outcome(script.main, *words) == 1
    told = capsys.readouterr().err
    assert f"error: {path}" in told and TOLD[how] in told and "The last good state is" in told
    assert load(tmp_path / "model" / "train_state_last.pt")["step"] >= 2  # all that was learned
    path.write_bytes(good)
    resume(tmp_path / "model", "--resume", -1)
    assert_same_run(whole / "model", tmp_path / "model")


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("folder", ["rain", "norain"])
def test_an_image_of_validation_changes_during_training(copied, tmp_path, monkeypatch, capsys, how, folder):
    val = shutil.copytree(copied, tmp_path / "val")
    words = ["--val_data_path", val / "rain", "--val_gt_path", val / "norain", "--niter", 2]
    at_step(1, monkeypatch, lambda: CHANGES[how](val / folder / "9.png"))
    assert outcome(script.main, *arguments(copied, tmp_path / "model", *words)) == 1
    told = capsys.readouterr().err
    assert "error: validation: " in told and "9.png" in told and TOLD[how] in told and "The last good state is" in told
    state = load(tmp_path / "model" / "train_state_last.pt")
    assert (state["epoch"], state["step"]) == (0, 6)  # the epoch's steps are not lost


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("folder", ["rain", "norain"])
def test_an_image_changes_during_deraining(copied, tmp_path, commands, monkeypatch, capsys, how, folder):
    real = derain_folder.write_image

    def write(path, pixels):
        if path.name == "8.png":
            CHANGES[how](copied / folder / "9.png")
        real(path, pixels)

    monkeypatch.setattr(derain_folder, "write_image", write)
    main, flags, _ = commands["derain"]
    flags = ["--data_path", copied / "rain", "--gt_path", copied / "norain", *flags[4:]]
    assert outcome(main, *flags, "--save_path", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "1 of 4 images could not be derained or measured" in told and "9.png" in told and TOLD[how] in told
    assert {"8.png", "10.png", "11.png", "metrics.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "metrics.csv").read_text().count("\n") == 5  # a head, three images, the mean


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", CHANGES)
def test_a_photo_changes_during_the_generation_of_rain(copied, tmp_path, generator, monkeypatch, capsys, how):
    real = photos.write_image

    def write(path, pixels):
        if path.parts[-2:] == ("norain", "8.png"):
            CHANGES[how](copied / "norain" / "9.png")
        real(path, pixels)

    monkeypatch.setattr(photos, "write_image", write)
    words = ["--data_path", copied / "norain", "--save_path", tmp_path / "out", "--netED", generator, "--use_gpu", "no"]
    bad = how != "has another size"  # that is a photo as good as any other
    assert outcome(generate_rain.main, *words) == bad
    told = capsys.readouterr().err
    assert not bad or ("1 of 4 photos could not be used" in told and "9.png" in told and TOLD[how] in told)
    assert len(list((tmp_path / "out" / "rain").iterdir())) == len(Manifest(tmp_path / "out").rows) == 4 - bad


# --- no memory -----------------------------------------------------------------------------------------------------

LACKS = {
    "a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"),
    "a CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you"),
    "Python": MemoryError(),
}


def lacking(whom):
    def fail(*args, **more):
        raise LACKS[whom]

    return fail


@pytest.mark.parametrize("whom", LACKS)
def test_training_without_memory(whole, tmp_path, monkeypatch, capsys, whom):
    with monkeypatch.context() as patch:
        at_step(9, patch, lacking(whom))
        assert outcome(script.main, *arguments(whole / "data", tmp_path / "model", "--niter", 3, *OFTEN)) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory (") and "smaller --batchSize, --patchSize" in told
    assert "The last good state is" in told and f"--model_dir {tmp_path / 'model'} --resume -1" in told
    resume(tmp_path / "model", "--resume", -1)
    assert_same_run(whole / "model", tmp_path / "model")


def test_validation_without_memory(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(derain, "derain_pixels", lacking("a GPU"))
    val = ["--val_data_path", whole / "data/rain", "--val_gt_path", whole / "data/norain", "--niter", 1]
    assert outcome(script.main, *arguments(whole / "data", tmp_path / "model", *val)) == 1
    assert "out of memory" in (told := capsys.readouterr().err) and "The last good state is" in told
    assert load(tmp_path / "model" / "train_state_last.pt")["step"] == 6


@pytest.mark.parametrize("whom", LACKS)
def test_deraining_without_memory_for_one_image(commands, tmp_path, monkeypatch, capsys, whom):
    real, calls = derain_folder.derain_pixels, []

    def derain_pixels(*args):
        calls.append(1)
        return lacking(whom)() if len(calls) == 2 else real(*args)

    monkeypatch.setattr(derain_folder, "derain_pixels", derain_pixels)
    main, flags, _ = commands["derain"]
    assert outcome(main, *flags, "--save_path", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "1 of 4 images" in told and "9.png: 21x24 px do not fit into memory; try --tile 256" in told
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("whom", LACKS)
def test_rain_without_memory_for_one_photo(whole, tmp_path, generator, monkeypatch, capsys, whom):
    real = photos.set_knobs

    def set_knobs(shower, height, width, *more):
        return lacking(whom)() if width == 21 else real(shower, height, width, *more)

    words = ["--data_path", whole / "data/norain", "--save_path", tmp_path / "out", "--netED", generator]
    with monkeypatch.context() as patch:
        patch.setattr(photos, "set_knobs", set_knobs)
        assert outcome(generate_rain.main, *words, "--use_gpu", "no") == 1
    told = capsys.readouterr().err
    assert "1 of 4 photos" in told and "9.png: does not fit into memory; scale it down" in told
    assert len(Manifest(tmp_path / "out").rows) == 3
    assert outcome(generate_rain.main, *words, "--use_gpu", "no") == 0 and len(Manifest(tmp_path / "out").rows) == 4
