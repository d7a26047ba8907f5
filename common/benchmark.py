"""How fast this machine trains and derains: steps or images a second, and on a GPU peak memory, for each precision.

    python -m common.benchmark joint
    python -m common.benchmark all --precision auto tf32 bf16 --cuda_graphs

joint: joint training, one step of all networks, then four of the critic. aug: augmented training of PReNet, a third of
a batch with generated rain. derain: BNet on an image of 481x321 px. all: these three in one table. Crops and images are
random numbers: reading files is left out. A GPU is taken if there is one, as in training.

--cuda_graphs, on a GPU: a cycle of steps is run and then replayed from the same state. Losses, pictures, weights, u, v,
Adam's steps and both its averages must be equal to the bit. A row says so, and whether recorded steps are worth it.
"""

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import cli, flags
from .evaluation.derain import derain
from .models import Derain, Discriminator, EDNet, PReNet
from .precision import has_bfloat16, prepare
from .terminal import print_result
from .training.augment import aug_draw, aug_step, real_samples
from .training.device import pick_device
from .training.graphs import WARM_UP, CudaRecorder, RecordedStep, recorder
from .training.joint import joint_draw, joint_step
from .training.optimizer import adam, set_rate

N_DIS = 5  # of joint training: a cycle is one step with G and BNet and four of D alone
TURNS = 5  # besides the warm-up
CYCLES = {"cpu": 1, "cuda": 20}  # of a turn
HEIGHT, WIDTH = 321, 481  # px of the image to derain
GAIN = 1.1  # a recording that is not so many times faster is not worth its memory


class Training(NamedTuple):
    """What ``fit`` gets of a training."""

    step: Callable
    draw: Callable
    cycle: int  # steps in which every kind of step comes
    nets: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]


