"""Checkpoints of ours and of other projects: what loads, and one message for each file that does not."""

import argparse
import io
import os
import zipfile
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from common.errors import Stopped, UserError
from common.models import Derain, Discriminator, EDNet, PReNet
from common.training import checkpoint
from common.training.checkpoint import load, load_weights
from tests.golden import fill
from tests.runs import same

KINDS = ("joint", "augmented", "ED", "D")


def small(kind):
    """A small network of a kind, as ``load_weights`` names it."""
    makers = {"joint": Derain, "augmented": PReNet, "ED": EDNet, "D": Discriminator}
    return makers[kind](*{"ED": (3, 4, 2, 16), "D": (16, 4)}.get(kind, (1,)))


def refused(path, content, kind, message):
    """That a file of this content is no network of the kind, with this message."""
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_weights(small(kind), path, "--net")


# --- what loads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["zip", "old", "half"])
def test_load(tmp_path, kind, form):
    net, other = small(kind), small(kind)
    net = net.half() if form == "half" else net
    torch.save(net.state_dict(), tmp_path / "x.pt", _use_new_zipfile_serialization=form != "old")
    load_weights(other, tmp_path / "x.pt", "--net")
    assert same(net.float().state_dict(), other.state_dict())


def after(prefix, state):
    return {prefix + key: value for key, value in state.items()}


