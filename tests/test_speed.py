"""The fast way against the plain one: same losses, same gradients, same files; and the benchmark that compares them."""

import contextlib
import copy
import json
from unittest import mock

import numpy as np
import pytest
import torch

from common import benchmark, memory, speed
from common import precision as arithmetic
from common.data.images import read_image, write_image
from common.errors import UserError
from common.evaluation.derain import derain
from common.memory import keep_memory
from common.models import Derain, EDNet, PReNet
from common.precision import require_fast
from common.speed import Speed, compile_net, fuse
from common.training import augment, device, joint
from common.training.augment import aug_step
from common.training.joint import joint_optimizers, joint_step
from common.training.runtime import pick_device
from for_syn import test_syn_joint as derain_script
from for_syn import train_syn_joint
from tests.conftest import photo
from tests.golden import fill, uniform
from tests.tensor_cores import TensorCores
from tests.test_joint import batch
from tests.test_training import arguments, load, same


def test_a_network_of_the_users_is_left_alone():
    net = torch.nn.Conv2d(3, 3, 1)
    net.fused = True
    Speed(plain=True).prepare(net, torch.device("cpu"))
    assert net.fused is True


def both(net):
    """A network with one convolution for the gates, and the same with four."""
    plain = copy.deepcopy(net)
    fuse(plain, False)
    return net, plain


@pytest.mark.parametrize("stages", [1, 2, 6])
@pytest.mark.parametrize("kind", [Derain, PReNet])
def test_gates_in_one_convolution_are_those_of_four(kind, stages):
    fused, plain = both(fill(kind(stages), 11).double())
    assert fused.state_dict().keys() == plain.state_dict().keys()
    rainy = uniform(1, 2, 3, 17, 22).double()
    results = []
    for net in (fused, plain):
        out = torch.stack(list(net(rainy) if kind is Derain else net(rainy)[1]))
        out.square().sum().backward()
        results.append(out)
    a, b = results
    assert (a - b).abs().max() <= 1e-12 * b.abs().max()
    for (name, p), q in zip(fused.named_parameters(), plain.parameters(), strict=True):
        if p.grad is None:  # plainly it gets zeros: f of a single stage, which c = 0 is multiplied by
            assert q.grad is None or not q.grad.any(), name
        else:
            assert (p.grad - q.grad).abs().max() <= 1e-10 * q.grad.abs().max(), name