def joint(args: argparse.Namespace, device: torch.device, precision: str) -> Training:
    """Joint training."""
    ndf = min(64, 64 * 64 // args.patchSize)
    fresh = Derain(6), EDNet(patch_size=args.patchSize), Discriminator(args.patchSize, ndf)
    nets = dict(zip(("DerainNet", "ED", "D"), (net.to(device) for net in fresh), strict=True))
    prepare(nets["DerainNet"], device, precision, training=True)
    optimizers = {name: adam(net.parameters(), 1e-4) for name, net in nets.items()}
    step = joint_step(*nets.values(), optimizers, w_adv=1.0, lambda_gp=10.0, eps2=1e-6)
    return Training(step, joint_draw(N_DIS, 128), N_DIS, nets, optimizers)


def aug(args: argparse.Namespace, device: torch.device, precision: str) -> Training:
    """Augmented training of PReNet, a third of the batch with generated rain."""
    net, netED = PReNet(6).to(device), EDNet(patch_size=args.patchSize).to(device).requires_grad_(False)
    prepare(net, device, precision, training=True)
    n_real, optimizer = real_samples(args.batchSize, 0.5), adam(net.parameters(), 1e-3)
    step = aug_step(net, netED, optimizer, n_real)
    return Training(step, aug_draw(netED, n_real), 1, {"derainer": net}, {"derainer": optimizer})


TRAININGS = {"joint": joint, "aug": aug}


def measure(turn: Callable[[], object], device: torch.device) -> float:
    """Seconds of the median turn; a first one warms up and is left out."""
    times = []
    for _ in range(TURNS + 1):
        began = time.perf_counter()
        turn()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def seconds_of(args: argparse.Namespace, device: torch.device, work: str, precision: str, record: bool) -> float:
    """Seconds of a step, or of an image."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = work in TRAININGS  # batches of one size, images of many
    if work == "derain":
        net, image = Derain(6).eval().to(device), torch.rand(1, 3, HEIGHT, WIDTH, device=device)
        prepare(net, device, precision)
        return measure(lambda: derain(net, image, tile=0), device)
    training = TRAININGS[work](args, device, precision)
    step = RecordedStep(training.step, training.optimizers, recorder(device)) if record else training.step
    rainy, clean = torch.rand(2, args.batchSize, 3, args.patchSize, args.patchSize, device=device)
    number = training.cycle * CYCLES[device.type]

    def turn() -> None:
        for index in range(number):
            step(*training.draw(rainy, clean, index, args.batchSize))

    return measure(turn, device) / number


def row(name: str, seconds: float, device: torch.device, verdict: str = "") -> str:
    """A row of the table."""
    peak = f"{torch.cuda.max_memory_reserved(device) / 1e9:.2f}" if device.type == "cuda" else "-"
    return f"| {name:<22} | {1 / seconds:>9.4g} | {seconds:>9.4g} | {peak:>7} | {verdict} |"


# --- recorded steps ------------------------------------------------------------------------------------------------


def changed_by(training: Training) -> dict[str, Tensor]:
    """By name, the tensors that a step changes: weights, u and v, Adam's averages and steps."""
    tensors = {f"{key} of {name}": x for name, net in training.nets.items() for key, x in net.state_dict().items()}
    for name, optimizer in training.optimizers.items():
        for number, state in enumerate(optimizer.state.values()):
            tensors |= {f"{key} {number} of Adam of {name}": x for key, x in state.items()}
    return tensors


def differing(training: Training, records: CudaRecorder, batch: int, patch: int, device: torch.device) -> list[str]:
    """Run a cycle of steps, replay it from the same state: the names of the losses, pictures and tensors that differ.

    Steps are recorded on other crops and at other rates than those that are compared.
    """
    recorded = RecordedStep(training.step, training.optimizers, records)

    def drawn(index: int) -> tuple:
        return training.draw(*torch.rand(2, batch, 3, patch, patch, device=device), index, batch)

    for index in range((WARM_UP + 1) * training.cycle):
        recorded(*drawn(index))
    for optimizer in training.optimizers.values():
        set_rate(optimizer, 2 * float(optimizer.param_groups[0]["lr"]))
    batches, tensors = [drawn(index) for index in range(training.cycle)], changed_by(training)
    start = {name: x.clone() for name, x in tensors.items()}
    found = []
    for step in (lambda *inputs: records.run(lambda: training.step(*inputs)), recorded):
        for name, x in tensors.items():
            x.copy_(start[name])
        values = {}
        for index, inputs in enumerate(batches):
            losses, images = step(*inputs)
            values |= {f"{name} of step {index}": x.clone() for name, x in (losses | images).items()}
        found.append(values | {name: x.clone() for name, x in tensors.items()})
    run, replayed = found
    return [name for name in run if not torch.equal(run[name], replayed[name])]


def recorded_row(args: argparse.Namespace, device: torch.device, work: str, precision: str, seconds: float) -> str:
    """Compare recorded steps with steps that run, of ``seconds`` each, and measure them: a row with the verdict."""
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    training = TRAININGS[work](args, device, precision)
    names = differing(training, recorder(device), args.batchSize, args.patchSize, device)
    torch.backends.cudnn.deterministic = False
    del training
    quick = seconds_of(args, device, work, precision, record=True)
    if names:
        verdict = f"{len(names)} values differ ({', '.join(names[:3])}): leave --cuda_graphs out"
    else:
        use = "use --cuda_graphs" if seconds > GAIN * quick else "not worth its memory, leave --cuda_graphs out"
        verdict = f"equal to the bit, {seconds / quick:.2f} times as fast: {use}"
    return row(f"{work}: {precision} recorded", quick, device, verdict)


# --- the command ---------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, cli.typed("benchmark"))
    works = (*TRAININGS, "derain", "all")
    parser.add_argument("work", nargs="?", choices=works, default="joint", help="what to measure")
    flags.add_speed(parser, default=["fp32"], nargs="+")
    flags.add_switch(parser, "--cuda_graphs", "also measure recorded steps, and compare them")
    parser.add_argument("--batchSize", type=cli.positive_int, default=18, help="crops in a step")
    parser.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px")
    flags.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = pick_device(args.use_gpu, args.gpu_id)
    if args.cuda_graphs:
        recorder(device)  # or an error, before anything is measured
    if not has_bfloat16(device) and {"tf32", "bf16"} & set(args.precision):  # a T4, most CPUs
        print("left out: tf32 and bf16, for which this processor has no instructions", file=sys.stderr)
        args.precision = [precision for precision in args.precision if precision in ("auto", "fp32")]
    what = f"{torch.get_num_threads()} threads of {torch.cpu.get_capabilities().get('cpu_name', platform.machine())}"
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else what
    print_result(f"batch {args.batchSize}, {args.patchSize} px; {what}, PyTorch {torch.__version__}\n")
    print_result(f"| {'steps or images':<22} | {'a second':>9} | {'seconds':>9} | {'peak GB':>7} | recorded steps |")
    print_result(f"|{'-' * 24}|{'-' * 10}:|{'-' * 10}:|{'-' * 8}:|{'-' * 16}|")
    for work in (*TRAININGS, "derain") if args.work == "all" else (args.work,):
        for precision in dict.fromkeys(["fp32", *args.precision]):
            seconds = seconds_of(args, device, work, precision, record=False)
            print_result(row(f"{work}: {precision}", seconds, device))
            if args.cuda_graphs and work in TRAININGS:
                print_result(recorded_row(args, device, work, precision, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
