"""The claim's script in small: every cell comes out, both ways take as many steps, what is done is kept."""

import csv
import threading
import time

import pytest
import torch

from common import cli
from common.data.images import read_image
from common.errors import TrainingStopped
from common.evaluation import claims
from tests.conftest import write_claim_sets


@pytest.fixture
def data(tmp_path):
    """A folder with sets/."""
    write_claim_sets(tmp_path / "sets")
    return tmp_path


def run(data, *more):
    words = ["--data", data / "sets", "--out", data / "out", "--steps", 30, "--generator_steps", 20, "--batchSize", 4]
    words += ["--patchSize", 16, "--recurrent_iter", 1, "--use_gpu", "false", "--seeds", 1, *more]
    return cli.run(lambda: claims.main(list(map(str, words))))


def flag(flags, name):
    return flags[flags.index(name) + 1]


def test_cells_come_out_and_are_kept(data, calls, capsys):
    assert run(data, "--cells", "heavy4", "light5") == 0
    rows = list(csv.DictReader((data / "out" / "results.csv").open()))
    assert [(row["cell"], row["way"]) for row in rows] == [
        ("heavy4", "without"), ("heavy4", "with"), ("light5", "without"), ("light5", "with")
    ]  # fmt: skip
    assert {row["steps"] for row in rows} == {"30"} and all(float(row["psnr_y"]) > 5 for row in rows)
    printed, text = capsys.readouterr().out, (data / "out" / "results.md").read_text()
    assert text in printed and "| heavy rain, 4 |" in text and "| light rain, 5 |" in text
    assert read_image(data / "out" / "claims.png").std() > 10
    states = [data / "out" / "heavy4" / "seed1" / way / "Aug_DerainNet_state_10.pt" for way in claims.WAYS]
    a, b = (torch.load(path, weights_only=True) for path in states)
    assert any(not torch.equal(a[key], b[key]) for key in a)
    before = len(calls)
    assert run(data, "--cells", "heavy4", "light5") == 0 and len(calls) == before
    assert run(data, "--cells", "heavy4", "heavy4", "--seeds", 1, 2, 2, "--jobs", 2) == 0 and len(calls) == before + 5
    rows = list(csv.DictReader((data / "out" / "results.csv").open()))
    assert {(row["cell"], row["seed"]) for row in rows} == {("heavy4", "1"), ("heavy4", "2"), ("light5", "1")}
    assert run(data, "--cells", "heavy4", "--steps", "60") == 2
    (data / "other").mkdir()
    assert run(data, "--cells", "heavy4", "--data", data / "other") == 2


def test_generator_and_derainers_see_the_few_pairs_alone_and_as_many_steps(data, calls):
    assert run(data, "--cells", "heavy4") == 0
    train = sorted(path.name for path in (data / "out" / "heavy4" / "data" / "train" / "rain").iterdir())
    test = sorted(path.name for path in (data / "out" / "heavy4" / "data" / "test" / "rain").iterdir())
    assert train == sorted(claims.HEAVY_TRAIN[:4]) and test == sorted(claims.HEAVY_TEST) and not set(train) & set(test)
    trainings = [(script, flags) for script, flags in calls if "train" in script]
    assert len({flag(flags, "--data_path") for _, flags in trainings}) == 1
    steps = {}
    for _, flags in trainings[1:]:
        ratio = float(flag(flags, "--fake_ratio"))
        steps[ratio] = int(flag(flags, "--niter")) * -(-int(flag(flags, "--iters_per_epoch")) * (1 + ratio) // 1)
    assert set(steps) == {0, 0.5} and len(set(steps.values())) == 1


def test_a_training_goes_on_by_the_same_command(data, monkeypatch):
    commands = []

    def call(self, words, log):
        commands.append(list(map(str, words)))
        model = data / "net"
        model.mkdir(exist_ok=True)
        (model / ("last.pt" if (model / "train_state_last.pt").exists() else "train_state_last.pt")).touch()
        (data / "net_logs").mkdir(exist_ok=True)
        (data / "net_logs" / "log.csv").write_text("epoch,step,seconds,loss\n1,2,90,0\n2,4,30,0\n")

    monkeypatch.setattr(claims.Running, "call", call)
    words = "script.py", data / "net", "last.pt", ["--niter", 10], claims.Running()
    with pytest.raises(TrainingStopped, match="ended without"):
        claims.train(*words)
    for _ in range(2):  # the second of these has nothing to do
        assert claims.train(*words) == 2  # minutes
    assert commands[0] == [*commands[1], "--overwrite"] and len(commands) == 2


@pytest.mark.parametrize("total", [1, 30, 300, 1000, 6000])
def test_steps_are_equal(total):
    with_, without = claims.steps_of(total, 0.5)
    assert -(-with_ * 3 // 2) == without and without * claims.EPOCHS >= total


def test_a_script_that_fails_does_not_stop_the_others(data, calls, monkeypatch, capsys):
    call = claims.Running.call

    def failing(self, words, log):
        if "heavy4" in str(log):
            raise TrainingStopped("no memory")
        call(self, words, log)

    monkeypatch.setattr(claims.Running, "call", failing)
    assert run(data, "--cells", "heavy4", "light5") == 1
    assert "heavy4, seed 1: no memory" in capsys.readouterr().err
    assert {row["cell"] for row in csv.DictReader((data / "out" / "results.csv").open())} == {"light5"}


def test_missing_data_is_named(data, calls, capsys):
    (data / "sets" / "rain100H_train18" / "rain" / claims.HEAVY_TRAIN[2]).unlink()
    assert run(data, "--cells", "heavy4") == 2
    assert claims.HEAVY_TRAIN[2] in capsys.readouterr().err and not calls


def test_running_scripts_are_told_apart_and_ended(tmp_path):
    running = claims.Running()
    (tmp_path / "bad.py").write_text("print('what it was'); raise SystemExit(3)")
    with pytest.raises(TrainingStopped, match="exit code 3: what it was"):
        running.call([tmp_path / "bad.py"], tmp_path / "log.txt")
    (tmp_path / "long.py").write_text("import time; time.sleep(60)")
    ended = []

    def start():
        with pytest.raises(TrainingStopped):
            running.call([tmp_path / "long.py"], tmp_path / "long.txt")
        ended.append(time.monotonic())

    thread, began = threading.Thread(target=start), time.monotonic()
    thread.start()
    while not running._processes:
        time.sleep(0.01)
    running.stop()
    thread.join()
    assert ended[0] - began < 10
    with pytest.raises(TrainingStopped, match="stopped"):
        running.call([tmp_path / "bad.py"], tmp_path / "log.txt")
