"""Recorded steps: same numbers as steps that run, on the CPU by a recorder that stands in for the GPU's (tape.py)."""

import copy
import csv

import pytest
import torch

from common import graphs
from common.graphs import Recording
from common.models import Derain, Discriminator, EDNet, PReNet
from common.speed import Speed, set_rate
from common.training import augment, encoder, generator, joint, proof, run
from common.training.averaging import Average
from for_syn import train_syn_aug, train_syn_joint
from tests.golden import fill, golden_json
from tests.tape import Tape
from tests.test_joint import NAMES, batch
from tests.test_training import arguments, resume


@pytest.fixture
def tape(monkeypatch):
    """As if the CPU could record."""
    found = Tape()
    monkeypatch.setattr(graphs, "recorder", lambda device: found)
    monkeypatch.setattr(proof, "GAIN", 0)  # a stand-in is slower
    return found


def small_nets(kind=torch.float64):
    torch.manual_seed(0)
    nets = fill(Derain(2), 21, 0.02), fill(EDNet(3, 8, 2, 16), 22, 0.02), fill(Discriminator(16, 4), 23)
    return [net.to(kind) for net in nets]


def joint_run(steps, record, nets=None, n_dis=2, rates=lambda index: (2e-4, 1e-4, 4e-4), speed=Speed):
    """Losses of each step, the networks, and what was shown after the last step."""
    nets, shown = nets or small_nets(), {}
    how = speed(record=record)
    how.prepare(nets[0], torch.device("cpu"))
    optimizers = joint.joint_optimizers(*nets, *rates(0), how)
    step = joint.joint_step(*nets, optimizers, 1.0, 10.0, n_dis, 1e-6, how, shown)
    torch.manual_seed(1)
    losses = []
    for index in range(steps):
        for optimizer, rate in zip(optimizers.values(), rates(index), strict=True):
            set_rate(optimizer, rate)
        rainy, clean = torch.rand(2, 3, 3, 16, 16, dtype=torch.float64).unbind()
        losses.append({name: value.item() for name, value in step(rainy, clean, index).items()})
        assert torch.equal(shown["clean"], clean) and torch.equal(shown["rainy"], rainy)  # those of this very step
        assert losses[-1]["mse"] == pytest.approx(torch.mean((shown["derained"] - clean) ** 2).item())
    return losses, nets, {name: value.clone() for name, value in shown.items()}, optimizers


def assert_same(a, b, tolerance=1e-9):
    for name, value in a.items():
        skip = name.endswith(("key_conv.bias", "value_conv.bias"))  # their true gradient is zero
        assert skip or torch.allclose(value, b[name], rtol=tolerance, atol=tolerance * 1e-2), name


def test_recorded_joint_steps_are_those_that_run(tape):
    recorded = joint_run(12, True)
    # Four steps are run, then replayed for comparison; the other eight are replayed.
    assert tape.recorded == 2 and tape.replayed == 4 + 8 and tape.kernels > 100
    usual = joint_run(12, False)
    assert tape.recorded == 2
    for a, b in zip(recorded[0], usual[0], strict=True):
        assert a == pytest.approx(b, rel=1e-7, abs=1e-10)
    assert recorded[0][8]["loss_G"] != recorded[0][10]["loss_G"] and "loss_G" not in recorded[0][11]
    for a, b in zip(recorded[1], usual[1], strict=True):
        assert_same(a.state_dict(), b.state_dict(), 1e-6)
    assert recorded[2].keys() == usual[2].keys()
    for name, value in usual[2].items():
        assert torch.allclose(recorded[2][name], value, rtol=1e-6, atol=1e-8), name


def test_rates_change_in_a_recording(tape):
    schedule = lambda index: (2e-4, 1e-4, 4e-4) if index < 9 else (1e-6, 1e-6, 1e-6)  # noqa: E731
    recorded, usual = joint_run(12, True, rates=schedule), joint_run(12, False, rates=schedule)
    assert tape.recorded == 2
    assert recorded[0][11] == pytest.approx(usual[0][11], rel=1e-7, abs=1e-10)
    assert recorded[0][11] != pytest.approx(joint_run(12, False)[0][11], rel=1e-5)


