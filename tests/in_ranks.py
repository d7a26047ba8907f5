"""What the processes of a job do for tests/test_distributed.py, which starts this file by torchrun.

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
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, distributed
from common.data.images import ImageError
from common.data.patches import PatchDataset
from common.models import Derain, Discriminator, EDNet, PReNet
from common.training import checkpoint
from common.training.augment import aug_draw, aug_step, real_samples
from common.training.optimizer import adam
from for_syn import train_syn_joint
from tests.golden import fill
from tests.runs import joint_training
from tests.test_joint import batch

NETWORKS = (Derain, 1), (EDNet, 3, 16, 8, 16), (Discriminator, 16, 16)


def run(step, draw, nets, optimizers, first, crops, steps):
    """Steps on batches of so many crops of 16 px, of which each process has its share: networks and losses."""
    weight = len(range(crops)[distributed.share()]) / crops
    for optimizer in optimizers:
        distributed.average_gradients(optimizer, weight)
    rows = []
    for index in range(steps):
        rainy, clean = (x.double()[distributed.share(), :, :16, :16] for x in batch(first + index, crops))
        losses = distributed.average(step(*draw(rainy, clean, index, crops))[0], weight)
        rows.append({name: value.item() for name, value in losses.items()})
    return [net.state_dict() for net in nets], rows


def joint():
    """Joint training in float64; seven crops make shares of four and three."""
    stds = (0.02, 0.02, None)
    nets = [fill(kind(*sizes), 21 + i, stds[i]).double() for i, (kind, *sizes) in enumerate(NETWORKS)]
    step, draw, *_, optimizers = joint_training(nets, n_dis=5, w_adv=0.01)
    torch.manual_seed(7)
    return run(step, draw, nets, optimizers.values(), 0, 7, 6)


def augmented(ratio, crop=None):
    """Augmented training in float64; ``crop`` makes its rain in place of G."""
    net, netED = fill(PReNet(1), 31, 0.02).double(), fill(EDNet(3, 16, 8, 16), 32).double()
    n_real, optimizer = real_samples(8, ratio), adam(net.parameters(), 1e-3)
    step, draw = aug_step(net, netED, optimizer, n_real), aug_draw(netED, n_real, crop, seed=3)
    torch.manual_seed(9)
    return run(step, draw, [net], [optimizer], 100, 8, 3)


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
        results = {"joint": joint(), "augmented 7.0": augmented(7.0), "augmented 0.15": augmented(0.15)}
        return results | {"from a bank": augmented(1.0, lambda h, w, crops, rng: rng.rand(h, w, 1) * crops / 100)}


def broadcast_weights():
    """Values of a network that differed between the ranks, after ``broadcast_weights``, all or all but weights."""
    results = []
    for trainable in (True, False):
        net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        for value in net.state_dict().values():
            value.fill_(distributed.rank() + 1)
        distributed.broadcast_weights([net], trainable)
        results.append({name: value.flatten()[0].item() for name, value in net.state_dict().items()})
    return results


def gradients():
    """A gradient that only rank 0 has, and one that both have, as the optimizer sees them."""
    weights = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(1))]
    if distributed.is_first():
        weights[0].grad = torch.full((2, 3), 3.0)
    weights[1].grad = torch.full((1,), 1.0 + distributed.rank())
    optimizer = torch.optim.SGD(weights, 1.0)
    distributed.average_gradients(optimizer, 0.5)
    optimizer.step()
    return [weight.detach() for weight in weights]


def slow_save(value, path, real=checkpoint.save):
    time.sleep(3)
    real(value, path)


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
    results = {"compared": compared(), "weights": broadcast_weights(), "gradients": gradients()}
    first = distributed.is_first()
    results |= {"any": distributed.any_true(first, not first, False), "gather": distributed.gather(distributed.rank())}
    results["broadcast"] = distributed.broadcast(distributed.rank() + 5)
    torch.save(results, folder / f"{distributed.rank()}.pt")
    for module, argv in json.loads((folder / "jobs.json").read_text()):
        print(f"== {module}", flush=True)
        importlib.import_module(module).main(argv)
        distributed.gather(None)  # the first one may still be saving


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
