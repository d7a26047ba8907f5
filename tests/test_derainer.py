"""Any derainer by one flag: what it may be, what is said when it is not, sizes, tiles, and what is never imported."""

import json
import os
import shlex

import numpy as np
import pytest
import torch
from torch import nn

from common import derainer
from common.data.images import read_image, write_image
from common.errors import TrainingStopped, UserError
from common.evaluation.derain import Windows, derain
from common.models import PReNet
from for_syn import test_syn_aug, train_syn_aug
from tests.conftest import folders, photo

FILE = """
import torch
from torch import nn
from neighbour import SCALE


class Net(nn.Module):
    def __init__(self, width=4, kind="sum", multiple=1):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)
        self.kind, self.multiple = kind, multiple
        self.register_buffer("mask", torch.full((2,), float("-inf")))

    def forward(self, rainy):
        if rainy.shape[2] % self.multiple or rainy.shape[3] % self.multiple:
            raise ValueError(f"sides must be multiples of {self.multiple}")
        out = rainy + SCALE * self.conv(rainy.view(len(rainy), 3, *rainy.shape[2:]))
        kinds = {"sum": out, "tuple": (out, 1), "list": [out], "small": out[..., 1:], "grey": out[:, :1]}
        kinds |= {"dict": {"out": out}, "nothing": None, "cut": out.detach(), "empty": [], "whole": out.long()}
        if self.kind == "inplace":
            kinds["inplace"] = out.sigmoid()
            out = kinds["inplace"].mul_(2)
        return kinds[self.kind]


class Nothing(nn.Module):
    def forward(self, rainy):
        return rainy


def function(width):
    return Net(width)


def number():
    return 3


def ends():
    raise SystemExit(3)


constant = 5
"""


@pytest.fixture
def net_file(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "net.py").write_text(FILE)
    (tmp_path / "code" / "neighbour.py").write_text("SCALE = 0.1\n")
    return tmp_path / "code" / "net.py"


def parse(*flags):
    return train_syn_aug.parse_args(list(map(str, flags)))


def test_values_of_arguments():
    texts = [
        "a=1",
        "b=2.5",
        "c=True",
        "d=false",
        "e=none",
        "f=[1,2]",
        "g=3,4",
        "h=text",
        "i='7'",
        "j=",
        "k=-1e-3",
        "l=(1,)",
        "m=x=y",
        "n=1..2",
    ]
    assert derainer.values(texts) == {
        **{"a": 1, "b": 2.5, "c": True, "d": False, "e": None, "f": [1, 2], "g": [3, 4], "h": "text", "i": "7"},
        **{"j": "", "k": -1e-3, "l": [1], "m": "x=y", "n": "1..2"},
    }


def test_prenet_is_the_default():
    net = derainer.build(parse("--recurrent_iter", 3))
    assert isinstance(net, PReNet) and net.stages == 3
    with pytest.raises(UserError, match="--derainer_args: prenet has none; .*--recurrent_iter"):
        derainer.build(parse("--derainer_args", "width=3"))


def test_a_file_and_a_module(net_file, monkeypatch):
    net = derainer.build(parse("--derainer", f"{net_file}:Net", "--derainer_args", "kind=tuple"))
    assert type(net).__name__ == "Net" and net.kind == "tuple"
    assert (
        type(derainer.build(parse("--derainer", f"{net_file}:function", "--derainer_args", "width=2"))).__name__
        == "Net"
    )
    monkeypatch.chdir(net_file.parent)
    assert parse("--derainer", "net.py:Net").derainer == f"{net_file}:Net"  # relative to where the user is
    (net_file.parent / "package_of_mine").mkdir()
    (net_file.parent / "package_of_mine" / "nets.py").write_text(FILE)
    net = derainer.build(parse("--derainer", "package_of_mine.nets:Net"))  # found from the working directory
    assert type(net).__module__ == "package_of_mine.nets"


