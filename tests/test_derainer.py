"""--derainer: the contract of a network, messages where it is broken, sizes, and the choice beside the weights."""

import numpy as np
import pytest
import torch
from torch import nn

from common import derainer
from common.errors import UserError
from common.evaluation.derain import derain
from common.models import PReNet
from for_syn import test_syn_aug, train_syn_aug
from tests.conftest import folders

FILE = """
import torch
from torch import nn
from neighbour import SCALE


class Net(nn.Module):
    def __init__(self, width=4, kind="sum", multiple=1):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)
        self.kind, self.multiple = kind, multiple

    def forward(self, rainy):
        if rainy.shape[2] % self.multiple or rainy.shape[3] % self.multiple:
            raise ValueError(f"sides must be multiples of {self.multiple}")
        out = rainy + SCALE * self.conv(rainy.view(len(rainy), 3, *rainy.shape[2:]))
        if self.kind == "in place":
            rainy.mul_(0.5)
        if self.kind == "nan" and not self.training:
            return out * float("nan")
        kinds = {"tuple": (out, 1), "small": out[..., 1:], "dict": {"out": out}, "cut": out.detach()}
        return (kinds | dict.fromkeys(["sum", "in place", "nan"], out))[self.kind]


class Nothing(nn.Module):
    def forward(self, rainy):
        return rainy


def function(width):
    return Net(width)


def number():
    return 3
"""
CPU = torch.device("cpu")


@pytest.fixture
def net_file(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "net.py").write_text(FILE)
    (tmp_path / "code" / "neighbour.py").write_text("SCALE = 0.1\n")
    return tmp_path / "code" / "net.py"


def parse(*flags):
    return train_syn_aug.parse_args(list(map(str, flags)))


def built(net_file, name="Net", *more):
    return derainer.build(parse("--derainer", f"{net_file}:{name}", *(["--derainer_args", *more] if more else [])))


# --- from flags to a network -----------------------------------------------------------------------------------------


def test_values_of_arguments():
    texts = ["a=1", "b=2.5", "c=True", "d=none", "e=[1,2]", "f=3,4", "g=text", "h='7'", "i=", "j=-1e-3", "k=x=y"]
    expected = [1, 2.5, True, None, [1, 2], [3, 4], "text", "7", "", -1e-3, "x=y"]
    assert derainer.values(texts) == dict(zip("abcdefghijk", expected, strict=True))


def test_a_file_a_function_and_a_module(net_file, monkeypatch):
    assert built(net_file, "Net", "kind=tuple").kind == "tuple"
    assert type(built(net_file, "function", "width=2")).__name__ == "Net"
    monkeypatch.chdir(net_file.parent)
    assert parse("--derainer", "net.py:Net").derainer == f"{net_file}:Net"  # relative to the working directory
    (net_file.parent / "my_package").mkdir()
    (net_file.parent / "my_package" / "nets.py").write_text(FILE)
    assert type(derainer.build(parse("--derainer", "my_package.nets:Net"))).__module__ == "my_package.nets"


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("gone.py:Net", [], "FileNotFoundError: .*gone.py"),
        ("net.py:Nets", [], "no attribute 'Nets'"),
        ("net.py:Net", ["--derainer_args", "depth=3"], "TypeError: .*unexpected.*depth.*--derainer_args key=value"),
        ("net.py:number", [], "it makes a int. A derainer is a torch.nn.Module"),
        ("net.py:Net", ["--derainer_args", "width 3"], "--derainer_args: expected key=value, got 'width 3'"),
        ("net.py:Net", ["--recurrent_iter", 3], "--recurrent_iter: it belongs to prenet"),
        ("net.py", [], "Name a network as package.module:Class or path/to/file.py:Class"),
        ("broken.py:Net", [], r"ZeroDivisionError: .*\(broken.py, line 2\)"),
    ],
)
def test_networks_that_can_not_be_made(net_file, name, flags, message):
    (net_file.parent / "broken.py").write_text("x = 1\ny = 1 / 0")
    with pytest.raises(UserError, match=message):
        derainer.build(parse("--derainer", f"{net_file.parent}/{name}", *flags))


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, message",
    [
        ("small", r"made \(2, 3, 16, 15\) of a batch \(2, 3, 16, 16\). A derainer is a"),
        ("dict", "made a dict"),
        ("cut", "can't be trained: .*does not require grad"),
        ("unknown", r"failed on a batch \(2, 3, 16, 16\): KeyError: 'unknown' \(net.py, line \d+\)"),
    ],
)
def test_broken_contracts_are_reported_before_training(net_file, kind, message):
    with pytest.raises(UserError, match=message):
        derainer.check(built(net_file, "Net", f"kind={kind}"), 2, 16, CPU)


