"""Pairs: rules for names, lists, small samples, checks, and the crops of a training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import pairs as module
from common.data.images import write_image
from common.data.names import match
from common.data.pair_list import PairList, small_sample
from common.data.pairs import Pair, Pairing, find_pairs, require_light, validation_pairs
from common.data.patches import PatchDataset, crop_keys, training_set
from common.errors import UserError
from tests.conftest import flags, made, pairs_of, photo, spa_list
from tests.golden import ROOT


def paths(*names):
    return [Path(name) for name in names]


PLAIN, MARKS = "equal but for case, zeros and separators", "equal but for words like rain and norain"


@pytest.mark.parametrize(
    "rainy, clean, rule, partners",
    [
        (["b.png", "a.jpg"], ["a.png", "b.png"], "equal names", ["b.png", "a.png"]),
        (["x.png", "x.jpg"], ["x.png", "x.jpg"], "equal names", ["x.png", "x.jpg"]),
        (["IMG_1.JPG", "Img-02.jpg"], ["img_1.png", "img_2.png"], PLAIN, ["img_1.png", "img_2.png"]),
        (["\u1112\u1161\u11ab_1.png"], ["\ud55c-1.png"], PLAIN, ["\ud55c-1.png"]),  # as macOS writes it, and Linux
        (["rain-001.png"], ["norain-1.png", "norain-8.png"], MARKS, ["norain-1.png"]),
        (["rain.png"], ["norain.png"], MARKS, ["norain.png"]),  # nothing but the mark
        (["3_rs.png", "4_rs.png"], ["3_gt.png", "4_gt.png"], MARKS, ["3_gt.png", "4_gt.png"]),
        (["a_s1.png", "a_s08.png"], ["a.png", "a_b.png"], f"{PLAIN}, the last 2 parts (rainy)", ["a.png", "a.png"]),
        (["norain-1x2.png"], ["norain-1.png"], f"{PLAIN}, the last 2 parts (rainy)", ["norain-1.png"]),
        (["1_5.png", "2_5.png"], ["1-gt.png", "2-gt.png"], f"{MARKS}, the last part (rainy)", ["1-gt.png", "2-gt.png"]),
        (["a-R-7.png", "b-R-0.png"], ["a-C-0.png", "b-C-0.png"], "the last part (clean)", ["a-C-0.png", "b-C-0.png"]),
    ],
)
def test_rules(rainy, clean, rule, partners):
    found, used, problems = match(paths(*rainy), paths(*clean))
    assert used.endswith(rule) and not problems
    assert [str(found[path]) for path in paths(*rainy)] == partners


@pytest.mark.parametrize(
    "rainy, clean, problems",
    [
        (["1_15.jpg", "b.jpg"], ["1.jpg", "2.jpg"], ["b.jpg: no clean partner"]),  # never by position
        (["5.png", "6.png", "5_1.png"], ["5.png", "6.png"], ["5_1.png: no clean partner"]),  # one rule for all
        (["cat_1.png", "dog_1.png"], ["cow_1.png", "fox_1.png"], ["cat_1.png: no clean", "dog_1.png: no clean"]),
        (["cat_1.png", "dog_2.png"], ["cat_1.png", "cow_1.png"], ["dog_2.png: no clean"]),  # no mark, no last part
        (["a_1_2_3_4.png", "b_7.png"], ["a_1.png", "b.png"], ["a_1_2_3_4.png: no clean"]),  # as many parts of each
        (["a-R-1.png", "a-R-2.png"], ["a-C-1.png"], ["a-R-2.png: no clean"]),  # one name shows no common number
        (["rain-1.png", "rain-2.png"], ["norain.png"], ["rain-1.png: no clean", "rain-2.png: no clean"]),
        (["a.bmp"], ["a.png", "a.jpg"], ["a.bmp: several clean partners: a.png, a.jpg"]),
        (["12_3.png", "12_4.png"], ["12_3.png", "12.png"], ["12_3.png: several clean partners: 12_3.png, 12.png"]),
    ],
)
def test_names_that_do_not_pair(rainy, clean, problems):
    found, _, said = match(paths(*rainy), paths(*clean))
    assert len(found) == len(rainy) - len(problems) and len(said) == len(problems)
    assert all(text.startswith(problem) for text, problem in zip(said, problems, strict=True))


CITY = "ulm/ulm_0000{}_000019_leftImg8bit"
RAIN = "_rain_alpha_0.0{}_beta_0.01_dropsize_0.005_pattern_{}"
# Row of the table in docs/data.md -> rainy names, clean names, and what the user types beyond the two folders.
SETS = {
    "Rain100L, Rain100H, old": (["rain-001", "rain-002"], ["norain-001", "norain-002"], {}),
    "RainTrainL, RainTrainH": (["rain-1", "rain-10"], ["norain-1", "norain-10"], {"one": True}),
    "Rain100L, Rain100H, new": (["norain-1x2", "norain-2x2"], ["norain-1", "norain-2"], {}),
    "Rain200L, Rain200H": (["1x2", "2x2"], ["1", "2"], {}),
    "Rain12": (["001_in", "002_in"], ["001_GT", "002_GT"], {"one": True}),
    "Rain800": (["1", "2"], None, {"side_by_side": "left"}),
    "Rain1200 (DID-MDN)": (["0", "1"], None, {"side_by_side": "left"}),
    "Rain1400 (DDN)": (["901_1", "901_14", "902_1"], ["901", "901", "902"], {}),
    "Rain13K, Test100, Test1200, Test2800": (["1", "2"], ["1", "2"], {}),
    "SPA-Data, test": (["000", "001"], ["000gt", "001gt"], {}),
    "RainDS, synthetic": (["rd-rain-1", "pie-rd-rain-1"], ["norain-1", "pie-norain-1"], {}),
    "RainDS, real": (["2", "3"], ["2", "3"], {}),
    "GT-RAIN": (["a/a-R-000", "a/a-R-001", "b/b-R-017"], ["a/a-C-000", "a/a-C-000", "b/b-C-000"], {"one": True}),
    "LHP-Rain": (["7/7_0", "7/7_1", "8/8_0"], ["7", "7", "8"], {}),
    "RainCityscapes": (
        [CITY.format(4) + RAIN.format(1, 5), CITY.format(5) + RAIN.format(3, 12)],
        [CITY.format(4), CITY.format(5)],
        {},
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_public_sets_as_they_come(name, tmp_path, capsys):
    rainy, clean, flags = SETS[name]
    made(tmp_path / "O", *(f"{stem}.png" for stem in rainy))
    (tmp_path / "B").symlink_to(tmp_path / "O") if "one" in flags else (tmp_path / "B").mkdir()
    clean_folder = made(tmp_path / "B", *(f"{stem}.jpg" for stem in clean)) if clean else None
    pairing = Pairing(side_by_side=flags.get("side_by_side"))
    pairs, rule = find_pairs(tmp_path / "O", clean_folder, "--a, --b", pairing=pairing)
    found = {Path(pair.name).with_suffix("").as_posix(): pair.clean for pair in pairs}
    for stem, partner in zip(rainy, clean or rainy, strict=True):
        assert found[stem] == (tmp_path / "B" / f"{partner}.jpg" if clean else tmp_path / "O" / f"{stem}.png")
    assert f"{len(rainy)} pairs in {tmp_path}/O by the rule: {rule}" in capsys.readouterr().out
    assert f"| {name} |" in (ROOT / "docs" / "data.md").read_text()


def test_the_table_of_public_sets_has_no_row_without_a_test():
    lines = (ROOT / "docs" / "data.md").read_text().splitlines()
    rows = {line.split(" | ")[0][2:] for line in lines if line.startswith("| ")}
    assert rows - {"set", "SPA-Data, training"} == set(SETS)  # lists have tests below


def flat(folder):
    """RainTrainL as it comes, and the rest of its files."""
    kinds = ("norain", "rain", "rainstreak", "rainregion")
    return made(folder, *(f"{kind}-{n}.png" for kind in kinds for n in (1, 2, 10)))


def test_one_folder_of_rainy_and_clean_images(tmp_path, capsys):
    folder = flat(tmp_path / "RainTrainL")
    pairs, _ = find_pairs(folder, folder, "--data_path, --gt_path")
    assert [(pair.name, pair.clean.name) for pair in pairs] == [
        (f"rain-{n}.png", f"norain-{n}.png") for n in (1, 2, 10)
    ]
    out = capsys.readouterr().out
    assert "left out of" in out and "6 images (rainregion-1.png, rainregion-2.png, " in out
    assert f"{MARKS} (rain-1.png with norain-1.png)" in out
    for rainy, clean in (("a/rain/1.png", "a/norain/1.png"), ("b/s-R-3.png", "b/s-C-3.png")):
        folder = made(tmp_path, rainy, clean) / rainy[0]
        ((pair,), _) = find_pairs(folder, folder, "--a, --b")
        assert pair.rainy == tmp_path / rainy and pair.clean == tmp_path / clean


def test_results_find_the_clean_images_among_rainy_ones_of_their_name(tmp_path):
    folder, results = flat(tmp_path / "RainTrainL"), made(tmp_path / "derained", "rain-1.png", "rain-10.png")
    pairs, _ = find_pairs(results, folder, "--pred, --gt")
    assert [pair.clean.name for pair in pairs] == ["norain-1.png", "norain-10.png"]
    made(results, "clear-1.png")  # scenes of such names in both folders stay what they are
    made(tmp_path / "clean", "rain-1.png", "rain-10.png", "clear-1.png")
    assert all(pair.name == pair.clean.name for pair in find_pairs(results, tmp_path / "clean", "--pred, --gt")[0])


def test_a_folder_that_is_its_own_partner(tmp_path):
    made(tmp_path / "X", "1.png", "2.png")
    (tmp_path / "link").symlink_to(tmp_path / "X")
    with pytest.raises(UserError, match=r"--a, --b: both are .* names don't tell rainy from clean.*--side_by_side"):
        find_pairs(tmp_path / "X", tmp_path / "link", "--a, --b")


def test_pair_by(tmp_path, capsys):
    rainy = made(tmp_path / "O", "wet7 b.png", "Wet007 a.png", "wet8 a.png", "sub/wet7 a.png", "notes.png")
    clean = made(tmp_path / "B", "dry-007.png", "dry-8.png", "sub/dry-7.png")
    with pytest.raises(UserError, match=r"notes.png: no clean partner(.|\n)*--pair_by 'rain-\{\}' 'norain-\{\}'"):
        find_pairs(rainy, clean, "--a, --b")
    pairing = Pairing(("wet{} *", "dry-{}"))
    pairs, rule = find_pairs(rainy, clean, "--a, --b", pairing=pairing)
    assert {pair.name: pair.clean.relative_to(clean).as_posix() for pair in pairs} == {
        "Wet007 a.png": "dry-007.png",
        "wet7 b.png": "dry-007.png",
        "wet8 a.png": "dry-8.png",
        "sub/wet7 a.png": "sub/dry-7.png",
    }
    assert "--pair_by 'wet{} *' 'dry-{}'" in rule and "1 images (notes.png)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"wet8 a.png: no clean partner"):
        (clean / "dry-8.png").unlink()
        find_pairs(rainy, clean, "--a, --b", pairing=pairing)
    scene = made(tmp_path / "GT-RAIN", "a/a-R-000.png", "a/a-R-001.png", "a/a-C-000.png")
    pairs, _ = find_pairs(scene, scene, "--a, --b", pairing=Pairing(("{}-R-*", "{}-C-*")))
    assert [pair.name for pair in pairs] == ["a/a-R-000.png", "a/a-R-001.png"] and len({p.clean for p in pairs}) == 1
    with pytest.raises(UserError, match="--pair_by: no name fits 'x{}'"):
        find_pairs(rainy, clean, "--a, --b", pairing=Pairing(("x{}", "dry-{}")))


@pytest.mark.parametrize("side", ["left", "right"])
def test_side_by_side(tmp_path, side):
    rainy, clean = photo(20, 17, 1), photo(20, 17, 0)
    both = (rainy, clean) if side == "left" else (clean, rainy)
    write_image(tmp_path / "1.png", np.concatenate(both, 1))
    given = {"gt_path"}  # which may name the folder once more
    for folder, names in (("nowhere", set()), (tmp_path, given)):
        dataset, rule = training_set(flags(tmp_path, folder, side_by_side=side, given=names), "")
        assert side in rule and dataset.pairs[0].format() == (20, 17, np.uint8)
        assert all(map(np.array_equal, dataset.pairs[0].read(), (rainy, clean)))
    with pytest.raises(UserError, match="--gt_path: .*elsewhere is not needed"):
        training_set(flags(tmp_path, tmp_path / "elsewhere", side_by_side=side, given=given), "")
    with pytest.raises(UserError, match="--pair_by: --side_by_side takes both images from one file"):
        training_set(flags(tmp_path, tmp_path, side_by_side=side, pair_by=["a{}", "b{}"]), "")


def test_pairs_without_rain(tmp_path):
    for n in range(3):
        write_image(tmp_path / "rain" / f"{n}.png", photo(20, 20, n))
        write_image(tmp_path / "norain" / f"{n}.png", photo(20, 20, n))
    with pytest.raises(UserError, match="each rainy image has the pixels of its clean partner"):
        training_set(flags(tmp_path / "rain", tmp_path / "norain"), "")
    write_image(tmp_path / "rain" / "1.png", photo(20, 20, 9))
    training_set(flags(tmp_path / "rain", tmp_path / "norain"), "")


def test_rainy_and_clean_that_are_exchanged_are_refused(pairs_folder):  # rain adds light
    rain, norain, told = pairs_folder / "rain", pairs_folder / "norain", r"in 4 of 4 pairs .* darker.*--dark_rain"
    with pytest.raises(UserError, match=f"--data_path, --gt_path: .*{told}"):
        training_set(flags(norain, rain), "")
    with pytest.raises(UserError, match=f"--val_data_path, --val_gt_path: .*{told}"):
        validation_pairs(flags("", val_data_path=str(norain), val_gt_path=str(rain)))
    spa_list(pairs_folder, "".join(f"norain/{i}.png rain/{i}.png\n" for i in range(8, 12)))
    with pytest.raises(UserError, match=f"--data_path: .*{told}"):
        training_set(flags(pairs_folder), "")
    training_set(flags(norain, rain, dark_rain=True), "")
    training_set(flags(pairs_folder, dark_rain=True), "")
    (rain / "8.png").rename(rain / "x.png")
    (norain / "8.png").rename(rain / "8.png")
    (rain / "x.png").rename(norain / "8.png")
    training_set(flags(norain, rain), "")  # some pairs, in a set of many


def test_of_many_pairs_a_dozen_are_looked_at_and_two_that_are_right_will_do(tmp_path, monkeypatch):
    looked_at, levels = [], np.array([[1], [2]], np.uint8)
    monkeypatch.setattr(Pair, "read", lambda pair: looked_at.append(pair.name) or levels)
    pairs = spa_list(tmp_path, "".join(f"{i} b\n" for i in range(1000)))
    with pytest.raises(UserError, match="in 12 of 12 pairs"):
        require_light(pairs, "--data_path")
    assert [looked_at[0], looked_at[-1]] == ["0", "999"] and len(looked_at) == 12
    levels = levels[::-1]
    require_light(pairs, "--data_path")
    assert len(looked_at) == 12 + 2


def test_mistakes_in_the_flags(tmp_path):
    spa_list(tmp_path, "r/1.png c/1.png")
    with pytest.raises(UserError, match="--side_by_side: the pack or real_world.txt says what pairs already"):
        training_set(flags(tmp_path, side_by_side="left", given={"side_by_side"}), "")
    write_image(tmp_path / "rain" / "1.png", photo(4, 4, 0))
    with pytest.raises(UserError, match=r"--gt_path: \S+nowhere is not a folder. Put Rain100L there"):
        training_set(flags(tmp_path / "rain", tmp_path / "nowhere"), "Put Rain100L there")


def test_crops_reach_every_place_and_are_the_same_in_both(tmp_path):  # T8
    number = np.arange(18 * 17, dtype=np.uint16).reshape(18, 17)
    image = np.stack([number // 256, number % 256, number * 0], -1).astype(np.uint8)
    for folder in ("rain", "norain"):
        write_image(tmp_path / folder / "1.png", image)
    dataset, seen = PatchDataset(pairs_of(tmp_path), 16, 0), set()
    for (key,) in crop_keys(1, 200, 0, 1, 1):
        rainy, clean = dataset[key]
        assert torch.equal(rainy, clean) and rainy.shape == (3, 16, 16)
        first = int(rainy[0, 0, 0] * 255 + 0.5) * 256 + int(rainy[1, 0, 0] * 255 + 0.5)
        seen.add(divmod(first, 17))
        expected = torch.from_numpy(image[divmod(first, 17)[0] :, divmod(first, 17)[1] :][:16, :16])
        assert torch.equal((rainy.permute(1, 2, 0) * 255).round().byte(), expected)
    assert seen == {(row, column) for row in range(3) for column in range(2)}


def test_every_image_is_shown_equally_often_in_each_epoch_in_another_order():  # T1
    order = [n for batch in crop_keys(3, 4, 0, 1, 3) for n, *_ in batch]
    assert all(sorted(order[i : i + 12]) == list(range(i, i + 12)) for i in (0, 12, 24)) and len(order) == 36
    assert order[:12] != [n - 12 for n in order[12:24]]
    # an epoch that is shorter than the set goes on where the last one ended
    assert sorted(n % 4 for ((n, *_),) in crop_keys(1, 2, 0, 1, 4)) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "text",
    [
        "r/1.png c/1.png\nr/2.png c/2.png\n",
        "r/1.png c/1.png\rr/2.png c/2.png",
        "/r/1.png /c/1.png\n//r/2.png /c/2.png\n",
        "r/1.png c/1.png  \t\n  r/2.png\tc/2.png   \n",
        "r\\1.png c\\1.png\r\n\\r\\2.png \\c\\2.png",
        "\ufeffr/1.png c/1.png\n\n   \n# the second: a b c\n#\nr/2.png c/2.png\n\n",
    ],
    ids=["LF", "CR", "slash", "spaces", "Windows", "comments"],
)
def test_spa_list(tmp_path, text):  # T7
    pairs = spa_list(tmp_path, text)
    assert len(pairs) == 2 and [pair.name for pair in pairs] == ["r/1.png", "r/2.png"]
    assert pairs[1].rainy == tmp_path / "r" / "2.png" and pairs[1].clean == tmp_path / "c" / "2.png"
    with pytest.raises(IndexError):
        pairs[2]


def test_spa_list_lines_that_can_not_be_used(tmp_path):
    bad = ["r/2.png", "r/3.png c/3.png x", "../r/4.png c/4.png", "r/5.png ..\\c\\5.png"]
    told = [
        "1 paths instead of 2",
        "3 paths instead of 2",
        "../r/4.png leaves the folder",
        "../c/5.png leaves the folder",
    ]
    with pytest.raises(UserError, match="4 of 5 entries") as error:
        spa_list(tmp_path, "\n".join(["r/1.png c/1.png", *bad, "# x"]))
    assert all(f"line {n}: {problem}" in str(error.value) for n, problem in enumerate(told, 2))


def test_spa_list_missing_or_empty(tmp_path):
    with pytest.raises(UserError, match=r"--data_path: there is no \S+real_world.txt.* Put SPA-Data there"):
        PairList(tmp_path, "Put SPA-Data there")
    with pytest.raises(UserError, match="lists no pair"):
        spa_list(tmp_path, "# nothing\n\n")
    with pytest.raises(UserError, match="20 of 20 entries") as error:
        spa_list(tmp_path, "x\n" * 20)
    assert "line 10:" in str(error.value) and "line 11:" not in str(error.value) and "10 more" in str(error.value)


def test_file_names_of_any_bytes_and_links_in_a_spa_list(tmp_path):
    for folder in ("rain", "norain"):
        write_image(tmp_path / "elsewhere" / folder / "\u96e8.png", photo(20, 20, len(folder)))
    (tmp_path / "spa").mkdir()
    (tmp_path / "spa" / "real").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "spa")
    spa_list(tmp_path / "spa", "real/rain/\u96e8.png real/norain/\u96e8.png")
    assert training_set(flags(tmp_path / "link"), "")[1] == "real_world.txt, 1 pairs"
    name = spa_list(tmp_path / "spa", b"r/\xff.png c/\xff.png")[0].name
    assert name.encode("utf-8", "surrogateescape") == b"r/\xff.png"


def test_bad_files_of_a_spa_list_are_named(tmp_path):
    for name, height in (("a", 20), ("b", 21), ("small", 15)):
        write_image(tmp_path / f"{name}.png", photo(height, 20, 0))
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    spa_list(tmp_path, "a.png a.png\na.png gone.png\na.png b.png\nbroken.png a.png\nsmall.png small.png")
    with pytest.raises(UserError, match="4 of 5 pairs") as error:
        training_set(flags(tmp_path), "")
    told = ("gone.png: no such file", "clean partner b.png 20x21", "broken.png: can't be read", "than the 16 px patch")
    assert all(problem in str(error.value) for problem in told)
    dataset = PatchDataset(PairList(tmp_path), 16, 0)
    for i, problem in enumerate(told, 1):  # as they are met in a long list
        with pytest.raises(UserError, match=problem):
            dataset[dataset.images.tolist().index(i), 0.5, 0.5]


def test_a_long_spa_list_is_checked_by_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "CHECK_ALL", 10)
    monkeypatch.setattr(module, "CHECK_SOME", 3)
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png", photo(20, 20, ord(name)))
    spa_list(tmp_path, "a.png b.png\n" * 5 + "gone.png gone.png\n" + "a.png b.png\n" * 5)
    with pytest.raises(UserError, match="1 of 3 pairs can't be used"):
        training_set(flags(tmp_path, dark_rain=True), "")
    spa_list(tmp_path, "a.png b.png\n" * 4 + "gone.png gone.png\n" + "a.png b.png\n" * 6)
    assert len(training_set(flags(tmp_path, dark_rain=True), "")[0].pairs) == 11
    assert "3 of them checked now" in capsys.readouterr().out


def test_small_sample(tmp_path):
    pairs = spa_list(tmp_path, "".join(f"{i}.png c{i}.png\n" for i in range(50)))
    sample = small_sample(pairs, 20, 5)
    assert sample == small_sample(pairs, 20, 5) and len({pair.name for pair in sample}) == 20
    assert sample[:7] == small_sample(pairs, 7, 5) and sample != small_sample(pairs, 20, 6)
    assert sorted(small_sample(pairs, 50, 5), key=list(pairs).index) == list(pairs) != small_sample(pairs, 50, 5)
    with pytest.raises(UserError, match="--train_num: 51 .* asked for, but real_world.txt lists 50; .*50 or less"):
        small_sample(pairs, 51, 5)


def test_neighbours_in_a_list_are_shuffled_and_all_are_shown(tmp_path):
    for i in range(30):
        write_image(tmp_path / f"{i}.png", np.full((16, 16, 3), i, np.uint8))
    dataset = PatchDataset(spa_list(tmp_path, "".join(f"{i}.png {i}.png\n" for i in range(30))), 16, 1)
    shown = [round(dataset[n, 0, 0][0].max().item() * 255) for n in range(30)]
    assert sorted(shown) == list(range(30)) and shown != list(range(30))
    assert [round(dataset[n, 0, 0][0].max().item() * 255) for n in range(30, 60)] == shown