def test_without_gradients_and_in_any_order_of_memory_the_numbers_are_the_same():
    fused, plain = both(fill(Derain(6), 11))
    rainy = uniform(2, 2, 3, 33, 40)
    with torch.no_grad():
        for x in (rainy, rainy.contiguous(memory_format=torch.channels_last)):
            for a, b in zip(fused(x), plain(rainy), strict=True):
                assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    for a, b in zip(fused(rainy), plain(rainy), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def joint_run(speed_, steps=4):
    torch.manual_seed(0)
    nets = fill(Derain(2), 21, 0.02), fill(EDNet(3, 8, 2), 22, 0.02), benchmark.Discriminator(64, 4)
    nets = [net.double() for net in nets]
    speed_.prepare(nets[0], torch.device("cpu"))
    step = joint_step(*nets, joint_optimizers(*nets, 2e-4, 1e-4, 4e-4), 1.0, 10.0, 2, 1e-6, speed_, {})
    torch.manual_seed(1)
    rainy, clean = (x[:, :, :16, :16].double() for x in batch(0))
    rainy, clean = (x.repeat(1, 1, 4, 4) for x in (rainy, clean))
    losses = [{k: v.item() for k, v in step(rainy, clean, i).items()} for i in range(steps)]
    return losses, [net.state_dict() for net in nets]


def test_joint_steps_are_the_same_plain_and_fast():
    (fast, fast_nets), (plain, plain_nets) = joint_run(Speed()), joint_run(Speed(plain=True))
    for a, b in zip(fast, plain, strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12)
    assert fast[0]["loss_G"] != fast[2]["loss_G"]
    for a, b in zip(fast_nets, plain_nets, strict=True):
        for name in a:
            skip = name.endswith(("key_conv.bias", "value_conv.bias"))  # their true gradient is zero
            assert skip or torch.allclose(a[name], b[name], rtol=1e-7, atol=1e-9), name


def test_augmented_steps_are_the_same_plain_and_fast():
    found = []
    for speed_ in (Speed(), Speed(plain=True)):
        net, netED = fill(PReNet(2), 31, 0.02).double(), fill(EDNet(3, 8, 2, 16), 32).double()
        speed_.prepare(net, torch.device("cpu"))
        step = aug_step(net, netED, torch.optim.Adam(net.parameters(), 1e-3), 3, speed_, {})
        torch.manual_seed(3)
        torch.set_default_dtype(torch.float64)
        try:
            losses = [step(*torch.rand(2, 4, 3, 16, 16), i)["loss"].item() for i in range(3)]
        finally:
            torch.set_default_dtype(torch.float32)
        found.append((losses, net.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-10)
    for name, value in found[0][1].items():
        assert torch.allclose(value, found[1][1][name], rtol=1e-7, atol=1e-9), name


def test_only_steps_that_learn_compute_gradients(monkeypatch):
    seen = []
    net = fill(Derain(1), 1, 0.02)
    net.register_forward_hook(lambda module, args, out: seen.append((out[0].requires_grad, args[0].is_contiguous())))
    for speed_ in (Speed(), Speed(plain=True)):
        netED, netD = EDNet(3, 4, 2, 16), benchmark.Discriminator(16, 4)
        optimizers = joint_optimizers(net, netED, netD, 1e-4, 1e-4, 1e-4)
        step = joint_step(net, netED, netD, optimizers, 1.0, 10.0, 2, 1e-6, speed_, {})
        for index in range(3):
            step(*torch.rand(2, 2, 3, 16, 16), index)
    assert seen == [(True, True), (False, False), (True, True), *[(True, True)] * 3]


def test_derained_bytes_are_those_of_the_plain_network(tmp_path):
    net, plain = both(fill(Derain(6), 11, 0.02).eval())
    rainy = torch.from_numpy(photo(60, 70, 3)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = plain(rainy)[0]
    a, b = ((255 * x.clamp(0, 1)).floor() for x in (derain(net, rainy), expected))
    assert (a - b).abs().max() <= 1 and (a != b).float().mean() <= 1e-4


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.fixture
def any_processor(monkeypatch):
    """As if it had bfloat16 instructions; the test is slow without, and right."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


def test_bf16_is_refused_where_it_would_be_slow(monkeypatch, pairs_folder, tmp_path):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False, "cpu_name": "x"})
    require_fast("fp32", cpu)
    with pytest.raises(UserError, match="--precision bf16: this CPU has no bfloat16 instructions.*take fp32"):
        require_fast("bf16", cpu)
    with pytest.raises(UserError, match="--precision bf16"):
        train_syn_joint.main(arguments(pairs_folder, tmp_path / "m", "--precision", "bf16"))
    assert not list((tmp_path / "m").glob("*.pt"))
    for name in ("avx512_bf16", "amx_bf16", "bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {"avx2": True, name: True})
        require_fast("bf16", cpu)


def test_bf16_is_for_the_derainer_alone(any_processor):
    dtypes = {}

    def note(name):
        return lambda module, args, out: dtypes.setdefault(name, set()).add(
            (out[0] if isinstance(out, tuple) else out).dtype
        )

    nets = fill(Derain(1), 1, 0.02), EDNet(3, 4, 2, 16), benchmark.Discriminator(16, 4)
    for name, module in (("bnet", nets[0].derainet.conv0), ("ed", nets[1].decoder), ("d", nets[2])):
        module.register_forward_hook(note(name))
    speed_, shown = Speed("bf16"), {}
    speed_.prepare(nets[0], torch.device("cpu"))
    optimizers = joint_optimizers(*nets, 1e-4, 1e-4, 1e-4)
    step = joint_step(*nets, optimizers, 1.0, 10.0, 2, 1e-6, speed_, shown)
    losses = [step(*torch.rand(2, 2, 3, 16, 16), index) for index in range(3)]
    assert dtypes == {"bnet": {torch.bfloat16}, "ed": {torch.float32}, "d": {torch.float32}}
    assert all(value.dtype == torch.float32 for row in losses for value in row.values())
    assert all(value.dtype == torch.float32 for value in shown.values())
    states = [s for opt in optimizers.values() for state in opt.state.values() for s in state.values()]
    assert states and all(s.dtype == torch.float32 for s in states)
    assert all(p.dtype == torch.float32 for net in nets for p in net.parameters())


def test_bf16_is_near_fp32(any_processor, tmp_path, pairs_folder):
    net = fill(Derain(2), 11, 0.02).eval()
    rainy = uniform(4, 1, 3, 20, 20)
    with arithmetic.autocast(rainy.device, "bf16"):
        near = derain(net, rainy)
    exact = derain(net, rainy)
    assert near.dtype == torch.float32 and 0 < (near - exact).abs().max() < 0.02
    torch.save(net.state_dict(), tmp_path / "net.pt")
    write_image(tmp_path / "in" / "a.png", photo(20, 24, 0))
    for precision in ("fp32", "bf16"):
        flags = ["--data_path", tmp_path / "in", "--netDerain", tmp_path / "net.pt", "--stage", 2, "--use_gpu", "false"]
        flags += ["--save_path", tmp_path / precision, "--precision", precision]
        assert derain_script.main(list(map(str, flags))) == 0
    a, b = (read_image(tmp_path / precision / "a.png").astype(int) for precision in ("fp32", "bf16"))
    assert np.abs(a - b).max() <= 3
    train_syn_joint.main(arguments(pairs_folder, tmp_path / "m", "--precision", "bf16", "--niter", 1))
    assert all(v.dtype == torch.float32 for v in load(tmp_path / "m" / "DerainNet_state_1.pt").values())
    with pytest.raises(UserError, match="--precision is fp32, the run has bf16"):
        train_syn_joint.main(["--model_dir", str(tmp_path / "m"), "--resume", "-1", "--precision", "fp32"])


def test_tf32_on_a_cpu_is_fp32_and_says_so(pairs_folder, tmp_path, capsys):
    for precision in ("tf32", "fp32", "auto"):
        train_syn_joint.main(arguments(pairs_folder, tmp_path / precision, "--precision", precision, "--niter", 1))
        said = "--precision tf32: only GPUs have TF32; computing in fp32" in capsys.readouterr().out
        assert said == (precision == "tf32")
    rounded, exact, auto = (load(tmp_path / p / "DerainNet_state_1.pt") for p in ("tf32", "fp32", "auto"))
    assert same(rounded, exact) and same(auto, exact)


@pytest.fixture
def switches():
    """PyTorch's, put back afterwards; and a reader of those of convolutions, recurrent networks and products."""
    parts, every = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul), torch.backends
    before = (
        [part.fp32_precision for part in parts],
        every.fp32_precision,
        torch.backends.cudnn.benchmark,
        arithmetic._tensor_cores,
    )
    yield lambda: tuple(part.fp32_precision for part in parts)
    every.fp32_precision, torch.backends.cudnn.benchmark, arithmetic._tensor_cores = before[1:]
    for part, value in zip(parts, before[0], strict=True):
        part.fp32_precision = value


def test_switches_of_each_precision(switches):
    found = {}
    speeds = {"plain": Speed(plain=True)} | {p: Speed(p) for p in ("auto", "fp32", "tf32", "bf16")}
    for name, how in speeds.items():
        how.switch()
        found[name] = *switches(), torch.backends.cudnn.benchmark
    exact, rounded = ("ieee", "ieee", "ieee", True), ("tf32", "tf32", "tf32", True)
    own = "tf32", "tf32", "ieee"  # PyTorch's
    assert found == {"plain": (*own, False), "auto": (*own, True), "fp32": exact, "tf32": rounded, "bf16": rounded}
    with speed.unprepared(torch.nn.Conv2d(1, 1, 1)):
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize("before", ["tf32", "ieee", "none"])
def test_whatever_a_program_has_set_before_the_switches_are_ours(switches, before):
    """Older ones would leave convolutions in TF32, and reading them raises RuntimeError."""
    torch.backends.fp32_precision = before
    arithmetic.set_arithmetic("fp32")
    assert switches() == ("ieee", "ieee", "ieee")
    on_gpu = mock.Mock(device=torch.device("cuda", 0))
    for precision, last in (("fp32", torch.contiguous_format), ("tf32", torch.channels_last)):
        arithmetic.set_arithmetic(precision)
        arithmetic.order(on_gpu)
        on_gpu.contiguous.assert_called_with(memory_format=last)


def test_a_gpu_starts_exact(switches, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(device, "try_kernel", lambda device: "")
    torch.backends.fp32_precision = "tf32"
    assert pick_device(True, "0") == torch.device("cuda", 0)
    assert switches() == ("ieee", "ieee", "ieee")


def test_the_default_says_on_a_gpu_what_it_means(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert train_syn_joint.parse_args([]).precision == derain_script.parse_args([]).precision == "auto"
    assert arithmetic.describe("auto", cpu) == ""
    for supported, text in (
        (True, "as PyTorch does by itself"),
        (False, "this GPU has no TF32"),
    ):
        monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda supported=supported: supported)
        assert text in arithmetic.describe("auto", gpu)


def test_tensor_cores_get_weights_in_their_order(switches):
    for precision, last in (("fp32", False), ("auto", True), ("tf32", True)):
        net, own = Derain(1), torch.nn.Conv2d(3, 3, 3)
        for each in (net, own):
            Speed(precision).prepare(each, torch.device("cuda", 0))
        weight = net.derainet.conv0[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        assert own.weight.is_contiguous()


def test_order_of_a_batch(switches):
    last = torch.channels_last
    for x in (torch.rand(2, 3, 8, 9), torch.rand(2, 8, 9, 3).permute(0, 3, 1, 2)):
        with torch.no_grad():
            assert arithmetic.order(x).is_contiguous(memory_format=last)
        assert arithmetic.order(x).is_contiguous() and torch.equal(arithmetic.order(x), x)


def smooth(number, p):
    """Bright, flat photos without noise, and the same a little darker."""
    clean = torch.stack([torch.from_numpy(photo(p, p, i)) for i in range(number)]).permute(0, 3, 1, 2) / 5100 + 0.9
    return clean, 0.98 * clean


def ssim_step(kind, derain=lambda x: x):
    """Loss of an A+ step in some type, and the gradient by what the derainer made."""
    rainy, clean = (x.to(kind) for x in smooth(2, 48))
    scale = torch.nn.Parameter(torch.ones_like(rainy).contiguous(memory_format=torch.channels_last))
    with mock.patch.object(torch.optim.Adam, "step"):
        optimizer = torch.optim.Adam([scale])
        losses, _ = augment.a_step(lambda x: scale * x, optimizer, arithmetic.order(rainy), clean)
    return losses["loss"].item(), scale.grad.double()


def test_ssim_is_computed_in_full_whatever_the_precision(switches, monkeypatch):
    """E[x^2] - mu^2 of rounded factors would give an SSIM beyond 1, and a wrong gradient."""
    exact, gradient = ssim_step(torch.float64)
    for precision in ("tf32", "bf16"):
        Speed(precision).switch()
        with TensorCores() as cores:
            loss, found = ssim_step(torch.float32)
        assert cores.rounded == 0 and loss == pytest.approx(exact, abs=1e-4)
        assert (found - gradient).norm() < 1e-2 * gradient.norm()
    assert switches() == ("tf32", "tf32", "tf32")
    monkeypatch.setattr(augment, "full_fp32", contextlib.nullcontext)  # what the test would find without
    with TensorCores() as cores:
        loss, found = ssim_step(torch.float32)
    assert cores.rounded and loss < -1.1 and (found - gradient).norm() > gradient.norm()


def test_other_losses_and_the_spectral_norm_bear_rounded_factors(switches):
    """None of them cancels: a penalty, KL terms and sigma differ by the rounding alone, below one in a hundred."""
    found = {}
    for kind in (torch.float64, torch.float32):
        Speed("fp32" if kind == torch.float64 else "tf32").switch()
        nets = fill(Derain(2), 21, 0.02), fill(EDNet(3, 8, 4, 16), 22, 0.02), fill(benchmark.Discriminator(16, 8), 23)
        nets = [net.to(kind) for net in nets]
        rainy, clean = (x.to(kind) for x in smooth(2, 16))
        step = joint_step(*nets, joint_optimizers(*nets, 2e-4, 1e-4, 4e-4), 1.0, 10.0, 5, 1e-6, Speed(), {})
        torch.manual_seed(1)
        with (
            TensorCores(),
            mock.patch.object(
                joint,
                "draw",
                lambda n, nz, _, k=kind: (torch.ones(n, nz, dtype=k), torch.full((n, 1, 1, 1), 0.5, dtype=k)),
            ),
        ):
            found[kind] = {name: value.item() for name, value in step(rainy, clean, 0).items()}
    assert found[torch.float32] == pytest.approx(found[torch.float64], rel=1e-2, abs=1e-4)


# --- compilation ---------------------------------------------------------------------------------------------------


def test_without_a_compiler_work_goes_on(monkeypatch, pairs_folder, tmp_path, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    train_syn_joint.main(arguments(pairs_folder, tmp_path / "a", "--niter", 1, "--compile"))
    assert "--compile: not possible here, going on without (no C++ compiler)" in capsys.readouterr().out
    monkeypatch.undo()
    train_syn_joint.main(arguments(pairs_folder, tmp_path / "b", "--niter", 1))
    assert same(load(tmp_path / "a" / "ED_state_1.pt"), load(tmp_path / "b" / "ED_state_1.pt"))


def test_a_compiled_network_keeps_its_names_and_numbers(monkeypatch):
    net = fill(Derain(1), 11)
    names, rainy = list(net.state_dict()), uniform(3, 1, 3, 16, 16)
    with torch.no_grad():
        expected = net(rainy)[0]
    calls = []

    def backend(graph, inputs):  # compiles nothing, so that the test needs no compiler
        calls.append(graph)
        return graph.forward

    real = torch.nn.Module.compile
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: whole(f, **how) if how else f)  # the trial needs a compiler
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: real(self, backend=backend))
    compile_net(net, rainy.device)
    with torch.no_grad():
        assert torch.allclose(net(rainy)[0], expected, atol=1e-6) and calls
        before = len(calls)
        with speed.unprepared(net):
            net(uniform(4, 1, 3, 20, 24))
        assert len(calls) == before
    assert list(net.state_dict()) == names and isinstance(net, Derain)


def test_keeping_memory_says_whether_it_could(monkeypatch):
    assert keep_memory() in (True, False)
    monkeypatch.setattr(memory.sys, "platform", "win32")
    assert keep_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())  # musl
    assert keep_memory() is False


# --- the benchmark -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [*benchmark.WORK, "all"])
def test_benchmark(work, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "Derain", lambda stages: Derain(1))
    monkeypatch.setattr(benchmark, "PReNet", lambda stages: PReNet(1))
    flags = ["--turns", 2, "--batchSize", 2, "--patchSize", 16, "--height", 24, "--width", 32, "--precision", "auto"]
    assert benchmark.main([work, *map(str, flags), "--json", str(tmp_path / "deep" / "b.json")]) == 0
    found = json.loads((tmp_path / "deep" / "b.json").read_text())
    works = [f"{name}: " for name in benchmark.WORK] if work == "all" else [""]
    assert [row["case"] for row in found["rows"]] == [f"{name}{p}" for name in works for p in ("fp32", "auto")]
    printed = capsys.readouterr().out
    steps = {"joint": 5, "aug": 1, "derain": 1}  # of a turn on a CPU
    for row in found["rows"]:
        count = steps[row["case"].partition(": ")[0] if work == "all" else work]
        assert row["per_s"] == pytest.approx(count / np.mean(row["seconds"])) and len(row["seconds"]) == 2
        assert f"| {row['case']} " in printed
    assert found["options"]["precision"] == ["auto"] and found["machine"] in printed


def test_benchmark_takes_the_median_of_the_turns_and_the_largest_peak(monkeypatch):
    clock = iter([0, 10, 14, 20, 22, 30, 36])  # the warm-up reads it once
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    peaks = iter([3e9, 5e9, 4e9])
    monkeypatch.setattr(benchmark, "_process_peak", lambda: next(peaks))
    (row,) = benchmark.measure([benchmark.Case("a", lambda: None, 8)], torch.device("cpu"), 3)
    assert row == {"case": "a", "seconds": [4, 2, 6], "per_s": 2, "peak_bytes": 5e9}
    assert "| a     |        2 |     0.5 |    5.00 |" in benchmark.table([row], "steps")


@pytest.mark.parametrize(
    "args, message",
    [
        (["--device", "cuda"], "--device cuda: there is no GPU here"),
        (["--precision", "tf32"], "--precision tf32: only GPUs have it"),
    ],
)
def test_benchmark_flags(args, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(benchmark, "trouble", lambda: "")
    with pytest.raises(UserError, match=message):
        benchmark.main(args)
