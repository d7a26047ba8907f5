"""What the processes of a job do for tests/test_ranks.py, which starts this file by torchrun.

tests/in_ranks.py FOLDER           writes FOLDER/RANK.pt, then runs the scripts in FOLDER/jobs.json
tests/in_ranks.py TROUBLE FLAGS    trains with trouble: "slow save" or "no image"
"""

import contextlib
import importlib
import json
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from torch import distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.speed import Speed

from common import cli, distributed
from common.data.images import ImageError
from common.data.patches import PatchDataset
from common.models import Derain, Discriminator, EDNet, PReNet
from common.training import checkpoint
from common.training.augment import aug_step, real_samples
from common.training.joint import joint_optimizers, joint_step
from for_syn import train_syn_joint
from tests.golden import fill
from tests.test_joint import batch

WIDE = (Derain, 6), (EDNet, 3, 128, 32), (Discriminator, 64, 64)  # those of the reference
NARROW = (Derain, 2), (EDNet, 3, 16, 8, 16), (Discriminator, 16, 16)


def joint(kinds, dtype, per_step, steps, w_adv, p):
    """Joint training on ``per_step`` crops a step, of which each process has its share: networks and losses."""
    stds = 0.02, 0.02, None
    nets = [fill(kind(*sizes), 21 + i, stds[i]).to(dtype) for i, (kind, *sizes) in enumerate(kinds)]
    step = joint_step(*nets, joint_optimizers(*nets, 2e-4, 1e-4, 4e-4), w_adv, 10, 5, 1e-6, Speed(), {})
    torch.manual_seed(7)
    rows = []
    for index in range(steps):
        rainy, clean = (x.to(dtype)[distributed.share(), :, :p, :p] for x in batch(index, per_step))
        rows.append({name: value.item() for name, value in step(rainy, clean, index).items()})
    return [net.state_dict() for net in nets], rows


def augmented(per_step, steps, ratio):
    """Augmented training in float64, the same."""
    net, netED = fill(PReNet(2), 31, 0.02).double(), fill(EDNet(3, 16, 8, 16), 32).double()
    n_real = real_samples(per_step, ratio)
    step = aug_step(net, netED, Speed().adam(net.parameters(), 1e-3), n_real, Speed(), {})
    torch.manual_seed(9)
    rows = []
    for index in range(steps):
        rainy, clean = (x.double()[distributed.share(), :, :16, :16] for x in batch(100 + index, per_step))
        rows.append({name: value.item() for name, value in step(rainy, clean, index).items()})
    return [net.state_dict()], rows


@contextlib.contextmanager
def in_double():
    """Draws in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def compared():
    """What one process and several must agree on."""
    with in_double():
        found = {"joint": joint(NARROW, torch.float64, 8, 6, 0.01, 16)}
        return found | {f"augmented {ratio}": augmented(8, 3, ratio) for ratio in (0.5, 7.0, 0.15, 0.05)}


def counted(work):
    """What work returns, and the values of every call between the processes meanwhile."""
    sent, all_reduce = [], dist.all_reduce

    def counting(tensor, *args):
        sent.append(tensor.numel())
        return all_reduce(tensor, *args)

    with mock.patch.object(dist, "all_reduce", counting):
        return work(), sent


def spread():
    """A network that differs between the ranks: what it holds after ``spread`` of all, and of all but weights."""
    found = []
    for weights in (True, False):
        net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        for value in net.state_dict().values():
            value.fill_(distributed.rank() + 1)
        distributed.spread([net], weights)
        found.append({name: value.flatten()[0].item() for name, value in net.state_dict().items()})
    return found


def average():
    """A gradient that only rank 0 has, one that both have, and one that nobody has; and values."""
    weights = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))]
    if distributed.is_first():
        weights[0].grad = torch.full((2, 3), 3.0)
    weights[1].grad = torch.full((1,), 1.0 + distributed.rank())
    means = distributed.average(torch.optim.Adam(weights), mse=torch.tensor(float(distributed.rank())))
    return [weight.grad for weight in weights], means


def slow_save(value, path, keep=None, real=checkpoint.save):
    time.sleep(3)
    real(value, path, keep)


def no_image(self, keys, real=PatchDataset.__getitems__, calls=[]):  # noqa: B006 (counts)
    calls.append(keys)
    if not distributed.is_first() and len(calls) == 5:
        raise ImageError("gone.png: no such file")
    return real(self, keys)


TROUBLE = {"slow save": (checkpoint, "save", slow_save), "no image": (PatchDataset, "__getitems__", no_image)}


def main():
    if sys.argv[1] in TROUBLE:
        with mock.patch.object(*TROUBLE[sys.argv[1]]):
            return train_syn_joint.main(sys.argv[2:])
    folder = Path(sys.argv[1])
    found = {"compared": compared(), "spread": spread(), "average": average()}
    (_, rows), sent = counted(lambda: joint(WIDE, torch.float32, 4, 7, 1, 64))  # golden/joint_syn.json
    found |= {"golden": rows, "sent": sent}
    with in_double():
        found["sent A+"] = counted(lambda: augmented(8, 1, 0.5))[1]
    found |= {
        "wished": distributed.any_true(distributed.is_first(), not distributed.is_first(), False),
        "gathered": distributed.gather(distributed.rank()),
    }
    found |= {
        "reason": distributed.first_reason("" if distributed.is_first() else "rain"),
        "first": distributed.broadcast(distributed.rank() + 5),
    }
    torch.save(found, folder / f"{distributed.rank()}.pt")
    for module, argv in json.loads((folder / "jobs.json").read_text()):
        print(f"== {module}", flush=True)
        importlib.import_module(module).main(argv)


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
