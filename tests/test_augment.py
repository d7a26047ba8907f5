"""Augmented training: the reference's steps, which samples get generated rain, and its scripts as a user meets them."""

import importlib
import inspect

import numpy as np
import pytest
import torch
from torch.optim import Adam

from common.data.images import read_image, write_image
from common.errors import UserError
from common.generation import bank
from common.models import EDNet, PReNet
from common.training import augment, joint
from common.training.checkpoint import load_generator
from for_spa import test_spa_aug, train_spa_aug, train_spa_smallsample_aug, train_spa_smallsample_noaug
from for_syn import test_syn_aug, train_syn_aug
from tests.conftest import folders
from tests.golden import DATA, fill, golden_json, needs_data
from tests.runs import NETWORKS, assert_same_run, load, same
from tests.test_derain import table
from tests.test_joint import batch


def test_four_steps_of_the_reference():
    net, netED = fill(PReNet(6), 31, 0.02), fill(EDNet(3, 128, 32), 32)
    optimizer = Adam(net.parameters(), 1e-3)
    torch.manual_seed(9)
    n_real = augment.real_samples(6, 0.5)
    assert n_real == 4
    for row in golden_json("aug.json")["rows"]:
        rainy, clean = batch(100 + row["step"], 6)
        mixed = augment.rain_on(netED, rainy, clean, n_real, torch.randn(6 - n_real, 128))
        assert mixed[n_real:].mean().item() == pytest.approx(row["fake_mean"], rel=1e-5)
        losses, _ = augment.a_step(net, optimizer, mixed, clean)
        assert losses["loss"].item() == pytest.approx(row["loss"], rel=1e-5), row["step"]


def test_shares_of_a_batch_steps_of_an_epoch_and_digits_of_file_names():
    shares = [augment.real_samples(18, r) for r in (0.5, 0, 1, 0.2, 0.25, 3, 100)]
    assert shares == [12, 18, 9, 15, 15, 5, 1] and augment.real_samples(2, 0.5) == 2
    steps = [augment.steps_per_epoch(n, r) for n, r in ((3000, 0.5), (3000, 0.1), (3000, 0), (7, 0.5), (3, 0.3))]
    assert steps == [4500, 3300, 3000, 11, 4]  # in floats 3000 * 1.1 would be rounded up to 3301
    digits = [augment.ratio_digits(r) for r in (0.5, 0.25, 1.0, 1, 0, 0.05, 1e-5)]
    assert digits == ["05", "025", "10", "10", "00", "005", "000001"]


def test_generated_samples_are_exactly_those_from_n_real_on():
    torch.manual_seed(0)
    netED = EDNet(3, 4, 2, 16)
    netED.decoder.main[-2].weight.data *= 1e4  # rain that is seen, and clipped
    rainy, clean = torch.rand(2, 5, 3, 16, 16)
    z = torch.randn(2, 4)
    mixed = augment.rain_on(netED, rainy, clean, 3, z)
    assert torch.equal(mixed[:3], rainy[:3]) and not mixed.requires_grad
    assert torch.equal(mixed[3:], (clean[3:] + netED.sample(z)).clamp(0, 1))
    assert mixed.max() <= 1 and (mixed[3:] - clean[3:]).max() > 0.01 and mixed[3:].max() == 1
    assert torch.equal(augment.rain_on(netED, rainy, clean, 5, torch.randn(0, 4)), rainy)


# --- the scripts -----------------------------------------------------------------------------------------------------


SMALL = ["--batchSize", "3", "--iters_per_epoch", "4", "--recurrent_iter", "1", "--save_every", "2"]
SMALL += ["--workers", "0", "--use_gpu", "false", "--manualSeed", "5"]


def train(data, model, *more):
    return train_syn_aug.main([*folders(data, model), *SMALL, *map(str, more)])


@pytest.fixture
def spa(pairs_folder):
    lines = "".join(f"rain/{i}.png norain/{i}.png\n" for i in range(8, 12))
    (pairs_folder / "real_world.txt").write_text(lines)
    return pairs_folder


def train_spa(script, data, model, *more):
    flags = ["--data_path", data, "--model_dir", model, "--log_dir", f"{model}_logs"]
    return script.main([*map(str, flags), *SMALL, *map(str, more)])


