"""Checkpoints of ours and of other projects: what loads, and one message for each file that does not."""

import argparse
import io
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from common.errors import TrainingStopped, UserError
from common.models import Derain, Discriminator, EDNet, PReNet
from common.training import checkpoint
from common.training.checkpoint import load, load_weights
from tests.golden import DATA, fill, needs_data

KINDS = ("joint", "augmented", "ED", "D")


def small_nets():
    """A small network of every kind, as ``load_weights`` names them."""
    return {"joint": Derain(1), "augmented": PReNet(1), "ED": EDNet(3, 4, 2, 16), "D": Discriminator(16, 4)}


def saved(value):
    """A value as the bytes of a checkpoint."""
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def zipped(name):
    """The bytes of an archive with one file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x")
    return out.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["zip", "old", "half"])
def test_load(tmp_path, kind, form):
    net, other = (small_nets()[kind] for _ in range(2))
    state = net.state_dict()
    if form == "half":
        state = {key: value.half() for key, value in state.items()}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=form != "old")
    load_weights(other, tmp_path / "x.pt", kind, "--net")
    for key, value in net.state_dict().items():
        expected = value.half().float() if form == "half" else value
        assert torch.equal(other.state_dict()[key], expected)


@needs_data
def test_released_checkpoints():  # T11: the old format, saved from cuda:0
    for name, net, kind in (
        ("syn100l_DerainNet_state_700.pt", Derain(), "joint"),
        ("spa_DerainNet_state_800.pt", Derain(), "joint"),
        ("prenet_rain100L_net_latest.pth", PReNet(), "augmented"),
    ):
        load_weights(net, DATA / "checkpoints" / name, kind, "--net")
        assert {p.device.type for p in net.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    "kind, message",
    {
        "joint": "this is a joint derainer, BNet; use test_syn_joint.py",
        "augmented": "this is an augmented derainer; use test_syn_aug.py",
        "ED": "this is a generator, ED; it belongs to --netED",
        "D": "this is a critic, D; only joint training uses it",
    }.items(),
)
def test_the_wrong_file_is_recognised(tmp_path, kind, message):
    torch.save(small_nets()[kind].state_dict(), tmp_path / "x.pt")
    expected = "ED" if kind == "joint" else "joint"
    with pytest.raises(UserError, match=rf"--net: \S+x.pt: {message}.*Expected here: a"):
        load_weights(small_nets()[expected], tmp_path / "x.pt", expected, "--net")


def test_another_size_names_the_keys_and_shapes(tmp_path):
    torch.save(EDNet(3, 8, 2, 16).state_dict(), tmp_path / "x.pt")
    with pytest.raises(UserError, match="does not fit. Expected: a generator.*--nz") as error:
        load_weights(EDNet(3, 4, 2, 16), tmp_path / "x.pt", "ED", "--netED")
    assert "decoder.main.0.weight: copying a param with shape torch.Size([8, 8])" in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        *((value, "this does not fit. Expected: a joint derainer") for value in ([1, 2], {"a": 1}, torch.ones(2))),
        ({"weight": torch.ones(1)}, "this does not fit"),
        ({"vrgnet_state": 1}, "this is a training state; use the network's own file"),
    ],
)
def test_values_that_are_no_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        load_weights(Derain(1), tmp_path / "x.pt", "joint", "--net")


def after(prefix, state):
    return {prefix + key: value for key, value in state.items()}


FORMS = {
    "DataParallel": (lambda s: after("module.", s), "taking the weights, what stands behind 'module.'"),
    "MPRNet": (lambda s: {"epoch": 3, "state_dict": after("module.", s), "optimizer": {"state": {0: {"n": s}}}},
        "taking state_dict, what stands behind 'module.'"),
    "BasicSR": (lambda s: {"params": {k: v * 0 for k, v in s.items()}, "params_ema": s},
        "taking params_ema"),
    "Lightning": (lambda s: {"state_dict": after("net.", s) | {"loss.vgg.weight": torch.ones(1)}, "callbacks": {}},
        "taking state_dict, what stands behind 'net.'"),
    "compiled": (lambda s: {"model": after("_orig_mod.", s)},
        "taking model, what stands behind '_orig_mod.'"),
    "two networks": (lambda s: {"netX": {"a": torch.ones(1)}, "mine": s}, "taking mine"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_weights_as_other_projects_publish_them(tmp_path, capsys, kind, form):
    net, other = (small_nets()[kind] for _ in range(2))
    wrap, message = FORMS[form]
    torch.save(wrap(net.state_dict()), tmp_path / "x.pt")
    load_weights(other, tmp_path / "x.pt", kind, "--net")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())
    assert f"--net: {tmp_path / 'x.pt'}: {message}\n" == capsys.readouterr().out
    if kind == "ED":
        assert checkpoint.load_generator(tmp_path / "x.pt", "--netED").nz == 4
    torch.save(wrap(net.state_dict() | {"vrgnet_state": torch.ones(1)}), tmp_path / "x.pt")
    with pytest.raises(UserError):  # strict as ever
        load_weights(other, tmp_path / "x.pt", kind, "--net")


def test_a_network_whose_own_names_begin_like_that(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Conv2d(3, 3, 1)

    for prefix in ("", "module."):
        net, other = Own(), Own()
        torch.save(after(prefix, net.state_dict()), tmp_path / "x.pt")
        load_weights(other, tmp_path / "x.pt", "own", "--derainer")
        assert torch.equal(net.module.weight, other.module.weight)


def test_a_wrapped_network_takes_weights_with_and_without_the_wrapper(tmp_path):
    wrappers = (lambda net: net, torch.nn.DataParallel, lambda net: torch.compile(net, backend="eager"))
    for saving in wrappers:
        net = PReNet(1)
        torch.save(saving(net).state_dict(), tmp_path / "x.pt")
        for loading in wrappers:
            other = PReNet(1)
            load_weights(loading(other), tmp_path / "x.pt", "augmented", "--net")
            assert torch.equal(net.conv[0].weight, other.conv[0].weight)


def test_safetensors(tmp_path):
    net, other = EDNet(3, 4, 2, 16), EDNet(3, 4, 2, 16)
    save_file(after("module.", net.state_dict()), tmp_path / "x.pth")  # known by its content
    load_weights(other, tmp_path / "x.pth", "ED", "--net")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged"):
        load_weights(other, tmp_path / "x.pth", "ED", "--net")


@pytest.mark.parametrize(
    "content, what",
    [
        (b"\n<!DOCTYPE html><html>", "a web page.*'Download raw file'"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS.*git lfs pull"),
        (b"\x1f\x8b\x08", "an archive. Unpack it"),
        (zipped("net.pt"), "an archive. Unpack it"),
        (b"", "empty. Fetch it again"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, content, what):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=rf"--net: \S+x.pt is {what}"):
        load(tmp_path / "x.pt", "--net")


@pytest.mark.parametrize(
    "content",
    [saved(Derain(1).state_dict())[:2000], b"hello", saved(Derain(1)), saved({"a": print})],
)
def test_files_that_are_no_checkpoints(tmp_path, content):  # that no code runs: tests/robustness/test_corpus.py
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"--net: \S+x.pt is no PyTorch checkpoint, is damaged, or holds code"):
        load_weights(Derain(1), tmp_path / "x.pt", "joint", "--net")


def test_the_object_beside_the_weights_is_named(tmp_path):
    torch.save({"state_dict": Derain(1).state_dict(), "options": argparse.Namespace(a=1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds code or objects besides weights .argparse.Namespace."):
        load(tmp_path / "x.pt", "--net")


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"--net: there is no \S+z.pt. Train it first"):
        load(tmp_path / "z.pt", "--net", "Train it first.")
    with pytest.raises(UserError, match="is a folder; name the checkpoint file in it"):
        load_weights(Derain(1), tmp_path, "joint", "--net")


def test_weights_that_are_not_finite(tmp_path):
    state = Derain(1).state_dict()
    state["derainet.conv.0.bias"][0] = float("nan")
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match="derainet.conv.0.bias is not finite. The training that wrote it went wrong"):
        load_weights(Derain(1), tmp_path / "x.pt", "joint", "--net")
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    torch.save(net.state_dict() | {"0.running_var": torch.full((3,), float("inf"))}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="0.running_var is not finite"):
        load_weights(net, tmp_path / "x.pt", "own", "--net")


def test_save_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path, keep = tmp_path / "x.pt", tmp_path / "before.pt"
    checkpoint.save({"n": 1}, path, keep)
    checkpoint.save({"n": 2}, path, keep)
    assert torch.load(path)["n"] == 2 and torch.load(keep)["n"] == 1

    def full(value, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingStopped, match="x.pt: can't be saved .No space left on device"):
        checkpoint.save({"n": 3}, path, keep)
    assert torch.load(path)["n"] == 2 and torch.load(keep)["n"] == 1 and len(list(tmp_path.iterdir())) == 2


def test_PReNet_r_is_PReNet_with_equal_blocks(tmp_path, capsys):
    net = fill(PReNet(2), 3)
    blocks = [net.res_conv1, net.res_conv2, net.res_conv3, net.res_conv4, net.res_conv5]
    for block in blocks[1:]:
        block.load_state_dict(blocks[0].state_dict())
    state = {key: value for key, value in net.state_dict().items() if not key.startswith(("res_conv2", "res_conv3",
        "res_conv4", "res_conv5"))}  # fmt: skip
    torch.save(after("module.", state), tmp_path / "x.pt")
    other = PReNet(2)
    load_weights(other, tmp_path / "x.pt", "augmented", "--model_dir")
    assert "this is PReNet_r, whose one residual block stands for all five" in capsys.readouterr().out
    rainy = torch.rand(1, 3, 9, 8)
    assert torch.equal(net(rainy)[0], other(rainy)[0])


def test_another_network_of_PReNets_repository_has_its_authors_code(tmp_path):
    PRN = {key: value for key, value in PReNet(1).state_dict().items() if not key.startswith("conv_")}
    torch.save(PRN, tmp_path / "x.pt")
    with pytest.raises(
        UserError, match="this does not fit.*If it is of another network.*test_syn_aug.py --derainer"
    ):
        load_weights(PReNet(1), tmp_path / "x.pt", "augmented", "--model_dir")
