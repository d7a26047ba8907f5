"""How fast this machine trains and derains: steps or images a second and peak memory, for each precision.

    python -m common.benchmark joint --json joint.json
    python -m common.benchmark all --device cuda --precision auto tf32 bf16

joint: joint training, one step of all networks, then four of the critic. aug: augmented training of PReNet, a third of
a batch with generated rain. derain: BNet on an image; on a GPU also on eight at once. all: these three in one table.
On a GPU each training is measured as it is run and as it is recorded; a line says what the proof of the recording
found. Precisions take turns in one process, so that a machine that slows down slows all of them. Crops and images are
random numbers: reading files is left out.

Peak memory on a CPU is that of the whole process; on a GPU what networks, steps and recordings took.
"""

import argparse
import contextlib
import copy
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import cli, flags
from .errors import UserError
from .evaluation.derain import derain
from .files import write_bytes
from .models import Derain, Discriminator, EDNet, PReNet
from .precision import has_bfloat16, prepare, require_fast, set_arithmetic
from .terminal import print_result, progress_bar
from .training.augment import aug_draw, aug_step, real_samples
from .training.device import pick_device, trouble
from .training.graphs import CudaRecorder
from .training.joint import joint_draw, joint_step
from .training.optimizer import adam
from .training.proof import RecordedStep

N_DIS = 5  # of joint training: a cycle is one step with G and BNet and four of D alone
CYCLES = {"cpu": 1, "cuda": 20}  # of a turn
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux: memory of this process

Build = Callable[[str], tuple[Callable, Callable, list, dict]]  # precision -> step, draw, networks, optimizers


@dataclass
class Case:
    """One way of doing the work."""

    name: str
    turn: Callable[[], object]
    count: int  # steps or images of a turn
    switch: Callable[[], None] = lambda: None  # sets PyTorch's switches for this way
    peak: float | None = None  # bytes, where that is known before the turns


# --- measuring -----------------------------------------------------------------------------------------------------


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _process_peak() -> float | None:
    """Peak memory of the process in bytes since the last reset; None where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024.0
    return None


@contextlib.contextmanager
def _gpu_memory(device: torch.device) -> Iterator[dict[str, float | None]]:
    """How much memory a GPU gives within it, also what recordings keep; nothing is measured on a CPU."""
    taken: dict[str, float | None] = {"peak": None}
    if device.type != "cuda":
        yield taken
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    yield taken
    taken["peak"] = float(torch.cuda.max_memory_reserved(device) - before)


def measure(cases: list[Case], device: torch.device, turns: int) -> list[dict]:
    """Run the cases in turns; a first turn of each is the warm-up and left out.

    Returns:
        A row for each case: its name, the seconds of each turn, steps or images per second (of the median turn), and
        peak memory in bytes (None where the system does not tell).
    """
    times: list[list[float]] = [[] for _ in cases]
    peaks = [case.peak for case in cases]
    with progress_bar(total=len(cases) * (turns + 1), desc="turns", unit="turn", leave=False) as bar:
        for turn in range(turns + 1):
            for number, case in enumerate(cases):
                case.switch()
                with contextlib.suppress(OSError):
                    RESET.write_text("5")  # VmHWM begins anew
                _wait(device)
                began = time.perf_counter()
                case.turn()
                _wait(device)
                if turn:
                    times[number].append(time.perf_counter() - began)
                    if device.type == "cpu":
                        peaks[number] = max(peaks[number] or 0, _process_peak() or 0) or None
                bar.update()
    return [
        {"case": c.name, "seconds": seconds, "per_s": c.count / statistics.median(seconds), "peak_bytes": peak}
        for c, seconds, peak in zip(cases, times, peaks, strict=True)
    ]


def table(rows: list[dict], unit: str) -> str:
    """Rows of ``measure`` as a Markdown table."""
    lines = [[unit, "a second", "seconds", "peak GB"]]
    for row in rows:
        peak = f"{row['peak_bytes'] / 1e9:.2f}" if row["peak_bytes"] else "-"
        lines.append([row["case"], f"{row['per_s']:.4g}", f"{1 / row['per_s']:.4g}", peak])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


# --- the work ------------------------------------------------------------------------------------------------------


def _precisions(args: argparse.Namespace) -> list[str]:
    """fp32, with which the others are compared, and those of --precision."""
    return list(dict.fromkeys(["fp32", *args.precision]))


def _training_cases(args: argparse.Namespace, device: torch.device, build: Build, cycle: int) -> list[Case]:
    """Steps on one batch, run and on a GPU also recorded; ``cycle`` steps differ from each other."""
    torch.backends.cudnn.benchmark = True  # as in training, whose batches are of one size
    rainy, clean = torch.rand(2, args.batchSize, 3, args.patchSize, args.patchSize, device=device)
    steps, cases = cycle * CYCLES[device.type], []

    def turn(step: Callable, draw: Callable, number: int = steps) -> None:
        for index in range(number):
            step(*draw(rainy, clean, index, args.batchSize))

    records = device.type == "cuda" and args.cuda_graphs != "off"
    for precision in _precisions(args):
        for record in (False, True) if records else (False,):
            name = precision + " compiled" * args.compile + " recorded" * record
            with _gpu_memory(device) as taken:
                step, draw, nets, optimizers = build(precision)
                if record:
                    print(name, end=" ", flush=True)  # the proof goes on with its verdict
                    step = RecordedStep(step, CudaRecorder(device), precision, cycle, nets, optimizers)
                turn(step, draw, cycle + 2 if device.type == "cuda" else 0)
            switch = functools.partial(set_arithmetic, precision)
            cases.append(Case(name, functools.partial(turn, step, draw), steps, switch, taken["peak"]))
    return cases


def joint(args: argparse.Namespace, device: torch.device) -> list[Case]:
    """Steps of joint training."""
    torch.manual_seed(0)
    ndf = min(64, 64 * 64 // args.patchSize)
    fresh = Derain(6), EDNet(patch_size=args.patchSize), Discriminator(args.patchSize, ndf)

    def build(precision: str) -> tuple[Callable, Callable, list, dict]:
        netDerain, netED, netD = nets = [copy.deepcopy(net).to(device) for net in fresh]
        prepare(netDerain, device, precision, args.compile, training=True)
        rates = {"DerainNet": 2e-4, "ED": 1e-4, "D": 4e-4}
        optimizers = {name: adam(net.parameters(), rates[name]) for name, net in zip(rates, nets, strict=True)}
        step = joint_step(netDerain, netED, netD, optimizers, w_adv=1.0, lambda_gp=10.0, eps2=1e-6)
        return step, joint_draw(N_DIS, 128), nets, optimizers

    return _training_cases(args, device, build, N_DIS)


def aug(args: argparse.Namespace, device: torch.device) -> list[Case]:
    """Steps of augmented training of PReNet, a third of the batch with generated rain."""
    torch.manual_seed(0)
    fresh, netED = PReNet(6), EDNet(patch_size=args.patchSize).to(device).requires_grad_(False)
    n_real = real_samples(args.batchSize, 0.5)

    def build(precision: str) -> tuple[Callable, Callable, list, dict]:
        net = copy.deepcopy(fresh).to(device)
        prepare(net, device, precision, args.compile, training=True)
        optimizer = adam(net.parameters(), 1e-3)
        return aug_step(net, netED, optimizer, n_real), aug_draw(netED, n_real), [net], {"derainer": optimizer}

    return _training_cases(args, device, build, 1)


def derain_cases(args: argparse.Namespace, device: torch.device) -> list[Case]:
    """Images of which BNet removes the rain; the scripts take one by one."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = False  # as in the scripts, whose images differ in size
    net, repeat = Derain(6).eval().to(device), CYCLES[device.type]

    def turn(own: Derain, rainy: Tensor) -> None:
        with torch.no_grad():
            for _ in range(repeat):
                derain(own, rainy, tile=0)

    cases = []
    for precision in _precisions(args):
        for images in (1, 8) if device.type == "cuda" else (1,):
            rainy, own = torch.rand(images, 3, args.height, args.width, device=device), copy.deepcopy(net)
            with _gpu_memory(device) as taken, contextlib.redirect_stdout(sys.stderr):
                prepare(own, device, precision, args.compile)
                turn(own, rainy)
            name = precision + " compiled" * args.compile + f", {images} in one call" * (images > 1)
            run, switch = functools.partial(turn, own, rainy), functools.partial(set_arithmetic, precision)
            cases.append(Case(name, run, images * repeat, switch, taken["peak"]))
    return cases


