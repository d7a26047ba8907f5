"""What a rank of a job computes, for tests/test_ranks.py: torchrun starts this file, or the test calls it alone.

python -m tests.in_step FOLDER  writes FOLDER/PROCESSES_RANK.pt
"""

import sys
from pathlib import Path

import torch
from torch import distributed as dist

from common import ranks
from common.models import Derain, Discriminator, EDNet, PReNet
from common.speed import Speed
from common.training.augment import aug_step, real_samples
from common.training.joint import joint_optimizers, joint_step
from tests.golden import fill
from tests.test_joint import batch


def joint(dtype, per_step, steps, w_adv):
    """Joint training on ``per_step`` crops a step, of which each process has its share: networks and losses."""
    nets = fill(Derain(6), 21, 0.02), fill(EDNet(3, 128, 32), 22, 0.02), fill(Discriminator(64, 64), 23)
    netDerain, netED, netD = (net.to(dtype) for net in nets)
    optimizers = joint_optimizers(netDerain, netED, netD, 2e-4, 1e-4, 4e-4)
    step = joint_step(netDerain, netED, netD, optimizers, w_adv, 10, 5, 1e-6, Speed(), {})
    torch.manual_seed(7)
    rows = []
    for index in range(steps):
        rainy, clean = (x.to(dtype)[ranks.own()] for x in batch(index, per_step))
        rows.append({name: value.item() for name, value in step(rainy, clean, index).items()})
    return [net.state_dict() for net in nets], rows


def augmented(dtype, per_step, steps):
    """Augmented training, the same."""
    net, netED = fill(PReNet(6), 31, 0.02).to(dtype), fill(EDNet(3, 128, 32), 32).to(dtype)
    step = aug_step(net, netED, Speed().adam(net.parameters(), 1e-3), real_samples(per_step, 0.5), Speed(), {})
    torch.manual_seed(9)
    rows = []
    for index in range(steps):
        rainy, clean = (x.to(dtype)[ranks.own()] for x in batch(100 + index, per_step))
        rows.append({name: value.item() for name, value in step(rainy, clean, index).items()})
    return [net.state_dict()], rows


def everything():
    """All that is compared, and what went between the processes meanwhile."""
    torch.set_default_dtype(torch.float64)  # of the draws
    found = {"joint": joint(torch.float64, 8, 5, 0.01)}
    sent, all_reduce = [], dist.all_reduce

    def counted(tensor, *args, **kwargs):
        sent.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **kwargs)

    found["augmented"] = augmented(torch.float64, 8, 2)
    torch.set_default_dtype(torch.float32)
    dist.all_reduce = counted
    found["golden"] = joint(torch.float32, 4, 7, 1)
    found["sent"] = sent
    dist.all_reduce = all_reduce
    return found


if __name__ == "__main__":
    with ranks.joined():
        torch.save(everything(), Path(sys.argv[1]) / f"{ranks.count()}_{ranks.rank()}.pt")
