"""Two processes under torchrun do what one does: the same numbers, the same files, and nothing hangs."""

import argparse
import atexit
import csv
import functools
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.distributed.run import parse_args

from common import cli, distributed
from common.data.patches import CropSampler
from common.models import EDNet, PReNet
from common.training import device, runtime, trial
from for_syn import train_syn_joint
from tests import in_ranks
from tests.conftest import begin, write_pairs
from tests.golden import fill, golden_json
from tests.test_joint import NAMES, NOT_REPRODUCIBLE
from tests.test_training import arguments, load, resume

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
IN_RANKS = "tests/in_ranks.py"


def torchrun(*command, processes=2):
    """A job, which ends with the tests at the latest."""
    listening = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # whoever started the tests
    process = begin(*shlex.split(distributed.torchrun(processes)), *command, env=ONE_THREAD, preexec_fn=listening)
    atexit.register(process.kill)
    return process


def training(data, model, crops, *more):
    return arguments(data, model, "--batchSize", crops, *more)


def validation(data):
    return ["--val_data_path", data / "rain", "--val_gt_path", data / "norain"]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The folder of everything that one process did, in one/, and that two did, in two/."""
    folder = tmp_path_factory.mktemp("job")
    data = write_pairs(folder / "data")
    ed, bnet = folder / "ED.pt", folder / "DerainNet.pt"
    torch.save(fill(EDNet(nz=5, nef=4, patch_size=16), 1).state_dict(), ed)
    one, two = folder / "one", folder / "two"

    def aug(place, crops):
        more = ["--netED", ed, "--recurrent_iter", 1, "--lr", 1e-5]  # a higher rate makes much of rounding
        flags = training(data, place / "aug", crops, "--niter", 2, *more)
        networks = {"--stage", "--nz", "--nef", "--ndf", "--n_dis"}
        pairs = zip(flags[::2], flags[1::2], strict=True)
        return [text for flag, value in pairs if flag not in networks for text in (flag, value)]

    def derain(place):
        flags = ["--data_path", data / "rain", "--gt_path", data / "norain", "--use_gpu", "false", "--stage", 1]
        return [*map(str, flags), "--netDerain", str(bnet), "--save_path", str(place / "derained")]

    def rain(place):
        flags = ["--data_path", data / "norain", "--netED", ed, "--num", 2, "--use_gpu", "false", "--save_layer"]
        return [*map(str, flags), "--save_path", str(place / "rained")]

    (folder / "own.py").write_text(
        "import torch\nclass Even(torch.nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 3, 1)\n"
        "    def forward(self, x):\n        assert x.shape[3] % 2 == 0\n        return super().forward(x)\n"
    )
    torch.manual_seed(0)
    torch.save(torch.nn.Conv2d(3, 3, 1).state_dict(), folder / "own.pt")

    def derain_some(place):  # of the four images, 9.png and 11.png have odd widths
        flags = ["--data_path", data / "rain", "--model_dir", folder / "own.pt", "--save_path", place / "some"]
        return [*map(str, flags), "--derainer", f"{folder / 'own.py'}:Even", "--use_gpu", "false"]

    val = validation(data)
    joint, augmented = "for_syn.train_syn_joint", "for_syn.train_syn_aug"
    single = [
        (joint, training(data, one / "whole", 4, "--niter", 3, *val)),
        (joint, training(data, one / "begun", 4, "--niter", 2, *val)),
        (augmented, aug(one, 4)),
    ]
    for module, argv in single:
        importlib.import_module(module).main(argv)
    shutil.copy(one / "whole" / "DerainNet_state_3.pt", bnet)
    alone = [("for_syn.test_syn_joint", derain(one)), ("for_syn.generate_rain", rain(one))]
    for module, argv in [*alone, ("for_syn.test_syn_aug", derain_some(one))]:
        importlib.import_module(module).main(argv)
    shutil.copytree(one / "begun", two / "gone_on")  # one process begins, two go on
    shutil.copytree(one / "begun_logs", two / "gone_on_logs")
    logs = ["--log_dir", str(two / "gone_on_logs")]
    jobs = [
        (joint, training(data, two / "begun", 2, "--niter", 2, *val)),
        (joint, ["--model_dir", str(two / "gone_on"), *logs, "--resume", "-1", "--niter", "3"]),
        (augmented, aug(two, 2)),
        ("for_syn.test_syn_joint", derain(two)),
        ("for_syn.generate_rain", rain(two)),
        ("for_syn.test_syn_aug", derain_some(two)),
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    process = torchrun(IN_RANKS, folder)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    (folder / "printed.txt").write_text(text)
    return folder


def furthest(one, other, but=()):
    """The largest difference between the tensors of two state dicts, some of them left out."""
    assert one.keys() == other.keys()
    return max((one[k].double() - other[k].double()).abs().max().item() for k in one if not k.endswith(but))


def test_two_processes_of_four_crops_are_one_of_eight(job):
    alone, first, second = in_ranks.compared(), load(job / "0.pt")["compared"], load(job / "1.pt")["compared"]
    for kind, (states, rows) in alone.items():
        for state, of_first, of_second in zip(states, first[kind][0], second[kind][0], strict=True):
            assert furthest(state, of_first) < 1e-9, kind  # u and v of the spectral norm are in it
            assert furthest(of_first, of_second) == 0, kind
        assert first[kind][1] == second[kind][1]  # the losses are means over both
        for row, of_first in zip(rows, first[kind][1], strict=True):
            assert of_first == pytest.approx(row, rel=1e-9), kind


def test_the_draws_of_a_rank_are_its_own(monkeypatch):
    """What the equality rests on: shares that differ, and that are all of the whole."""
    monkeypatch.setattr(ranks, "count", lambda: 3)
    shares = []
    for number in range(3):
        monkeypatch.setattr(ranks, "rank", lambda number=number: number)
        keys = list(CropSampler(12, 3, 1, 2, skip=6))
        assert len(CropSampler(12, 3, 1, 2, skip=6)) == len(keys)
        shares.append((list(range(5, 17))[distributed.share(5)], keys))
    monkeypatch.undo()
    assert [numbers for numbers, _ in shares] == [[6, 9, 12, 15], [7, 10, 13, 16], [5, 8, 11, 14]]
    together = [key for keys in zip(*(keys for _, keys in shares), strict=True) for key in keys]
    assert together == list(CropSampler(12, 3, 1, 2, skip=6))


def test_seven_reference_steps_by_two_processes(job):
    golden = golden_json("joint_syn.json")["rows_float32"]
    names = NAMES | {"kl_z": "kl_z", "kl_b": "kl_b", "mse": "mse", "g_adv": "g_loss", "loss_G": "errED"}
    rows = load(job / "0.pt")["golden"]
    for row, expected in zip(rows, golden, strict=True):
        for name, value in row.items():
            reference, absolute = expected[names[name]], {"gp": 1e-4, "loss_D": 2e-3}.get(name, 1e-6)
            assert abs(value - reference) <= absolute + 1e-3 * abs(reference), (expected["step"], name)


def test_communication_of_a_step(job):
    """One call in steps of D, two where all learn: the weights that learn, a one for each tensor, and the losses."""
    derain, ed, d = ([p.numel() for p in kind(*how).parameters() if p.requires_grad] for kind, *how in in_ranks.WIDE)
    of_d, of_g = sum(d) + len(d) + 5, sum(derain + ed) + len(derain + ed) + 4
    prenet = [p.numel() for p in PReNet(6).parameters()]
    for rank in (0, 1):
        found = load(job / f"{rank}.pt")
        assert found["sent"] == [of_d, of_g, of_d, of_d, of_d, of_d, of_d, of_g, of_d]
        assert found["sent A+"] == [sum(prenet) + len(prenet) + 2]
    megabytes = [round(4e-6 * number, 1) for number in (of_d, of_g, *found["sent A+"])]
    assert megabytes == [12.7, 23.8, 0.7]  # as the README says


def test_what_passes_between_processes(job):
    first, second = load(job / "0.pt"), load(job / "1.pt")
    for found in (first, second):
        assert set(found["spread"][0].values()) == {1}
        gradients, means = found["average"]
        assert gradients[0].tolist() == [[1.5] * 3] * 2 and gradients[1].item() == 1.5 and gradients[2] is None
        assert means["mse"].item() == 0.5
        assert found["wished"] == [True, True, False] and found["reason"] == "rain"
        assert found["gathered"] == [0, 1] and found["first"] == 5
    own = {name: value for name, value in second["spread"][1].items() if name.endswith(("weight", "bias"))}
    assert set(own.values()) == {2} and {v for k, v in second["spread"][1].items() if k not in own} == {1}


def rows(log):
    with open(log / "log.csv") as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_training(one, two, niter, prefixes=("DerainNet", "ED", "D")):
    for name in prefixes:
        states = (load(folder / f"{name}_state_{niter}.pt") for folder in (one, two))
        assert furthest(*states, but=NOT_REPRODUCIBLE) < 5e-5  # float32; the steps add up to 2e-4 at least
    a, b = load(one / "train_state_last.pt"), load(two / "train_state_last.pt")
    assert torch.equal(a["rng"]["torch"], b["rng"]["torch"]) and a["epoch"] == b["epoch"] == niter
    logs = (rows(folder.with_name(f"{folder.name}_logs")) for folder in (one, two))
    for row, other in zip(*logs, strict=True):
        assert other == pytest.approx(row, rel=5e-4)  # means of few scores near 0; exact figures: in float64, above


def test_training_of_two_equals_one(job):
    assert_same_training(job / "one" / "begun", job / "two" / "begun", 2)
    assert_same_training(job / "one" / "aug", job / "two" / "aug", 2, ["Aug_DerainNet"])
    assert len(list((job / "two" / "begun_logs").glob("events*"))) == 1
    printed = (job / "printed.txt").read_text()
    assert printed.count("2 processes: a step has 4 crops, 2 of each") == 3 and printed.count("epoch 1/2") == 2


def test_two_go_on_where_one_stopped(job):
    printed = (job / "printed.txt").read_text()
    assert "resume: 1 processes before, 2 now, --batchSize 2: a step still has 4 crops" in printed
    assert_same_training(job / "one" / "whole", job / "two" / "gone_on", 3)


def test_one_goes_on_where_two_stopped(job, tmp_path, capsys):
    shutil.copytree(job / "two" / "begun", tmp_path / "m")
    shutil.copytree(job / "two" / "begun_logs", tmp_path / "m_logs")
    resume(tmp_path / "m", "--log_dir", tmp_path / "m_logs", "--resume", -1, "--niter", 3)
    assert "resume: 2 processes before, 1 now, --batchSize 4: a step still has 4 crops" in capsys.readouterr().out
    assert_same_training(job / "one" / "whole", tmp_path / "m", 3)


def test_resume_refuses_a_number_of_processes_that_can_not_share(job, monkeypatch, capsys):
    monkeypatch.setattr(ranks, "count", lambda: 3)
    begun = job / "one" / "begun"
    assert cli.run(lambda: resume(begun, "--log_dir", f"{begun}_logs", "--resume", -1, "--dry_run")) == 2
    error = capsys.readouterr().err
    assert "4 crops, which 3 processes can't share evenly; start as many as divide it: 1, 2, 4" in error


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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


def long_training(folder, *more):
    data = write_pairs(folder / "data")
    flags = training(data, folder / "m", 2, "--niter", 10000, "--save_minutes", 1e-9, "--cache", "none", *more)
    return torchrun("for_syn/train_syn_joint.py", *flags)


def wait_for_file(file, process):
    for _ in range(1200):
        if file.exists():
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError(f"{file} did not come")


def process_of(rank, parent):
    """The number of the process that torchrun started for a rank."""
    for entry in os.listdir("/proc"):
        try:
            environment = Path("/proc", entry, "environ").read_bytes().split(b"\0")
            started_by = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if started_by == parent.pid and f"RANK={rank}".encode() in environment:
            return int(entry)
    raise AssertionError("no such process")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the processes are found in Linux's /proc")
def test_killed_rank_ends_the_job_and_its_state_goes_on(tmp_path, capsys):
    process = long_training(tmp_path)
    wait_for_file(tmp_path / "m" / "train_state_prev.pt", process)
    began = time.monotonic()
    os.kill(process_of(1, process), signal.SIGKILL)
    text = process.communicate(timeout=120)[0]
    assert time.monotonic() - began < 60 and process.returncode == 1
    told = re.findall(r"^error: (.*)$", text, re.M)
    assert len(told) == 1 and told[0].startswith("another process of this job is gone, or can't be reached (")
    assert f"The last good state is {tmp_path / 'm' / 'train_state_last.pt'}" in told[0]
    assert "torch.distributed.run --standalone --nproc_per_node 2" in told[0] and "--resume -1" in told[0]
    assert "Signal 9 (SIGKILL)" in text  # torchrun's report
    state = load(tmp_path / "m" / "train_state_last.pt")
    whole = training(tmp_path / "data", tmp_path / "whole", 4, "--niter", state["epoch"] + 1)
    train_syn_joint.main(whole)
    resume(tmp_path / "m", "--resume", -1, "--niter", state["epoch"] + 1)
    for name in ("DerainNet", "ED", "D"):
        weights = f"{name}_state_{state['epoch'] + 1}.pt"
        one, two = load(tmp_path / "whole" / weights), load(tmp_path / "m" / weights)
        assert furthest(one, two, but=NOT_REPRODUCIBLE) < 1e-3  # rounding, which every step makes larger


def test_ctrl_c_saves_once_and_says_how_to_go_on(tmp_path):
    data, model = write_pairs(tmp_path / "data"), tmp_path / "m"
    process = torchrun(IN_RANKS, "slow save", *training(data, model, 2, "--iters_per_epoch", 10**5))
    wait_for_file(tmp_path / "m_logs" / "options.json", process)
    time.sleep(2)
    os.kill(process.pid, signal.SIGINT)  # as a terminal does: its processes have sessions of their own
    text = process.communicate(timeout=120)[0]
    assert text.count("stopping after this step to save") == 1 and text.count("stopped and saved after") == 1
    state = load(model / "train_state_last.pt")  # no other was saved
    assert f"stopped and saved after 0 epochs and {state['step']} steps" in text
    assert state["processes"] == 2
    assert "[rank 1]" not in text and "gone" not in text


def test_an_image_that_one_rank_can_not_read_loses_nothing(tmp_path):
    flags = training(write_pairs(tmp_path / "data"), tmp_path / "m", 2, "--cache", "none")
    text = torchrun(IN_RANKS, "no image", *flags).communicate(timeout=120)[0]
    told = re.findall("^(.*)error: gone.png: no such file. The last good state is", text, re.M)
    assert told[0] == "" and "[rank 1]" not in text
    state = load(tmp_path / "m" / "train_state_last.pt")
    assert (state["epoch"], state["step"]) == (0, 4)


def test_a_mistake_is_told_once(tmp_path):
    data = write_pairs(tmp_path / "data")
    (data / "rain" / "8.png").write_bytes(b"no image")
    process = torchrun("for_syn/train_syn_joint.py", *training(data, tmp_path / "m", 2))
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "exitcode  : 2" in text
    assert len(re.findall("^error: 1 of 4 pairs can't be used", text, re.M)) == 1 and "[rank 1]" not in text
    assert "8.png" in text.rsplit("Root Cause")[-1]  # in torchrun's report as well
    assert not (tmp_path / "m").exists()


def test_ranks_that_see_different_things_are_refused(monkeypatch):
    monkeypatch.setattr(ranks, "gather", lambda value: ["4 pairs", "4 pairs", value])
    distributed.require_same("--data_path", "4 pairs")
    with pytest.raises(cli.UserError, match="--data_path: rank 2 has 5 pairs, rank 0 has 4 pairs"):
        distributed.require_same("--data_path", "5 pairs")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[/a/b/gloo/pair.cc:547] Read error [127.0.0.1]:5: reset by peer. This is",
            "Read error [127.0.0.1]:5: reset by peer",
        ),
        ("NCCL error in: x.cpp:1, remote process exited\nmore", "NCCL error in: x.cpp:1, remote process exited"),
    ],
)
def test_a_lost_process_is_named_in_a_line(monkeypatch, text, reason):
    def broken():
        raise RuntimeError(text)

    monkeypatch.setattr(ranks, "_job", ranks._Job())
    with pytest.raises(
        ranks.ProcessLost, match=re.escape(f"is gone, or can't be reached ({reason}); the report")
    ) as lost:
        distributed._together(broken)
    assert lost.value.exit_code == 1 and ranks._job.leaving


def test_torchrun_takes_no_flag_of_a_script_for_its_own():
    start = shlex.split(distributed.torchrun(2))[3:]
    for name in ("generate_rain", "train_syn_joint", "train_syn_aug", "test_syn_joint", "test_syn_aug"):
        flags = vars(importlib.import_module(f"for_syn.{name}").parse_args(["--data_path", "x"]))
        own = [f"--{flag}" for flag in flags if flag != "given"]
        assert len(own) > 10
        assert parse_args([*start, "script.py", *own]).training_script_args == own


def test_commands_of_one_process_refuse(monkeypatch, capsys):
    monkeypatch.setattr(ranks, "launched", lambda: True)
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert cli.run(lambda: pytest.fail("was called")) == 2
        assert ("start it with python, not with torchrun" in capsys.readouterr().err) == said


# --- the watch -----------------------------------------------------------------------------------------------------


class Lost(list):
    def __call__(self, *what):
        self.append(what)


def watched(size, tick=0.01):
    store, lost = dist.HashStore(), [Lost() for _ in range(size)]
    watches = [ranks.Watch(store, n, size, lost[n], tick) for n in range(size)]
    for watch in watches:
        watch.start()
    return watches, lost


def wait(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError


def test_watch_hears_who_is_silent(monkeypatch):
    monkeypatch.setattr(ranks, "SILENCE", 0.5)
    watches, lost = watched(3)
    time.sleep(1)
    assert not any(lost)
    watches[1].stop()  # it beats no more
    wait(lambda: lost[0])  # whose next one it is
    watches[0].stop()
    watches[2].stop()
    assert lost[0] == [("no answer any more from rank 1 (killed, or its machine is gone)", 1)] and not lost[1]


def test_watch_waits_longer_for_who_has_not_come(monkeypatch):
    monkeypatch.setattr(ranks, "SILENCE", 0.1)
    monkeypatch.setattr(ranks, "START", 1)
    lost = Lost()
    watch = ranks.Watch(dist.HashStore(), 0, 2, lost, 0.01)
    watch.start()
    time.sleep(0.5)
    assert not lost
    wait(lambda: lost)
    watch.stop()
    assert "rank 1" in lost[0][0]


def test_watch_notices_that_the_store_is_gone(monkeypatch):
    monkeypatch.setattr(ranks, "SILENCE", 0.3)

    class Store:
        calls = 0

        def add(self, key, value):
            self.calls += 1
            if self.calls > 20:
                raise RuntimeError("connection refused")
            return self.calls

        def check(self, keys):
            return False

    lost = Lost()
    watch = ranks.Watch(Store(), 1, 2, lost, 0.01)
    watch.start()
    wait(lambda: lost)
    watch.stop()
    assert "torchrun, or the machine of rank 0" in lost[0][0]


class Stuck:
    """A store whose machine is gone: every call waits for longer than anybody."""

    def __getattr__(self, name):
        def call(*_):
            time.sleep(30)
            raise RuntimeError("gone")

        return call


def test_watch_of_a_store_that_hangs_leaves_all_the_same(monkeypatch):
    monkeypatch.setattr(ranks, "SILENCE", 0.3)
    monkeypatch.setattr(ranks, "START", 0.3)
    monkeypatch.setattr(ranks, "ASK", 0.3)
    lost = Lost()
    watch = ranks.Watch(Stuck(), 1, 2, lost, 0.01)
    watch.start()
    wait(lambda: lost)
    assert "torchrun, or the machine of rank 0" in lost[0][0]
    began = time.monotonic()
    assert watch.claim(1) == (True, 1) and time.monotonic() - began < 5


def test_the_first_to_leave_tells_and_its_exit_code_counts(monkeypatch):
    monkeypatch.setattr(ranks, "FOLLOW", 0.3)
    (first, second, third), lost = watched(3)
    assert second.claim(2) == (True, 2)
    assert first.claim(1) == (False, 2)
    wait(lambda: lost[2])  # who is stuck is ended, quietly
    assert lost[2] == [("", 2)]
    for watch in (first, second, third):
        watch.stop()


def test_watch_ends_a_job_whose_main_thread_hangs(monkeypatch):
    """The pulse goes on in its own thread; what counts is steps, where nothing is known to take long."""
    monkeypatch.setattr(ranks, "STUCK", 0.3)
    (first, second), lost = watched(2)
    monkeypatch.setattr(ranks._job, "watch", first)
    for _ in range(30):
        distributed.goes_on()
        time.sleep(0.02)
    distributed.goes_on(patient=True)
    time.sleep(0.6)  # validation, say
    assert not any(lost)
    distributed.goes_on()
    wait(lambda: lost[0])
    first.stop()
    second.stop()
    assert "rank 0 made no step for" in lost[0][0][0] and lost[0][0][1] == 1 and not lost[1]


def test_steps_of_several_processes_are_recorded_only_on_demand(monkeypatch):
    """The sums between processes may hang in a recording, at some versions of NCCL for ever."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trial, "reason", lambda precision: "")
    for processes, flag, records in ((1, "auto", True), (2, "auto", False), (2, "on", True), (1, "off", False)):
        monkeypatch.setattr(ranks, "count", lambda processes=processes: processes)
        assert cli.records(argparse.Namespace(cuda_graphs=flag, precision="fp32")) == records


