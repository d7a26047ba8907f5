"""Fixtures and helpers that several test files share."""

import argparse
import contextlib
import csv
import importlib
import os
import subprocess
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from PIL import ImageCms

from common import cli
from common.data.demo import rain_layer
from common.data.images import write_image
from common.data.pair_list import PairList
from common.data.pairs import find_pairs
from common.data.patches import crop_keys, crop_loader, to_batch
from common.generation import rain
from common.memory import keep_memory
from common.models import EDNet
from tests.golden import ROOT, fill

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
keep_memory()  # as the scripts do, or tests that use much of it take twice as long


def photo(height, width, seed):
    """A smooth colourful picture."""
    y, x = np.mgrid[:height, :width] / 20
    rng = np.random.RandomState(seed)
    waves = [np.sin(x * rng.rand() * 2 + y * rng.rand() * 2 + rng.rand() * 6) for _ in range(3)]
    return (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def drops(height, width, seed):
    """A picture of grey drops on black; cv2.add puts them on a photo."""
    return np.uint8(90) * (np.random.RandomState(seed).rand(height, width, 1) > 0.9).repeat(3, 2)


def write_pairs(folder):
    """Four small pairs in rain/ and norain/."""
    for i in range(4):
        clean = photo(24, 20 + i, i)
        write_image(folder / "norain" / f"{i + 8}.png", clean)
        write_image(folder / "rain" / f"{i + 8}.png", cv2.add(clean, drops(24, 20 + i, 50 + i)))
    return folder


def made(folder, *names):
    """Files that are only listed, never read."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def profile():
    """An ICC profile like sRGB, but with red and green exchanged."""
    return SRGB.replace(b"rXYZ", b"    ").replace(b"gXYZ", b"rXYZ").replace(b"    ", b"gXYZ")


@pytest.fixture
def pairs_folder(tmp_path):
    """See write_pairs."""
    return write_pairs(tmp_path / "data")


@pytest.fixture
def streaks_folder(tmp_path):
    """Three small pictures of rain on black."""
    for i in range(3):
        layer = 255 * rain_layer((30, 26 + i), i, angle=10 * i, length=8, density=0.2)
        write_image(tmp_path / "streaks" / f"{i}.png", np.repeat(layer, 3, 2).astype(np.uint8))
    return tmp_path / "streaks"


def begin(*command, env, **more):
    """Start a command in the project's folder, in a process group of its own; stdout takes stderr too."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, start_new_session=True, **streams, **more)


def files(folder):
    """The content of all files below a folder, by their paths in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(path):
    """The rows of a table in a CSV file, as text by column."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def folders(data, model):
    """The flags of a training on pairs_folder, with logs beside the models."""
    flags = ["--data_path", data / "rain", "--gt_path", data / "norain", "--model_dir", model]
    return list(map(str, [*flags, "--log_dir", f"{model}_logs"]))


def flags_of(module):
    """The argparse actions of a script or command, by the name of the flag."""
    parsers = []

    def stop(parser, argv=None):
        parsers.append(parser)
        raise StopIteration

    with mock.patch.object(cli.Parser, "parse_args", stop), contextlib.suppress(StopIteration):
        (getattr(module, "parse_args", None) or module.main)([])
    return {action.dest: action for action in parsers[0]._actions if action.option_strings and action.dest != "help"}


@pytest.fixture(scope="session")
def generator(tmp_path_factory):
    """The file of a small generator of 16 px."""
    path = tmp_path_factory.mktemp("net") / "ED.pt"
    torch.save(fill(EDNet(nz=5, nef=4, patch_size=16), 1).state_dict(), path)
    return path


@pytest.fixture
def quick(monkeypatch):
    """Rain layers are chosen from few patches."""
    monkeypatch.setattr(rain, "POOL", 64)


def write_claim_sets(folder):
    """The data sets of the claim, of tiny images."""
    from experiments import claims  # here, since it imports matplotlib

    for name, files in (
        ("rain100H_train18", [*claims.HEAVY_TRAIN, *claims.HEAVY_TEST]),
        ("rain100L_more", ["norain-10.png", "norain-15.png"]),
    ):
        for k, file in enumerate(files):
            clean = photo(24, 30, k)
            write_image(folder / name / "norain" / file, clean)
            write_image(folder / name / "rain" / file, cv2.add(clean, drops(24, 30, k)))
    for k in range(6):
        write_image(folder / "clean" / f"{k}.png", photo(24, 30, 100 + k))
        write_image(folder / "streaks" / f"{k}.png", drops(30, 40, k))


@pytest.fixture
def calls(monkeypatch):
    """The scripts that claims.py or which_rain.py calls, as (script, flags); they run in this process, in small."""
    from experiments import claims, experiment, which_rain

    made = []
    for module in (claims, experiment, which_rain):
        monkeypatch.setattr(module, "EPOCHS", 2)

    def call(words, log):
        script, *flags = map(str, words)
        made.append((script, flags))
        sizes = {"--nz": "4", "--nef": "2", "--ndf": "4"} if "generator" in script else {}
        small = [word for flag, value in sizes.items() if flag not in flags for word in (flag, value)]
        importlib.import_module(script[:-3].replace("/", ".")).main([*flags, *small])

    monkeypatch.setattr(experiment, "call", call)
    return made


# --- data sets -----------------------------------------------------------------------------------------------------


def flags(data_path, gt_path=None, patch_size=16, **more):
    """What the scripts give to training_set; those that read lists have no --gt_path."""
    values = {"data_path": str(data_path), "patchSize": patch_size} | ({"gt_path": str(gt_path)} if gt_path else {})
    values |= {"pair_by": None, "side_by_side": None, "dark_rain": False, "val_data_path": None}
    values |= {"manualSeed": 0, "cache": "none", "dry_run": False, "given": set()}
    return argparse.Namespace(**values | more)


def pairs_of(folder):
    """The pairs of rain/ and norain/ in a folder."""
    return find_pairs(folder / "rain", folder / "norain", "a, b")[0]


def spa_list(folder, text):
    """The pairs of a list, which is written into the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "real_world.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return PairList(folder)


def crops(dataset, seed=3):
    """All crops of two epochs of three batches: (6, 4, 3, p, p), the rainy ones of a batch before its clean ones."""
    loader, close = crop_loader(dataset, crop_keys(2, 3, seed, 1, 2), workers=0)
    batches = [torch.cat(to_batch(batch)) for batch in loader]
    close()
    return torch.stack(batches)
