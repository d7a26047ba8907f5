"""Commands write only into the folders that the command line names, and never use the network.

One process runs the commands, in an empty working directory with an empty home and an empty temporary folder.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from common.data.images import write_image
from common.models import EDNet
from tests.conftest import write_pairs
from tests.golden import ROOT, fill

# Folders that libraries and tools keep for themselves.
CACHES = {"__pycache__", "matplotlib", "fontconfig", ".git", ".venv", ".pytest_cache", ".ruff_cache"}
CODE = """
import os, socket, sys
connections = []

def record(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
        connections.append((event, str(args)[:200]))

sys.addaudithook(record)
sys.path.insert(0, os.environ["ROOT"])
data, out = os.environ["DATA"], os.environ["OUT"]
from common import cli
from common.data import compose, demo, pack
from common.evaluation import metrics
from common.generation import rain
from for_syn import generate_rain, test_interpolation, test_syn_joint, train_syn_joint

rain.POOL = 16
pairs = ["--data_path", f"{data}/rain", "--gt_path", f"{data}/norain"]
ED, cpu = ["--netED", f"{data}/ED.pt"], ["--use_gpu", "false"]
small = ["--patchSize", "16", "--nz", "4", "--nef", "2", "--ndf", "4", "--stage", "1", "--batchSize", "2"]
small += ["--niter", "1", "--iters_per_epoch", "5", "--workers", "0", "--val_data_path", pairs[1]]
small += ["--val_gt_path", pairs[3]]
patches = ["--save_patch", f"{out}/p", "--save_inputfake", f"{out}/i", "--save_rainfake", f"{out}/r"]
for main, flags in (
    (train_syn_joint.main, [*pairs, *small, *cpu, "--model_dir", f"{out}/m", "--log_dir", f"{out}/l"]),
    (test_syn_joint.main, [*pairs, *cpu, "--stage", "1", "--netDerain", f"{out}/m/DerainNet_state_1.pt", "--save_path",
                           f"{out}/d"]),
    (metrics.main, ["--pred", f"{out}/d", "--gt", f"{data}/norain", "--csv", f"{out}/metrics.csv", "--sheet",
                   f"{out}/s.png"]),
    (generate_rain.main, [*pairs[:2], *ED, *cpu, "--save_path", f"{out}/g", "--num", "2"]),
    (test_interpolation.main, [*pairs, *ED, *cpu, *patches]),
    (pack.main, [*pairs, "--out", f"{out}/p.h5"]),
    (compose.main, ["--clean", f"{data}/norain", "--streaks", f"{data}/streaks", "--num", "2", "--out", f"{out}/c"]),
    (demo.main, ["--out", f"{out}/page", "--show", f"{out}/s.png", "x"]),
):
    code = cli.run(lambda: main(flags))
    assert code == 0, (main.__module__, code)
assert not connections, connections
assert "torchvision" not in sys.modules  # it takes seconds to import
"""


UNCHANGED = ("data", "cwd", "home", "tmp")


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files below a folder, without the caches of libraries."""
    digests = {}
    for place, folders, names in os.walk(folder):
        folders[:] = set(folders) - CACHES  # os.walk does not go there
        for path in (Path(place, name) for name in names):
            digests[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def test_only_named_folders_change(tmp_path):
    for name in ("out", "cwd", "home", "tmp"):
        (tmp_path / name).mkdir()
    write_pairs(tmp_path / "data")
    write_image(tmp_path / "data" / "streaks" / "0.png", np.eye(40, dtype=np.uint8)[..., None].repeat(3, 2) * 200)
    torch.save(fill(EDNet(nz=4, nef=2, patch_size=16), 1).state_dict(), tmp_path / "data" / "ED.pt")
    before = {folder: contents(folder) for folder in (*(tmp_path / name for name in UNCHANGED), ROOT)}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MPL", "TORCHINDUCTOR_"))}
    folders = {"DATA": "data", "OUT": "out", "HOME": "home", "TMPDIR": "tmp"}
    env = kept | {key: str(tmp_path / name) for key, name in folders.items()} | {"ROOT": str(ROOT)}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=tmp_path / "cwd", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {folder: contents(folder) for folder in before} == before
    left = [path.name for path in (tmp_path / "tmp").iterdir() if not path.name.startswith("torchinductor_")]
    assert not left  # no temporary file, nor an empty folder; PyTorch's compiler has a cache of its own there
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"m", "l", "d", "g", "p", "i", "r", "c", "page", "metrics.csv", "p.h5", "s.png"}
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith((".writing-", ".packing-"))]
