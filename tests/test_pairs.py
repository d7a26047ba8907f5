from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.data.images import write_image
from common.data.pairs import CropSampler, PatchDataset, find_pairs, match, training_pairs
from common.errors import UserError
from tests.conftest import photo


def paths(*names):
    return [Path(name) for name in names]


@pytest.mark.parametrize(
    "rainy, clean, rule, partners",
    [
        (["b.png", "a.jpg"], ["a.png", "b.png"], "equal names", ["b.png", "a.png"]),
        (["1_1.jpg", "1_14.jpg", "12_3.jpg"], ["1.jpg", "12.jpg"], "Rain1400", ["1.jpg", "1.jpg", "12.jpg"]),
        (["rain-7.png"], ["norain-7.png", "norain-8.png"], "rain-K with norain-K", ["norain-7.png"]),
        (["norain-1x2.png"], ["norain-1.png"], "NAMEx2", ["norain-1.png"]),
        (["a/1.png", "b/1.png"], ["b/1.png", "a/1.png"], "equal names", ["a/1.png", "b/1.png"]),
        (["x.png", "x.jpg"], ["x.png", "x.jpg"], "equal names", ["x.png", "x.jpg"]),
    ],
)
def test_rules(rainy, clean, rule, partners):
    found, used, problems = match(paths(*rainy), paths(*clean))
    assert rule in used and not problems
    assert [str(found[path]) for path in paths(*rainy)] == partners


def test_never_by_position_and_one_rule_for_all():
    _, _, problems = match(paths("1_15.jpg", "b.jpg"), paths("1.jpg", "2.jpg"))
    assert len(problems) == 2
    found, used, problems = match(paths("5.png", "6.png", "5_1.png"), paths("5.png", "6.png"))
    assert used == "equal names" and problems == ["5_1.png: no clean partner"] and len(found) == 2
    _, _, problems = match(paths("a.bmp"), paths("a.png", "a.jpg"))
    assert "several clean partners: a.png, a.jpg" in problems[0]


def test_the_first_ten_problems_are_named(tmp_path):
    for i in range(13):
        write_image(tmp_path / "rain" / f"{i}.png", photo(4, 4, 0))
    write_image(tmp_path / "norain" / "x.png", photo(4, 4, 0))
    with pytest.raises(UserError) as error:
        find_pairs(tmp_path / "rain", tmp_path / "norain", "--data_path, --gt_path")
    text = str(error.value)
    assert "13 of 13" in text and "9.png: no clean partner" in text and "10.png" not in text and "and 3 more" in text
    assert "--data_path, --gt_path" in text


def test_missing_data_says_what_belongs_there(tmp_path):
    with pytest.raises(UserError, match=r"--gt_path: \S+nowhere is not a folder. Put Rain100L there"):
        write_image(tmp_path / "rain" / "1.png", photo(4, 4, 0))
        training_pairs(tmp_path / "rain", tmp_path / "nowhere", 16, "Put Rain100L there")


def test_grey_alpha_and_16_bit_files_train(tmp_path):
    import cv2

    grey = photo(20, 20, 0)[..., :1]
    (tmp_path / "rain").mkdir()
    (tmp_path / "norain").mkdir()
    cv2.imwrite(str(tmp_path / "rain" / "1.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "norain" / "1.png"), np.concatenate([grey] * 4, -1))
    pairs, _ = training_pairs(tmp_path / "rain", tmp_path / "norain", 16, "")
    rainy, clean = PatchDataset(pairs, 16, 0)[1, 0]
    assert rainy.dtype == torch.float32 and torch.allclose(rainy, clean, atol=1e-6) and rainy.max() <= 1


def crops(pairs_folder, workers, first=1, last=2, skip=0):
    pairs, _ = find_pairs(pairs_folder / "rain", pairs_folder / "norain", "a, b")
    dataset = PatchDataset(pairs, 16, seed=3)
    sampler = CropSampler(6, 3, first, last, skip)
    return [torch.cat(batch) for batch in DataLoader(dataset, 2, sampler=sampler, num_workers=workers)]


def test_crops_do_not_depend_on_the_number_of_workers(pairs_folder):  # T1
    alone = crops(pairs_folder, 0)
    assert len(alone) == 6
    for workers in (1, 2):
        assert all(map(torch.equal, alone, crops(pairs_folder, workers)))
    assert all(map(torch.equal, alone[4:], crops(pairs_folder, 2, first=2, skip=2)))
    assert not any(map(torch.equal, alone[:3], alone[3:]))  # another epoch, other crops
    assert len({crop.numpy().tobytes() for batch in alone for crop in batch[:2]}) > 8


def test_crops_reach_every_place_and_are_the_same_in_both(tmp_path):  # T8
    number = np.arange(18 * 17, dtype=np.uint16).reshape(18, 17)
    image = np.stack([number // 256, number % 256, number * 0], -1).astype(np.uint8)
    for folder in ("rain", "norain"):
        write_image(tmp_path / folder / "1.png", image)
    pairs, _ = find_pairs(tmp_path / "rain", tmp_path / "norain", "a, b")
    dataset, seen = PatchDataset(pairs, 16, 0), set()
    for sample in range(200):
        rainy, clean = dataset[1, sample]
        assert torch.equal(rainy, clean) and rainy.shape == (3, 16, 16)
        first = int(rainy[0, 0, 0] * 255 + 0.5) * 256 + int(rainy[1, 0, 0] * 255 + 0.5)
        seen.add(divmod(first, 17))
        expected = torch.from_numpy(image[divmod(first, 17)[0] :, divmod(first, 17)[1] :][:16, :16])
        assert torch.equal((rainy.permute(1, 2, 0) * 255).round().byte(), expected)
    assert seen == {(row, column) for row in range(3) for column in range(2)}


def test_every_image_is_shown_equally_often():
    order = [n for _, n in CropSampler(12, 0, 1, 3)]
    assert all(sorted(order[i : i + 12]) == list(range(i, i + 12)) for i in (0, 12, 24)) and len(order) == 36
    assert order[:12] != [n - 12 for n in order[12:24]]


def test_an_epoch_that_is_shorter_than_the_set_goes_on_where_the_last_one_ended(pairs_folder):
    pairs, _ = find_pairs(pairs_folder / "rain", pairs_folder / "norain", "a, b")
    seen = [n % len(pairs) for _, n in CropSampler(2, 0, 1, 4)]
    assert sorted(seen) == [0, 0, 1, 1, 2, 2, 3, 3]
