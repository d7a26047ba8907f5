"""Small trainings for the tests: their flags, what they leave, and comparing two of them."""

from pathlib import Path

import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog

from common.benchmark import Training
from common.training.joint import joint_draw, joint_step
from common.training.optimizer import adam
from for_syn import train_syn_joint
from tests.conftest import folders, rows_of

# A tiny network on tiny crops: ten steps a second, all the machinery.
NETWORKS = ["--stage", "1", "--patchSize", "16", "--nz", "4", "--nef", "2", "--ndf", "4", "--batchSize", "2"]
HABITS = ["--iters_per_epoch", "6", "--save_every", "2", "--workers", "0", "--use_gpu", "false", "--n_dis", "2"]
SMALL = [*NETWORKS, *HABITS]


def arguments(data, model, *more, seed=5):
    """The flags of a small joint training on the folders of ``write_pairs``."""
    return [*folders(data, model), *SMALL, "--manualSeed", str(seed), *map(str, more)]


def train(data, model, *more, seed=5):
    """A small joint training; the same call goes on with it."""
    return train_syn_joint.main(arguments(data, model, *more, seed=seed))


def joint_training(nets, n_dis=2, adam=adam, w_adv=1.0):
    """Joint training of BNet, EDNet and the critic, with the paper's rates."""
    rates = {"DerainNet": 2e-4, "ED": 1e-4, "D": 4e-4}
    nets = dict(zip(rates, nets, strict=True))
    optimizers = {name: adam(net.parameters(), rates[name]) for name, net in nets.items()}
    step = joint_step(*nets.values(), optimizers, w_adv, 10.0, 1e-6)
    return Training(step, joint_draw(n_dis, nets["ED"].nz), n_dis, nets, optimizers)


def load(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    """Whether nested tensors and values are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        alike = (a.shape, a.dtype) == (b.shape, b.dtype)
        return alike and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def content(model):
    """By name, what a run's folder holds, apart from what flags of a resume change."""
    files = {path.name: load(path) for path in model.glob("*.pt")}
    last = files["train_state_last.pt"]
    files["train_state_last.pt"] = {key: last[key] for key in ("epoch", "step", "best", "nets", "optimizers", "rng")}
    return files | {path.name: path.read_text() for path in model.glob("*.json")}


def log_of(model, but=("seconds",)):
    """The rows of a run's log.csv, as text."""
    return [{name: text for name, text in row.items() if name not in but} for row in rows_of(f"{model}_logs/log.csv")]


def tensorboard_of(model):
    """What TensorBoard shows of the logs of a run, as (tag, step): a session drops what is not before its start."""
    shown = []
    for path in sorted(Path(f"{model}_logs").glob("events*")):
        data = path.read_bytes()
        while data:  # length, checksum, event, checksum
            end = 12 + int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12:end]), data[end + 4 :]
            if event.session_log.status == SessionLog.START:
                shown = [(tag, step) for tag, step in shown if step < event.step]
            shown += [(value.tag, event.step) for value in event.summary.value]
    return sorted(shown)


def numbers_of(model):
    """The same of a run that has all of them, as numbers."""
    return [{name: float(text) for name, text in row.items()} for row in log_of(model)]


def differing(one, other):
    """The names of the entries that differ."""
    return [name for name in sorted(one.keys() | other.keys()) if not same(one.get(name), other.get(name))]


def assert_same_run(one, other):
    assert differing(content(one), content(other)) == []
