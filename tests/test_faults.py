"""Faults: kills, disks that are full or read-only, files that vanish or change, no memory. What was saved stays."""

import os
import signal

import pytest
import torch

from common import cli
from common.errors import TrainingStopped
from common.training import checkpoint, joint
from for_syn import train_syn_joint as script
from tests import faults
from tests.test_training import arguments, load, resume, train

OFTEN = ["--save_minutes", 1e-9]  # a state before every step


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
