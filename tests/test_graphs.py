"""--cuda_graphs: replayed steps give the bits of steps that run, and the comparison finds recordings that are wrong.

On the CPU a tape stands in for CUDA's graphs (tape.py).
"""

import copy

import pytest
import torch

from common import distributed
from common.benchmark import Training, differing
from common.errors import Stopped, UserError
from common.models import Derain, Discriminator, EDNet, PReNet
from common.training import augment, encoder, generator, graphs
from common.training.checkpoint import load_state, state_of
from common.training.graphs import WARM_UP, RecordedStep
from for_syn import train_syn_joint
from tests.golden import fill
from tests.runs import arguments, joint_training, numbers_of, train
from tests.tape import Tape

CPU = torch.device("cpu")


def adam(parameters, lr=1e-3, betas=(0.9, 0.999)):
    """Adam as on a GPU: fused, without a value that Python reads."""
    optimizer = torch.optim.Adam(parameters, lr, betas, fused=True)
    optimizer.param_groups[0]["initial_lr"] = lr
    return optimizer


def small_joint_training():
    nets = fill(Derain(1), 21, 0.02), fill(EDNet(3, 8, 2, 16), 22, 0.02), fill(Discriminator(16, 4), 23)
    return joint_training(nets, adam=adam)


def augmented_training():
    net, netED = fill(PReNet(1), 31, 0.02), fill(EDNet(3, 8, 2, 16), 32)
    optimizer = adam(net.parameters())
    return Training(
        augment.aug_step(net, netED, optimizer, 2), augment.aug_draw(netED, 2), 1, {"net": net}, {"net": optimizer}
    )


def generator_training():
    netED, netD = EDNet(3, 8, 2, 16), generator.RainCritic(16, 4)
    generator.init_decoder(netED.decoder)
    optimizers = {"ED": adam(netED.decoder.parameters()), "D": adam(netD.parameters())}
    step = generator.generator_step(netED, netD, optimizers, 0.5)
    return Training(step, generator.generator_draw(8), generator.LAZY, {"ED": netED, "D": netD}, optimizers)


def encoder_training():
    netED = EDNet(3, 8, 2, 16)
    optimizers = {"ED": adam(netED.encoder.parameters())}
    step = encoder.encoder_step(netED, optimizers["ED"], 10.0)
    return Training(step, encoder.encoder_draw(8), 1, {"ED": netED}, optimizers)


@pytest.mark.parametrize(
    ("training", "kinds"),
    [(small_joint_training, 2), (augmented_training, 1), (generator_training, 2), (encoder_training, 1)],
)
def test_replayed_steps_are_those_that_run(training, kinds):
    tape, made = Tape(), training()
    assert differing(made, tape, 4, 16, CPU) == []
    assert tape.recorded == kinds and tape.replayed >= made.cycle


class Stale(Tape):
    """The crops of the first step for ever."""

    def record(self, work):
        (own,) = (cell.cell_contents for cell in work.__closure__ if isinstance(cell.cell_contents, list))
        first, (results, replay) = own[0].clone(), super().record(work)
        return results, lambda: (own[0].copy_(first), replay())


class Changed(Tape):
    """Other operations than those that were recorded."""

    def record(self, work):
        results, _ = super().record(work)
        adams = [note for note in self.notes if note[0]._overloadpacket.__name__ == "_fused_adam_"]
        notes = self.change(list(self.notes), adams)
        return results, lambda: self._replay(notes)


class Lost(Changed):
    """The last Adam is left out."""

    def change(self, notes, adams):
        return [note for note in notes if note is not adams[-1]]


class OldRate(Changed):
    """The rates of the recording for ever."""

    def change(self, notes, adams):
        for function, args, kwargs, *rest in adams:
            place = next(i for i, note in enumerate(notes) if note[2] is kwargs)
            notes[place] = (function, args, kwargs | {"lr": kwargs["lr"].clone()}, *rest)
        return notes