def test_the_check_leaves_no_trace():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    before, drawn = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    derainer.check(net, 2, 16, CPU)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state()) and net[0].weight.grad is None


@pytest.mark.parametrize("kind", ["tuple", "in place"])
def test_the_result_is_a_tensor_or_the_first_of_several(net_file, kind):
    net, rainy = built(net_file, "Net", f"kind={kind}").eval(), torch.rand(1, 3, 16, 16)
    before = rainy.clone()
    expected = rainy + 0.1 * net.conv(rainy)
    assert torch.equal(derain(net, rainy), expected) and torch.equal(rainy, before)


# --- sizes and tiles -------------------------------------------------------------------------------------------------


class Probe(nn.Module):
    """Keeps its inputs and returns them."""

    def forward(self, rainy):
        self.inputs = [*getattr(self, "inputs", []), rainy]
        return rainy * 1


@pytest.mark.parametrize("size", [(21, 30), (1, 1), (3, 40)])
@pytest.mark.parametrize("pad_to, square", [(8, False), (16, True), (1, False)])
def test_padding_by_reflection(size, pad_to, square):
    net, rainy = Probe(), torch.rand(2, 3, *size)
    assert torch.equal(derain(net, rainy, pad_to=pad_to, pad_square=square), rainy)
    sides = [-(-side // pad_to) * pad_to for side in size]
    sides = [max(sides)] * 2 if square else sides
    more = [(0, 0), (0, 0), *((0, b - a) for a, b in zip(size, sides, strict=True))]
    assert len(net.inputs) == 1 and np.array_equal(net.inputs[0].numpy(), np.pad(rainy.numpy(), more, "reflect"))


def test_other_derainers_get_tiles_only_on_request():
    net, rainy = Probe(), torch.rand(1, 3, 40, 50)
    for tile, halo, pad_to in ((-1, None, 1), (0, None, 1), (32, 4, 8)):
        assert torch.equal(derain(net, rainy, tile, halo=halo, pad_to=pad_to), rainy)
    sizes = [tuple(x.shape[2:]) for x in net.inputs]
    assert sizes == [(40, 50)] * 2 + [(40, 40), (40, 24), (16, 40), (16, 24)]


# --- training and testing through the scripts ------------------------------------------------------------------------

SMALL = ["--patchSize", "16", "--batchSize", "2", "--niter", "1", "--iters_per_epoch", "2", "--fake_ratio", "0"]
SMALL += ["--workers", "0", "--use_gpu", "false", "--manualSeed", "3"]


def train(data, model, *more):
    return train_syn_aug.main([*folders(data, model), *SMALL, *map(str, more)])


@pytest.fixture
def run(pairs_folder, tmp_path):
    def run(*flags):
        given = ["--data_path", pairs_folder / "rain", "--save_path", tmp_path / "out", "--use_gpu", "false", *flags]
        return test_syn_aug.main(list(map(str, given)))

    return run


@pytest.fixture
def trained(pairs_folder, net_file, tmp_path):
    """The folder of a training of the file's network, and its flags: those of the network first, six words."""
    flags = ["--derainer", f"{net_file}:Net", "--derainer_args", "multiple=4", "kind=tuple", "--pad_to", "4"]
    val = ["--val_data_path", pairs_folder / "rain", "--val_gt_path", pairs_folder / "norain"]
    train(pairs_folder, tmp_path / "model", *flags, *val)
    return tmp_path / "model", flags


def test_train_and_test(trained, run, tmp_path, pairs_folder, capsys):
    model, flags = trained
    assert set(torch.load(model / "Aug_DerainNet_state_1.pt")) == {"conv.weight", "conv.bias"}
    assert run("--model_dir", model, "--gt_path", pairs_folder / "norain", *flags[:2]) == 0  # what was stored does
    said = capsys.readouterr()
    assert "taking Aug_DerainNet_state_1.pt" in said.out and "in the training" not in said.err
    assert "--derainer_args: ['multiple=4', 'kind=tuple'], as in the training" in said.out
    assert (tmp_path / "out" / "metrics.csv").exists()


def test_no_code_runs_for_a_stored_name(trained, run, net_file, tmp_path):
    model, _ = trained
    net_file.write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n{FILE}")
    with pytest.raises(UserError) as error:
        run("--model_dir", model)
    assert str(error.value).endswith(f"If you trust it, add --derainer {net_file}:Net")
    assert not (tmp_path / "was_run").exists()


def test_sizes_that_the_network_can_not_take(trained, run, pairs_folder, tmp_path, capsys):
    model, flags = trained
    val = ["--val_data_path", pairs_folder / "rain", "--val_gt_path", pairs_folder / "norain"]
    with pytest.raises(UserError, match=r"failed on a batch \(1, 3, 24, 21\): .*multiples of 4 .*--pad_to 8"):
        train(pairs_folder, tmp_path / "other", *flags[:-1], 1, *val)
    assert not (tmp_path / "other").exists()
    assert run("--model_dir", model, *flags[:-1], 1) == 1  # the first (24x20) fits and is kept, the others do not
    out, err = capsys.readouterr()
    assert "1 images derained" in out and "3 of 4 images could not be derained" in err
    assert "9.png: --derainer: Net" in err
    with pytest.raises(UserError, match="--tile, --tile_halo: a derainer of your own needs both"):
        run("--model_dir", model, *flags, "--tile", 16)


def test_results_that_are_not_finite_are_no_images(pairs_folder, tmp_path, run, net_file):
    flags = ["--derainer", f"{net_file}:Net", "--derainer_args", "kind=nan"]
    train(pairs_folder, tmp_path / "model", *flags)
    with pytest.raises(UserError, match=r"rain/8.png: Net made values that are not finite of this image"):
        run("--model_dir", tmp_path / "model", *flags)
    assert not (tmp_path / "out" / "8.png").exists()


# --- the choice beside the weights -----------------------------------------------------------------------------------


def test_what_differs_from_the_training_is_told(trained, run, pairs_folder, net_file, tmp_path, capsys):
    model, flags = trained
    moved = net_file.parent.rename(tmp_path / "moved")
    net = ["--derainer", f"{moved}/net.py:Net"]
    train(pairs_folder, model, "--niter", 2, *net, *flags[2:])
    assert run("--model_dir", model, *net) == 0 and "warning" not in capsys.readouterr().err
    run("--model_dir", model, *net, "--derainer_args", "multiple=2")
    told = "warning: --derainer_args: ['multiple=2'], in the training it was ['multiple=4', 'kind=tuple']"
    assert told in capsys.readouterr().err
    with pytest.raises(UserError, match=r"this does not fit.*Unexpected.*conv.bias"):
        run("--model_dir", model, "--derainer", f"{moved}/net.py:Nothing")


def test_the_stored_number_of_stages_is_used(pairs_folder, tmp_path, run, capsys, monkeypatch):
    model = tmp_path / "model"
    train(pairs_folder, model, "--recurrent_iter", 2)
    stages, forward = [], PReNet.forward
    monkeypatch.setattr(PReNet, "forward", lambda self, x: stages.append(self.stages) or forward(self, x))
    run("--model_dir", model)
    run("--model_dir", model, "--recurrent_iter", 1)
    assert set(stages) == {2, 1} and "--recurrent_iter: 1, in the training it was 2" in capsys.readouterr().err
    for broken in ('{"derainer": 3}', '{"recurrent_iter": "1"}', "[3", "3", '["recurrent_iter"]'):
        (model / "Aug_DerainNet.json").write_text(broken)
        assert run("--model_dir", model, "--recurrent_iter", 1) == 0
        assert "note: 1 stages; it must be the number of the training" in capsys.readouterr().out


def test_a_folder_gives_its_newest_checkpoint(tmp_path, run, capsys):
    for name in ("Aug_DerainNet_state_9.pt", "Aug_DerainNet_best.pt", "Aug_DerainNet_state_11.pt", "ED_state_700.pt"):
        torch.save(PReNet(1).state_dict(), tmp_path / name)
    assert run("--model_dir", tmp_path, "--recurrent_iter", 1) == 0
    assert "taking Aug_DerainNet_state_11.pt" in capsys.readouterr().out
    for name, message in (("rain", "with no Aug_DerainNet_state_N.pt"), ("x.pt", r"there is no \S+x.pt")):
        with pytest.raises(UserError, match=f"--model_dir: .*{message}.*Train one with train_syn_aug.py"):
            run("--model_dir", tmp_path / "data" / name)