# --- devices -------------------------------------------------------------------------------------------------------


def test_several_gpus_in_one_process_are_explained(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--gpu_id", "0,1"])
    assert runtime.pick_device(True, "0,1").type in ("cpu", "cuda")
    printed = capsys.readouterr().out
    assert "--gpu_id 0,1: one process uses one GPU, this one takes GPU 0" in printed
    assert "-m torch.distributed.run --standalone --nproc_per_node 2 -- train.py --gpu_id 0,1" in printed
    runtime.pick_device(True, "0,1", several=False)
    printed = capsys.readouterr().out
    assert "takes GPU 0" in printed and "torch" not in printed


@pytest.mark.parametrize(
    ("gpu_id", "place", "processes", "taken"),
    [("0", 0, 1, 0), ("2", 0, 1, 2), ("0", 1, 2, 1), ("2,3", 1, 2, 3), ("0,1,2", 1, 2, 1)],
)
def test_local_rank_decides_the_gpu(monkeypatch, gpu_id, place, processes, taken):
    for name, value in {"is_available": True, "device_count": 4, "set_device": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(ranks, "launched", lambda: True)
    monkeypatch.setattr(ranks, "local_rank", lambda: place)
    monkeypatch.setattr(ranks, "local_count", lambda: processes)
    monkeypatch.setattr(device, "try_kernel", lambda device: "")
    assert runtime.pick_device(True, gpu_id) == torch.device("cuda", taken)


@pytest.mark.parametrize(("gpu_id", "processes"), [("0", 5), ("0,1", 3), ("3", 2)])
def test_more_processes_than_gpus(monkeypatch, gpu_id, processes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(ranks, "launched", lambda: True)
    monkeypatch.setattr(ranks, "local_count", lambda: processes)
    with pytest.raises(cli.UserError, match=f"{processes} processes on this machine"):
        runtime.pick_device(True, gpu_id)