def test_the_generator_sets_the_sizes_that_were_left_alone(pairs_folder, generator, tmp_path, capsys):
    train(pairs_folder, tmp_path / "model", "--netED", generator, "--niter", 2)
    printed = capsys.readouterr().out
    assert "--netED: this generator has nz 5, nef 4, patchSize 16; the flags follow it" in printed
    assert {p.name for p in (tmp_path / "model").glob("*")} == {
        *("Aug_DerainNet_state_2.pt", "Aug_DerainNet.json", "train_state_last.pt")
    }
    state = load(tmp_path / "model" / "train_state_last.pt")
    assert state["options"]["patchSize"] == 16 and state["options"]["nz"] == 5 and "generator" in state["data"]
    rows = (tmp_path / "model_logs" / "log.csv").read_text().splitlines()
    assert rows[0] == "epoch,step,seconds,mse,loss,lr/Aug_DerainNet" and rows[2].startswith(
        "2,12,"
    )  # 6 a epoch: 4 * 1.5
    events = b"".join(p.read_bytes() for p in (tmp_path / "model_logs").glob("events*"))
    assert b"generated_rainy" in events and b"loss/loss" in events


def test_flags_that_contradict_the_generator(pairs_folder, generator, tmp_path, capsys):
    with pytest.raises(UserError) as error:
        train(pairs_folder, tmp_path / "model", "--netED", generator, "--patchSize", 32, "--nz", 8, "--nef", 4)
    text = str(error.value)
    assert "--nz is 8, it has 5; --patchSize is 32, it has 16. Leave these flags out" in text
    with pytest.raises(UserError, match=r"--netED: there is no \S+gone.pt.*Train one with train_syn_joint.py"):
        train(pairs_folder, tmp_path / "model", "--netED", tmp_path / "gone.pt")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("batch, ratio, least", [(2, 0.5, 3), (18, 0.05, 21)])
def test_a_batch_without_generated_rain_is_refused(pairs_folder, generator, tmp_path, capsys, batch, ratio, least):
    flags = ["--netED", generator, "--fake_ratio", ratio, "--dry_run"]
    with pytest.raises(
        UserError, match=rf"--batchSize: {batch} with --fake_ratio {ratio} .* --batchSize {least} or more"
    ):
        train(pairs_folder, tmp_path / "model", *flags, "--batchSize", batch)
    with pytest.raises(UserError, match="leaves no sample"):
        train(pairs_folder, tmp_path / "model", *flags, "--batchSize", least - 1)
    train(pairs_folder, tmp_path / "model", *flags, "--batchSize", least)
    assert f"a batch: {least - 1} crops with their own rain, 1 with generated rain" in capsys.readouterr().out