FORMS = {
    "DataParallel": (lambda s: after("module.", s), "taking the weights, what stands behind 'module.'"),
    "MPRNet": (lambda s: {"epoch": 3, "state_dict": after("module.", s), "optimizer": {"state": {0: {"n": s}}}},
        "taking state_dict, what stands behind 'module.'"),
    "BasicSR": (lambda s: {"params": {k: v * 0 for k, v in s.items()}, "params_ema": s}, "taking params_ema"),
    "Lightning": (lambda s: {"state_dict": after("net.", s) | {"loss.vgg.weight": torch.ones(1)}, "callbacks": {}},
        "taking state_dict, what stands behind 'net.'"),
    "compiled": (lambda s: {"model": after("_orig_mod.", s)}, "taking model, what stands behind '_orig_mod.'"),
    "two networks": (lambda s: {"netX": {"a": torch.ones(1)}, "mine": s}, "taking mine"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_weights_as_other_projects_publish_them(tmp_path, capsys, kind, form):
    net, other, path = small(kind), small(kind), tmp_path / "x.pt"
    wrap, message = FORMS[form]
    torch.save(wrap(net.state_dict()), path)
    load_weights(other, path, "--net")
    assert same(net.state_dict(), other.state_dict()) and capsys.readouterr().out == f"--net: {path}: {message}\n"
    if kind == "ED":
        assert checkpoint.load_generator(path, "--netED").nz == 4
    refused(path, wrap(net.state_dict() | {"more": torch.ones(1)}), kind, "does not fit")  # strict as ever
    _, is_a, remedy = checkpoint.KINDS[kind]
    told = rf"--net: \S+x.pt: this is {is_a}; {remedy}. Expected here: a "
    refused(path, wrap(net.state_dict()), "D" if kind == "joint" else "joint", told)


class Own(torch.nn.Module):
    """Its own names begin like those behind a wrapper."""

    def __init__(self):
        super().__init__()
        self.module = torch.nn.Conv2d(3, 3, 1)


@pytest.mark.parametrize("make", [lambda: PReNet(1), Own])
def test_wrapped_networks_take_weights_with_and_without_the_wrapper(tmp_path, make):
    wrappers = (lambda net: net, torch.nn.DataParallel, lambda net: torch.compile(net, backend="eager"))
    for saving in wrappers:
        net = make()
        torch.save(saving(net).state_dict(), tmp_path / "x.pt")
        for loading in wrappers:
            other = make()
            load_weights(loading(other), tmp_path / "x.pt", "--net")
            assert same(net.state_dict(), other.state_dict())


def test_safetensors(tmp_path):
    net, other = small("ED"), small("ED")
    save_file(after("module.", net.state_dict()), tmp_path / "x.pth")  # known by its content
    load_weights(other, tmp_path / "x.pth", "--net")
    assert same(net.state_dict(), other.state_dict())
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged"):
        load_weights(other, tmp_path / "x.pth", "--net")


def test_PReNet_r_is_PReNet_with_equal_blocks(tmp_path, capsys):
    net, other = fill(PReNet(2), 3), PReNet(2)
    for k in range(2, 6):
        getattr(net, f"res_conv{k}").load_state_dict(net.res_conv1.state_dict())
    others = tuple(f"res_conv{k}" for k in range(2, 6))
    state = {key: value for key, value in net.state_dict().items() if not key.startswith(others)}
    torch.save(after("module.", state), tmp_path / "x.pt")
    load_weights(other, tmp_path / "x.pt", "--model_dir")
    assert "this is PReNet_r" in capsys.readouterr().out and same(net.state_dict(), other.state_dict())


# --- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, content, message",
    [
        *(("joint", value, "not fit. Expected: a joint derainer") for value in ([1, 2], {"a": 1}, torch.ones(2))),
        ("joint", {"vrgnet_state": 1}, "this is a training state; use the network's own file"),
        ("ED", EDNet(3, 8, 2, 16).state_dict(), r"--nz.*decoder.main.0.weight: copying .* torch.Size\(\[8, 8\]\)"),
        ("joint", Derain(1).state_dict() | {"derainet.conv.0.bias": torch.ones(3, dtype=torch.int8)},
            "derainet.conv.0.bias holds torch.int8, no floats.* of full precision"),
        ("augmented", {"conv.weight": torch.ones(1)}, "does not fit.*If it is of another network.*--derainer.*Missing"),
        ("augmented", fill(PReNet(1), 1).state_dict() | {"conv.0.bias": torch.full((3,), torch.nan)},
            "conv.0.bias is not finite. The training that wrote it went wrong"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(tmp_path, kind, content, message):
    refused(tmp_path / "x.pt", content, kind, message)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"vrgnet_state": 1}, "this is a training state; use the network's own file .*Expected here: weights of Own."),
        (
            PReNet(1).state_dict(),
            "does not fit. Expected: weights of Own. Set the flags .*--derainer.*Missing",
        ),
    ],
)
def test_what_a_network_of_the_user_is_not(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        load_weights(Own(), tmp_path / "x.pt", "--net")


def saved(value):
    """A value as the bytes of a checkpoint."""
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def zipped(*names):
    """The bytes of an archive of tiny files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"3")
    return out.getvalue()


NO_CHECKPOINT = "no PyTorch checkpoint, is damaged, or holds code"


@pytest.mark.parametrize(
    "content, what",
    [
        (b"\n<!DOCTYPE html><html>", "a web page.*'Download raw file'"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS.*git lfs pull"),
        (b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX model.*weights of PyTorch"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file.*weights of PyTorch"),
        (zipped("net/version", "net/constants.pkl"), "a TorchScript program.*weights of PyTorch"),
        (b"\x1f\x8b\x08", "an archive. Unpack it"),
        (zipped("net.pt"), "an archive. Unpack it"),
        (b"", "empty. Fetch it again"),
        (saved(Derain(1).state_dict())[:2000], NO_CHECKPOINT),
        (b"hello", NO_CHECKPOINT),
        (saved(Derain(1)), NO_CHECKPOINT),
        (saved({"w": torch.ones(1), "options": argparse.Namespace(a=1)}), f"{NO_CHECKPOINT}.*.argparse.Namespace."),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, what):  # that no code runs: tests/robustness/test_corpus.py
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=rf"--net: \S+x.pt is {what}"):
        load(tmp_path / "x.pt", "--net")


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"--net: there is no \S+z.pt. Train it first"):
        load(tmp_path / "z.pt", "--net", "Train it first.")
    with pytest.raises(UserError, match="is a folder; name the checkpoint file in it"):
        load(tmp_path, "--net")


def test_save_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    checkpoint.save({"n": 1}, path)
    full = mock.Mock(side_effect=OSError(28, "No space left on device"))
    with monkeypatch.context() as patch, pytest.raises(Stopped, match=r"x.pt: can't be written \(No space left on dev"):
        patch.setattr(os, "fsync", full)
        checkpoint.save({"n": 2}, path)
    assert torch.load(path)["n"] == 1 and len(list(tmp_path.iterdir())) == 1


def test_an_error_of_ours_is_not_one_of_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", mock.Mock(side_effect=RuntimeError("a bug of ours")))
    with pytest.raises(RuntimeError, match="a bug of ours"):
        checkpoint.save({"n": 1}, tmp_path / "x.pt")
