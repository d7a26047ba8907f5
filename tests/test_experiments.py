"""Every script of experiments/ runs in small, and what their tables measure has its closed forms."""

import numpy as np
import pytest
import torch

from common import cli
from common.data.demo import rain_layer
from common.data.images import read_image, to_uint8, write_image
from common.errors import Stopped
from common.models import EDNet
from experiments import claims, curves, distance, experiment, knobs_report, streaks, two_sample, which_rain
from tests.conftest import photo, rows_of, write_claim_sets
from tests.golden import fill

pytestmark = pytest.mark.usefixtures("quick")
CPU = ["--use_gpu", "false"]


def run(module, *words):
    return cli.run(lambda: module.main(list(map(str, words))))


def flag(flags, name):
    return flags[flags.index(name) + 1]


def test_claims(calls, generator, tmp_path, capsys, monkeypatch):
    """All ways take as many steps on the right pairs and photos; what is done is kept, for the same settings alone."""
    monkeypatch.setattr(claims, "PASTED", 16)
    write_claim_sets(tmp_path / "sets")
    out = tmp_path / "out"
    words = ["--data", tmp_path / "sets", "--out", out, "--netED", generator, "--cells", "heavy4", "--seeds", 1, *CPU]
    words += ["--generator_steps", 4, "--generator_batch", 2, "--patchSize", 16, "--recurrent_iter", 1]
    words += ["--adapting_steps", 4]
    assert run(claims, *words, "--steps", 6) == 0
    assert [(row["cell"], row["way"]) for row in rows_of(out / "results.csv")] == [("heavy4", w) for w in claims.WAYS]
    assert "| heavy, 4 | more data |" in (out / "results.md").read_text()
    assert all(read_image(out / name).std() > 10 for name in ("claims.png", "rain.png"))
    few, more = (out / cell / "data" / "train" / "rain" for cell in ("heavy4", "heavy12"))
    assert {path.name for path in few.iterdir()} == set(claims.HEAVY_TRAIN[:4])
    pasted, adapt, aug = out / "heavy4" / "pasted", "train_syn_generator.py", "train_syn_aug.py"
    trainings = [(script[8:], flags) for script, flags in calls if "train" in script]
    assert [(script, flag(flags, "--data_path")) for script, flags in trainings] == [
        (aug, str(few)), (adapt, str(few)), (aug, str(few)), (adapt, str(more)), (aug, str(few)),
        (aug, str(pasted / "rain")), (adapt, str(few)), (aug, str(few)), (aug, str(few)), (aug, str(few)),
    ]  # fmt: skip
    ratios = [(float(flag(f, "--fake_ratio")), int(flag(f, "--iters_per_epoch"))) for s, f in trainings if s == aug]
    assert ratios == [(0, 3), (0.5, 2), (0.5, 2), (0, 3), (2, 1), (2, 1), (2, 1)]  # three steps an epoch
    free = [flag(f, "--clean_path") if "--clean_path" in f else "" for s, f in trainings if s == aug]
    assert free == [""] * 5 + [str(out / "photos")] * 2
    files = {kind: sorted(path.name for path in (pasted / kind).iterdir()) for kind in ("rain", "norain")}
    assert files["rain"] == files["norain"] and len(files["rain"]) == 24
    rainy, clean = (read_image(pasted / kind / "pasted_0.png").astype(int) for kind in files)
    assert rainy.shape == (24, 24, 3) and (rainy >= clean).all() and (rainy > clean).any()
    free_photos = [photo(24, 30, 100 + k)[:, x : x + 24] for k in range(6) for x in range(7)]
    assert any(np.array_equal(clean, crop) for crop in free_photos)
    files = generator, out / "heavy4" / "adapted" / "ED_ema_state_1.pt"
    start, adapted = (torch.load(file, weights_only=True)["decoder.main.0.weight"] for file in files)
    assert 0 < (adapted - start).abs().max() < 0.01  # three steps of 1e-4
    before = len(calls)
    assert run(claims, *words, "--steps", 6) == 0 and len(calls) == before
    assert run(claims, *words, "--steps", 60) == 2
    assert "has results of --steps 6, not 60" in capsys.readouterr().err


def test_which_rain(calls, streaks_folder, tmp_path, monkeypatch):
    for name, value in (("VARIANTS", 2), ("STAGES", 1), ("PATCH", 16)):
        monkeypatch.setattr(which_rain, name, value)
    clean = photo(40, 50, 0)
    write_image(tmp_path / "clean" / "0.png", clean)
    for part, image in (("rain", np.maximum(clean, 150)), ("norain", clean)):
        write_image(tmp_path / "set" / part / "0.png", image)
    words = ["--clean", tmp_path / "clean", "--streaks", streaks_folder, "--test", f"light={tmp_path / 'set'}", *CPU]
    words += ["--out", tmp_path / "out", "--hold_out", 1, "--steps", 10, "--batchSize", 2, "--seeds", 1]
    for _ in range(2):
        assert run(which_rain, *words, "--kinds", "real", "procedural") == 0
    assert len(calls) == 4  # each derainer is trained and tested once
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert [(row["kind"], row["test"]) for row in rows] == [("real", "light"), ("procedural", "light")]
    made = [read_image(tmp_path / "out" / "real" / "rain" / f"0.png_v{k}.png") for k in range(2)]
    assert all((rainy >= clean).all() and (rainy > clean).any() for rainy in made) and (made[0] != made[1]).any()


