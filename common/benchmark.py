"""How fast this machine trains and derains: steps or images a second, and on a GPU peak memory, for each precision.

    python -m common.benchmark joint
    python -m common.benchmark all --precision auto tf32 bf16

joint: joint training, one step of all networks, then four of the critic. aug: augmented training of PReNet, a third of
a batch with generated rain. derain: BNet on an image of 481x321 px. all: these three in one table. On a GPU each
training is measured as it is run and as it is recorded; a line says what the proof of the recording found. Crops and
images are random numbers: reading files is left out. A GPU is taken if there is one, as in training.
"""

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch

from . import cli, flags
from .evaluation.derain import derain
from .models import Derain, Discriminator, EDNet, PReNet
from .precision import has_bfloat16, prepare
from .terminal import print_result
from .training.augment import aug_draw, aug_step, real_samples
from .training.device import pick_device
from .training.graphs import CannotRecord, CudaRecorder
from .training.joint import joint_draw, joint_step
from .training.optimizer import adam
from .training.proof import RecordedStep

N_DIS = 5  # of joint training: a cycle is one step with G and BNet and four of D alone
TURNS = 5  # besides the warm-up
CYCLES = {"cpu": 1, "cuda": 20}  # of a turn
HEIGHT, WIDTH = 321, 481  # px of the image to derain

Turn = tuple[Callable[[], None], int]  # what is measured, and of how many steps or images it consists


def _steps(args: argparse.Namespace, device: torch.device, step: Callable, draw: Callable, cycle: int) -> Turn:
    """Steps on one batch; ``cycle`` of them differ from each other."""
    rainy, clean = torch.rand(2, args.batchSize, 3, args.patchSize, args.patchSize, device=device)
    number = cycle * CYCLES[device.type]

    def turn() -> None:
        for index in range(number):
            step(*draw(rainy, clean, index, args.batchSize))

    return turn, number


def joint(args: argparse.Namespace, device: torch.device, precision: str, record: bool) -> Turn:
    """Steps of joint training."""
    ndf = min(64, 64 * 64 // args.patchSize)
    fresh = Derain(6), EDNet(patch_size=args.patchSize), Discriminator(args.patchSize, ndf)
    netDerain, netED, netD = nets = [net.to(device) for net in fresh]
    prepare(netDerain, device, precision, training=True)
    rates = {"DerainNet": 2e-4, "ED": 1e-4, "D": 4e-4}
    optimizers = {name: adam(net.parameters(), rates[name]) for name, net in zip(rates, nets, strict=True)}
    step = joint_step(netDerain, netED, netD, optimizers, w_adv=1.0, lambda_gp=10.0, eps2=1e-6)
    if record:
        step = RecordedStep(step, CudaRecorder(device), precision, 10**9, N_DIS, nets, optimizers)
    return _steps(args, device, step, joint_draw(N_DIS, 128), N_DIS)


def aug(args: argparse.Namespace, device: torch.device, precision: str, record: bool) -> Turn:
    """Steps of augmented training of PReNet, a third of the batch with generated rain."""
    net, netED = PReNet(6).to(device), EDNet(patch_size=args.patchSize).to(device).requires_grad_(False)
    prepare(net, device, precision, training=True)
    n_real, optimizer = real_samples(args.batchSize, 0.5), adam(net.parameters(), 1e-3)
    step = aug_step(net, netED, optimizer, n_real)
    if record:
        step = RecordedStep(step, CudaRecorder(device), precision, 10**9, 1, [net], {"derainer": optimizer})
    return _steps(args, device, step, aug_draw(netED, n_real), 1)


def derain_images(args: argparse.Namespace, device: torch.device, precision: str, record: bool) -> Turn:
    """Images of which BNet removes the rain, one by one."""
    torch.backends.cudnn.benchmark = False  # as in the scripts, whose images differ in size
    net, rainy = Derain(6).eval().to(device), torch.rand(1, 3, HEIGHT, WIDTH, device=device)
    prepare(net, device, precision)

    def turn() -> None:
        for _ in range(CYCLES[device.type]):
            derain(net, rainy, tile=0)

    return turn, CYCLES[device.type]


WORK = {"joint": joint, "aug": aug, "derain": derain_images}


def measure(turn: Callable[[], None], device: torch.device) -> float:
    """Seconds of the median turn; a first one warms up and is left out."""
    times = []
    for _ in range(TURNS + 1):
        began = time.perf_counter()
        turn()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def row(args: argparse.Namespace, device: torch.device, work: str, precision: str, record: bool) -> str:
    """Measure one way of doing the work: a row of the table."""
    name = f"{work}: {precision}{' recorded' * record}"
    print(f"measuring {name}", flush=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as in training, whose batches are of one size
    try:
        turn, count = WORK[work](args, device, precision, record)
        seconds = measure(turn, device) / count
    except CannotRecord as error:
        return f"| {name:<30} | can't be recorded: {error} | | |"
    peak = f"{torch.cuda.max_memory_reserved(device) / 1e9:.2f}" if device.type == "cuda" else "-"
    return f"| {name:<30} | {1 / seconds:>9.4g} | {seconds:>9.4g} | {peak:>7} |"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_argument("work", nargs="?", choices=(*WORK, "all"), default="joint", help="what to measure")
    flags.add_speed(parser, several=True)
    flags.add_recording(parser)
    parser.add_argument("--batchSize", type=cli.positive_int, default=18, help="crops in a step")
    parser.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px")
    flags.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = pick_device(args.use_gpu, args.gpu_id)
    if not has_bfloat16(device) and {"tf32", "bf16"} & set(args.precision):  # a T4, most CPUs
        print("left out: tf32 and bf16, for which this processor has no instructions", file=sys.stderr)
        args.precision = [precision for precision in args.precision if precision in ("auto", "fp32")]
    records = (False, True) if device.type == "cuda" and args.cuda_graphs != "off" else (False,)
    rows = []
    for work in WORK if args.work == "all" else (args.work,):
        for precision in dict.fromkeys(["fp32", *args.precision]):
            ways = records if work != "derain" else (False,)
            rows += [row(args, device, work, precision, record) for record in ways]
    what = f"{torch.get_num_threads()} threads of {torch.cpu.get_capabilities().get('cpu_name', platform.machine())}"
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else what
    head = f"| {'steps or images':<30} | {'a second':>9} | {'seconds':>9} | {'peak GB':>7} |"
    lines = [f"batch {args.batchSize}, {args.patchSize} px; {what}, PyTorch {torch.__version__}", "", head]
    print_result("\n".join([*lines, f"|{'-' * 32}|{'-' * 10}:|{'-' * 10}:|{'-' * 8}:|", *rows]))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