def test_golden_rows_from_recorded_steps(tape, monkeypatch):
    """Seven steps of the reference on SPA-Data, which are proven, and then replayed from their start: the quirk of the
    spectral norm is recorded as it runs, since u and v are overwritten where they lie."""
    golden = golden_json("joint_spa.json")
    nets = fill(Derain(6), 21, 0.02), fill(EDNet(3, 128, 32), 22, 0.02), fill(Discriminator(64, 64), 23)
    optimizers = joint.joint_optimizers(*nets, 2e-4, 1e-4, 4e-4)
    step = joint.joint_step(*nets, optimizers, golden["w_adv"], 10.0, 5, 1e-6, Speed(), {})
    start = [copy.deepcopy(net.state_dict()) for net in nets]
    torch.manual_seed(7)
    for index in range(7):
        step(*batch(index), index)
    for net, state in zip(nets, start, strict=True):
        net.load_state_dict(state)
    for optimizer in optimizers.values():
        for value in (value for state in optimizer.state.values() for value in state.values()):
            value.zero_()
    assert tape.recorded == 2 and tape.replayed == 7
    torch.manual_seed(7)
    names = NAMES | {"mse": "mse", "g_adv": "g_loss", "loss_G": "errED", "kl_z": "kl_z", "kl_b": "kl_b"}
    for index, expected in enumerate(golden["rows_float32"]):
        losses = step(*batch(index), index)
        assert len(losses) == (9 if index % 5 == 0 else 5)
        for key, value in losses.items():
            allowed = {"gp": 1e-4, "loss_D": 2e-3, "loss_G": 2e-3}.get(key, 1e-6)  # golden/README.md, for float32
            assert value.item() == pytest.approx(expected[names[key]], rel=1e-3, abs=allowed), (index, key)
    assert tape.recorded == 2 and tape.replayed == 14


def test_copies_of_u_and_v_would_be_noticed(tape, monkeypatch):
    """The textbook gradient, from copies of u and v, gives other numbers in a recording, too."""
    from common.models import spectral_norm

    def textbook(self):
        u, v, weight = self.module.weight_u, self.module.weight_v, self.module.weight_bar
        matrix = weight.flatten(1)
        with torch.no_grad():
            new_v = spectral_norm._unit(matrix.t() @ u)
            new_u = spectral_norm._unit(matrix @ new_v)
            u.data.copy_(new_u)
            v.data.copy_(new_v)
        return weight / torch.dot(new_u, matrix @ new_v)

    quirk = joint_run(10, True)[0]
    monkeypatch.setattr(spectral_norm.SpectralNorm, "_weight", textbook)
    other = joint_run(10, True)[0]
    assert tape.recorded == 4
    assert other[0]["loss_D"] == pytest.approx(quirk[0]["loss_D"], rel=1e-12)
    assert other[9]["loss_D"] != pytest.approx(quirk[9]["loss_D"], rel=1e-5)  # recorded against run: 1e-7


@pytest.fixture
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_recorded_augmented_steps_are_those_that_run(tape, in_double):
    found = []
    for record in (True, False):
        how, shown = Speed(record=record), {}
        net, netED = fill(PReNet(2), 31, 0.02).double(), fill(EDNet(3, 8, 2, 16), 32).double()
        step = augment.aug_step(net, netED, how.adam(net.parameters(), 1e-3), 3, how, shown)
        torch.manual_seed(3)
        losses = [step(*torch.rand(2, 5, 3, 16, 16), i)["loss"].item() for i in range(8)]
        found.append((losses, net.state_dict(), {name: value.clone() for name, value in shown.items()}))
    (a, nets_a, shown_a), (b, nets_b, shown_b) = found
    assert tape.recorded == 1 and tape.replayed == 8
    assert a == pytest.approx(b, rel=1e-8)
    assert_same(nets_a, nets_b, 1e-5)
    assert shown_a.keys() == shown_b.keys() and len(shown_a["generated_rainy"]) == 2
    assert all(torch.allclose(shown_a[name], shown_b[name], atol=1e-6) for name in shown_a)


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


