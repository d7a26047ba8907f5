"""Precision, memory layout and compilation: which numbers they touch, and that fp32 stays exact."""

import copy
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common import precision
from common.data.images import read_image, write_image
from common.errors import UserError
from common.evaluation.derain import derain
from common.models import Derain, Discriminator, EDNet
from common.precision import prepare, set_arithmetic
from common.training import augment
from for_spa import train_spa_aug, train_spa_joint, train_spa_smallsample_aug, train_spa_smallsample_noaug
from for_syn import test_syn_joint as derain_script
from for_syn import train_syn_aug, train_syn_joint
from tests.conftest import photo
from tests.golden import fill, uniform
from tests.runs import joint_training

CPU = torch.device("cpu")
AUGMENTED = train_syn_aug, train_spa_aug, train_spa_smallsample_aug, train_spa_smallsample_noaug


def test_only_steps_that_learn_compute_gradients():
    calls = []
    net = fill(Derain(1), 1, 0.02)
    prepare(net, CPU, "fp32", training=True)
    net.derainet.register_forward_hook(
        lambda module, args, out: calls.append((out[0].requires_grad, args[0].is_contiguous()))
    )
    step, draw, *_ = joint_training((net, EDNet(3, 4, 2, 16), Discriminator(16, 4)))
    for index in range(3):
        step(*draw(*torch.rand(2, 2, 3, 16, 16), index, 2))
    assert calls == [(True, True), (False, False), (True, True)]  # channels_last where no gradients are


def test_published_tables_are_computed_exactly():
    assert derain_script.parse_args([]).precision == "fp32" and train_syn_joint.parse_args([]).precision == "auto"


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.fixture
def any_processor(monkeypatch):
    """As if it had bfloat16 instructions; the test is slow without, and right."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


def test_bf16_is_refused_where_it_would_be_slow(monkeypatch, tmp_path):
    """By a dry run as well, and before data are read; here there are none."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False, "cpu_name": "x"})
    for script in (train_syn_joint, train_spa_joint, *AUGMENTED):
        words = ["--data_path", tmp_path / "d", "--model_dir", tmp_path / "m", "--log_dir", tmp_path / "l", "--dry_run"]
        words += ["--precision", "bf16", "--use_gpu", "false"]
        words += ["--fake_ratio", 0] if script in AUGMENTED else []  # no generator is needed
        with pytest.raises(UserError, match="--precision bf16: this CPU has no bfloat16 instructions.*take fp32"):
            script.main(list(map(str, words)))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True})
    prepare(Derain(1), CPU, "bf16")


def test_bf16_is_for_the_derainer_alone(any_processor):
    dtypes = {}

    def note(name):
        return lambda module, args, out: dtypes.setdefault(name, set()).add(
            (out[0] if isinstance(out, tuple) else out).dtype
        )

    nets = fill(Derain(1), 1, 0.02), EDNet(3, 4, 2, 16), Discriminator(16, 4)
    for name, module in (("bnet", nets[0].derainet.conv0), ("ed", nets[1].decoder), ("d", nets[2])):
        module.register_forward_hook(note(name))
    prepare(nets[0], CPU, "bf16", training=True)
    step, draw, *_, optimizers = joint_training(nets)
    for index in range(3):
        values, images = step(*draw(*torch.rand(2, 2, 3, 16, 16), index, 2))
        assert all(value.dtype == torch.float32 for value in [*values.values(), *images.values()])
    assert dtypes == {"bnet": {torch.bfloat16}, "ed": {torch.float32}, "d": {torch.float32}}
    states = [s for opt in optimizers.values() for state in opt.state.values() for s in state.values()]
    assert states and all(s.dtype == torch.float32 for s in states)
    assert all(p.dtype == torch.float32 for net in nets for p in net.parameters())


def test_bf16_is_near_fp32(any_processor, tmp_path):
    net = fill(Derain(2), 11, 0.02).eval()
    rainy, half = uniform(4, 1, 3, 20, 20), copy.deepcopy(net)
    prepare(half, CPU, "bf16")
    near, exact = derain(half, rainy), derain(net, rainy)
    assert near.dtype == torch.float32 and 0 < (near - exact).abs().max() < 0.02
    torch.save(net.state_dict(), tmp_path / "net.pt")
    write_image(tmp_path / "in" / "a.png", photo(20, 24, 0))
    for name in ("fp32", "bf16"):
        flags = ["--data_path", tmp_path / "in", "--netDerain", tmp_path / "net.pt", "--stage", 2, "--use_gpu", "false"]
        flags += ["--save_path", tmp_path / name, "--precision", name]
        assert derain_script.main(list(map(str, flags))) == 0
    a, b = (read_image(tmp_path / name / "a.png").astype(int) for name in ("fp32", "bf16"))
    assert 0 < np.abs(a - b).max() <= 3


@pytest.fixture
def switches():
    """PyTorch's, put back afterwards; and a reader of those of convolutions, recurrent networks and products."""
    parts, every = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul), torch.backends
    before = [part.fp32_precision for part in parts], every.fp32_precision, torch.backends.cudnn.benchmark
    yield lambda: tuple(part.fp32_precision for part in parts)
    every.fp32_precision, torch.backends.cudnn.benchmark = before[1:]
    for part, value in zip(parts, before[0], strict=True):
        part.fp32_precision = value


def test_switches_of_each_precision(switches):
    results = {}
    for name in ("auto", "fp32", "tf32", "bf16"):
        set_arithmetic(name)
        results[name] = switches()
    exact, rounded = ("ieee", "ieee", "ieee"), ("tf32", "tf32", "tf32")
    assert results == {"auto": ("tf32", "tf32", "ieee"), "fp32": exact, "tf32": rounded, "bf16": rounded}


def test_whatever_a_program_has_set_before_the_switches_are_ours(switches):
    """Older ones would leave convolutions in TF32, and reading them raises RuntimeError."""
    torch.backends.fp32_precision = "tf32"
    precision.set_arithmetic("fp32")
    assert switches() == ("ieee", "ieee", "ieee")
    on_gpu = mock.Mock(device=torch.device("cuda", 0))
    for name, last in (("fp32", torch.contiguous_format), ("tf32", torch.channels_last)):
        precision.set_arithmetic(name)
        precision.order(on_gpu)
        on_gpu.contiguous.assert_called_with(memory_format=last)


def test_tensor_cores_get_weights_in_their_layout(switches):
    for name, last in (("fp32", False), ("auto", True), ("tf32", True)):
        net, custom = Derain(1), torch.nn.Conv2d(3, 3, 3)
        for each in (net, custom):
            prepare(each, torch.device("cuda", 0), name, training=True)
        weight = net.derainet.conv0[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        assert custom.weight.is_contiguous()


class Convolutions(TorchDispatchMode):
    """Notes the switch of the convolutions that run within it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "convolution" in function.__name__:
            self.seen.append(torch.backends.cudnn.conv.fp32_precision)
        return function(*args, **(kwargs or {}))


def test_ssim_and_its_gradient_are_computed_in_full_whatever_the_precision(switches):
    """E[x^2] - mu^2 of rounded factors would give an SSIM beyond 1. The net has no convolution of its own."""
    net = torch.nn.PReLU()
    set_arithmetic("tf32")
    with Convolutions() as convolutions:
        augment.a_step(net, torch.optim.SGD(net.parameters(), 1.0), *torch.rand(2, 1, 3, 20, 20))
    assert len(convolutions.seen) > 10 and set(convolutions.seen) == {"ieee"}  # 10 without those of the gradient
    assert switches() == ("tf32", "tf32", "tf32")
