"""Small trainings for the tests: their flags, what they leave, and comparing two of them."""

import os
import time

import torch

from for_syn import train_syn_joint

# A tiny network on tiny crops: ten steps a second, all the machinery.
NETWORKS = ["--stage", "1", "--patchSize", "16", "--nz", "4", "--nef", "2", "--ndf", "4", "--batchSize", "2"]
HABITS = ["--iters_per_epoch", "6", "--save_every", "2", "--workers", "0", "--use_gpu", "false", "--n_dis", "2"]
SMALL = [*NETWORKS, *HABITS]
THREADS = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as here: the order of sums depends on it


def arguments(data, model, *more, seed=5):
    """The flags of a small joint training on the folders of ``write_pairs``."""
    return [
        *["--data_path", str(data / "rain"), "--gt_path", str(data / "norain"), *SMALL],
        *["--model_dir", str(model), "--log_dir", f"{model}_logs", "--manualSeed", str(seed)],
        *map(str, more),
    ]


def train(data, model, *more, seed=5):
    """A small joint training; the same call goes on with it."""
    return train_syn_joint.main(arguments(data, model, *more, seed=seed))


def load(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    """Whether nested tensors and values are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def wait_for(model, position, process):
    """Until the saved state is at or past (epoch, step)."""
    for _ in range(1200):
        try:
            state = load(model / "train_state_last.pt")
            if (state["epoch"], state["step"]) >= position:
                return
        except Exception:  # not there yet, or just being renamed
            pass
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("no state was saved")
