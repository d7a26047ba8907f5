"""CUDA graphs: recorded steps give the numbers of run ones, and wrong recordings are caught and change nothing.

On the CPU a recorder stands in for the GPU's (tape.py).
"""

import argparse
import copy
import functools
import gc
import json
import sys
import weakref

import pytest
import torch

from common import distributed
from common.errors import TrainingStopped
from common.models import Derain, Discriminator, EDNet, PReNet
from common.training import augment, encoder, generator, joint, proof, trial
from common.training import optimizer as optimizers_
from common.training.graphs import CannotRecord, Recording
from common.training.optimizer import load_state, set_rate, state_of
from common.training.proof import RecordedStep
from for_syn import train_syn_joint
from tests.golden import fill, golden_json
from tests.runs import numbers_of, train
from tests.tape import Tape
from tests.test_joint import NAMES, batch

adam = functools.partial(optimizers_.adam, recordable=True)


@pytest.fixture
def tape():
    return Tape()


def recorded_step(step, recorder, cycle, nets, optimizers, again=3000, gain=0.0):
    """A stand-in is slower than a GPU's recording, so the gain does not count."""
    return RecordedStep(step, recorder, "fp32", again, cycle, nets, optimizers, gain)


def assert_same(a, b, tolerance=1e-9):
    for name, value in a.items():
        skip = name.endswith(("key_conv.bias", "value_conv.bias"))  # their true gradient is zero
        assert skip or torch.allclose(value, b[name], rtol=tolerance, atol=tolerance * 1e-2), name


def run(step, draw, steps, p=16, n=3, dtype=torch.float32, rates=lambda index: (), optimizers=()):
    """Losses of each step and the images of the last one."""
    torch.manual_seed(1)
    losses = []
    for index in range(steps):
        for optimizer, rate in zip(optimizers, rates(index), strict=False):
            set_rate(optimizer, rate)
        clean = torch.rand(n, 3, p, p, dtype=dtype)
        rainy = clean + (torch.rand(n, 1, p, p, dtype=dtype) > 0.8) * 0.3
        values, images = step(*draw(rainy, clean, index, n))
        losses.append({name: value.item() for name, value in values.items()})
    return losses, {name: value.clone() for name, value in images.items()}


def joint_case(recorder, steps=12, rates=lambda index: (2e-4, 1e-4, 4e-4), **how):
    """Losses, networks and images of joint training in double precision, recorded if there is a recorder."""
    torch.manual_seed(0)
    nets = fill(Derain(2), 21, 0.02), fill(EDNet(3, 8, 2, 16), 22, 0.02), fill(Discriminator(16, 4), 23)
    nets = [net.double() for net in nets]
    names = ("DerainNet", "ED", "D")
    optimizers = {name: adam(net.parameters(), rate) for name, net, rate in zip(names, nets, rates(0), strict=True)}
    step = joint.joint_step(*nets, optimizers, 1.0, 10.0, 1e-6)
    if recorder:
        step = recorded_step(step, recorder, 2, nets, optimizers, **how)
    torch.set_default_dtype(torch.float64)
    try:
        draw = joint.joint_draw(2, 8)
        losses, images = run(step, draw, steps, dtype=torch.float64, rates=rates, optimizers=optimizers.values())
    finally:
        torch.set_default_dtype(torch.float32)
    return losses, nets, images, optimizers


def augmented_case(recorder, steps=8):
    torch.manual_seed(0)
    net, netED = fill(PReNet(2), 31, 0.02), fill(EDNet(3, 8, 2, 16), 32)
    optimizer = adam(net.parameters(), 1e-3)
    step = augment.aug_step(net, netED, optimizer, 2)
    if recorder:
        step = recorded_step(step, recorder, 1, [net], {"derainer": optimizer})
    losses, images = run(step, augment.aug_draw(netED, 2), steps)
    assert "generated_rainy" in images
    return losses, [net]


