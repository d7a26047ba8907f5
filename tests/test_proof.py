"""Recorded steps are trusted once they agree with run ones: wrong recorders are caught, and change nothing."""

import gc
import json
import sys
import weakref

import pytest
import torch
from common.graphs import CannotRecord, Recording
from common.speed import Speed

from common import cli, graphs
from common.errors import StartAgain
from common.models import Derain, Discriminator, EDNet
from common.training import joint, proof, trial
from for_syn import train_syn_joint
from tests.golden import fill
from tests.tape import Tape
from tests.test_training import arguments


class Stale(Tape):
    """Inputs of the first step for ever."""

    which = slice(None)

    def record(self, work):
        (recording,) = (c.cell_contents for c in work.__closure__ if isinstance(c.cell_contents, Recording))
        own = recording._own[self.which]
        first = [x.clone() for x in own]
        results, replay = super().record(work)

        def again():
            for x, before in zip(own, first, strict=True):
                x.copy_(before)
            replay()

        return results, again


class Frozen(Stale):
    """The draw of eps in the first step for ever."""

    which = slice(2, 3)


class Changed(Tape):
    """Other notes than those that were taken."""

    def record(self, work):
        results, _ = super().record(work)
        notes = self.change(list(self.notes))
        return results, lambda: self._replay(notes)

    def adams(self, notes):
        return [i for i, note in enumerate(notes) if note[0]._overloadpacket.__name__ == "_fused_adam_"]


class Lost(Changed):
    """The last Adam is left out."""

    def change(self, notes):
        del notes[self.adams(notes)[-1]]
        return notes


class Disordered(Changed):
    """The first Adam comes last."""

    def change(self, notes):
        return [*notes, notes.pop(self.adams(notes)[0])]


class OldRate(Changed):
    """Rates as they were while it was recorded."""

    def change(self, notes):
        for i in self.adams(notes):
            function, args, kwargs, *rest = notes[i]
            notes[i] = (function, args, kwargs | {"lr": kwargs["lr"].clone()}, *rest)
        return notes


class Off(Changed):
    """The first convolution is off by 1e-3."""

    def change(self, notes):
        i = next(i for i, note in enumerate(notes) if note[0]._overloadpacket.__name__ == "convolution")
        function, *rest = notes[i]
        notes[i] = (lambda *args, **kwargs: function(*args, **kwargs) * 1.001, *rest)
        return notes


class Waits(Tape):
    """Nothing can be recorded; what is run is what counts."""

    def rehearse(self, work):
        return work(), "the step waits for results of the GPU"


@pytest.fixture(autouse=True)
def no_gain(monkeypatch):
    """A stand-in is slower than what it stands in for."""
    monkeypatch.setattr(proof, "GAIN", 0)


def trained(recorder, monkeypatch, steps=6, **how):
    """Losses and weights of small networks."""
    monkeypatch.setattr(graphs, "recorder", lambda device: recorder)
    torch.manual_seed(0)
    nets = fill(Derain(1), 21, 0.02), fill(EDNet(3, 4, 2, 16), 22, 0.02), fill(Discriminator(16, 4), 23)
    speed = Speed(**how)
    step = joint.joint_step(
        *nets, joint.joint_optimizers(*nets, 2e-4, 1e-4, 4e-4, speed), 1.0, 10.0, 2, 1e-6, speed, {}
    )
    torch.manual_seed(1)
    losses = []
    for index in range(steps):
        rainy, clean = torch.rand(2, 2, 3, 16, 16).unbind()
        losses.append({name: value.item() for name, value in step(rainy, clean, index).items()})
    return losses, [value for net in nets for value in net.state_dict().values()]


@pytest.mark.parametrize("wrong", [Stale, Frozen, Lost, Disordered, OldRate, Off])
def test_a_wrong_recording_is_caught_and_changes_nothing(wrong, monkeypatch, capsys):
    losses, weights = trained(wrong(), monkeypatch)
    said = capsys.readouterr().out
    assert "--cuda_graphs: 4 steps recorded and run differ (" in said and "; going on without" in said
    run = trained(Waits(), monkeypatch)
    assert "(the step waits" not in said and losses == run[0] and all(map(torch.equal, weights, run[1]))


def test_a_right_recording_is_kept_and_the_proof_changes_nothing(monkeypatch, capsys):
    tape = Tape()
    losses, weights = trained(tape, monkeypatch, 4)
    said = capsys.readouterr().out
    assert said.startswith("--cuda_graphs: 4 steps recorded and run agree (") and "x faster" in said
    run = trained(Waits(), monkeypatch, 4)
    assert losses == run[0] and all(map(torch.equal, weights, run[1])) and tape.recorded == 2


