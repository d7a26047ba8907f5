"""The command line: the contract of flags and defaults, honest booleans, exit codes, scripts from any directory."""

import importlib
import os

import pytest
import torch

from common import cli
from common.errors import Stopped, UserError
from common.training import device
from for_syn import train_syn_joint
from tests.golden import ROOT, golden_json

DEFAULTS = golden_json("cli_defaults.json")  # of the reference


@pytest.mark.parametrize("script", DEFAULTS)
def test_flags_and_defaults_of_the_reference(script):
    args = vars(importlib.import_module(script.removesuffix(".py").replace("/", ".")).parse_args([]))
    for flag, default in DEFAULTS[script].items():
        if isinstance(default, str) and default.startswith("./"):
            default = os.path.abspath(default)
        assert (args[flag] == default and type(args[flag]) is type(default)) or args[flag] == default == 10, flag


def test_all_paths_count_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = train_syn_joint.parse_args(["--model_dir", "models", "--data_path", "~/x"])
    assert args.model_dir == str(tmp_path / "models") and args.log_dir == str(tmp_path / "syn100llogs")
    assert args.data_path == os.path.expanduser("~/x") and args.given == {"model_dir", "data_path"}


def test_default_folders_form_a_chain(tmp_path, monkeypatch):
    """What one script reads by default, another one writes by default, wherever one stands."""
    monkeypatch.chdir(tmp_path)
    written, read = set(), set()
    for script in ROOT.glob("for_*/t*.py"):
        args = importlib.import_module(f"{script.parent.name}.{script.stem}").parse_args([])
        if script.stem.startswith("train"):
            written.add(args.model_dir)
        names = ["netED", "netDerain", *(["model_dir"] if script.stem.startswith("test") else [])]
        read |= {os.path.dirname(getattr(args, name)) for name in names if getattr(args, name, None)}
    assert read <= written and len(read) == 5 and {os.path.dirname(path) for path in written} == {str(tmp_path)}


@pytest.mark.parametrize(
    "flag, text, value",
    [
        *(("--use_gpu", text, text in ("1", "YES")) for text in ("1", "YES", "False", "0")),
        ("--milestone", "5", [5]),
        ("--manualSeed", "4294967295", 2**32 - 1),
    ],
)
def test_values_of_flags(flag, text, value):  # T4
    assert getattr(train_syn_joint.parse_args([flag, text]), flag[2:]) == value


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--use_gpu", "maybe"], "argument --use_gpu: expected true or false, got 'maybe'"),
        (["--batchSize", "many"], "argument --batchSize: expected a whole number from 1 on, got 'many'"),
        (["--lrD", "nan"], "argument --lrD: expected a number above 0, got 'nan'"),
        (["--patchSize", "48"], "argument --patchSize: expected a power of two from 16 on"),
        (["--milestone", "5", "0"], "argument --milestone: expected a whole number from 1 on, got '0'"),
        (["--data_path", ""], "argument --data_path: the path is empty"),
        (["--manualSeed", str(2**32)], f"expected a whole number from 0 to {2**32 - 1}, got '{2**32}'"),
        (["--batch", "3"], "unrecognized arguments: --batch 3"),
    ],
)
def test_wrong_flags_are_named_with_exit_code_2(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        train_syn_joint.parse_args(flags)
    told = capsys.readouterr().err
    assert end.value.code == 2 and message in told and len(told.partition("error:")[2]) < 300


def test_exit_codes(capsys):
    def fail(error):
        def main():
            raise error

        return cli.run(main)

    assert cli.run(lambda: None) == 0 and cli.run(lambda: 1) == 1
    assert fail(UserError("--x: y")) == 2 and fail(Stopped("z")) == 1 and fail(KeyboardInterrupt()) == 130
    assert fail(PermissionError(13, "Permission denied", "there")) == 2
    assert fail(RuntimeError("CUDA out of memory. Tried")) == 1
    err = capsys.readouterr().err
    assert "error: --x: y\n" in err and "there: Permission denied" in err and "smaller --batchSize" in err
    with pytest.raises(RuntimeError):
        fail(RuntimeError("a bug of ours"))


def test_device(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick_device(True, "0") == torch.device("cpu") and "running on the CPU" in capsys.readouterr().out
    assert device.pick_device(False, "0") == torch.device("cpu") and not capsys.readouterr().out
    with pytest.raises(UserError, match="--gpu_id: expected a number such as 0, .*got 'first'"):
        device.pick_device(True, "first")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda i: None)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(3))
    assert device.pick_device(True, "1") == torch.device("cuda", 1)
    assert device.pick_device(True, "0,1") == torch.device("cuda", 0)
    assert "one process uses one GPU" in capsys.readouterr().out
    with pytest.raises(UserError, match="--gpu_id: there is no GPU 2; this machine has 0, 1"):
        device.pick_device(True, "2")


def broken(*args, **kwargs):
    raise RuntimeError("CUDA error: no kernel image\nmore")


@pytest.mark.parametrize("found", [False, True], ids=["PyTorch finds none", "too old"])
def test_a_gpu_that_can_not_be_used(found, monkeypatch, capsys):
    """A training must not run for a month on the CPU beside a GPU."""
    fakes = {"is_available": found, "device_count": 1, "set_device": None, "get_device_name": "Tesla P100"}
    for name, value in fakes.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "init", broken)
    monkeypatch.setattr(torch, "ones", broken)
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    assert device.pick_device(True, "0") == torch.device("cpu")
    said = capsys.readouterr().out
    assert "CUDA error: no kernel image\n" in said and "pip install" in said and "Running on the CPU" in said
    assert ("Tesla P100: " in said) == found
    with pytest.raises(UserError, match="(?s)^--use_gpu: .*no kernel image.*--use_gpu false trains on the CPU"):
        device.pick_device(True, "0", training=True)
    assert device.pick_device(False, "0", training=True) == torch.device("cpu")


def test_a_machine_without_a_gpu_trains_on_the_cpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for said, gpu in (("No devices found.", False), ("GPU 0: Tesla T4 (UUID: GPU-1)", True)):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{said}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        assert device.has_gpu() == gpu
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not device.has_gpu() and device.pick_device(True, "0", training=True) == torch.device("cpu")
    assert "No CUDA GPU here: running on the CPU" in capsys.readouterr().out