@pytest.mark.parametrize(
    ("wrong", "found"), [(Stale, "mse of step 0"), (Lost, "exp_avg 0 of Adam"), (OldRate, "weight")]
)
def test_a_wrong_recording_is_found(wrong, found):
    assert any(found in name for name in differing(small_joint_training(), wrong(), 4, 16, CPU))


def test_what_is_given_stays_and_a_kind_runs_before_it_is_recorded():
    tape = Tape()
    step = RecordedStep(lambda kind, x: ({"y": x.sum()}, {"x": x + 1}), {}, tape)
    given = [torch.full((2,), float(i)) for i in range(8)]
    assert [step(None, x)[1]["x"][0].item() for x in given] == list(range(1, 9))
    assert (tape.recorded, tape.replayed) == (1, 8 - WARM_UP) and [x[0].item() for x in given] == list(range(8))


@pytest.mark.parametrize("fused", [True, False])
def test_states_fit_each_adam_and_take_the_memory_layout_of_their_weights(fused):
    plain = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    last = torch.nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    first = torch.optim.Adam([plain], torch.tensor(1e-3), fused=not fused)  # recorded steps read the rate from a tensor
    second = torch.optim.Adam([last], fused=fused)
    plain.grad = torch.randn(4, 3, 2, 2)
    first.step()
    stored = copy.deepcopy(state_of(first))
    assert isinstance(stored["param_groups"][0]["lr"], float)
    load_state(second, stored)
    ours, theirs = second.state[last], first.state[plain]
    assert ours["exp_avg"].stride() == last.stride() != plain.stride()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with pytest.raises(ValueError):
        load_state(torch.optim.Adam([plain, last]), stored)


# --- the scripts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def on_tape(monkeypatch):
    """As if the CPU could record: a function that sets what records."""
    monkeypatch.setattr(train_syn_joint, "adam", adam)
    return lambda tape: monkeypatch.setattr(graphs, "recorder", lambda device: tape)


def test_a_training_with_recorded_steps(on_tape, pairs_folder, tmp_path):
    """The same log but for the rounding of rates to fp32; a state goes on recorded or not."""
    tape = Tape()
    on_tape(tape)
    more = ["--niter", 2, "--iters_per_epoch", 8, "--milestone", 1, 2]
    train(pairs_folder, tmp_path / "recorded", *more, "--cuda_graphs")
    assert (tape.recorded, tape.replayed) == (2, 16 - 2 * WARM_UP)
    train(pairs_folder, tmp_path / "usual", *more)
    for name, graphs_ in (("recorded", []), ("usual", ["--cuda_graphs"])):
        train(pairs_folder, tmp_path / name, "--niter", 3, *more[2:], *graphs_)
    assert tape.recorded == 4
    for a, b in zip(numbers_of(tmp_path / "recorded"), numbers_of(tmp_path / "usual"), strict=True):
        assert a == pytest.approx(b, rel=1e-2, abs=1e-3) and a["lr/D"] == b["lr/D"]


def test_a_recording_that_breaks_off_ends_the_training_with_advice(monkeypatch):
    """``CudaRecorder`` with PyTorch's context broken, as CUDA breaks it."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)

    class Broken:
        def __init__(self, *args, **kwargs): ...
        def __enter__(self): ...
        def __exit__(self, *error):
            raise RuntimeError("capture was invalidated")

    monkeypatch.setattr(torch.cuda, "graph", Broken)

    def work():
        raise RuntimeError("operation not permitted\nmore")

    with pytest.raises(Stopped, match=r"recorded \(operation not permitted\); run the same .* without --cuda"):
        graphs.CudaRecorder(CPU).record(work)


def test_nothing_records_on_a_cpu_or_in_several_processes(monkeypatch, pairs_folder, tmp_path):
    with pytest.raises(UserError, match="--cuda_graphs: steps are recorded on a GPU and in one process"):
        train_syn_joint.main(arguments(pairs_folder, tmp_path / "m", "--cuda_graphs"))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="in one process; leave --cuda_graphs out"):
        graphs.recorder(torch.device("cuda", 0))
