"""How fast this machine trains, derains, makes rain and reads data: the plain way of the reference against ours.

    python -m common.benchmark joint
    python -m common.benchmark loader --data_path RAINY --gt_path CLEAN --json loader.json

plain: gradients everywhere in training, a convolution for each gate, one order of memory, two files decoded for every
crop; fp32, but on a GPU TF32 in convolutions, as PyTorch has it by itself (all is set against the ceiling of TF32).
fast: what the scripts do. Both run the same networks, in turns in one process, so that a machine that slows down slows
down both; ratios are taken turn by turn. The ceiling is a large matrix product of the same precision, measured in the
same turns. The roofline is the least time of the convolutions and matrix products, one by one: operations over the
ceiling, or bytes in and out over a large copy, whichever takes longer. Peak memory is that of the process; of a GPU,
what networks, steps and recordings took, data apart. Without --data_path the data are photos of scikit-image with drawn
rain, 481x321 px.

transform: RainAugment on one crop of 256 px after another, once its bank is full, new layers included; against it
(ratios are to RainAugment) torchvision's change of brightness, and the rain of albumentations and kornia where these
are installed.
"""

import argparse
import contextlib
import copy
import functools
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from . import cli, flags
from .data import cache, demo, pack
from .data.images import write_image
from .data.pairs import Pair, check_pairs, find_pairs
from .data.patches import CropSampler, PatchDataset, crop_loader, to_batch
from .errors import UserError
from .evaluation.derain import derain, prepare
from .files import read_small
from .generation.rain import RainMaker
from .memory import keep_memory
from .models import Derain, Discriminator, EDNet, PReNet
from .precision import autocast, has_bfloat16, require_fast, set_arithmetic
from .speed import Speed, fuse
from .terminal import print_result, progress_bar
from .training.augment import aug_step, real_samples
from .training.device import driver, pick_device
from .training.joint import joint_optimizers, joint_step

N_DIS = 5  # of joint training: a cycle is one step with G and BNet and four of D alone
CYCLES = {"cpu": 1, "cuda": 20}  # of a turn
MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the ceiling's product
COPY = {"cpu": 2**26, "cuda": 2**30}  # bytes of the copy
PROCESS = Path("/proc/self")
SETTLE = 1.0  # seconds in which workers read ahead after a turn, in order not to disturb the next one
CROPS, SIDE = 1000, 256  # of a turn of transforms; px
AHEAD = 2  # batches that each worker reads ahead, as DataLoader does by default


# A convolution or matrix product: whether in bfloat16, its operations, its bytes; and how many such there are.
Work = Counter[tuple[bool, float, float]]


@dataclass
class Case:
    """One way of doing the work; ``turn`` does ``steps`` steps that handle ``samples`` samples."""

    name: str
    turn: Callable[[], object]
    steps: int
    samples: int
    speed: Speed = field(default_factory=Speed)
    switch: Callable[[], None] = lambda: None  # sets PyTorch's switches for this way
    work: Work | None = None  # of a turn
    base: int = 0  # which case it is compared with
    warm: Callable[[], object] | None = None  # what uses as much memory as a turn, in less time
    drain: Callable[[], object] | None = None  # what is not measured: batches that were read ahead are thrown away
    peak: float | None = None  # bytes, where it was measured before


# --- measuring -----------------------------------------------------------------------------------------------------


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # Linux: from now on VmHWM is the peak since now
        (PROCESS / "clear_refs").write_text("5")