def test_what_gains_little_is_dropped(monkeypatch, capsys):
    monkeypatch.setattr(proof, "GAIN", 1e9)
    tape = Tape()
    trained(tape, monkeypatch)
    assert "x faster is not worth the memory; going on without" in capsys.readouterr().out and tape.replayed == 4


def test_a_recording_that_goes_wrong_later_is_caught(monkeypatch, capsys):
    class Tires(Tape):
        def _replay(self, notes):
            super()._replay(notes if self.replayed < 5 else notes[: len(notes) // 2])

    trained(Tires(), monkeypatch, 10, again=8)
    said = capsys.readouterr().out
    assert "agree (" in said and "step 8 recorded and run differs (" in said
    assert "; the last 8 steps may be wrong as well; going on without" in said


def test_no_recording_outlives_main(monkeypatch, pairs_folder, tmp_path):
    made = []

    class Noted(Recording):
        def __init__(self, *args):
            made.append(weakref.ref(self))
            super().__init__(*args)

    monkeypatch.setattr(proof, "Recording", Noted)
    monkeypatch.setattr(graphs, "recorder", lambda device: Tape())
    train_syn_joint.main(arguments(pairs_folder, tmp_path / "m", "--niter", 1))
    gc.collect()
    assert len(made) == 2 and not any(ref() for ref in made)


def test_a_recording_that_breaks_off_starts_the_run_again(monkeypatch, pairs_folder, tmp_path, capsys):
    class Breaks(Tape):
        def record(self, work):
            raise CannotRecord("out of memory")

    monkeypatch.setattr(graphs, "recorder", lambda device: Breaks())
    begun = []
    monkeypatch.setattr(cli.os, "execv", lambda program, words: begun.append(words))
    argv = arguments(pairs_folder, tmp_path / "m", "--niter", 1)
    cli.run(lambda: train_syn_joint.main(argv))
    flags = ["--cuda_graphs", "off", "--overwrite", "--manualSeed", "5"]
    assert begun == [[sys.executable, *sys.orig_argv[1:], *flags]]
    assert "a recording failed (out of memory); starting again without" in capsys.readouterr().out
    train_syn_joint.main([*argv, *flags])
    assert (tmp_path / "m" / "ED_state_1.pt").exists()
    with pytest.raises(StartAgain) as again:
        train_syn_joint.main(
            ["--model_dir", str(tmp_path / "m"), "--resume", "-1", "--niter", "2", "--cuda_graphs", "on"]
        )
    assert again.value.flags == ["--cuda_graphs", "off"]


# --- the trial in a process of its own -------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "machine", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.parametrize(
    ("work", "text", "remembered"),
    [
        ("pass", "", True),
        ("import time; time.sleep(60)", "hung for 5 seconds", True),
        ("import os; os.abort()", "crashed (signal 6)", True),
        ("print('--cuda_graphs: differ'); raise SystemExit(3)", "failed: differ", True),
        ("raise RuntimeError('the GPU is busy')", "could not run (RuntimeError: the GPU is busy)", False),
    ],
)
def test_a_trial_may_fail_in_any_way(work, text, remembered, machine, monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "LIMIT", 5)
    monkeypatch.setattr(trial, "COMMAND", [sys.executable, "-c", work])
    assert text in trial.reason("fp32") and bool(trial.reason("fp32")) == bool(text)
    assert trial.memory().exists() == remembered
    monkeypatch.setattr(trial, "COMMAND", ["no such program"])
    if remembered:  # for this precision, GPU and number of processes
        assert text in trial.reason("fp32")
        assert list(json.loads(trial.memory().read_text())) == ["a GPU, 1 processes, fp32"]


def test_the_trial_proves_small_networks(monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 8)
    for recorder, right in ((Tape(), True), (Lost(), False)):
        monkeypatch.setattr(graphs, "recorder", lambda device, recorder=recorder: recorder)
        said = trial.small_steps(torch.device("cpu"), "fp32")
        assert (" agree (" in said and "going on without" not in said) == right


def test_a_job_within_a_job_has_names_of_its_own():
    store = torch.distributed.HashStore()
    inner = torch.distributed.PrefixStore("trial/", store)
    inner.clone().set(ranks.LEFT, "1")
    assert not store.check([ranks.LEFT]) and inner.check([ranks.LEFT])
