"""The benchmark: what it measures and prints, and its refusals."""

import json

import numpy as np
import pytest
import torch

from common import benchmark
from common.errors import UserError
from common.models import Derain, PReNet


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
