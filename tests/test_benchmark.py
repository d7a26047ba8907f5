"""The benchmark: what it measures and prints."""

import functools

import pytest
import torch

from common import benchmark
from common.models import Derain, PReNet
from tests.tape import Tape


@pytest.fixture
def run(monkeypatch):
    """The command with small networks."""
    monkeypatch.setattr(benchmark, "Derain", lambda stages: Derain(1))
    monkeypatch.setattr(benchmark, "PReNet", lambda stages: PReNet(1))
    monkeypatch.setattr(benchmark, "TURNS", 1)
    monkeypatch.setattr(benchmark, "N_DIS", 1)
    monkeypatch.setattr(benchmark, "HEIGHT", 24)
    monkeypatch.setattr(benchmark, "has_bfloat16", lambda device: False)
    return lambda *more: benchmark.main(["--batchSize", "2", "--patchSize", "16", "--use_gpu", "false", *more])


def test_benchmark(run, capsys):
    assert run("all", "--precision", "auto", "tf32") == 0
    out, err = capsys.readouterr()
    for name in (*benchmark.TRAININGS, "derain"):
        assert f"| {name}: fp32 " in out and f"| {name}: auto " in out
    assert "tf32" not in out and "left out: tf32" in err


def test_recorded_steps_are_compared_and_measured(run, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "adam", functools.partial(torch.optim.Adam, fused=True))  # as on a GPU
    monkeypatch.setattr(benchmark, "recorder", lambda device: Tape())
    monkeypatch.setattr(benchmark, "CYCLES", {"cpu": 4})
    assert run("aug", "--cuda_graphs") == 0
    assert "| aug: fp32 recorded " in (out := capsys.readouterr().out) and "| equal to the bit, " in out
    monkeypatch.setattr(benchmark, "differing", lambda *_: ["loss of step 0", "a", "b", "c"])
    assert run("aug", "--cuda_graphs") == 0
    assert "4 values differ (loss of step 0, a, b): leave --cuda_graphs out" in capsys.readouterr().out


def test_it_takes_the_median_of_the_turns(monkeypatch):
    clock = iter([0, 10, 10, 14, 20, 22, 30, 36, 40, 41, 50, 53])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    assert benchmark.measure(lambda: None, torch.device("cpu")) == 3
