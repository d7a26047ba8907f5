"""The project installed as a package of its own name."""

import os
import shutil
import subprocess
import sys

from tests.golden import ROOT

CODE = """
import importlib.metadata, os, torch, vrgnet, vrgnet.commands
from vrgnet import RainAugment, derain
from vrgnet.models import Derain
assert os.environ["SITE"] in vrgnet.__file__
assert vrgnet.__version__ == importlib.metadata.version("vrgnet")
clean = torch.full((3, 64, 64), 0.3)
rainy = RainAugment(p=1, seed=0, size=64)(clean)
assert (rainy > clean).any()
assert derain(Derain(1).eval(), rainy[None]).shape == (1, 3, 64, 64)
try:
    import common
except ImportError:
    vrgnet.commands.main(["metrics", "--help"])
"""


def test_the_wheel_installs_one_package_named_vrgnet(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "common", source / "common", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, source], check=True)
    found = sorted(path.name.partition("-")[0] for path in site.iterdir())
    assert found == ["bin", "vrgnet", "vrgnet"]  # the command, the package, its metadata
    env = os.environ | {"PYTHONPATH": str(site), "SITE": str(site)}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, env=env, capture_output=True, text=True)
    said = done.stdout
    assert said.startswith("usage: vrgnet metrics") and "    vrgnet metrics --pred" in said, done.stderr
    command = (site / "bin" / "vrgnet").read_text()
    assert "from vrgnet.commands import main" in command
