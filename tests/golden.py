"""Where the reference numbers are, and the recipe for the weights that they belong to (tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = ROOT / "tests" / "golden"
DATA = SHARED / "data"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the research-only images (../shared/data) are not here")


def golden_json(name):
    return json.loads((GOLDEN / name).read_text())


def fill(net, seed, std=None):
    """Fill a network with the weights of the recipe, in place."""
    rng = np.random.RandomState(seed)
    state = net.state_dict()
    for key in sorted(state):
        a = rng.standard_normal(tuple(state[key].shape))
        if key.endswith(("weight_u", "weight_v")):
            a = a / np.linalg.norm(a)
        elif key.endswith("gamma"):
            a = np.ones_like(a)
        elif a.ndim > 1:
            a = a * (std or np.sqrt(2 / np.prod(a.shape[1:])))
        else:
            a = a * (0.1 if std is None else 0.01)
        state[key] = torch.from_numpy(np.asarray(a, np.float32))
    net.load_state_dict(state)
    return net


def uniform(seed, *shape):
    return torch.from_numpy(np.random.RandomState(seed).rand(*shape).astype(np.float32))