def generator_case(recorder, steps=20):
    torch.manual_seed(0)
    netED, netD = EDNet(3, 8, 2, 16), generator.RainCritic(16, 4)
    generator.init_decoder(netED.decoder)
    optimizers = {"ED": adam(netED.decoder.parameters(), 1e-4, (0.0, 0.99))}
    optimizers["D"] = adam(netD.parameters(), 1e-4, (0.0, 0.99))
    step = generator.generator_step(netED, netD, optimizers, 0.5)
    if recorder:
        step = recorded_step(step, recorder, 8, [netED, netD], optimizers)
    return run(step, generator.generator_draw(8), steps, n=4)[0], [netED, netD]


def encoder_case(recorder, steps=8):
    torch.manual_seed(0)
    netED = EDNet(3, 8, 2, 16)
    encoder.init_encoder(netED.encoder)
    optimizers = {"ED": adam(netED.encoder.parameters(), 1e-3)}
    step = encoder.encoder_step(netED, optimizers["ED"], 10.0)
    if recorder:
        step = recorded_step(step, recorder, 1, [netED], optimizers)
    return run(step, encoder.encoder_draw(8), steps, n=4)[0], [netED]


def test_recorded_joint_steps_are_those_that_run():
    tape = Tape()
    recorded, usual = joint_case(tape), joint_case(None)
    # Three steps are run, then replayed for comparison; the other nine are replayed.
    assert tape.recorded == 2 and tape.replayed == 12 and tape.kernels > 100
    for a, b in zip(recorded[0], usual[0], strict=True):
        assert a == pytest.approx(b, rel=1e-7, abs=1e-10)
    assert recorded[0][8]["loss_G"] != recorded[0][10]["loss_G"] and "loss_G" not in recorded[0][11]
    for a, b in zip(recorded[1], usual[1], strict=True):
        assert_same(a.state_dict(), b.state_dict(), 1e-6)
    for name, value in usual[2].items():
        assert torch.allclose(recorded[2][name], value, rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize("case, recordings", [(augmented_case, 1), (generator_case, 2), (encoder_case, 1)])
def test_recorded_steps_of_the_other_trainings_are_those_that_run(case, recordings):
    tape = Tape()
    recorded, usual = case(tape), case(None)
    assert tape.recorded == recordings and tape.replayed > 0
    for a, b in zip(recorded[0], usual[0], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    for a, b in zip(recorded[1], usual[1], strict=True):
        assert_same(a.state_dict(), b.state_dict(), 1e-3)


def test_rates_change_in_a_recording():
    def rates(index):
        return (2e-4, 1e-4, 4e-4) if index < 9 else (1e-6, 1e-6, 1e-6)

    recorded, usual = joint_case(Tape(), rates=rates), joint_case(None, rates=rates)
    assert recorded[0][11] == pytest.approx(usual[0][11], rel=1e-7, abs=1e-10)
    assert recorded[0][11] != pytest.approx(joint_case(None)[0][11], rel=1e-5)


def test_golden_rows_from_recorded_steps(tape):
    """Seven steps of the reference on SPA-Data: the quirk of the spectral norm is recorded as it runs, as u and v are
    overwritten in place."""
    golden = golden_json("joint_spa.json")
    nets = fill(Derain(6), 21, 0.02), fill(EDNet(3, 128, 32), 22, 0.02), fill(Discriminator(64, 64), 23)
    names = ("DerainNet", "ED", "D")
    optimizers = {n: adam(net.parameters(), r) for n, net, r in zip(names, nets, (2e-4, 1e-4, 4e-4), strict=True)}
    step, draw = joint.joint_step(*nets, optimizers, golden["w_adv"], 10.0, 1e-6), joint.joint_draw(5, 128)
    start = [copy.deepcopy(net.state_dict()) for net in nets]
    kinds = [draw(*batch(index), index, 4) for index in range(2)]
    step(*kinds[0])  # Adam's averages begin
    recordings = {kind: Recording(functools.partial(step, kind), inputs, tape) for kind, *inputs in kinds}
    for net, state in zip(nets, start, strict=True):
        net.load_state_dict(state)
    for optimizer in optimizers.values():
        for value in (value for state in optimizer.state.values() for value in state.values()):
            value.zero_()
    torch.manual_seed(7)
    names = NAMES | {"mse": "mse", "g_adv": "g_loss", "loss_G": "errED", "kl_z": "kl_z", "kl_b": "kl_b"}
    for index, expected in enumerate(golden["rows_float32"]):
        kind, *inputs = draw(*batch(index), index, 4)
        losses, _ = recordings[kind](*inputs)
        assert len(losses) == (9 if index % 5 == 0 else 5)
        for key, value in losses.items():
            allowed = {"gp": 1e-4, "loss_D": 2e-3, "loss_G": 2e-3}.get(key, 1e-6)  # golden/README.md, for float32
            assert value.item() == pytest.approx(expected[names[key]], rel=1e-3, abs=allowed), (index, key)
    assert tape.recorded == 2 and tape.replayed == 7


def test_what_is_given_stays_as_it_is(tape):
    given = [torch.full((2,), float(i)) for i in range(8)]
    recording = Recording(lambda x: x + 1, given[:1], tape)
    assert [recording(x)[0].item() for x in given] == list(range(1, 9))
    assert tape.recorded == 1 and [x[0].item() for x in given] == list(range(8))


def test_casts_of_weights_are_part_of_a_recording(tape):
    """Within one autocast they would be taken from its cache, and be those of old weights."""
    conv = torch.nn.Conv2d(3, 3, 1)
    x = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        conv(x)
        replayed = Recording(conv, [x], tape)
        before = replayed(x).clone()
        assert tape.recorded == 1
        with torch.no_grad():
            conv.weight.mul_(3)
        after = replayed(x).clone()
    assert torch.allclose(after.float(), torch.nn.functional.conv2d(x, conv.weight, conv.bias), atol=0.1)
    assert (after - before).abs().max() > 0.2


# --- Adam ------------------------------------------------------------------------------------------------------------


def test_states_fit_whether_steps_are_recorded_or_not():
    """A training that began on a GPU goes on without, and the other way round."""
    _, nets, _, optimizers = joint_case(None, 4)
    for name, optimizer in optimizers.items():
        stored = state_of(optimizer)
        assert all(isinstance(group["lr"], float) for group in stored["param_groups"])
        for recordable in (True, False):
            net = copy.deepcopy(nets[list(optimizers).index(name)])
            other = optimizers_.adam(net.parameters(), 1e-3, recordable=recordable)
            load_state(other, copy.deepcopy(stored))
            assert isinstance(other.param_groups[0]["lr"], torch.Tensor) == recordable
            for p, q in zip(optimizer.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
                for key, value in optimizer.state[p].items():
                    assert torch.equal(value.cpu().double(), torch.as_tensor(other.state[q][key]).double())
    with pytest.raises(ValueError):
        load_state(adam([torch.nn.Parameter(torch.zeros(2))], 1e-3), stored)


def test_states_take_the_memory_layout_of_their_weights():
    plain = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    last = torch.nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    first, second = optimizers_.adam([plain], 1e-3), torch.optim.Adam([last], 1e-3, fused=True)
    plain.grad = torch.randn(4, 3, 2, 2)
    first.step()
    load_state(second, state_of(first))
    state, before = second.state[last], first.state[plain]
    assert state["exp_avg"].stride() == last.stride() != plain.stride()
    assert torch.equal(state["exp_avg"], before["exp_avg"]) and torch.equal(state["exp_avg_sq"], before["exp_avg_sq"])


# --- the proof -------------------------------------------------------------------------------------------------------


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


def trained(recorder, steps=6, **how):
    """Losses and weights of small networks."""
    losses, nets, *_ = joint_case(recorder, steps, **how)
    return losses, [value for net in nets for value in net.state_dict().values()]


@pytest.mark.parametrize("wrong", [Stale, Frozen, Lost, Disordered, OldRate, Off])
def test_a_wrong_recording_is_caught_and_changes_nothing(wrong, capsys):
    tape = wrong()
    losses, weights = trained(tape)
    printed = capsys.readouterr().out
    assert "--cuda_graphs: 3 steps recorded and run differ (" in printed and "; going on without" in printed
    assert tape.replayed == 3  # none in the training
    usual = trained(Waits())
    assert losses == usual[0] and all(map(torch.equal, weights, usual[1]))
    assert "the step waits for results of the GPU; going on without" in capsys.readouterr().out


def test_a_right_recording_is_kept_and_the_proof_changes_nothing(capsys):
    tape = Tape()
    losses, weights = trained(tape, 3)
    printed = capsys.readouterr().out
    assert printed.startswith("--cuda_graphs: 3 steps recorded and run agree (") and "x faster" in printed
    usual = trained(Waits(), 3)
    assert losses == usual[0] and all(map(torch.equal, weights, usual[1])) and tape.recorded == 2


def test_what_gains_little_is_dropped(capsys):
    tape = Tape()
    trained(tape, gain=1e9)
    assert "x faster is not worth the memory; going on without" in capsys.readouterr().out and tape.replayed == 3


@pytest.mark.parametrize("kind", [0, 1], ids=["learns", "critic"])
def test_a_recording_that_goes_wrong_later_is_caught(kind, capsys):
    """One step of each kind is compared after an epoch."""

    class Tires(Tape):
        def record(self, work):
            results, _ = super().record(work)
            notes, number = self.notes, self.recorded - 1
            return results, lambda: self._replay(notes[: len(notes) // 2] if self.tired(number) else notes)

        def tired(self, number):
            return number == kind and self.replayed >= 5

    trained(Tires(), 10, again=8)
    printed = capsys.readouterr().out
    assert "agree (" in printed and f"step {9 - kind} recorded and run differ (" in printed
    assert "; the last 8 steps may be wrong as well; going on without" in printed


# --- the scripts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def scripts_record(monkeypatch):
    """As if the CPU could record: a function that sets the recorder."""

    def use(recorder):
        monkeypatch.setattr(proof, "recorder", lambda device: recorder)

    monkeypatch.setattr(RecordedStep.__init__, "__defaults__", (0.0,))
    monkeypatch.setattr(trial, "reason", lambda precision, device: "")
    monkeypatch.setattr(train_syn_joint, "adam", adam)
    return use


def test_a_training_with_recorded_steps(scripts_record, pairs_folder, tmp_path):
    """Same log but for rounding, over epochs, changes of the rates, saving; and a state goes on as the other kind."""
    tape = Tape()
    scripts_record(tape)
    more = ["--niter", 5, "--iters_per_epoch", 10, "--milestone", 2, 3]
    train(pairs_folder, tmp_path / "recorded", *more)
    assert tape.recorded == 2 and tape.replayed == 50  # three in the proof
    train(pairs_folder, tmp_path / "usual", *more, "--cuda_graphs", "off")
    assert tape.recorded == 2
    for a, b in zip(numbers_of(tmp_path / "recorded"), numbers_of(tmp_path / "usual"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4) and a["lr/D"] == b["lr/D"]
    assert a["lr/D"] == 1e-4
    more[1] = 6
    for name, graphs in (("recorded", "off"), ("usual", "on")):
        train(pairs_folder, tmp_path / name, *more, "--cuda_graphs", graphs)
    assert tape.recorded == 4
    a, b = (numbers_of(tmp_path / name)[-1] for name in ("recorded", "usual"))
    assert a["epoch"] == 6 and a == pytest.approx(b, rel=1e-2, abs=1e-3)


def test_no_recording_outlives_main(scripts_record, monkeypatch, pairs_folder, tmp_path):
    made = []

    class Noted(Recording):
        def __init__(self, *args):
            made.append(weakref.ref(self))
            super().__init__(*args)

    monkeypatch.setattr(proof, "Recording", Noted)
    scripts_record(Tape())
    train(pairs_folder, tmp_path / "m", "--niter", 1)
    gc.collect()
    assert len(made) == 2 and not any(ref() for ref in made)


def test_a_recording_that_breaks_off_ends_the_training_with_advice(scripts_record, pairs_folder, tmp_path):
    class Breaks(Tape):
        def record(self, work):
            raise CannotRecord("out of memory")

    scripts_record(Breaks())
    with pytest.raises(TrainingStopped, match="--cuda_graphs: out of memory.*same command with --cuda_graphs off"):
        train(pairs_folder, tmp_path / "m", "--niter", 1)
    train(pairs_folder, tmp_path / "m", "--niter", 1, "--cuda_graphs", "off")


def test_which_steps_are_recorded(monkeypatch, capsys):
    net = torch.nn.Linear(1, 1)
    args = argparse.Namespace(cuda_graphs="on", precision="fp32", iters_per_epoch=9, derainer="prenet")

    def record():
        return isinstance(proof.record(print, args, 1, [net], {}), RecordedStep)

    assert not record() and "--cuda_graphs on: no GPU is used" in capsys.readouterr().out
    monkeypatch.setattr(proof, "recorder", lambda device: Tape())
    monkeypatch.setattr(trial, "reason", lambda precision, device: "")
    for processes, derainer, flag, records in (
        (1, "prenet", "auto", True),
        (2, "prenet", "auto", False),  # sums between processes may hang in a recording, at some versions of NCCL
        (2, "prenet", "on", True),
        (1, "x.py:Own", "auto", False),
        (1, "x.py:Own", "on", True),
        (1, "prenet", "off", False),
    ):
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        args.cuda_graphs, args.derainer = flag, derainer
        assert record() == records


# --- the trial in a process of its own -------------------------------------------------------------------------------


@pytest.mark.parametrize(("recorder", "right"), [(Tape(), True), (Lost(), False)])
def test_the_trial_proves_small_networks(monkeypatch, recorder, right):
    from common.training import graphs

    monkeypatch.setattr(trial, "STEPS", 8)
    monkeypatch.setattr(graphs, "recorder", lambda device: recorder)
    monkeypatch.setattr(optimizers_, "adam", adam)
    assert trial.main("fp32", torch.device("cpu")) == (0 if right else trial.DIFFERS)


@pytest.mark.parametrize(
    ("work", "text", "remembered"),
    [
        ("pass", "", True),
        ("import time; time.sleep(60)", "hung for 3 seconds", True),
        ("import os; os.abort()", "crashed (signal 6)", True),
        ("print('--cuda_graphs: differ'); raise SystemExit(3)", "failed: differ", True),
        ("raise RuntimeError('the GPU is busy')", "could not run (RuntimeError: the GPU is busy)", False),
    ],
)
def test_the_result_of_a_trial_is_remembered(work, text, remembered, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "machine", lambda: "a GPU")
    monkeypatch.setattr(trial, "LIMIT", 3)
    monkeypatch.setattr(trial, "COMMAND", [sys.executable, "-c", work])
    gpu = torch.device("cuda", 0)
    reason = trial.reason("fp32", gpu)
    assert text in reason and bool(reason) == bool(text)
    assert trial.memory().exists() == remembered
    if remembered:  # for this precision, GPU and number of processes
        monkeypatch.setattr(trial, "COMMAND", ["no such program"])
        assert trial.reason("fp32", gpu) == reason
        assert list(json.loads(trial.memory().read_text())) == ["a GPU, 1 processes, fp32"]