def _peak(device: torch.device) -> float | None:
    """Peak memory of the process in bytes since the reset; None on a GPU, and where the system does not tell."""
    try:
        line = next(line for line in (PROCESS / "status").read_text().splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024.0 if device.type == "cpu" else None


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def ceiling(device: torch.device, precision: str) -> Callable[[], float]:
    """A measurement of FLOP/s in a large matrix product, the most that convolutions could come near."""
    side = MATRIX[device.type]
    a = torch.rand(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)

    def product() -> float:
        set_arithmetic(precision)
        return 2 * side**3 / min(_seconds(lambda: a @ a, device) for _ in range(3))

    return product


def bandwidth(device: torch.device) -> Callable[[], float]:
    """A measurement of bytes/s in a large copy, those read and those written counted."""
    a = torch.rand(COPY[device.type] // 4, device=device)
    b = torch.empty_like(a)
    return lambda: 2 * COPY[device.type] / min(_seconds(lambda: b.copy_(a), device) for _ in range(3))


class _Counter(TorchDispatchMode):
    """What torch's FlopCounterMode counts, without its hooks on modules, which a gradient penalty makes fail."""

    def __init__(self) -> None:
        super().__init__()
        self.work: Work = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            tensors = [x for x in tree_flatten((args, kwargs, out))[0] if isinstance(x, Tensor)]
            bytes_ = sum(x.numel() * x.element_size() for x in tensors)
            half = any(x.dtype == torch.bfloat16 for x in tensors)
            self.work[half, float(count(*args, **(kwargs or {}), out_val=out)), float(bytes_)] += 1
        return out


def count_work(work: Callable[[], object]) -> Work:
    """The convolutions and matrix products of some work, forth and back."""
    with _Counter() as counter:
        work()
    return counter.work


def flops(work: Work) -> float:
    """All operations of counted work."""
    return sum(operations * number for (_, operations, _), number in work.items())


def roofline(work: Work, flop_per_s: tuple[float, float], bytes_per_s: float = math.inf) -> float:
    """The least seconds that counted work takes, if nothing of it stayed in a cache and all else cost nothing.

    Args:
        flop_per_s: the ceilings of products that are not in bfloat16, and of those that are.
    """
    times = (max(f / flop_per_s[half], b / bytes_per_s) * number for (half, f, b), number in work.items())
    return sum(times)


def _precisions(case: Case, device: torch.device) -> tuple[str, str]:
    """Of what is not in bfloat16, and of what is."""
    gpu = device.type == "cuda"
    return "tf32" if gpu and (case.speed.plain or case.speed.precision != "fp32") else "fp32", "bf16"


def measure(cases: list[Case], device: torch.device, turns: int) -> list[dict]:
    """Run the cases in turns, warm-up left out; each is compared with its plain one.

    Returns:
        A row for each: seconds of each turn, median and min of a step, ratio to the plain one turn by turn, by samples;
        steps/s, samples/s, peak memory in bytes, and where work was counted FLOP/s, its share of the ceiling and how
        many times the roofline a step takes.
    """
    used = {_precisions(case, device)[half] for case in cases for half, *_ in case.work or ()}
    tops = {precision: ceiling(device, precision) for precision in sorted(used)}
    found: dict[str, list[float]] = {precision: [] for precision in tops}
    copies, copied = bandwidth(device) if tops else None, []
    times: list[list[float]] = [[] for _ in cases]
    peaks: list[list[float | None]] = [[] for _ in cases]
    plain = None
    with progress_bar(total=len(cases) * (turns + 1), desc="turns", unit="turn", leave=False) as bar:
        for turn in range(turns + 1):  # the first one is the warm-up
            for case, seconds, peak in zip(cases, times, peaks, strict=True):
                case.switch()
                if case.speed.plain != plain:  # what was kept of the heap is gone, or not there yet
                    plain = case.speed.plain
                    keep_memory(not plain)
                    (case.warm or case.turn)()
                if case.drain:
                    case.drain()
                _reset_peak()
                took = _seconds(case.turn, device)
                if case.drain:
                    time.sleep(SETTLE)
                if turn:
                    seconds.append(took)
                    peak.append(case.peak or _peak(device))
                bar.update()
            for precision, top in tops.items():
                found[precision].append(top())
            if copies:
                copied.append(copies())
    keep_memory()
    ceilings = {precision: statistics.median(values) for precision, values in found.items()}
    rows = []
    for case, seconds, peak in zip(cases, times, peaks, strict=True):
        median = statistics.median(seconds)
        samples = cases[case.base].samples
        ratios = [p / samples / (s / case.samples) for p, s in zip(times[case.base], seconds, strict=True)]
        row = {
            "case": case.name,
            "seconds": seconds,
            "median_s": median / case.steps,
            "min_s": min(seconds) / case.steps,
            "ratio": statistics.median(ratios),
            "steps_per_s": case.steps / median,
            "samples_per_s": case.samples / median,
            "peak_bytes": max((p for p in peak if p is not None), default=None),
        }
        if case.work:
            both = tuple(ceilings.get(precision, math.nan) for precision in _precisions(case, device))
            row["ceilings_flop_per_s"] = {p: ceilings[p] for p in _precisions(case, device) if p in ceilings}
            row["copy_bytes_per_s"] = statistics.median(copied)
            row["flops_per_step"] = flops(case.work) / case.steps
            row["flop_per_s"] = flops(case.work) / median
            row["share_of_ceiling"] = roofline(case.work, both) / median
            row["roofline_s"] = roofline(case.work, both, row["copy_bytes_per_s"]) / case.steps
            row["times_roofline"] = row["median_s"] / row["roofline_s"]
        rows.append(row)
    return rows


def table(rows: list[dict], unit: str) -> str:
    """Rows of ``measure`` as a Markdown table; times are of one step."""
    head = [
        unit,
        "median s",
        "min s",
        "x plain",
        "steps/s",
        "samples/s",
        "peak GB",
        "GFLOP/step",
        "GFLOP/s",
        "of ceiling",
        "x roofline",
    ]
    lines = [head]
    for row in rows:
        peak = f"{row['peak_bytes'] / 1e9:.2f}" if row["peak_bytes"] else "-"
        line = [row["case"], f"{row['median_s']:.4g}", f"{row['min_s']:.4g}", f"{row['ratio']:.2f}"]
        line += [f"{row['steps_per_s']:.4g}", f"{row['samples_per_s']:.4g}", peak]
        if "flop_per_s" in row:
            line += [f"{row['flops_per_step'] / 1e9:.0f}", f"{row['flop_per_s'] / 1e9:.0f}"]
            line += [f"{100 * row['share_of_ceiling']:.0f} %", f"{row['times_roofline']:.2f}"]
        else:
            line += ["-"] * 4
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


# --- the work ------------------------------------------------------------------------------------------------------


def _drawn_pairs(folder: Path) -> None:
    """Photos of scikit-image with drawn rain, 481x321."""
    for i, (name, clean) in enumerate(demo.photos((*demo.TRAIN, *demo.TEST), 640).items()):
        clean = np.pad(
            clean, [(0, max(0, n - m)) for n, m in zip((321, 481), clean.shape, strict=False)] + [(0, 0)], "reflect"
        )
        clean = np.ascontiguousarray(clean[:321, :481])
        layer = demo.rain_layer((321, 481), i, angle=10, length=20, width=1.6, density=0.1, brightness=0.4)
        write_image(folder / "rain" / f"{name}.png", demo.add_rain(clean, layer))
        write_image(folder / "norain" / f"{name}.png", clean)


@contextlib.contextmanager
def _pairs(args: argparse.Namespace) -> Iterator[tuple[list[Pair], Path]]:
    """The pairs of the flags or drawn ones, and a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="vrgnet-benchmark-") as folder:
        rainy, clean = args.data_path, args.gt_path
        if not rainy:
            _drawn_pairs(Path(folder))
            rainy, clean = f"{folder}/rain", f"{folder}/norain"
        pairs, _ = find_pairs(Path(rainy), Path(clean), "--data_path, --gt_path")
        check_pairs(pairs, args.patchSize, "--data_path, --gt_path")
        yield pairs, Path(folder)


def _decoded(pairs: list[Pair], where: str, device: torch.device) -> cache.Decoded:
    decoded = cache.Decoded(pairs, where, device)
    decoded.fill(pairs)
    return decoded


def _endless(
    dataset: PatchDataset, args: argparse.Namespace, device: torch.device
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batches for as long as they are wanted, as in training."""
    sampler = CropSampler(3000 * args.batchSize, 0, 1, 10**6)
    loader, close = crop_loader(dataset, sampler, args.batchSize, args.workers, pin_memory=device.type == "cuda")
    try:
        for batch in loader:
            yield to_batch(batch.to(device, non_blocking=True))
    finally:
        close()


def _drain(batches: Iterator, args: argparse.Namespace) -> Callable[[], object]:
    ahead = AHEAD * min(args.workers, os.cpu_count() or 1)
    return lambda: [next(batches) for _ in range(ahead)] and None


def _speeds(args: argparse.Namespace) -> list[tuple[str, Speed]]:
    """The plain way, and the fast ones: fp32, and what else --precision asks for."""
    ways = [("", False), (" recorded", True)] if args.device == "cuda" and args.cuda_graphs != "off" else [("", False)]
    precisions, compiled = dict.fromkeys(["fp32", *args.precision]), " compiled" if args.compile else ""
    fast = [(f"fast {p}{compiled}{how}", Speed(p, args.compile, record)) for p in precisions for how, record in ways]
    return [("plain", Speed(plain=True)), *fast]


@contextlib.contextmanager
def _memory_taken(device: torch.device) -> Iterator[dict[str, float | None]]:
    """How much memory a GPU gave for what is made and run within it; also what recordings keep, and nothing uses."""
    taken: dict[str, float | None] = {"peak": None}
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
    yield taken
    if device.type == "cuda":
        taken["peak"] = float(torch.cuda.max_memory_reserved(device) - before)


def _training_cases(
    args: argparse.Namespace,
    device: torch.device,
    stack: contextlib.ExitStack,
    build: Callable[[Speed], Callable[[Tensor, Tensor, int], object]],
    cycle: int,
) -> list[Case]:
    """A step alone on one batch, and with its loader, for each way; ``cycle`` steps differ from each other."""
    pairs, _ = stack.enter_context(_pairs(args))
    plain_set = PatchDataset(pairs, args.patchSize, 0)
    fast_set = PatchDataset(
        pairs, args.patchSize, 0, _decoded(pairs, "gpu" if device.type == "cuda" else "ram", device)
    )
    batch = next(_endless(fast_set, args, device))
    steps, cases = cycle * CYCLES[device.type], []
    for name, speed in _speeds(args):
        # Counted with the switches of this way, but neither compiled nor recorded: that hides what is done.
        counted = build(Speed(speed.precision, record=False, plain=speed.plain))
        work = count_work(lambda counted=counted: [counted(*batch, index) for index in range(cycle)])
        del counted
        with _memory_taken(device) as taken:
            step = build(speed)
            for index in range(cycle + 2 if device.type == "cuda" else 0):
                step(*batch, index)

        def turn(step=step) -> None:
            for index in range(steps):
                step(*batch, index)

        batches = _endless(plain_set if speed.plain else fast_set, args, device)
        stack.callback(batches.close)

        def turn_loading(step=step, batches=batches) -> None:
            for index in range(steps):
                step(*next(batches), index)

        common = {
            "steps": steps,
            "samples": steps * args.batchSize,
            "speed": speed,
            "switch": speed.switch,
            "work": Counter({key: number * CYCLES[device.type] for key, number in work.items()}),
            "warm": lambda step=step: step(*batch, 0),
            **taken,
        }
        cases += [
            Case(name, turn, base=0, **common),
            Case(f"{name}, with loader", turn_loading, base=1, drain=_drain(batches, args), **common),
        ]
    return cases


def joint(args: argparse.Namespace, device: torch.device, stack: contextlib.ExitStack) -> list[Case]:
    """A cycle of joint training: a step of all networks, then four of D."""
    torch.manual_seed(0)
    ndf = min(64, 64 * 64 // args.patchSize)
    nets = Derain(6), EDNet(patch_size=args.patchSize), Discriminator(args.patchSize, ndf)

    def build(speed: Speed) -> Callable[[Tensor, Tensor, int], object]:
        netDerain, netED, netD = (copy.deepcopy(net).to(device) for net in nets)
        speed.prepare(netDerain, device)
        optimizers = joint_optimizers(netDerain, netED, netD, 2e-4, 1e-4, 4e-4, speed)
        return joint_step(netDerain, netED, netD, optimizers, 1.0, 10.0, N_DIS, 1e-6, speed, {})

    return _training_cases(args, device, stack, build, N_DIS)


def aug(args: argparse.Namespace, device: torch.device, stack: contextlib.ExitStack) -> list[Case]:
    """A step of augmented training of PReNet, a third of its batch with generated rain."""
    torch.manual_seed(0)
    derainer, netED = PReNet(6), EDNet(patch_size=args.patchSize).to(device)

    def build(speed: Speed) -> Callable[[Tensor, Tensor, int], object]:
        net = copy.deepcopy(derainer).to(device)
        speed.prepare(net, device)
        optimizer = speed.adam(net.parameters(), 1e-3)
        return aug_step(net, netED, optimizer, real_samples(args.batchSize, 0.5), speed, {})

    return _training_cases(args, device, stack, build, 1)


def derain_cases(args: argparse.Namespace, device: torch.device, stack: contextlib.ExitStack) -> list[Case]:
    """Removing rain from one image with BNet; the plain way, too, computes no gradients here."""
    torch.manual_seed(0)
    net, repeat = Derain(6).eval().to(device), CYCLES[device.type]
    cases = []
    for name, speed in _speeds(args):
        for images in (1, 8) if device.type == "cuda" and not speed.plain else (1,):
            rainy = torch.rand(images, 3, args.height, args.width, device=device)

            def turn(own: nn.Module, rainy: Tensor = rainy, speed: Speed = speed) -> None:
                with torch.no_grad(), autocast(device, speed.precision):
                    for _ in range(repeat):
                        own(rainy) if speed.plain else derain(own, rainy, tile=0)

            def switch(speed: Speed = speed) -> None:
                set_arithmetic("auto" if speed.plain else speed.precision)

            switch()
            eager = copy.deepcopy(net)
            fuse(eager, not speed.plain)
            work = count_work(lambda eager=eager, turn=turn: turn(eager))
            own = copy.deepcopy(net)
            with _memory_taken(device) as taken:
                fuse(own, not speed.plain)
                if not speed.plain:
                    with contextlib.redirect_stdout(sys.stderr):
                        prepare(own, device, speed.precision, speed.compile)
                turn(own)
            several = f", {images} in one call" if images > 1 else ""  # of derain(); the scripts take one by one
            run = functools.partial(turn, own)
            cases.append(Case(name + several, run, repeat, images * repeat, speed, switch, work, **taken))
    return cases


def generate(args: argparse.Namespace, device: torch.device, stack: contextlib.ExitStack) -> list[Case]:
    """A rain layer for one photo. Of the switches only the reuse of memory concerns G."""
    torch.manual_seed(0)
    maker = RainMaker(EDNet(patch_size=args.patchSize).eval().to(device))

    def turn() -> Tensor:
        return maker.layer(args.height, args.width, 0.5, np.random.RandomState(0))

    work = count_work(turn)
    plain, fast = (functools.partial(set_arithmetic, precision) for precision in ("auto", "fp32"))
    return [Case("plain", turn, 1, 1, Speed(plain=True), plain, work), Case("fast", turn, 1, 1, Speed(), fast, work)]


def loader(args: argparse.Namespace, device: torch.device, stack: contextlib.ExitStack) -> list[Case]:
    """Batches of crops on the device: out of files, as the reference reads them, out of a pack, out of memory."""
    pairs, folder = stack.enter_context(_pairs(args))
    out = folder / "pack.h5"
    with contextlib.redirect_stdout(sys.stderr):
        pack.write(pairs, out, max(args.workers, 1))
    ways = {"files (plain)": (pairs, None, 20), "pack": (pack.Pack(out), None, 200)}
    ways["RAM"] = pairs, _decoded(pairs, "ram", device), 500
    if device.type == "cuda":
        ways["GPU"] = pairs, _decoded(pairs, "gpu", device), 400
    cases = []
    for name, (source, decoded, steps) in ways.items():
        batches = _endless(PatchDataset(source, args.patchSize, 0, decoded), args, device)
        stack.callback(batches.close)

        def turn(batches=batches, steps=steps) -> None:
            for _ in range(steps):
                next(batches)

        speed = Speed(plain=source is pairs and decoded is None)
        cases.append(Case(name, turn, steps, steps * args.batchSize, speed, drain=_drain(batches, args)))
    return cases


def transforms(args: argparse.Namespace, device: torch.device, stack: contextlib.ExitStack) -> list[Case]:
    """Rain on crops in somebody's pipeline, one uint8 crop at a time on the CPU, for each library what it takes."""
    from torchvision.transforms import v2  # takes three seconds to import

    from .generation import transform

    crop = torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8)
    ours = transform.RainAugment(p=1, seed=0, size=SIDE)
    for k in progress_bar(range(transform.FIRST, transform.LAYERS), desc="filling the bank", unit="layer", leave=False):
        ours._add_layer(np.random.RandomState(k))
    ways = {"RainAugment": (ours, crop), "torchvision ColorJitter": (v2.ColorJitter(brightness=0.5), crop)}
    with contextlib.suppress(ImportError):
        import albumentations

        rain = albumentations.RandomRain(p=1)
        pixels = crop.permute(1, 2, 0).contiguous().numpy()
        ways["albumentations RandomRain"] = (lambda image: rain(image=image)), pixels
    with contextlib.suppress(ImportError):
        from kornia.augmentation import RandomRain

        ways["kornia RandomRain"] = RandomRain(p=1), crop[None] / 255

    def turn(change: Callable, crop: Tensor | np.ndarray) -> None:
        for _ in range(CROPS):
            change(crop)

    return [Case(name, functools.partial(turn, *way), CROPS, CROPS) for name, way in ways.items()]


WORK = {
    "joint": joint,
    "aug": aug,
    "derain": derain_cases,
    "generate": generate,
    "loader": loader,
    "transform": transforms,
}
UNIT = {
    "joint": "joint step",
    "aug": "A+ step",
    "derain": "derain, an image",
    "generate": "rain, a photo",
    "loader": "batch",
    "transform": "crop",
}


# --- the command ---------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> str:
    """What is measured on, in words."""
    if device.type == "cuda":
        what = f"{torch.cuda.get_device_name(device)}, driver {driver()}, cuDNN {torch.backends.cudnn.version()}"
    else:
        what = f"{torch.cpu.get_capabilities().get('cpu_name', platform.machine())}, {torch.get_num_threads()} threads"
    return f"{what}, PyTorch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_argument("work", nargs="?", choices=tuple(WORK), default="joint", help="what to measure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where")
    parser.add_argument("--gpu_id", default="0", help="which GPU")
    flags.add_speed(parser, several=True)
    flags.add_recording(parser)
    parser.add_argument("--turns", type=cli.positive_int, default=5, help="of each way, besides the warm-up")
    parser.add_argument("--batchSize", type=cli.positive_int, default=18, help="crops in a step")
    parser.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px")
    parser.add_argument("--workers", type=cli.count, default=4, help="processes that read files or a pack")
    parser.add_argument("--height", type=cli.positive_int, default=321, help="of the image to derain or rain on")
    parser.add_argument("--width", type=cli.positive_int, default=481, help="of the same")
    parser.add_path("--data_path", help="folder of rainy images; left out, drawn ones")
    parser.add_path("--gt_path", help="folder of their clean partners")
    parser.add_path("--json", help="also write everything there")
    return parser.parse_args(argv)


def _require_place(path: Path) -> None:
    """Before the measuring: --json can be written, and replaces nothing but an earlier one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(read_small(path)) if path.exists() else {"work": "", "rows": []}
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(13, "no permission")
    except OSError as error:
        raise UserError(f"--json: {path} can't be written ({error.strerror})") from None
    except (ValueError, RecursionError):
        earlier = None
    if not isinstance(earlier, dict) or not {"work", "rows"} <= earlier.keys():
        raise UserError(f"--json: {path} is there already and not of this program; take another name")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.patchSize > 256 and not args.data_path:
        raise UserError(
            f"--patchSize {args.patchSize}: the drawn photos are for 256 at most; give --data_path, --gt_path"
        )
    if args.data_path and pack.is_pack(args.data_path):
        raise UserError("--data_path: give folders; the benchmark makes a pack of them by itself")
    if bool(args.data_path) != bool(args.gt_path):
        raise UserError("--data_path, --gt_path: give both or none")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU here; take cpu")
    device = pick_device(args.device == "cuda", args.gpu_id, several=False)
    if "tf32" in args.precision and device.type == "cpu":
        raise UserError("--precision tf32: only GPUs have it")
    if device.type == "cuda" and not has_bfloat16(device):  # a T4, say
        print(f"left out: {torch.cuda.get_device_name(device)} has neither tf32 nor bf16", file=sys.stderr)
        args.precision = [precision for precision in args.precision if precision in ("auto", "fp32")]
    for precision in args.precision:
        require_fast(precision, device)
    if args.work == "transform" and device.type == "cuda":
        raise UserError("--device cuda: transforms are measured on the CPU, where they work; take cpu")
    if args.json:
        _require_place(Path(args.json))
    sizes = f"{args.width}x{args.height} px" if args.work in ("derain", "generate") else ""
    sizes = f"{SIDE} px" if args.work == "transform" else sizes
    sizes = sizes or f"batch {args.batchSize}, {args.patchSize} px, {min(args.workers, os.cpu_count() or 1)} workers"
    with contextlib.ExitStack() as stack:
        rows = measure(WORK[args.work](args, device, stack), device, args.turns)
    text = f"{args.work}, {sizes}: {machine(device)}; {args.turns} turns"
    print_result(f"{text}\n\n{table(rows, UNIT[args.work])}")
    counted = [row for row in rows if "copy_bytes_per_s" in row]
    if counted:
        tops = {precision: top for row in counted for precision, top in row["ceilings_flop_per_s"].items()}
        products = ", ".join(f"{top / 1e9:.0f} GFLOP/s ({precision})" for precision, top in sorted(tops.items()))
        copied = counted[0]["copy_bytes_per_s"]
        print_result(f"\nceiling: {products} in a matrix product, {copied / 1e9:.0f} GB/s in a copy")
    if args.json:
        options = {key: value for key, value in vars(args).items() if key not in ("given", "json", "quiet")}
        content = {"work": args.work, "machine": machine(device), "options": options, "rows": rows}
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n")
        print(f"written: {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
