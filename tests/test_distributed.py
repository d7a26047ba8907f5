"""Two processes under torchrun do what one does: the same numbers, the same files, and nothing hangs."""

import atexit
import functools
import importlib
import json
import os
import shutil
import signal
import sys
import time

import pytest
import torch

from common import cli, distributed
from common.data.patches import crop_keys
from common.errors import UserError
from common.training import device
from for_syn import train_syn_joint
from tests import in_ranks
from tests.conftest import begin, files, folders, write_pairs
from tests.runs import arguments, load, numbers_of, train
from tests.test_joint import NOT_REPRODUCIBLE

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
IN_RANKS = "tests/in_ranks.py"


def torchrun(*command, processes=2):
    """A job, which ends with the tests at the latest."""
    listening = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # whoever started the tests
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    process = begin(*start, *command, env=ONE_THREAD, preexec_fn=listening)
    atexit.register(process.kill)
    return process


def training(data, model, *more):
    return arguments(data, model, "--batchSize", 4, *more)


def validation(data):
    return ["--val_data_path", data / "rain", "--val_gt_path", data / "norain"]


@pytest.fixture(scope="module")
def job(tmp_path_factory, generator):
    """The folder of everything that one process did, in one/, and that two did, in two/."""
    folder = tmp_path_factory.mktemp("job")
    data, one, two = write_pairs(folder / "data"), folder / "one", folder / "two"
    (folder / "own.py").write_text(
        "import torch\nclass Even(torch.nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 3, 1)\n"
        "    def forward(self, x):\n        assert x.shape[3] % 2 == 0\n        return super().forward(x)\n"
    )
    torch.manual_seed(0)
    torch.save(torch.nn.Conv2d(3, 3, 1).state_dict(), folder / "own.pt")

    def joint(place, niter):
        return training(data, place / "joint", "--niter", niter, *validation(data))

    def commands(place):
        """All that is done in a place, as (module, flags)."""
        rainy, clean, ED = ["--data_path", data / "rain"], data / "norain", ["--netED", generator]
        small = "--batchSize 4 --iters_per_epoch 6 --niter 2 --workers 0 --recurrent_iter 1 --manualSeed 5"
        aug = [*folders(data, place / "aug"), *ED, *small.split(), "--lr", 1e-5]  # more makes much of rounding
        bnet = ["--netDerain", one / "joint" / "DerainNet_state_2.pt", "--save_path", place / "derained"]
        rain = ["--data_path", clean, *ED, "--num", 2, "--save_layer", "--save_path", place / "rained"]
        own = ["--model_dir", folder / "own.pt", "--derainer", f"{folder}/own.py:Even", "--save_path", place / "some"]
        found = {
            "train_syn_joint": joint(place, 2),
            "train_syn_aug": aug,
            "test_syn_joint": [*rainy, "--gt_path", clean, *bnet],
            "generate_rain": rain,
            "test_syn_aug": [*rainy, *own],  # of the four images, 9.png and 11.png have odd widths
        }
        return [(f"for_syn.{name}", [*map(str, flags), "--use_gpu", "false"]) for name, flags in found.items()]

    train_syn_joint.main(joint(one, 1))
    for end in ("", "_logs"):  # one process begins, one and two go on
        shutil.copytree(one / f"joint{end}", two / f"joint{end}")
    for module, argv in commands(one):
        importlib.import_module(module).main(argv)
    (folder / "jobs.json").write_text(json.dumps(commands(two)))
    process = torchrun(IN_RANKS, folder)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    (folder / "printed.txt").write_text(text)
    return folder


def furthest(one, other, but=()):
    """The largest difference between the tensors of two state dicts, some of them left out."""
    assert one.keys() == other.keys()
    return max((one[k].double() - other[k].double()).abs().max().item() for k in one if not k.endswith(but))