def test_results_lie_where_those_before_lay(tape):
    replayed = Recording(lambda x: {"a": x + 1}, [torch.zeros(2)], tape)
    first = replayed(torch.full((2,), 3.0))
    second = replayed(torch.full((2,), 7.0))
    assert first["a"] is second["a"] and second["a"].tolist() == [8, 8]


# --- Adam ------------------------------------------------------------------------------------------------------------


def test_states_fit_whether_steps_are_recorded_or_not(tape):
    """A training that began on a GPU goes on without, and the other way round."""
    for before, after in ((True, False), (False, True)):
        nets = small_nets()
        optimizers = joint_run(6, before, nets)[3]
        stored = {name: copy.deepcopy(run.averages(optimizer)) for name, optimizer in optimizers.items()}
        assert all(isinstance(group["lr"], float) for state in stored.values() for group in state["param_groups"])
        found = []
        for record in (before, after):
            own, how = copy.deepcopy(nets), Speed(record=record)
            optimizers = joint.joint_optimizers(*own, 2e-4, 1e-4, 4e-4, how)
            for name, optimizer in optimizers.items():
                run.put_averages(optimizer, copy.deepcopy(stored[name]))
                assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == record
            step = joint.joint_step(*own, optimizers, 1.0, 10.0, 2, 1e-6, how, {})
            torch.manual_seed(5)
            batches = torch.rand(6, 2, 3, 3, 16, 16, dtype=torch.float64)
            found.append([step(*pair, index)["mse"].item() for index, pair in enumerate(batches)])
        assert found[0] == pytest.approx(found[1], rel=1e-7)
    with pytest.raises(ValueError):
        run.put_averages(how.adam([torch.nn.Parameter(torch.zeros(2))], 1e-3), stored["D"])


def test_averages_take_the_order_of_memory_of_their_weights():
    plain = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    last = torch.nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    first, second = Speed().adam([plain], 1e-3), torch.optim.Adam([last], 1e-3, fused=True)
    plain.grad = torch.randn(4, 3, 2, 2)
    first.step()
    run.put_averages(second, run.averages(first))
    state, before = second.state[last], first.state[plain]
    assert state["exp_avg"].stride() == last.stride() != plain.stride()
    assert torch.equal(state["exp_avg"], before["exp_avg"]) and torch.equal(state["exp_avg_sq"], before["exp_avg_sq"])
    assert state["step"] == 1


def test_without_a_recorder_adam_is_pytorchs_own():
    optimizer = Speed().adam([torch.nn.Parameter(torch.zeros(2))], 1e-3)
    assert optimizer.param_groups[0]["lr"] == 1e-3 and not optimizer.param_groups[0]["capturable"]
    set_rate(optimizer, 5e-4)
    assert optimizer.param_groups[0]["lr"] == 5e-4 and optimizer.param_groups[0]["initial_lr"] == 1e-3


# --- the scripts -----------------------------------------------------------------------------------------------------