WORK = {"joint": joint, "aug": aug, "derain": derain_cases}
UNIT = {"joint": "steps of joint training", "aug": "steps of A+", "derain": "images", "all": "steps, images"}


# --- the command ---------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> str:
    """What is measured on, in words."""
    if device.type == "cuda":
        what = f"{torch.cuda.get_device_name(device)}, cuDNN {torch.backends.cudnn.version()}"
    else:
        what = f"{torch.cpu.get_capabilities().get('cpu_name', platform.machine())}, {torch.get_num_threads()} threads"
    return f"{what}, PyTorch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_argument("work", nargs="?", choices=(*WORK, "all"), default="joint", help="what to measure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where")
    parser.add_argument("--gpu_id", default="0", help="which GPU")
    flags.add_speed(parser, several=True)
    flags.add_recording(parser)
    parser.add_argument("--turns", type=cli.positive_int, default=5, help="of each way, besides the warm-up")
    parser.add_argument("--batchSize", type=cli.positive_int, default=18, help="crops in a step")
    parser.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px")
    parser.add_argument("--height", type=cli.positive_int, default=321, help="of the image to derain")
    parser.add_argument("--width", type=cli.positive_int, default=481, help="of the same")
    parser.add_path("--json", help="also write everything there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device cuda: {trouble() or 'there is no GPU here; take cpu'}")
    device = pick_device(args.device == "cuda", args.gpu_id)
    if "tf32" in args.precision and device.type == "cpu":
        raise UserError("--precision tf32: only GPUs have it")
    if device.type == "cuda" and not has_bfloat16(device):  # a T4, say
        print(f"left out: {torch.cuda.get_device_name(device)} has neither tf32 nor bf16", file=sys.stderr)
        args.precision = [precision for precision in args.precision if precision in ("auto", "fp32")]
    for precision in args.precision:
        require_fast(precision, device)
    rows = []
    for work in WORK if args.work == "all" else (args.work,):
        found = measure(WORK[work](args, device), device, args.turns)
        rows += [row | {"case": f"{work}: {row['case']}"} for row in found] if args.work == "all" else found
    sizes = f"batch {args.batchSize}, {args.patchSize} px; images of {args.width}x{args.height} px"
    text = f"{args.work}, {sizes}: {machine(device)}; {args.turns} turns"
    print_result(f"{text}\n\n{table(rows, UNIT[args.work])}")
    if args.json:
        options = {key: value for key, value in vars(args).items() if key not in ("given", "json", "quiet")}
        content = {"work": args.work, "machine": machine(device), "options": options, "rows": rows}
        write_bytes(Path(args.json), (json.dumps(content, indent=2) + "\n").encode())
        print(f"written: {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