def test_distance(generator, tmp_path, monkeypatch):
    for name, value in (("BIG", 64), ("NUMBER", 32), ("STEPS", 2)):
        monkeypatch.setattr(distance, name, value)
    for k in range(6):
        write_image(tmp_path / "real" / f"{k}.png", to_uint8(rain_layer((48, 60), k).repeat(3, 2), "nearest"))
    words = ["--real", tmp_path / "real", "--netED", generator, "--hold_out", 2, *CPU, "--csv", tmp_path / "d.csv"]
    assert run(distance, *words) == 0
    rows = {row.pop("rain"): row for row in rows_of(tmp_path / "d.csv")}
    columns = ["distance", "16_px", "auc_16", "auc_32", "strict_16", "strict_32", "angles", "within", "bend"]
    assert len(rows) == 6 and all(list(row) == columns for row in rows.values())
    assert [name for name in columns if not rows["ED.pt, patches of G"][name]] == ["auc_32", "strict_32", "within"]


def test_knobs_report(tmp_path, monkeypatch):
    torch.save(fill(EDNet(nz=5, nef=2, patch_size=64), 1).state_dict(), tmp_path / "ED.pt")
    for name, value in (("PLACES", 2), ("SIDE", 48), ("RANGES", {"angle": (-45, 45)})):
        monkeypatch.setattr(knobs_report, name, value)
    assert run(knobs_report, "--netED", tmp_path / "ED.pt", "--out", tmp_path / "out", "--pictures", 2, *CPU) == 0
    text = (tmp_path / "out" / "knobs.md").read_text()
    assert text.startswith("# What the knobs do to the rain of ED.pt") and text.count("\n| angle |") == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"knobs.md", "knobs.png", "angle.gif"}


def test_curves(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text("epoch,step,seconds,mse,val_psnr_y\n1,9,1,0.1,\n2,18,1,0.01,30\n")
    assert run(curves, "--log_dir", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "c.png") == 0
    assert read_image(tmp_path / "c.png").std() > 10


def test_a_script_that_fails_is_named(tmp_path):
    (tmp_path / "bad.py").write_text("print('disk full'); raise SystemExit(3)")
    with pytest.raises(Stopped, match="bad.py ended with exit code 3; see .*log.txt"):
        experiment.call([tmp_path / "bad.py"], tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text() == "disk full\n"


# --- what is measured ----------------------------------------------------------------------------------------------


def test_distance_of_like_rain_is_small():
    real, other = (np.stack([rain_layer((64, 64), k + seed)[..., 0] for k in range(60)]) for seed in (0, 100))
    near, darker = (np.mean(distance.sliced_wasserstein(real, rain)) for rain in (other, 0.7 * other))
    assert near < 8 < darker


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.RandomState(0)
    a, b = rng.randint(0, 5, 40), rng.randint(1, 6, 30)
    assert two_sample.auc(a, b) == pytest.approx(np.mean([(y > x) + 0.5 * (y == x) for x in a for y in b]))


def test_a_classifier_tells_dark_from_bright_and_not_like_from_like(monkeypatch):
    monkeypatch.setattr(two_sample, "SEEDS", (0,))
    a, b, c, d = (np.random.RandomState(k).randint(0, 200, (64, 16, 16)).astype(np.uint8) for k in range(4))
    for kind in (two_sample.SMALL, two_sample.STRICT):
        like, unlike = (
            two_sample.largest_auc((a, b + more), (c, d + more), torch.device("cpu"), kind, 30) for more in (0, 55)
        )
        assert abs(like - 0.5) < 0.2 and unlike > 0.95


def test_bend_of_arcs_is_the_closed_form():
    """Along a circle of radius r, the direction turns by s / r on a length s."""
    y, x = np.mgrid[:64, :64].astype(np.float32)
    for centre in ((-100, 32), (32, -100), (-40, -40)):
        r = np.hypot(x - centre[0], y - centre[1])
        rings = (0.5 + 0.5 * np.cos(2 * np.pi * r / 8)).astype(np.float32)
        expected = np.degrees(np.sqrt(np.mean([(s / r.mean()) ** 2 for s in streaks.ALONG])))
        assert streaks.bend(rings) == pytest.approx(expected, rel=0.15)


def test_the_spread_of_angles_is_that_which_was_drawn():
    for middle in (0, 85):  # beyond 90 degrees comes -90
        angles = np.random.RandomState(0).normal(middle, 8, 4000)
        assert streaks.spread((angles + 90) % 180 - 90) == pytest.approx(8, rel=0.05)