def log_of(model):
    with open(f"{model}_logs/log.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_a_training_with_recorded_steps(tape, pairs_folder, tmp_path, capsys):
    """Same log and weights but for rounding, over epochs, changes of the rates, saving, and a resume without."""
    more = ["--niter", 5, "--iters_per_epoch", 10, "--milestone", 2, 3]
    assert train_syn_joint.main(arguments(pairs_folder, tmp_path / "recorded", *more)) is None
    assert tape.recorded == 2 and tape.replayed == 50  # four in the proof
    text = capsys.readouterr().out
    assert "not possible" not in text
    train_syn_joint.main(arguments(pairs_folder, tmp_path / "usual", *more, "--cuda_graphs", "off"))
    assert tape.recorded == 2
    for a, b in zip(log_of(tmp_path / "recorded"), log_of(tmp_path / "usual"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
        assert a["lr/D"] == b["lr/D"]
    assert a["lr/D"] == 1e-4
    # A state of either kind goes on as the other.
    for name, graphs_ in (("recorded", "off"), ("usual", "on")):
        resume(tmp_path / name, "--resume", -1, "--niter", 6, "--cuda_graphs", graphs_)
    assert tape.recorded == 4
    a, b = (log_of(tmp_path / name)[-1] for name in ("recorded", "usual"))
    assert a["epoch"] == 6 and a == pytest.approx(b, rel=1e-2, abs=1e-3)


def test_where_nothing_records_that_is_said(pairs_folder, tmp_path, capsys):
    train_syn_joint.main(arguments(pairs_folder, tmp_path / "m", "--niter", 1, "--cuda_graphs", "on"))
    assert capsys.readouterr().out.count("--cuda_graphs on: no GPU is used, so nothing is recorded") == 1


def test_own_derainers_are_recorded_where_that_is_asked_for(tape, pairs_folder, tmp_path, generator):
    own = tmp_path / "small.py"
    own.write_text(
        "from torch import nn\nclass Small(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 3, 3, 1, 1))\n"
    )
    for graphs_, recorded in (("auto", 0), ("on", 1)):
        flags = ["--data_path", pairs_folder / "rain", "--gt_path", pairs_folder / "norain", "--netED", generator]
        flags += [
            "--model_dir",
            tmp_path / graphs_,
            "--log_dir",
            tmp_path / f"{graphs_}_l",
            "--derainer",
            f"{own}:Small",
        ]
        flags += ["--patchSize", 16, "--batchSize", 3, "--iters_per_epoch", 6, "--niter", 1, "--cuda_graphs", graphs_]
        train_syn_aug.main([*map(str, flags), "--use_gpu", "false", "--manualSeed", "1"])
        assert tape.recorded == recorded
    a, b = (torch.load(tmp_path / name / "Aug_DerainNet_state_1.pt") for name in ("auto", "on"))
    assert_same(a, b, 1e-3)


def generator_run(steps, record):
    """Losses of each step of the generator's training, its networks and their average."""
    torch.manual_seed(0)
    netED, netD = EDNet(3, 8, 2, 16), generator.RainCritic(16, 4)
    generator.init_decoder(netED.decoder)
    how, average = Speed(record=record), Average(netED, 0.5)
    optimizers = {"ED": how.adam(netED.decoder.parameters(), 1e-4, (0.0, 0.99))}
    optimizers["D"] = how.adam(netD.parameters(), 1e-4, (0.0, 0.99))
    step = generator.generator_step(netED, netD, optimizers, 0.5, how, {}, average, 0.5)
    return run_of(step, steps), (netED, netD, average.net)


def encoder_run(steps, record):
    """The same of RNet's training."""
    torch.manual_seed(0)
    netED, how = EDNet(3, 8, 2, 16), Speed(record=record)
    encoder.init_encoder(netED.encoder)
    step = encoder.encoder_step(netED, how.adam(netED.encoder.parameters(), 1e-3), 10.0, how, {})
    return run_of(step, steps), (netED,)


def run_of(step, steps):
    torch.manual_seed(1)
    losses = []
    for index in range(steps):
        clean = torch.rand(4, 3, 16, 16)
        rainy = clean + (torch.rand(4, 1, 16, 16) > 0.8) * 0.3
        losses.append({name: value.item() for name, value in step(rainy, clean, index).items()})
    return losses


@pytest.mark.parametrize("made, recordings", [(generator_run, 2), (encoder_run, 1)])
def test_recorded_steps_of_g_and_rnet_alone_are_those_that_run(tape, made, recordings):
    steps = 20
    recorded = made(steps, True)
    assert tape.recorded == recordings and tape.replayed == steps
    usual = made(steps, False)
    for a, b in zip(recorded[0], usual[0], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    for a, b in zip(recorded[1], usual[1], strict=True):
        assert_same(a.state_dict(), b.state_dict(), 1e-4)
