"""What only a GPU can show: the reference's numbers there, resume to and from a CPU, recorded steps."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from common import precision as arithmetic
from common.benchmark import differing
from common.data.images import read_image, write_image
from common.evaluation.derain import Windows, derain, derain_pixels
from common.models import Derain, Discriminator, EDNet
from common.precision import prepare
from common.training import augment
from common.training.graphs import CudaRecorder
from for_syn import test_syn_joint as derain_script
from for_syn import train_syn_joint
from tests.conftest import photo
from tests.golden import fill, golden_json, uniform
from tests.runs import arguments, joint_training, load, numbers_of, train
from tests.test_distributed import torchrun, training
from tests.test_joint import NAMES, batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
GPU = torch.device("cuda", 0)


def needs(precision):
    """The precision, where this GPU has it; a T4 has none of these."""
    if precision in ("tf32", "bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip(f"{torch.cuda.get_device_name(GPU)} has no {precision}")
    return precision


@pytest.fixture(autouse=True)
def exact():
    """Full fp32, where a test does not ask for less."""
    arithmetic.set_arithmetic("fp32")
    yield
    arithmetic.set_arithmetic("fp32")
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize("name", ["joint_syn.json", "joint_spa.json"])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32], ids=["double", "single"])
def test_golden_rows(kind, name):
    """Seven joint steps of the reference, with the draws of the CPU."""
    golden = golden_json(name)
    nets = fill(Derain(6), 21, 0.02), fill(EDNet(3, 128, 32), 22, 0.02), fill(Discriminator(64, 64), 23)
    nets = [net.to(GPU, kind) for net in nets]
    prepare(nets[0], GPU, "fp32", training=True)
    step = joint_training(nets, w_adv=golden["w_adv"]).step
    torch.manual_seed(7)
    double = kind == torch.float64
    for index, expected in enumerate(golden["rows_float64" if double else "rows_float32"]):
        draws = torch.randn(4, 128), torch.rand(4, 1, 1, 1)
        losses, _ = step((index % 5 == 0,) * 2, *(x.to(GPU, kind) for x in (*batch(index), *draws)))
        assert len(losses) == (9 if index % 5 == 0 else 5)
        for key, value in losses.items():
            allowed = 1e-6 if double else {"gp": 1e-4, "loss_D": 2e-3, "loss_G": 2e-3}.get(key, 1e-6)
            expect = pytest.approx(expected[NAMES[key]], rel=1e-5 if double else 1e-3, abs=allowed)
            assert value.item() == expect, (index, key)


def small(precision="fp32"):
    """Joint training of small networks."""
    torch.manual_seed(0)
    nets = fill(Derain(2), 21, 0.02), fill(EDNet(3, 8, 4, 16), 22, 0.02), fill(Discriminator(16, 8), 23)
    nets = [net.to(GPU) for net in nets]
    prepare(nets[0], GPU, precision, training=True)
    return joint_training(nets)


def joint_run(precision="fp32"):
    """Losses of 16 steps, and the training."""
    run, rows = small(precision), []
    torch.manual_seed(1)
    for index in range(16):
        losses, _ = run.step(*run.draw(*torch.rand(2, 4, 3, 16, 16, device=GPU), index, 4))
        rows.append({name: value.item() for name, value in losses.items()})
    return rows, run


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions_are_near(precision):
    (exact, _), (near, run) = joint_run(), joint_run(needs(precision))
    assert near[0]["mse"] == pytest.approx(exact[0]["mse"], rel=0.05)
    assert near[0]["gp"] == pytest.approx(exact[0]["gp"], rel=0.05)
    assert all(p.dtype == torch.float32 for net in run.nets.values() for p in net.parameters())
    assert all(np.isfinite(list(row.values())).all() for row in near)


def test_arithmetic_is_what_it_says():
    needs("tf32")
    a, b = torch.randn(2, 512, 512, device=GPU)
    exact = (a.double() @ b.double()).float()
    errors = {}
    for precision in ("fp32", "tf32"):
        arithmetic.set_arithmetic(precision)
        errors[precision] = ((a @ b - exact).norm() / exact.norm()).item()
    assert errors["fp32"] < 3e-6 < 1e-5 < errors["tf32"] < 1e-2
    x, w = torch.randn(2, 64, 32, 32, device=GPU), torch.randn(64, 64, 3, 3, device=GPU)
    exact = nn.functional.conv2d(x.double(), w.double()).float()
    for precision in ("fp32", "tf32"):
        arithmetic.set_arithmetic(precision)
        errors[precision] = ((nn.functional.conv2d(x, w) - exact).norm() / exact.norm()).item()
    assert errors["fp32"] < 2e-5 < 5e-5 < errors["tf32"] < 1e-2


@pytest.mark.parametrize("w_l1", [0.0, 0.5])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_the_loss_of_an_augmented_step_is_that_of_float64(precision, w_l1):
    """Its windows in TF32 would give an SSIM beyond 1 on flat areas, and a gradient of another size."""
    needs(precision)
    flat = torch.stack([torch.from_numpy(photo(48, 48, i)) for i in range(2)]).permute(0, 3, 1, 2) / 5100 + 0.9
    found = []
    for kind, how in ((torch.float64, "fp32"), (torch.float32, precision)):
        arithmetic.set_arithmetic(how)
        clean = flat.to(GPU, kind)
        net = nn.Conv2d(3, 3, 1, groups=3, bias=False).to(GPU, kind)
        nn.init.ones_(net.weight)
        losses, _ = augment.a_step(net, torch.optim.Adam(net.parameters(), 0.0), 0.98 * clean, clean, w_l1)
        found.append((losses["loss"].item(), net.weight.grad.double()))
    (exact, gradient), (loss, near) = found
    assert loss == pytest.approx(exact, abs=1e-4) and (near - gradient).norm() < 1e-2 * gradient.norm()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_derained_pictures(precision):
    needs(precision)
    net = fill(Derain(6), 11, 0.02)
    pixels = [photo(60, 70, i) for i in range(6)]
    expected = [derain_pixels(net, p, torch.device("cpu"), Windows(0), "truncate").astype(int) for p in pixels]
    own = copy.deepcopy(net).to(GPU).eval()
    prepare(own, GPU, precision)
    for windows in (Windows(0), Windows(16)):
        for p, cpu in zip(pixels, expected, strict=True):
            found = derain_pixels(own, p, GPU, windows, "truncate").astype(int)
            levels = {"fp32": 1, "tf32": 2, "bf16": 4}[precision]
            assert np.abs(found - cpu).max() <= levels
            assert precision != "fp32" or (found != cpu).mean() < 1e-3


def test_batches_of_images():
    net = fill(Derain(2), 11, 0.02).to(GPU).eval()
    rainy = uniform(3, 4, 3, 40, 50).to(GPU)
    whole = derain(net, rainy, tile=0)
    assert torch.allclose(derain(net, rainy), whole, atol=1e-5)
    assert torch.allclose(derain(net, rainy, tile=16), whole, atol=1e-5)


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_a_training_on_the_gpu_goes_on_on_the_cpu_and_back(cache, pairs_folder, tmp_path, capsys):
    more = ["--niter", 2, "--iters_per_epoch", 12, "--cache", cache, "--workers", 1]
    train_syn_joint.main([*arguments(pairs_folder, tmp_path / "m", *more), "--use_gpu", "true"])
    text = capsys.readouterr().out
    assert "--precision auto: " in text
    more[1] = 3
    train(pairs_folder, tmp_path / "m", *more, "--use_gpu", "false")
    more[1] = 4
    train(pairs_folder, tmp_path / "m", *more, "--use_gpu", "true")
    assert all(torch.isfinite(v).all() for v in load(tmp_path / "m" / "ED_state_4.pt").values())


def test_the_script_that_derains(tmp_path):
    torch.save(fill(Derain(2), 11, 0.02).state_dict(), tmp_path / "net.pt")
    for i in range(6):
        write_image(tmp_path / "in" / f"{i}.png", photo(40, 44, i))
    for name, more in {"cpu": ["--use_gpu", "false"], "gpu": []}.items():
        flags = ["--data_path", tmp_path / "in", "--netDerain", tmp_path / "net.pt", "--stage", 2, *more]
        assert derain_script.main([*map(str, flags), "--save_path", str(tmp_path / name)]) == 0
    for i in range(6):
        a, b = (read_image(tmp_path / name / f"{i}.png").astype(int) for name in ("cpu", "gpu"))
        assert np.abs(a - b).max() <= 1 and (a != b).mean() < 1e-3


def test_processes_over_nccl(pairs_folder, tmp_path):
    """As many as there are GPUs, up to two; one alone goes the same way through NCCL."""
    processes = min(2, torch.cuda.device_count())
    flags = ["--use_gpu", "true", "--niter", 3, "--n_dis", 2, "--log_every", 1]
    train_syn_joint.main(training(pairs_folder, tmp_path / "alone", *flags))
    together = training(pairs_folder, tmp_path / "together", *flags)
    process = torchrun("for_syn/train_syn_joint.py", *together, processes=processes)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    for row, other in zip(numbers_of(tmp_path / "alone"), numbers_of(tmp_path / "together"), strict=True):
        assert other == pytest.approx(row, rel=1e-3)


# --- recorded steps: last, since after one that breaks off nothing can be said about the GPU --------------------------


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_replayed_steps_are_those_that_run(precision, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    assert differing(small(needs(precision)), CudaRecorder(GPU), 4, 16, GPU) == []


def test_a_recorded_training_with_validation_between_its_epochs(pairs_folder, tmp_path, capsys):
    more = ["--niter", 4, "--iters_per_epoch", 10, "--val_data_path", pairs_folder / "rain"]
    more += ["--val_gt_path", pairs_folder / "norain", "--cuda_graphs"]
    train_syn_joint.main([*arguments(pairs_folder, tmp_path / "m", *more), "--use_gpu", "true"])
    assert capsys.readouterr().out.count("val psnr_y") == 4
    assert (tmp_path / "m" / "DerainNet_best.pt").exists()