@pytest.mark.parametrize(
    "spec", ["net.py", "net.py:", ":Net", "a b:Net", "net:Net.x", "PReNet", "os.system:'x'", "prenet:", "a..b:C"]
)
def test_names_that_are_none(spec, capsys):
    with pytest.raises(SystemExit):
        parse("--derainer", spec)
    assert (
        "argument --derainer: expected prenet, package.module:Class or path/to/file.py:Class" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        parse("--derainer_args", "width 3")
    assert "--derainer_args: expected key=value, got 'width 3'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse("--derainer_args", "a=1", "b=2", "--derainer_args", "a=3")
    assert "argument --derainer_args: a is given twice" in capsys.readouterr().err
    assert parse("--derainer_args", "a=1", "--derainer_args", "b=2").derainer_args == ["a=1", "b=2"]


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("gone.py:Net", [], "there is no file"),
        ("net.py:Nets", [], "has no class or function 'Nets'; it has Net, Nothing"),
        ("net.py:constant", [], "has no class or function 'constant'"),
        (
            "net.py:Net",
            ["--derainer_args", "depth=3"],
            r"Net\(depth=3\) failed: TypeError: .*unexpected keyword.*depth",
        ),
        ("net.py:function", [], r"function\(\) failed: TypeError: .*width.*--derainer_args key=value"),
        ("net.py:number", [], "it makes a int, not a torch.nn.Module"),
        ("net.py:ends", [], "failed: SystemExit: 3"),
        ("net.py:Net", ["--recurrent_iter", 3], "--recurrent_iter: it belongs to prenet"),
    ],
)
def test_networks_that_can_not_be_made(net_file, name, flags, message):
    with pytest.raises(UserError, match=message):
        derainer.build(parse("--derainer", f"{net_file.parent}/{name}", *flags))


def test_files_that_can_not_be_imported(net_file):
    for text, message in [
        ("import nothing_of_that_name", "no module named 'nothing_of_that_name'. Install it"),
        ("x = 1\ny = 1 / 0", r"can't be imported: ZeroDivisionError: .*\(net.py, line 2\)"),
        ("class Net(:", r"can't be imported: SyntaxError: .*\(net.py, line 1\)"),
        ("import sys\nsys.exit('usage')", "can't be imported: SystemExit: usage"),
    ]:
        net_file.write_text(text)
        with pytest.raises(UserError, match=message):
            derainer.build(parse("--derainer", f"{net_file}:Net"))
    with pytest.raises(UserError, match="no module named 'nothing_at_all'"):
        derainer.build(parse("--derainer", "nothing_at_all.x:Net"))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("small", r"made \(2, 3, 16, 15\) of torch.float32 of a batch \(2, 3, 16, 16\). A derainer is a"),
        ("grey", r"made \(2, 1, 16, 16\)"),
        ("dict", "made a dict"),
        ("nothing", "made a NoneType"),
        ("empty", "made a list"),
        ("whole", "torch.int64"),
        ("cut", "no gradient"),
        ("inplace", "no gradient can be computed: RuntimeError: one of the variables"),
        ("unknown", r"failed on a batch \(2, 3, 16, 16\): KeyError: 'unknown' \(net.py, line \d+\)"),
    ],
)
def test_broken_contracts_are_found_before_training(net_file, kind, message):
    net = derainer.build(parse("--derainer", f"{net_file}:Net", "--derainer_args", f"kind={kind}"))
    with pytest.raises(UserError, match=message):
        derainer.check(net, 2, 16, torch.device("cpu"))


ODD = """
import sys
import torch
from torch import nn


class Odd(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.bn, self.kind = nn.Conv2d(3, 3, 3, 1, 1), nn.BatchNorm2d(3), kind
        self.bn.eval()
        if kind == "lazy":
            self.late = nn.LazyConv2d(3, 1)
        if kind == "frozen":
            self.bn.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)  # as often written: it returns nothing
        if self.kind == "frozen":
            self.bn.eval()

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {k: v for k, v in state.items() if "conv" not in k} if self.kind == "part" else state

    def load_state_dict(self, state, **kwargs):
        return super().load_state_dict(state, strict=self.kind != "part")

    def forward(self, rainy):
        if self.training and self.kind == "train":
            raise ValueError("in training alone")
        if self.kind == "grows":
            self.register_buffer("hidden", rainy.mean())
        if self.kind == "brightest":
            return self.conv(rainy / rainy.amax((1, 2, 3), True)) * rainy.amax((1, 2, 3), True)
        if self.kind == "pooled":
            return rainy + self.bn(self.conv(rainy).mean((2, 3), True))
        if self.kind == "exit":
            sys.exit(0)
        if self.kind == "in place":
            rainy.mul_(0.5)
        if self.kind == "nan" and not self.training:
            return self.conv(rainy) * float("nan")
        return rainy.add(self.bn(self.conv(rainy)))
"""


