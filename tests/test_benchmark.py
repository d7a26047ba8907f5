"""The benchmark: what it measures and prints."""

import pytest
import torch

from common import benchmark
from common.models import Derain, PReNet


@pytest.mark.parametrize("work", ["derain", "all"])
def test_benchmark(work, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "Derain", lambda stages: Derain(1))
    monkeypatch.setattr(benchmark, "PReNet", lambda stages: PReNet(1))
    monkeypatch.setattr(benchmark, "TURNS", 1)
    monkeypatch.setattr(benchmark, "HEIGHT", 24)
    monkeypatch.setattr(benchmark, "has_bfloat16", lambda device: False)
    flags = ["--batchSize", "2", "--patchSize", "16", "--precision", "auto", "tf32", "--use_gpu", "false"]
    assert benchmark.main([work, *flags]) == 0
    out, err = capsys.readouterr()
    for name in benchmark.WORK if work == "all" else [work]:
        assert f"| {name}: fp32 " in out and f"| {name}: auto " in out
    assert "tf32" not in out and "left out: tf32" in err


def test_it_takes_the_median_of_the_turns(monkeypatch):
    clock = iter([0, 10, 10, 14, 20, 22, 30, 36, 40, 41, 50, 53])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    assert benchmark.measure(lambda: None, torch.device("cpu")) == 3
