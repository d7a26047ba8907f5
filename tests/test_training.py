"""Joint training as a user meets it: files, going on bit for bit, interruptions, refusals."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
from unittest import mock

import pytest
import torch

from common import lock
from common.data.images import write_image
from common.errors import Stopped, UserError
from common.evaluation import derain
from common.lock import locked
from common.models import Derain, EDNet, PReNet
from common.training import folder as training_folder
from common.training import joint
from common.training.loop import LossSums, learning_rate
from for_syn import train_syn_joint
from tests.conftest import photo, write_pairs
from tests.runs import arguments, assert_same_run, load, log_of, same, tensorboard_of, train


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    train(write_pairs(folder / "data"), folder / "whole", "--niter", 3)
    return folder


def failing(real, number):
    """A function that fails when it is called for the ``number``-th time, from 1 on."""
    calls = itertools.count(1)
    return lambda *args, **more: real(*args, **more) if next(calls) != number else 1 / 0


@pytest.fixture
def whole(three_epochs, tmp_path):
    """A copy of a run of three epochs without interruption; its data are those of ``pairs_folder``."""
    for name in ("whole", "whole_logs"):
        shutil.copytree(three_epochs / name, tmp_path / name)
    return tmp_path / "whole"


def test_files_and_logs(pairs_folder, tmp_path, capsys):
    model = tmp_path / "models" / "deep"
    val = ["--val_data_path", pairs_folder / "rain", "--val_gt_path", pairs_folder / "norain", "--val_every", 2]
    assert train(pairs_folder, model, "--niter", 3, *val) is None
    printed = capsys.readouterr().out
    assert "training from epoch 1/3, step 1/6, on cpu\n" in printed
    assert "epoch 2/3" in printed and "mse" in printed and "val psnr_y" in printed
    weights = {f"{name}_state_{n}.pt" for name in ("DerainNet", "ED", "D") for n in (2, 3)}  # T6: every 2, and the last
    assert {p.name for p in model.glob("*.pt")} == weights | {*("train_state_last.pt", "DerainNet_best.pt")}
    assert json.loads((model / "DerainNet.json").read_text()) == {"stage": 1}
    rows = log_of(model)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and [row["step"] for row in rows] == ["6", "12", "18"]
    assert rows[0]["val_psnr_y"] == "" and float(rows[1]["val_psnr_y"]) > 5 and float(rows[2]["val_ssim_y"]) < 1
    options = json.loads((tmp_path / "models" / "deep_logs" / "options.json").read_text())
    assert options["nz"] == 4 and options["manualSeed"] == 5 and options["milestone"] == [400, 600, 650, 675, 690, 700]
    events = b"".join(p.read_bytes() for p in (tmp_path / "models" / "deep_logs").glob("events*"))
    for tag in (b"loss/mse", b"loss/kl_b", b"lr/ED", b"val/psnr_y", b"derained", b"generated_rainy", b"rain_layer"):
        assert tag in events
    best = load(model / "DerainNet_best.pt")
    scores = {n: float(rows[n - 1]["val_psnr_y"]) for n in (2, 3)}
    assert same(best, load(model / f"DerainNet_state_{max(scores, key=scores.get)}.pt"))


def test_the_same_command_goes_on_bit_for_bit(pairs_folder, whole, tmp_path):  # T1, T5
    train(pairs_folder, tmp_path / "parts", "--niter", 1)
    torch.manual_seed(99)  # whatever happened in between
    train(pairs_folder, tmp_path / "parts", "--niter", 2, "--resume", 1)
    train(pairs_folder, tmp_path / "parts", "--niter", 3, "--workers", 2, "--cache", "none")
    for name in ("DerainNet", "ED", "D"):
        (tmp_path / "parts" / f"{name}_state_1.pt").unlink()  # the last epochs of the parts are saved as well
    assert_same_run(whole, tmp_path / "parts")
    assert log_of(whole) == log_of(tmp_path / "parts")


def test_a_signal_saves_and_says_how_to_go_on(pairs_folder, whole, tmp_path, monkeypatch):
    real, calls = joint.d_step, itertools.count(1)

    def d_step(*args):
        if next(calls) == 9:
            (worker,) = multiprocessing.active_children()
            for process in (worker.pid, os.getpid()):  # as timeout and cluster schedulers do
                os.kill(process, signal.SIGTERM)
            worker.join(0.3)
            assert worker.is_alive()
        return real(*args)

    monkeypatch.setattr(joint, "d_step", d_step)
    flags = ["--niter", 3, "--workers", 1, "--cache", "none"]
    told = "stopped and saved after 1 epochs and 3 steps. The same command goes on"
    with pytest.raises(KeyboardInterrupt, match=told):
        train(pairs_folder, tmp_path / "stopped", *flags)
    train(pairs_folder, tmp_path / "stopped", *flags)
    assert_same_run(whole, tmp_path / "stopped")


def test_a_failure_in_validation_does_not_lose_the_epoch(pairs_folder, tmp_path, monkeypatch):
    val = ["--val_data_path", pairs_folder / "rain", "--val_gt_path", pairs_folder / "norain"]
    model = tmp_path / "model"
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="broken. The last good state is"):
        patch.setattr(derain, "validate", mock.Mock(side_effect=UserError("broken")))
        train(pairs_folder, model, "--niter", 2, *val)
    state = load(model / "train_state_last.pt")
    assert (state["epoch"], state["step"]) == (0, 6)
    state["sums"]["seconds"] += 100  # as if the steps had taken longer
    torch.save(state, model / "train_state_last.pt")
    for name in ("model", "other"):
        train(pairs_folder, tmp_path / name, "--niter", 2, *val)
    assert 100 < float(log_of(model, ())[0]["seconds"]) < 200
    assert_same_run(tmp_path / "other", model)


def test_tensorboard_shows_every_point_once(pairs_folder, tmp_path, monkeypatch):
    def train_on(model, niter):
        train(pairs_folder, tmp_path / model, *val, "--niter", niter, "--log_every", 1, "--save_minutes", 1e-9)

    val = ["--val_data_path", pairs_folder / "rain", "--val_gt_path", pairs_folder / "norain"]
    train_on("whole", 3)
    train_on("parts", 1)
    saving = (training_folder, "_require_finite", 4)  # at the second save the logs are written, the state is not
    for place, name, call in ((joint, "d_step", 3), saving, (derain, "validate", 1), (joint, "d_step", 1)):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(place, name, failing(getattr(place, name), call))
            train_on("parts", 3)
    train_on("parts", 3)
    assert tensorboard_of(tmp_path / "parts") == tensorboard_of(tmp_path / "whole")


def test_logs_of_another_run_are_not_mixed(pairs_folder, whole, tmp_path):
    before = (tmp_path / "whole_logs" / "log.csv").read_bytes()
    with pytest.raises(UserError, match="--log_dir: .*whole_logs holds the log of another training"):
        train(pairs_folder, tmp_path / "new", "--log_dir", tmp_path / "whole_logs")
    assert (tmp_path / "whole_logs" / "log.csv").read_bytes() == before
    (tmp_path / "whole_logs" / "log.csv").write_text("a;b\n1;2\n")
    with pytest.raises(UserError, match="--log_dir: .*log.csv can't be read"):
        train(pairs_folder, whole, "--niter", 4)
    assert (tmp_path / "whole_logs" / "log.csv").read_text() == "a;b\n1;2\n"


def test_other_data_on_resume_are_noticed(pairs_folder, whole, capsys):
    for folder in ("rain", "norain"):
        (pairs_folder / folder / "9.png").unlink()
    train(pairs_folder, whole, "--niter", 4)
    assert "other data than before (4 pairs, " in capsys.readouterr().out


@pytest.mark.parametrize("shared", ["model", "model_logs"])
def test_a_second_training_in_the_same_folder_is_refused(pairs_folder, tmp_path, monkeypatch, shared):
    monkeypatch.setattr(lock, "SECONDS", 0.1)
    told = rf"--(model|log)_dir: another run writes to \S*/{shared} now"
    with locked(tmp_path / shared, "--x"), pytest.raises(UserError, match=told):
        train(pairs_folder, tmp_path / "model", "--niter", 1)
    assert not list(tmp_path.glob("model*"))
    train(pairs_folder, tmp_path / "model", "--niter", 1)


def test_models_and_logs_in_one_folder(pairs_folder, tmp_path):
    for niter in (1, 2):
        train(pairs_folder, tmp_path / "model", "--log_dir", tmp_path / "model", "--niter", niter)
    assert (tmp_path / "model" / "log.csv").exists() and not (tmp_path / "model" / ".lock").exists()


def test_a_training_is_not_overwritten_by_accident(pairs_folder, whole):
    before = (whole / "train_state_last.pt").read_bytes()
    with pytest.raises(UserError, match="contradict"):
        train(pairs_folder, whole, "--niter", 1, "--overwrite", "--resume", 1)
    with pytest.raises(UserError, match="no image|not a folder"):  # bad input does not delete it either
        train(pairs_folder / "nothing", whole, "--overwrite")
    assert (whole / "train_state_last.pt").read_bytes() == before
    (whole / "notes.txt").write_text("mine")
    train(pairs_folder, whole, "--niter", 1, "--overwrite", seed=6)
    assert not (whole / "ED_state_3.pt").exists() and (whole / "ED_state_1.pt").exists()
    assert (whole / "notes.txt").exists()
    for path in whole.glob("train_state*"):
        path.unlink()
    with pytest.raises(UserError, match="holds weights, but no full state .*--resume N.*--overwrite deletes"):
        train(pairs_folder, whole, "--niter", 1)


def test_options_that_differ_are_listed(pairs_folder, whole, tmp_path, capsys):
    state = load(whole / "train_state_last.pt")
    del state["options"]["eps2"]  # a flag that is newer than the state had its default
    torch.save(state, whole / "train_state_last.pt")
    for dry in [], ["--dry_run"]:
        with pytest.raises(UserError) as error:
            more = ["--batchSize", 3, "--ema", 0.5, "--eps2", 0.1, "--stage", 1, "--workers", 1, *dry]
            train(pairs_folder, whole, *more, seed=7)
        told = "--batchSize is 3, was 2; --ema is 0.5, was 0; --eps2 is 0.1, was 1e-06; --manualSeed is 7, was 5. Give"
        assert told in str(error.value)
    logs = tmp_path / "elsewhere"
    train(pairs_folder, whole, "--niter", 4, "--workers", 1, "--cache", "none", "--log_dir", logs, "--save_every", 9)
    assert json.loads((logs / "options.json").read_text())["manualSeed"] == 5
    train(pairs_folder, whole, "--niter", 4)
    assert "nothing to do: 4 epochs are done" in capsys.readouterr().out


def test_a_drawn_seed_stays(pairs_folder, tmp_path, capsys):
    flags, seeds = arguments(pairs_folder, tmp_path / "m"), []
    i = flags.index("--manualSeed")
    for niter in ("1", "2"):
        train_syn_joint.main([*flags[:i], *flags[i + 2 :], "--niter", niter])
        seeds.append(load(tmp_path / "m" / "train_state_last.pt")["options"]["manualSeed"])
    assert seeds[0] == seeds[1] and capsys.readouterr().out.count(f"manualSeed: {seeds[0]} (drawn") == 1
    train(pairs_folder, tmp_path / "again", "--niter", 1, seed=seeds[0])  # the number that was printed repeats the run
    assert same(*(load(tmp_path / name / "ED_state_1.pt") for name in ("m", "again")))


def test_going_back_to_an_epoch(pairs_folder, whole, monkeypatch, capsys):
    for resume, last in ((2, 3), (3, 4)):  # of epoch 3 there is a full state
        train(pairs_folder, whole, "--resume", resume, "--niter", last)
        assert ("Adam starts fresh" in capsys.readouterr().out) == (resume == 2)
        assert load(whole / "train_state_last.pt")["epoch"] == last
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(joint, "d_step", failing(joint.d_step, 3))
        train(pairs_folder, whole, "--niter", 5, "--save_minutes", 1e-9)
    state = load(whole / "train_state_last.pt")
    assert (state["epoch"], state["step"]) == (4, 2)
    train(pairs_folder, whole, "--resume", 4, "--niter", 5)
    assert "going on with bare weights after 4 epochs and 0 steps" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--resume: there is no \S+DerainNet_state_7.pt"):
        train(pairs_folder, whole, "--resume", 7)


def test_a_damaged_state_is_told_with_the_remedy(pairs_folder, whole, capsys):
    last = whole / "train_state_last.pt"
    for content in last.read_bytes()[:5000], (whole / "ED_state_2.pt").read_bytes():
        last.write_bytes(content)
        with pytest.raises(UserError, match="--model_dir: .* no full state to go on from. --resume N .*--overwrite"):
            train(pairs_folder, whole, "--niter", 4)
        assert "left out: " in capsys.readouterr().out
    train(pairs_folder, whole, "--resume", 2, "--niter", 3)
    assert load(last)["epoch"] == 3


def test_a_state_of_other_parameters_is_told_with_the_remedy(pairs_folder, whole):
    state = load(whole / "train_state_last.pt")
    for damage in (state["optimizers"]["D"]["param_groups"][0]["params"].pop, lambda: state["optimizers"].pop("ED")):
        damage()
        torch.save(state, whole / "train_state_last.pt")
        told = "train_state_last.pt is damaged, or other parameters learn now; --resume N takes bare weights"
        with pytest.raises(UserError, match=f"--model_dir: .*{told}"):
            train(pairs_folder, whole, "--niter", 4)


def test_a_state_of_another_script_is_refused_and_not_deleted(pairs_folder, whole):
    state = load(whole / "train_state_last.pt")
    torch.save(state | {"experiment": "for_spa/train_spa_joint.py"}, whole / "train_state_last.pt")
    for more in [], ["--overwrite"]:
        with pytest.raises(UserError, match="belongs to for_spa/train_spa_joint.py .*; choose another folder"):
            train(pairs_folder, whole, *more)
    torch.save(state | {"vrgnet_state": 99}, whole / "train_state_last.pt")
    with pytest.raises(UserError, match=r"\(format 99\), this is \S+ \(format 1\)"):
        train(pairs_folder, whole)
    assert (whole / "ED_state_3.pt").exists()


def test_losses_that_are_not_finite_stop_the_training(pairs_folder, tmp_path, monkeypatch):
    real, calls = joint.d_step, itertools.count(1)

    def d_step(*args, **seen):
        return real(*args, **seen) | ({"gp": torch.tensor(float("nan"))} if next(calls) > 8 else {})

    monkeypatch.setattr(joint, "d_step", d_step)
    with pytest.raises(Stopped) as error:
        train(pairs_folder, tmp_path / "model", "--niter", 5, "--log_every", 4)
    assert "not finite, in this step or shortly before: gp. If" in str(
        error.value
    ) and "The same command goes on" in str(error.value)
    state = load(tmp_path / "model" / "train_state_last.pt")  # the last good one
    assert (state["epoch"], state["step"]) == (1, 0)


def test_weights_that_are_not_finite_are_never_saved(whole):
    args = train_syn_joint.parse_args(["--model_dir", str(whole)])
    folder = training_folder.TrainingFolder(args, train_syn_joint.__file__, ("DerainNet", "ED", "D"))
    before = (whole / "train_state_last.pt").read_bytes()
    net = torch.nn.Linear(1, 1)
    net.weight.data.fill_(float("nan"))
    for save in (
        lambda: folder.save_state(folder.at, {"ED": net}, {}),
        lambda: folder.save_weights({"ED": net}, "x"),
    ):
        with pytest.raises(Stopped, match="weights of ED are not finite"):
            save()
    assert (whole / "train_state_last.pt").read_bytes() == before and not (whole / "ED_x.pt").exists()


def test_dry_run_writes_nothing(pairs_folder, tmp_path, capsys):
    train(pairs_folder, tmp_path / "model", "--dry_run", "--niter", 3)
    printed = capsys.readouterr().out
    assert "--milestone 400 600 650 675 690 700" in printed and "4 pairs, by the rule: equal names" in printed
    assert "  D: " in printed and "parameters" in printed and "validation: none" in printed
    assert not (tmp_path / "model").exists() and not (tmp_path / "model_logs").exists()


def test_a_training_starts_from_given_weights(pairs_folder, tmp_path):
    train(pairs_folder, tmp_path / "a", "--niter", 1)
    given = {"ED": tmp_path / "ED.pt", "DerainNet": tmp_path / "B.pt"}
    for net, path in given.items():
        torch.save(load(tmp_path / "a" / f"{net}_state_1.pt"), path)
    start = ["--init_ED", given["ED"], "--init_Derain", given["DerainNet"], "--lrED", 1e-30, "--lrDerain", 1e-30]
    train(pairs_folder, tmp_path / "b", "--niter", 1, "--ema", 0.5, *start)
    for net, path in given.items():
        assert same(load(tmp_path / "b" / f"{net}_state_1.pt"), load(path))
    assert same(load(tmp_path / "b" / "ED_ema_state_1.pt"), load(given["ED"]))
    critics = [load(tmp_path / run / "D_state_1.pt")["last.0.weight"] for run in "ab"]
    assert (critics[0] - critics[1]).abs().max() < 0.02  # from the same draw, as without the flags
    for path in given.values():
        path.unlink()
    train(pairs_folder, tmp_path / "b", "--niter", 2, "--ema", 0.5, *start)  # it has weights of its own


def test_bnet_starts_as_a_derainer_and_learns_before_the_generator(pairs_folder, tmp_path, capsys):
    train(pairs_folder, tmp_path / "a", "--niter", 1)
    ED = tmp_path / "a" / "ED_state_1.pt"
    torch.manual_seed(0)
    net, rainy = PReNet(2), torch.rand(1, 3, 20, 20)
    torch.save({"params": net.state_dict()}, tmp_path / "derainer.pt")
    start = ["--init_ED", ED, "--init_Derain", tmp_path / "derainer.pt", "--stage", 2, "--save_every", 1]
    train(pairs_folder, tmp_path / "x", "--niter", 1, *start, "--lrDerain", 1e-30)
    bnet = Derain(2)
    bnet.load_state_dict(load(tmp_path / "x" / "DerainNet_state_1.pt"))
    with torch.no_grad():
        mu_b, logvar_b = bnet(rainy)
        assert torch.allclose(mu_b, net(rainy)[0], atol=1e-6) and torch.allclose(logvar_b.exp(), torch.tensor(1e-6))
    train(pairs_folder, tmp_path / "m", "--niter", 2, *start, "--bnet_first", 7)  # n_dis is 2: G learns in step 8
    assert same(load(tmp_path / "m" / "ED_state_1.pt"), load(ED))
    assert not same(load(tmp_path / "m" / "ED_state_2.pt"), load(ED))
    assert not same(bnet.state_dict(), load(tmp_path / "m" / "DerainNet_state_1.pt"))
    capsys.readouterr()
    train(pairs_folder, tmp_path / "y", "--niter", 1, "--init_Derain", "default", "--stage", 2)
    assert "--stage: 2, in the training of" in capsys.readouterr().err


def test_a_derainer_does_not_get_worse_as_bnet(pairs_folder, tmp_path):
    """Its variance does not spoil its mean. With a random start of the variance the error grows threefold here."""
    flags = ["--init_Derain", "default", "--stage", 3, "--niter", 4, "--n_dis", 1, "--batchSize", 3]
    train(pairs_folder, tmp_path / "m", *flags)
    errors = [float(row["mse"]) for row in log_of(tmp_path / "m")]
    assert errors[-1] < errors[0] / 2


def test_given_weights_that_do_not_fit_are_refused_before_training(pairs_folder, tmp_path):
    wide = {"--init_ED": EDNet(nz=5, nef=2, patch_size=16), "--init_Derain": EDNet(nz=4, nef=2, patch_size=16)}
    for (flag, net), told in zip(wide.items(), ("--nz", "this is a generator"), strict=True):
        torch.save(net.state_dict(), tmp_path / "x.pt")
        with pytest.raises(UserError, match=f"{flag}: .*x.pt: .*{told}"):
            train(pairs_folder, tmp_path / "m", flag, tmp_path / "x.pt")
    with pytest.raises(UserError, match="--init_ED: .*ED_default.pt: this does not fit.*Set the flags"):
        train(pairs_folder, tmp_path / "m", "--init_ED", "default", "--dry_run")
    assert not (tmp_path / "m").exists()


def test_validation_needs_both_folders(pairs_folder, tmp_path):
    with pytest.raises(UserError, match="--val_data_path, --val_gt_path: give both or none"):
        train(pairs_folder, tmp_path / "model", "--val_data_path", pairs_folder / "rain")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("patch, ndf", [(64, 64), (128, 32)])
def test_width_of_the_critic(pairs_folder, tmp_path, capsys, patch, ndf):
    for i in range(4):
        for folder in ("rain", "norain"):
            write_image(pairs_folder / folder / f"{i + 8}.png", photo(patch, patch, i + len(folder)))
    given = arguments(pairs_folder, tmp_path / "model", "--dry_run")
    i = given.index("--ndf")
    train_syn_joint.main([*given[:i], *given[i + 2 :], "--patchSize", str(patch)])
    assert f"--ndf {ndf}\n" in capsys.readouterr().out


def test_learning_rates():
    rates = [learning_rate(4e-4, [2, 4], 0.5, epoch) for epoch in range(1, 7)]
    assert rates == [4e-4, 4e-4, 2e-4, 2e-4, 1e-4, 1e-4]  # milestone m acts before epoch m + 1


def test_loss_sums_count_each_kind_of_step_by_itself():
    sums = LossSums({})
    for step in range(3):
        losses = {"mse": torch.tensor(float(step))}
        sums.add(losses | ({"kl": torch.tensor(4.0)} if step == 0 else {}))
    assert sums.means() == {"mse": 1.0, "kl": 4.0} and sums.last() == {"mse": 2.0, "kl": 4.0}
    again = LossSums(sums.state())
    again.add({"mse": torch.tensor(3.0)})
    assert again.means() == {"mse": 1.5, "kl": 4.0} and again.last() == {"mse": 3.0, "kl": 4.0}