@pytest.mark.parametrize("sizes", [(3, 128, 32, 64), (3, 5, 2, 16), (3, 4, 2, 128), (1, 4, 2, 32)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_generators_of_any_size_are_recognised(tmp_path, sizes, wrapped):
    net = EDNet(*sizes)
    state = {("module." if wrapped else "") + key: value for key, value in net.state_dict().items()}
    torch.save(state, tmp_path / "ED.pt")
    again = load_generator(tmp_path / "ED.pt", "--netED")
    assert (again.nc, again.nz, again.nef, again.patch_size) == sizes and same(again.state_dict(), net.state_dict())
    del state[("module." if wrapped else "") + "decoder.main.0.weight"]
    torch.save(state, tmp_path / "ED.pt")
    with pytest.raises(UserError, match="does not fit. Expected: a generator, ED"):
        load_generator(tmp_path / "ED.pt", "--netED")


def batches(monkeypatch):
    """Collects the rainy batches and the derainer's first weights of the trainings that follow."""
    seen, real = [], augment.a_step
    monkeypatch.setattr(
        augment, "a_step", lambda net, o, rainy, clean, w: seen.append((rainy, clean)) or real(net, o, rainy, clean, w)
    )
    return seen


KNOBS = ["--layers", 0, 2, "--angle", -40, 40, "--tint", 0, 0.3]


def train_on_photos(folder, model, *more):
    flags = ["--clean_path", folder / "norain", "--model_dir", model, "--log_dir", f"{model}_logs"]
    return train_syn_aug.main([*map(str, flags), *SMALL, *map(str, more)])


def test_photos_take_the_generated_rain(pairs_folder, generator, tmp_path, monkeypatch):
    """The real samples of a batch stay those of the pairs, and the generated ones are all of the photos."""
    seen, flags = batches(monkeypatch), ["--netED", generator, "--niter", 1]
    train(pairs_folder, tmp_path / "pairs", *flags)
    photos = tmp_path / "photos"
    photos.mkdir()
    grey = np.arange(40, 80, dtype=np.uint8)[:, None, None].repeat(50, 1).repeat(3, 2)
    write_image(photos / "one.png", grey)
    for cache in ("ram", "none"):
        train(pairs_folder, tmp_path / cache, *flags, "--clean_path", photos, "--cache", cache)
    plain, mixed, read = seen[:6], seen[6:12], seen[12:]
    for (rainy, clean), (rainy_p, clean_p), again in zip(plain, mixed, read, strict=True):
        assert torch.equal(rainy[:2], rainy_p[:2]) and torch.equal(clean[:2], clean_p[:2])
        assert (clean_p[2] == clean_p[2, :1]).all() and (clean_p[2, 0] == clean_p[2, 0, :, :1]).all()
        assert not torch.equal(rainy_p[2], clean_p[2]) and not torch.equal(clean_p[2], clean[2])
        assert torch.equal(rainy_p, again[0]) and torch.equal(clean_p, again[1])


@pytest.mark.parametrize("knobs", [[], KNOBS])
def test_without_pairs_every_sample_is_generated_and_a_stop_leaves_no_trace(
    pairs_folder, generator, tmp_path, monkeypatch, quick, knobs
):
    monkeypatch.setattr(bank, "EARLY", 5)  # crops from layer to layer
    monkeypatch.setattr(bank, "LEAST", 32)  # px of a layer
    seen, flags = batches(monkeypatch), ["--netED", generator, *knobs]
    train_on_photos(pairs_folder, tmp_path / "whole", *flags, "--niter", 2)
    assert len(seen) == 8
    dry = [torch.equal(r, c) for rainy, clean in seen for r, c in zip(rainy, clean, strict=True)]
    assert any(dry) == bool(knobs) and not all(dry)  # with --layers 0 2 some stay clean
    colours = [(rainy - clean).amax((0, 2, 3)) for rainy, clean in seen]
    assert any(np.ptp(colour.numpy()) > 0.01 for colour in colours)
    for niter in (1, 2):
        train_on_photos(pairs_folder, tmp_path / "parts", *flags, "--niter", niter)
    (tmp_path / "parts" / "Aug_DerainNet_state_1.pt").unlink()  # the last epoch of a part is saved as well
    assert_same_run(tmp_path / "whole", tmp_path / "parts")  # T5
    with pytest.raises(UserError, match="other options: --data_path is .*rain, was not given"):
        train(pairs_folder, tmp_path / "parts", "--clean_path", pairs_folder / "norain", *flags, "--niter", 3)


def test_photos_and_knobs_that_make_no_sense(pairs_folder, generator, tmp_path, capsys):
    for words, message in (
        (["--clean_path", tmp_path / "none"], "--clean_path: .*none is not a folder"),
        (["--clean_path", pairs_folder / "norain", "--fake_ratio", 0], "--fake_ratio 0: there is no generated rain"),
        (["--angle", 5, "--fake_ratio", 0], "no generated rain; leave out --clean_path, --preset and knobs"),
    ):
        with pytest.raises(UserError, match=message):
            train(pairs_folder, tmp_path / "model", "--netED", generator, *words)
    with pytest.raises(UserError, match="--fake_ratio: it belongs to pairs; name these with --data_path"):
        train_on_photos(pairs_folder, tmp_path / "model", "--netED", generator, "--fake_ratio", 1)
    write_image(tmp_path / "photos" / "norain" / "one.png", np.zeros((40, 40, 3), np.uint8))
    words = "--angle", 60, "--patchSize", 32  # not that of the generator
    train_on_photos(tmp_path / "photos", tmp_path / "model", "--netED", generator, *words, "--dry_run")
    said = capsys.readouterr()
    assert "1 photos of --clean_path" in said.out and "a batch: 0 crops with their own rain, 3 with" in said.out
    with pytest.raises(SystemExit):
        train_on_photos(tmp_path / "photos", tmp_path / "model", "--angle", 80)
    assert "--angle: expected a number from -60 to 60, got '80'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script", [train_syn_aug, train_spa_aug, train_spa_smallsample_aug, train_spa_smallsample_noaug]
)
def test_weight_of_the_absolute_error(spa, tmp_path, monkeypatch, script):
    weights, real = [], augment.restoration_loss
    monkeypatch.setattr(augment, "restoration_loss", lambda *args: weights.append(args[2]) or real(*args))
    data, more = spa, ["--train_num", 3] if "small" in script.__name__ else []
    if script is train_syn_aug:
        data, more = spa / "rain", ["--gt_path", spa / "norain"]
    more += ["--fake_ratio", 0, "--niter", 1, "--iters_per_epoch", 1, "--patchSize", 16]
    for weight in ([], ["--w_l1", 0.5, "--overwrite"]):
        train_spa(script, data, tmp_path / "model", *more, *weight)
    assert weights == [0, 0.5]


def test_noaug_is_the_same_training_without_the_generator(spa, tmp_path):  # docs/method.md, 4
    small = ["--patchSize", 16, "--train_num", 3, "--niter", 1]
    train_spa(train_spa_smallsample_noaug, spa, tmp_path / "noaug", *small)
    train_spa(train_spa_smallsample_aug, spa, tmp_path / "aug", *small, "--fake_ratio", 0, "--iters_per_epoch", 6)
    a, b = (
        load(tmp_path / "noaug" / "NoAug05_DerainNet_state_1.pt"),
        load(tmp_path / "aug" / "Aug00_DerainNet_state_1.pt"),
    )
    assert same(a, b)


def test_names_of_the_files_follow_the_ratio_and_resume_finds_them(spa, generator, tmp_path):
    model = tmp_path / "model"
    more = ["--netED", generator, "--fake_ratio", 0.25, "--batchSize", 5, "--train_num", 2, "--save_every", 1]
    train_spa(train_spa_smallsample_aug, spa, model, *more, "--niter", 1)
    assert (model / "Aug025_DerainNet_state_1.pt").exists() and (model / "Aug025_DerainNet.json").exists()
    for resume, n in ((0, 2), (1, 3)):  # from the full state, and from weights
        train_spa(train_spa_smallsample_aug, spa, model, *more, "--resume", resume, "--niter", n)
        assert (model / f"Aug025_DerainNet_state_{n}.pt").exists()


def test_spa_scripts_and_their_files(spa, generator, tmp_path, capsys):
    train_spa(
        train_spa_aug, spa, tmp_path / "aug", "--netED", generator, "--niter", 1, "--workers", 1, "--cache", "none"
    )
    assert (tmp_path / "aug" / "Aug_DerainNet_state_1.pt").exists()
    flags = ["--model_dir", tmp_path / "aug", "--data_path", spa / "rain", "--gt_path", spa / "norain", "--tile", 8]
    assert test_spa_aug.main(list(map(str, [*flags, "--save_path", tmp_path / "out", "--use_gpu", "false"]))) == 0
    assert "mean" in table(tmp_path / "out") and read_image(tmp_path / "out" / "9.png").shape == (24, 21, 3)
    capsys.readouterr()
    train_spa(train_spa_aug, spa, tmp_path / "x", "--netED", generator, "--niter", 1, "--dry_run")
    printed = capsys.readouterr().out
    assert "4 pairs, by the rule: real_world.txt, 4 pairs" in printed and "netED:" in printed
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("family, w_adv", [("for_syn.train_syn_joint", 1.0), ("for_spa.train_spa_joint", 0.01)])
def test_adversarial_weight_of_each_family(spa, tmp_path, monkeypatch, family, w_adv):  # T13
    script, weights, real = importlib.import_module(family), [], joint.g_step

    def noted(*args):
        weights.append(inspect.signature(real).bind(*args).arguments["w_adv"])
        return real(*args)

    monkeypatch.setattr(joint, "g_step", noted)
    gt = ["--gt_path", str(spa / "norain")] if "syn" in family else []
    data = ["--data_path", str(spa / "rain" if gt else spa), *gt, "--model_dir", str(tmp_path / "m")]
    more = ["--niter", "1", "--iters_per_epoch", "2", "--workers", "0", "--use_gpu", "false"]
    script.main([*data, *NETWORKS, *more, "--log_dir", str(tmp_path / "l")])
    assert weights == [w_adv] and (tmp_path / "m" / "ED_state_1.pt").exists()


@needs_data
def test_the_original_prenet(tmp_path):
    flags = ["--data_path", DATA / "rain100L" / "rain" / "norain-1.png", "--gt_path", DATA / "rain100L" / "norain"]
    flags += ["--model_dir", DATA / "checkpoints" / "prenet_rain100L_net_latest.pth", "--save_path", tmp_path]
    assert test_syn_aug.main(list(map(str, [*flags, "--use_gpu", "false"]))) == 0
    row = table(tmp_path)["norain-1.png"]  # reference: 38.007 dB / 0.97761, measured with the release's own weights
    assert float(row["derained_psnr_y"]) == pytest.approx(38.007, abs=0.01)
    assert float(row["derained_ssim_y"]) == pytest.approx(0.97761, abs=1e-4)


def test_a_derainer_starts_from_given_weights(pairs_folder, generator, tmp_path):
    train(pairs_folder, tmp_path / "first", "--netED", generator, "--niter", 1)
    path = tmp_path / "first" / "Aug_DerainNet_state_1.pt"
    flags = ["--netED", generator, "--niter", 1, "--iters_per_epoch", 1, "--lr", 1e-12, "--init_Derain", path]
    train(pairs_folder, tmp_path / "second", *flags)
    before, after = load(path), load(tmp_path / "second" / "Aug_DerainNet_state_1.pt")
    assert all(torch.allclose(before[key], after[key], atol=1e-9) for key in before)
    with pytest.raises(UserError, match="--init_Derain: .*; .*Expected here"):
        train(pairs_folder, tmp_path / "third", *flags[:-1], generator)