def test_two_processes_are_one_on_the_same_batch(job):
    alone, first, second = in_ranks.compared(), load(job / "0.pt")["compared"], load(job / "1.pt")["compared"]
    for kind, (states, rows) in alone.items():
        for state, of_first, of_second in zip(states, first[kind][0], second[kind][0], strict=True):
            assert furthest(state, of_first) < 1e-9, kind  # u and v of the spectral norm are in it
            assert furthest(of_first, of_second) == 0, kind
        assert first[kind][1] == second[kind][1]  # the losses are means over both
        for row, of_first in zip(rows, first[kind][1], strict=True):
            assert of_first == pytest.approx(row, rel=1e-9), kind


def test_crops_are_shared_out(monkeypatch):
    """What the equality rests on: shares that differ, and that are all of the batch; here 5, 5 and 4 of 14 crops."""
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    shares = []
    for number in range(3):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        shares.append((list(range(5, 17))[distributed.share(5)], list(crop_keys(14, 2, 3, 1, 2, skip=1))))
        assert len(shares[-1][1]) == 3
    monkeypatch.undo()
    assert [numbers for numbers, _ in shares] == [[6, 9, 12, 15], [7, 10, 13, 16], [5, 8, 11, 14]]
    for step, batch in enumerate(crop_keys(14, 2, 3, 1, 2, skip=1)):
        parts = [share[step] for _, share in shares]
        assert [len(part) for part in parts] == [5, 5, 4]
        assert [parts[i % 3][i // 3] for i in range(14)] == batch


def test_communication(job):
    first, second = load(job / "0.pt"), load(job / "1.pt")
    for results in (first, second):
        assert set(results["weights"][0].values()) == {1}
        assert [weight.flatten()[0].item() for weight in results["gradients"]] == [-1.5, -1.5]
        assert results["any"] == [True, True, False]
        assert results["gather"] == [0, 1] and results["broadcast"] == 5
    own = {name: value for name, value in second["weights"][1].items() if name.endswith(("weight", "bias"))}
    assert set(own.values()) == {2} and {v for k, v in second["weights"][1].items() if k not in own} == {1}


def assert_same_training(one, two, prefixes=("DerainNet", "ED", "D")):
    for name in prefixes:
        states = (load(folder / f"{name}_state_2.pt") for folder in (one, two))
        assert furthest(*states, but=NOT_REPRODUCIBLE) < 5e-5  # float32; the steps add up to 2e-4 at least
    a, b = load(one / "train_state_last.pt"), load(two / "train_state_last.pt")
    assert torch.equal(a["rng"]["torch"], b["rng"]["torch"]) and a["epoch"] == b["epoch"] == 2
    for row, other in zip(numbers_of(one), numbers_of(two), strict=True):
        assert other == pytest.approx(row, rel=5e-4)  # means of few scores near 0; exact figures: in float64, above


def test_training_of_two_equals_one_and_goes_on_where_one_stopped(job):
    assert_same_training(job / "one" / "joint", job / "two" / "joint")
    assert_same_training(job / "one" / "aug", job / "two" / "aug", ["Aug_DerainNet"])
    assert len(list((job / "two" / "joint_logs").glob("events*"))) == 2
    printed = (job / "printed.txt").read_text()
    assert printed.count("epoch 2/2  ") == 2  # the line at its end, of two trainings
    assert "going on after 1 epochs" in printed


@pytest.mark.parametrize(("work", "number"), [("derained", 6), ("rained", 28), ("some", 3)])
def test_same_files_as_one_process(job, work, number):
    one, two = files(job / "one" / work), files(job / "two" / work)
    assert one.keys() == two.keys() and len(one) == number
    assert [name for name in one if one[name] != two[name]] == []


def test_what_is_said_of_shared_work(job):
    printed = (job / "printed.txt").read_text()
    assert printed.count("4 images derained") == 1 and printed.count("8 pairs made") == 1
    assert "[rank 1]" not in printed and printed.count("2 of 4 images could not be derained") == 1


# --- how a job ends ------------------------------------------------------------------------------------------------


def wait_for_file(file, process):
    for _ in range(1200):
        if file.exists():
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError(f"{file} did not come")


def test_ctrl_c_saves_once_and_says_how_to_go_on(tmp_path):
    data, model = write_pairs(tmp_path / "data"), tmp_path / "m"
    process = torchrun(IN_RANKS, "slow save", *training(data, model, "--iters_per_epoch", 10**5))
    wait_for_file(tmp_path / "m_logs" / "options.json", process)
    time.sleep(2)
    os.kill(process.pid, signal.SIGINT)  # as a terminal does: its processes have sessions of their own
    text = process.communicate(timeout=120)[0]
    assert text.count("stopping after this step to save") == 1 and text.count("stopped and saved after") == 1
    state = load(model / "train_state_last.pt")  # no other was saved
    assert f"stopped and saved after 0 epochs and {state['step']} steps" in text
    assert "[rank 1]" not in text


def test_an_image_that_one_rank_can_not_read_ends_the_job(tmp_path):
    flags = training(write_pairs(tmp_path / "data"), tmp_path / "m", "--cache", "none", "--save_minutes", 1e-9)
    text = torchrun(IN_RANKS, "no image", *flags).communicate(timeout=120)[0]
    assert "error: gone.png: no such file. The last good state is" in text and 'loop.py", line' not in text
    state = load(tmp_path / "m" / "train_state_last.pt")
    assert (state["epoch"], state["step"]) == (0, 3)


def test_of_all_that_fail_the_first_speaks(monkeypatch, capsys):
    """Later ones tell after two seconds whose error it is; by then torchrun has ended them."""
    waited, ended = [], []
    monkeypatch.setattr(distributed, "is_launched", lambda: True)
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    monkeypatch.setattr(cli.os, "_exit", ended.append)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        cli._end_rank("error: x", 2)
    assert capsys.readouterr().err == "error: x\n[rank 1] error: x\n" and waited == [2] and ended == [2, 2]


def test_ranks_that_see_different_things_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda value: ["4 pairs", "4 pairs", value])
    distributed.require_same("--data_path", "4 pairs")
    with pytest.raises(UserError, match="--data_path: rank 2 has 5 pairs, rank 0 has 4 pairs"):
        distributed.require_same("--data_path", "5 pairs")


def test_commands_of_one_process_refuse(monkeypatch, capfd):
    monkeypatch.setattr(distributed, "is_launched", lambda: True)
    monkeypatch.setenv("RANK", "0")
    assert cli.run(lambda: pytest.fail("was called")) == 2
    assert "start it with python, not with torchrun" in capfd.readouterr().err


def test_a_batch_smaller_than_the_job_is_refused(pairs_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 2)
    with pytest.raises(UserError, match="--batchSize: 2 crops for 3 processes; each needs one"):
        train(pairs_folder, tmp_path / "m")


# --- devices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu_id", "place", "processes", "taken"),
    [("2", 0, 1, 2), ("0", 1, 2, 1), ("2,3", 1, 2, 3)],
)
def test_local_rank_decides_the_gpu(monkeypatch, gpu_id, place, processes, taken):
    for name, value in {"is_available": True, "device_count": 4, "set_device": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(distributed, "is_launched", lambda: True)
    monkeypatch.setattr(distributed, "local_rank", lambda: place)
    monkeypatch.setattr(distributed, "local_size", lambda: processes)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(3))
    assert device.pick_device(True, gpu_id) == torch.device("cuda", taken)


@pytest.mark.parametrize(("gpu_id", "processes"), [("0", 5), ("0,1", 3)])
def test_more_processes_than_gpus(monkeypatch, gpu_id, processes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(distributed, "is_launched", lambda: True)
    monkeypatch.setattr(distributed, "local_rank", lambda: 0)
    monkeypatch.setattr(distributed, "local_size", lambda: processes)
    with pytest.raises(UserError, match=f"{processes} processes on this machine"):
        device.pick_device(True, gpu_id)