@pytest.fixture
def odd(tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    return lambda kind: ["--derainer", f"{tmp_path}/odd.py:Odd", "--derainer_args", f"kind={kind}"]


@pytest.mark.parametrize(
    "kind, message",
    [
        ("train", r"failed on a batch \(2, 3, 16, 16\): ValueError: in training alone"),
        ("exit", "failed on a batch .*SystemExit: 0"),
        ("grows", "what its forward has changed can't be loaded again"),
        ("lazy", "it has lazy layers, whose weights have no shape yet"),
    ],
)
def test_networks_that_fail_are_found_before_an_old_run_is_deleted(pairs_folder, tmp_path, odd, kind, message):
    train(pairs_folder, tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").glob("*.*")}
    for more in (["--overwrite"], ["--overwrite", "--dry_run"]):
        with pytest.raises(UserError, match=message):
            train(pairs_folder, tmp_path / "model", *odd(kind), *more)
    assert {path: path.read_bytes() for path in (tmp_path / "model").glob("*.*")} == before


def test_networks_with_ways_of_their_own(pairs_folder, tmp_path, run, odd):
    val = ["--val_data_path", pairs_folder / "rain", "--val_gt_path", pairs_folder / "norain"]
    for kind in ("frozen", "part", "in place", "brightest", "plain"):
        model = tmp_path / kind.replace(" ", "_")
        train(pairs_folder, model, *odd(kind), *val)
        train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", "--niter", "2", *odd(kind)])
        assert run("--model_dir", model, *odd(kind)) == 0
    state = torch.load(tmp_path / "frozen" / "Aug_DerainNet_state_2.pt", weights_only=True)
    assert state["bn.num_batches_tracked"] == 0  # still frozen after the validations
    rainy = torch.rand(1, 3, 16, 16)
    net = derainer.build(parse(*odd("in place")))
    before = rainy.clone()
    net.eval()
    derain(net, rainy)
    assert torch.equal(rainy, before)
    (tmp_path / "odd.py").write_text(ODD.replace('if kind == "frozen"', 'if kind == "plain"'))
    with pytest.raises(UserError, match="Aug_DerainNet trains other parameters than this run did"):
        train_syn_aug.main(["--model_dir", str(tmp_path / "plain"), "--resume", "-1", "--niter", "3", *odd("plain")])


def test_the_size_of_the_batch_counts(pairs_folder, tmp_path, odd):
    (tmp_path / "odd.py").write_text(ODD.replace("self.bn.eval()", "", 1))
    with pytest.raises(UserError, match="failed on a batch .1, 3, 16, 16.: ValueError: .*--batchSize"):
        train(pairs_folder, tmp_path / "model", *odd("pooled"), "--batchSize", 1, "--overwrite")
    train(pairs_folder, tmp_path / "model", *odd("pooled"))


def test_names_that_can_not_be_printed_are_refused_at_once(tmp_path, capsys):
    for flags in (["--derainer", "a\u3000b.py:C"], ["--derainer_args", "a=\x1b[2J"]):
        with pytest.raises(SystemExit):
            parse(*flags)
        assert "holds characters that can't be printed" in capsys.readouterr().err


def test_results_that_are_not_finite_are_no_pictures(pairs_folder, tmp_path, run, odd):
    train(pairs_folder, tmp_path / "model", *odd("nan"))
    with pytest.raises(UserError, match=r"rain/8.png: Odd made values that are not finite of this image"):
        run("--model_dir", tmp_path / "model", *odd("nan"))
    assert not (tmp_path / "out" / "8.png").exists()


def test_a_subclass_of_prenet_is_not_taken_for_ours(tmp_path):
    class Mine(PReNet):
        def forward(self, rainy):
            return super().forward(rainy)[0]

    rainy = torch.rand(2, 3, 16, 16)
    assert not derainer.is_prenet(Mine(1)) and derainer.is_prenet(PReNet(1))
    net = Mine(1).eval()
    assert torch.allclose(derain(net, rainy)[1], derain(net, rainy[1:])[0], atol=1e-6)


def test_a_dead_worker_is_not_blamed_on_the_network():
    class Net(nn.Module):
        def forward(self, rainy):
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    with pytest.raises(RuntimeError, match="DataLoader worker"):
        derainer.apply(Net(), torch.rand(1, 3, 8, 8))


def test_a_network_that_asks_for_a_gpu_by_itself():
    class Net(nn.Module):
        def forward(self, rainy):
            raise RuntimeError("Found no NVIDIA driver on your system")

    with pytest.raises(UserError, match="Found no NVIDIA driver .* asks for a GPU by itself; .* use_GPU=false, say"):
        derainer.apply(Net(), torch.rand(1, 3, 8, 8))


def test_sizes_of_validation_are_tried_before_training(pairs_folder, net_file, tmp_path):
    flags = ["--derainer", f"{net_file}:Net", "--derainer_args", "multiple=8"]
    val = ["--val_data_path", pairs_folder / "rain", "--val_gt_path", pairs_folder / "norain"]
    for more in ([], ["--dry_run"]):
        with pytest.raises(UserError, match=r"failed on a batch \(1, 3, 24, 20\): .*--pad_to 8"):
            train(pairs_folder, tmp_path / "model", *flags, *val, *more)
    assert not (tmp_path / "model").exists()
    with pytest.raises(UserError, match="--pad_to, --pad_square: prenet takes images of every size"):
        train(pairs_folder, tmp_path / "model", "--pad_to", 8)


def test_a_moved_file_and_stored_choices_that_are_not_followed(trained, run, net_file, tmp_path, pairs_folder, capsys):
    model, flags = trained
    moved = tmp_path / "moved"
    net_file.parent.rename(moved)
    new = ["--derainer", f"{moved}/net.py:Net", *flags[2:]]
    train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", "--niter", "2", *new])
    assert f"resume: the derainer was {net_file}:Net, now it is {moved}/net.py:Net" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--derainer is prenet, the run has \S+:Net; start a new run"):
        train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", "--derainer", "prenet"])
    swapped = [*new[:2], "--derainer_args", "kind=tuple", "multiple=4"]
    train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", *swapped])  # the order does not matter
    for state in model.glob("train_state*"):
        state.unlink()
    with pytest.raises(UserError, match="trains a derainer of its own"):
        train(pairs_folder, model, "--resume", 2, "--niter", 3)
    with pytest.raises(UserError, match="--derainer_args is multiple=2, the run has multiple=4 kind=tuple"):
        train(pairs_folder, model, "--resume", 2, "--niter", 3, *new[:2], "--derainer_args", "multiple=2")
    train(pairs_folder, model, "--resume", 2, "--niter", 3, *new)
    capsys.readouterr()
    assert run("--model_dir", model, *new[:-2]) == 0  # the stored --pad_to
    assert "note:" not in capsys.readouterr().out
    run("--model_dir", model, *new[:2], "--derainer_args", "multiple=2")
    assert "warning: Aug_DerainNet_state_3.pt was trained with --derainer" in capsys.readouterr().err


def test_stages_of_bare_weights_come_from_beside_them(pairs_folder, tmp_path):
    model = tmp_path / "model"
    train(pairs_folder, model, "--recurrent_iter", 2)
    for state in model.glob("train_state*"):
        state.unlink()
    with pytest.raises(UserError, match="--recurrent_iter is 3, the run has 2"):
        train(pairs_folder, model, "--resume", 1, "--niter", 2, "--recurrent_iter", 3)
    train(pairs_folder, model, "--resume", 1, "--niter", 2)
    assert json.loads((model / "Aug_DerainNet.json").read_text())["recurrent_iter"] == 2


def test_a_network_that_fails_later_does_not_lose_the_run(trained, pairs_folder, net_file, tmp_path):
    model, flags = trained
    train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", "--niter", "2", *flags])
    text = FILE.replace(
        "def forward(self, rainy):", "calls = 0\n\n    def forward(self, rainy):\n        self.calls += 1"
    )
    net_file.write_text(text.replace("% self.multiple or", "% self.multiple or self.calls > 6 or"))
    with pytest.raises(TrainingStopped, match=r"Net failed on a batch .*The last good state is .*--derainer \S+:Net"):
        train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", "--niter", "9", *flags])
    state = torch.load(model / "train_state_last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 1)
    net_file.write_text(FILE)
    train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", "--niter", "4", *flags])


def test_the_check_leaves_no_trace(net_file):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    before, drawn = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    derainer.check(net, 2, 16, torch.device("cpu"))
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state()) and net[0].weight.grad is None
    with pytest.raises(UserError, match="no parameter that can be trained"):
        derainer.check(derainer.build(parse("--derainer", f"{net_file}:Nothing")), 2, 16, torch.device("cpu"))
    derainer.check(nn.Sequential(nn.Conv2d(3, 3, 1)).double().float(), 1, 16, torch.device("cpu"))


class Probe(nn.Module):
    """Remembers the shapes it saw and returns its input."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, rainy):
        assert rainy.is_contiguous()
        self.seen.append(tuple(rainy.shape[2:]))
        self.last = rainy
        return rainy * 1


@pytest.mark.parametrize("size", [(21, 30), (16, 16), (1, 1), (3, 40), (2, 9)])
@pytest.mark.parametrize("pad_to, square", [(8, False), (16, True), (1, True), (1, False)])
def test_padding_by_reflection(size, pad_to, square):
    net, rainy = Probe(), torch.rand(2, 3, *size)
    out = derain(net, rainy, pad_to=pad_to, pad_square=square)
    assert torch.equal(out, rainy)
    (seen,) = net.seen
    expected = [-(-side // pad_to) * pad_to for side in size]
    assert seen == (tuple([max(expected)] * 2) if square else tuple(expected))
    more = [(0, 0), (0, 0), *((0, b - a) for a, b in zip(size, seen, strict=True))]
    assert np.array_equal(net.last.numpy(), np.pad(rainy.numpy(), more, "reflect"))


def test_tiles_of_other_derainers_are_theirs_to_ask_for():
    net, rainy = Probe(), torch.rand(1, 3, 40, 50)
    derain(net, rainy)
    derain(net, rainy, 0)
    assert net.seen == [(40, 50)] * 2
    net.seen.clear()
    assert torch.equal(derain(net, rainy, 32, halo=4, pad_to=8), rainy)
    assert net.seen == [(40, 40), (40, 24), (16, 40), (16, 24)]


def flags_of(*more):
    return Windows.from_flags(test_syn_aug.parse_args(list(map(str, more))))


def test_flags_of_tiles():
    assert flags_of("--tile", 64) == Windows(64) and flags_of() == Windows()
    with pytest.raises(UserError, match="--pad_to, --pad_square: prenet takes images of every size"):
        flags_of("--pad_square")
    assert flags_of("--derainer", "a:B", "--pad_to", 8, "--pad_square") == Windows(-1, None, 8, True)
    with pytest.raises(UserError, match="--tile_halo: that of prenet is known"):
        flags_of("--tile", 64, "--tile_halo", 8)
    own = ["--derainer", "a:B"]
    with pytest.raises(UserError, match="--tile 64: say with --tile_halo .*approximate"):
        flags_of(*own, "--tile", 64)
    with pytest.raises(UserError, match="--tile_halo 8: it is the margin of tiles"):
        flags_of(*own, "--tile_halo", 8)
    assert flags_of(*own, "--tile", 64, "--tile_halo", 0) == Windows(64, 0)


# --- trained and tested through the scripts --------------------------------------------------------------------------


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
    """A run of the file's network, and the flags that name it."""
    flags = ["--derainer", f"{net_file}:Net", "--derainer_args", "multiple=4", "kind=tuple", "--pad_to", "4"]
    val = ["--val_data_path", pairs_folder / "rain", "--val_gt_path", pairs_folder / "norain"]
    train(pairs_folder, tmp_path / "model", *flags, *val)
    return tmp_path / "model", flags


def test_train_test_and_resume(trained, run, tmp_path, pairs_folder, capsys):
    model, flags = trained
    state = torch.load(model / "Aug_DerainNet_state_1.pt", weights_only=True)
    assert set(state) == {"conv.weight", "conv.bias", "mask"}  # the network's own names: it loads anywhere
    assert run("--model_dir", model, "--gt_path", pairs_folder / "norain", *flags) == 0
    assert "taking Aug_DerainNet_state_1.pt" in capsys.readouterr().out and (tmp_path / "out" / "metrics.csv").exists()
    train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", "--niter", "2", *flags])
    train(pairs_folder, tmp_path / "whole", *flags, "--niter", 2)
    one, other = (torch.load(m / "Aug_DerainNet_state_2.pt", weights_only=True) for m in (model, tmp_path / "whole"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_nothing_named_in_a_stored_file_is_imported(trained, run, net_file, tmp_path):
    model, flags = trained
    net_file.write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n{FILE}")
    expected = shlex.join(map(str, flags))
    for call in (
        lambda: run("--model_dir", model),
        lambda: run("--model_dir", model / "Aug_DerainNet_state_1.pt"),
        lambda: train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", "--niter", "2"]),
        lambda: train_syn_aug.main(["--model_dir", str(model), "--resume", "1", "--niter", "2", *flags[:2]]),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value).endswith(f"If you trust it, add:\n  {expected}")
    assert not (tmp_path / "was_run").exists()


def test_the_wrong_choice_names_the_right_one(trained, run, net_file, tmp_path):
    model, flags = trained
    with pytest.raises(
        UserError, match=r"this is something else.*was trained with --derainer \S+net.py:Net --derainer"
    ):
        run("--model_dir", model, "--derainer", "prenet")
    with pytest.raises(UserError, match=r"Not expected: conv.bias.*was trained with --derainer"):
        run("--model_dir", model, "--derainer", f"{net_file}:Nothing")
    torch.save(PReNet(1).state_dict(), tmp_path / "prenet.pt")
    with pytest.raises(UserError, match="this is something else. Expected: the network of --derainer"):
        run("--model_dir", tmp_path / "prenet.pt", *flags)


def test_sizes_that_the_network_can_not_take(trained, run, pairs_folder, tmp_path, capsys):
    model, flags = trained
    with pytest.raises(UserError, match=r"failed on a batch \(1, 3, 24, 21\): .*multiples of 4 .*--pad_to 8"):
        run("--model_dir", model, *flags[:-1], 1, "--data_path", pairs_folder / "rain" / "9.png")
    # the first of the folder fits (24x20), the others do not: they are named and the first is kept
    assert run("--model_dir", model, *flags[:-1], 1) == 1
    out, err = capsys.readouterr()
    assert (
        "1 images derained" in out and "3 of 4 images could not be derained" in err and "9.png: --derainer: Net" in err
    )
    assert run("--model_dir", model, *flags, "--tile", 16, "--tile_halo", 4) == 0
    assert "approximate for this derainer" in capsys.readouterr().out


def test_the_stored_number_of_stages_is_used(pairs_folder, tmp_path, run, capsys):
    train(pairs_folder, tmp_path / "model", "--recurrent_iter", 2)
    seen = []
    original = PReNet.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PReNet, "forward", lambda self, x: seen.append(self.stages) or original(self, x))
        run("--model_dir", tmp_path / "model")
        assert set(seen) == {2}
        run("--model_dir", tmp_path / "model", "--recurrent_iter", 1)
        assert set(seen) == {2, 1}
    (tmp_path / "model" / "Aug_DerainNet.json").write_text('{"derainer": 3}')
    run("--model_dir", tmp_path / "model")
    assert "Aug_DerainNet.json can't be understood" in capsys.readouterr().err


def test_a_stored_choice_can_not_smuggle_control_characters(tmp_path, run):
    torch.save(PReNet(1).state_dict(), tmp_path / "Aug_DerainNet_state_1.pt")
    choice = {"derainer": "x:Y", "derainer_args": ["a=\x1b[2J"], "recurrent_iter": 1, "pad_to": 1, "pad_square": False}
    (tmp_path / "Aug_DerainNet.json").write_text(json.dumps(choice))
    assert derainer.stored(tmp_path / "Aug_DerainNet_state_1.pt") is None
    choice["derainer_args"] = ["a=$(x); y"]
    (tmp_path / "Aug_DerainNet.json").write_text(json.dumps(choice))
    with pytest.raises(UserError) as error:
        run("--model_dir", tmp_path)
    assert "--derainer x:Y --derainer_args 'a=$(x); y'" in str(error.value)


def test_stored_files_that_are_broken_or_hostile(pairs_folder, tmp_path, run, capsys):
    model = tmp_path / "model"
    train(pairs_folder, model)
    state = torch.load(model / "train_state_last.pt", weights_only=True)
    (model / "train_state_prev.pt").unlink(missing_ok=True)
    for options in (
        {"derainer": "a\x1b[31m:B"},
        {"derainer_args": 5},
        {"recurrent_iter": "abc"},
        {"derainer_args": [1]},
    ):
        torch.save(state | {"options": state["options"] | options}, model / "train_state_last.pt")
        with pytest.raises(UserError, match="holds no whole training state") as error:
            train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", "--niter", "2"])
        assert "\x1b" not in str(error.value) + capsys.readouterr().out
    for key in ("experiment", "nets", "optimizers", "rng", "data", "options", "step"):
        torch.save({k: v for k, v in state.items() if k != key}, model / "train_state_last.pt")
        with pytest.raises(UserError, match="holds no whole training state"):
            train_syn_aug.main(["--model_dir", str(model), "--resume", "-1", "--niter", "2"])
    (model / "Aug_DerainNet.json").write_text("[" * 100000)
    assert run("--model_dir", model) == 0 and "can't be understood" in capsys.readouterr().err


def test_of_several_runs_in_a_folder_the_latest_counts(tmp_path, run, capsys):
    names = ["NoAug05_DerainNet_state_9.pt", "NoAug10_DerainNet_state_1.pt", "other.pt"]
    for i, name in enumerate(names):
        torch.save(PReNet(1).state_dict(), tmp_path / name)
        os.utime(tmp_path / name, (i, i))
    (tmp_path / "dangling_state_99.pt").symlink_to("nowhere")
    run("--model_dir", tmp_path, "--recurrent_iter", 1)
    assert "taking NoAug10_DerainNet_state_1.pt" in capsys.readouterr().out


def test_a_folder_gives_its_newest_whole_checkpoint(tmp_path, run, capsys):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("Aug_DerainNet_state_9.pt", "Aug_DerainNet_state_10.pt", "Aug_DerainNet_best.pt"):
        torch.save(PReNet(1).state_dict(), folder / name)
    for name in ("Aug_DerainNet_state_11.pt", "DerainNet_state_700.pt", "ED_state_700.pt", "train_state_last.pt"):
        (folder / name).write_bytes((folder / "Aug_DerainNet_best.pt").read_bytes()[:3000])
    assert run("--model_dir", folder, "--recurrent_iter", 1) == 0
    printed = capsys.readouterr().out
    assert "left out" in printed and "state_11.pt is not a PyTorch checkpoint, or a damaged one" in printed
    assert "taking Aug_DerainNet_state_10.pt" in printed
    (tmp_path / "none").mkdir()
    with pytest.raises(
        UserError, match="none is a folder without a whole checkpoint .*Train one with train_syn_aug.py"
    ):
        run("--model_dir", tmp_path / "none")
    with pytest.raises(UserError, match=r"--model_dir: there is no \S+state_200.pt.*Train one with train_syn_aug.py"):
        run("--model_dir", tmp_path / "none" / "Aug_DerainNet_state_200.pt")


def test_real_networks_of_spandrel(pairs_folder, tmp_path, run):
    pytest.importorskip("spandrel", reason="spandrel (requirements-derainers.txt) is not here")
    for i in range(4):
        for folder in ("rain", "norain"):
            write_image(pairs_folder / folder / f"{i + 8}.png", photo(130 + i, 128, i + len(folder)))
    nets = {
        "NAFNet:NAFNet": "width=4 enc_blk_nums=1,1 dec_blk_nums=[1,1] middle_blk_num=1 --pad_to 4",
        "SwinIR:SwinIR": "img_size=32 window_size=8 depths=2, embed_dim=8 num_heads=2, upsampler= upscale=1 --pad_to 8",
        "DnCNN:DnCNN": "in_nc=3 out_nc=3 nc=8 nb=4",
        "Uformer:Uformer": "img_size=128 embed_dim=4 depths=1,1,1,1,1,1,1,1,1 --pad_to 128 --pad_square",
    }
    for name, text in nets.items():
        model = tmp_path / name.split(":")[0]
        flags = ["--derainer", f"spandrel.architectures.{name}", "--derainer_args", *text.split()]
        train(pairs_folder, model, *flags, "--patchSize", 128 if "Uformer" in name else 32, "--iters_per_epoch", 1)
        assert run("--model_dir", model, *flags, "--data_path", pairs_folder / "rain" / "9.png") == 0
        assert read_image(tmp_path / "out" / "9.png").shape == (131, 128, 3)
        os.unlink(tmp_path / "out" / "9.png")
