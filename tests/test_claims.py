"""The claim's script in small: every cell comes out, all ways take as many steps, finished work is kept."""

import csv
import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from common import cli
from common.data.images import read_image
from common.errors import TrainingStopped
from common.evaluation import claims, experiment
from common.evaluation.curves import read_log
from tests.conftest import ROOT, write_claim_sets
from tests.runs import THREADS


@pytest.fixture
def data(tmp_path, generator):
    """A folder with sets/ and a generator."""
    write_claim_sets(tmp_path / "sets")
    (tmp_path / "ED.pt").write_bytes(generator.read_bytes())
    return tmp_path


def run(data, *more):
    words = ["--data", data / "sets", "--out", data / "out", "--netED", data / "ED.pt", "--steps", 6, "--batchSize", 4]
    words += ["--generator_steps", 4, "--generator_batch", 2, "--patchSize", 16, "--recurrent_iter", 1]
    return cli.run(lambda: claims.main(list(map(str, [*words, "--use_gpu", "false", "--seeds", 1, *more]))))


def flag(flags, name):
    return str(flags[flags.index(name) + 1])


def results(data):
    return list(csv.DictReader((data / "out" / "results.csv").open()))


def test_cells_come_out_and_are_kept(data, calls, capsys):
    assert run(data, "--cells", "heavy12", "light5") == 0
    ways = [("light5", way) for way in claims.WAYS] + [("heavy12", way) for way in claims.WAYS[:2]]
    assert [(row["cell"], row["way"]) for row in results(data)] == ways
    assert all(float(row["psnr_y"]) > 5 for row in results(data))
    printed, text = capsys.readouterr().out, (data / "out" / "results.md").read_text()
    assert text in printed and "| heavy, 12 | same pairs |" in text and "| light, 5 | more data |" in text
    assert read_image(data / "out" / "claims.png").std() > 10
    rain = read_image(data / "out" / "rain.png")[-40:]  # heavy12: real, generated; see pictures.row
    assert rain.shape[1] > 3 * 6 * 16 and rain.std() > 10
    log = read_log(data / "out" / "light5" / "seed1" / "more_data_logs")
    (row,) = (json.loads((data / "out" / "light5" / "seed1" / "more_data.json").read_text()),)
    assert row["curve"] == [log["step"].tolist(), log["val_psnr_y"].tolist()] and len(row["curve"][0]) == claims.EPOCHS
    nets = [data / "out" / "light5" / "seed1" / way / "Aug_DerainNet_state_2.pt" for way in ("without", "more_data")]
    a, b = (torch.load(path, weights_only=True) for path in nets)
    assert any(not torch.equal(a[key], b[key]) for key in a)
    before = len(calls)
    assert run(data, "--cells", "heavy12", "light5") == 0 and len(calls) == before
    assert run(data, "--cells", "heavy12", "heavy12", "--seeds", 1, 2, 2) == 0 and len(calls) == before + 4
    assert {(row["cell"], row["seed"]) for row in results(data)} == {
        ("heavy12", "1"),
        ("heavy12", "2"),
        ("light5", "1"),
    }
    capsys.readouterr()
    assert run(data, "--cells", "heavy12", "--steps", "60") == 2
    assert "has results of --steps 6, not 60" in capsys.readouterr().err
    (data / "other").mkdir()
    assert run(data, "--cells", "heavy12", "--data", data / "other") == 2 and "--data" in capsys.readouterr().err


def test_which_pairs_the_networks_see_and_how_many_steps(data, calls):
    assert run(data, "--cells", "heavy4") == 0
    few, more = (data / "out" / cell / "data" / "train" / "rain" for cell in ("heavy4", "heavy12"))
    test = {path.name for path in (data / "out" / "heavy4" / "data" / "test" / "rain").iterdir()}
    assert {path.name for path in few.iterdir()} == set(claims.HEAVY_TRAIN[:4]) and test == set(claims.HEAVY_TEST)
    assert {path.name for path in more.iterdir()} == set(claims.HEAVY_TRAIN) and not test & set(claims.HEAVY_TRAIN)
    trainings = [(script, flags) for script, flags in calls if "train" in script]
    assert [(script[8:], flag(flags, "--data_path")) for script, flags in trainings] == [
        ("train_syn_aug.py", str(few)),
        ("train_syn_generator.py", str(few)), ("train_syn_aug.py", str(few)),
        ("train_syn_generator.py", str(more)), ("train_syn_aug.py", str(few)),
    ]  # fmt: skip
    steps = {}
    for script, flags in trainings:
        if "aug" in script:
            ratio = float(flag(flags, "--fake_ratio"))
            steps[ratio] = int(flag(flags, "--niter")) * -(-int(flag(flags, "--iters_per_epoch")) * (1 + ratio) // 1)
    assert steps == {0: 6, 0.5: 6}


def test_steps_are_equal():
    for total in (1, 30, 1000):
        with_, without = claims.steps_of(total)
        assert -(-with_ * 3 // 2) == without and without * claims.EPOCHS >= total


def test_a_script_that_fails_does_not_stop_the_others(data, calls, monkeypatch, capsys):
    call = experiment.call

    def failing(words, log):
        if "heavy12" in str(log):
            raise TrainingStopped("no memory")
        call(words, log)

    monkeypatch.setattr(experiment, "call", failing)
    assert run(data, "--cells", "heavy12", "light5") == 1
    assert "heavy12, seed 1, without: no memory" in capsys.readouterr().err
    assert {row["cell"] for row in results(data)} == {"light5"}
    scores = data / "out" / "heavy12_derained"

    def some(words, log):
        scores.mkdir()
        (scores / "metrics.csv").write_text("of the images before the one that failed")
        raise TrainingStopped("1 of 2 images")

    monkeypatch.setattr(experiment, "call", some)
    with pytest.raises(TrainingStopped):
        experiment.measure("net.pt", data, scores, [])
    assert not (scores / "metrics.csv").exists()


def test_missing_data_is_named(data, calls, capsys):
    (data / "sets" / "rain100H_train18" / "rain" / claims.HEAVY_TRAIN[2]).unlink()
    assert run(data, "--cells", "heavy4") == 2
    assert claims.HEAVY_TRAIN[2] in capsys.readouterr().err and not calls
    assert not (data / "out" / "settings.json").exists()  # so that --data may be mended


def test_a_script_is_named_if_it_fails_and_ended_with_the_command(tmp_path):
    (tmp_path / "bad.py").write_text("print('disk full'); raise SystemExit(3)")
    with pytest.raises(TrainingStopped, match="exit code 3; see "):
        experiment.call([tmp_path / "bad.py"], tmp_path / "log.txt")
    (tmp_path / "long.py").write_text("import time; print('begun', flush=True); time.sleep(600)")
    words = [str(tmp_path / "long.py")], str(tmp_path / "l")
    code = f"from common.evaluation.experiment import *; words, log = {words}; call(words, Path(log))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=THREADS, stderr=subprocess.DEVNULL)
    while not ((tmp_path / "l").exists() and (tmp_path / "l").read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0  # it waits for the script
