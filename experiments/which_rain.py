"""Which rain is worth training on? One derainer for each kind of rain, on the same photos, tested on real pairs.

    python experiments/which_rain.py --clean PHOTOS --streaks STREAKS --test light=FOLDER heavy=FOLDER --out OUT

Kinds: real streak layers (the upper bound), the generator of --netED, the project's procedural rain, and RandomRain of
albumentations and of kornia, where these are installed. For each kind every photo gets eight rains; PReNet then
learns from these pairs, from the same crops in as many steps, once for each seed. A FOLDER of --test holds rain/ and
norain/. Finished work is kept: the same command goes on. Writes results.csv.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags
from common.data.compose import composed, fitted, part_of, rain_pictures
from common.data.demo import add_rain, rain_layer
from common.data.images import BLACK, list_images, read_image, to_eight_bits, to_float, to_uint8, write_image
from common.errors import UserError
from common.generation.rain import RainMaker
from common.terminal import print_result, progress_bar
from common.training.checkpoint import load_generator
from common.training.device import pick_device
from experiments.distance import VARIED
from experiments.experiment import EPOCHS, device_flags, measure, one_setting, spread, train_derainer, write_rows

VARIANTS = 8  # rains on each photo
STAGES, PATCH = 3, 64  # of PReNet; px of a crop
GAIN = 0.8, 1.2  # of real layers, as in the generator's training
KINDS = ("real", "generated", "procedural", "albumentations", "kornia")
Rain = Callable[[np.ndarray, np.random.RandomState], np.ndarray]  # (H, W, 3) uint8 -> the same with rain


def real(layers: list[Path], clean: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """A real layer, as compose.py adds it."""
    layer = to_eight_bits(read_image(layers[rng.randint(len(layers))], BLACK))
    return composed(clean, [fitted(layer, clean.shape[0], clean.shape[1], rng)], [rng.uniform(*GAIN)])


def generated(maker: RainMaker, clean: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """A layer as generate_rain.py makes it."""
    layer = maker.layer(clean.shape[0], clean.shape[1], 0.5, rng).permute(1, 2, 0).numpy()
    return add_rain(clean, layer)


def procedural(clean: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Drawn streaks, as varied as in the table of the distance."""
    drawn = {name: rng.uniform(*ends) for name, ends in VARIED.items()}
    return add_rain(clean, rain_layer(clean.shape[:2], rng.randint(2**31), **drawn))


def by_albumentations(clean: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """RandomRain of albumentations, whose drops have one length and width a picture."""
    import albumentations

    rain = albumentations.RandomRain(
        slant_range=(-20, 20),
        drop_length=int(rng.randint(10, 31)),
        drop_width=int(rng.randint(1, 3)),
        blur_value=3,
        brightness_coefficient=rng.uniform(0.8, 1),
        p=1,
    )
    rain.set_random_seed(int(rng.randint(2**31)))
    return rain(image=clean)["image"]


def by_kornia(clean: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """RandomRain of kornia."""
    import torch
    from kornia.augmentation import RandomRain

    rain = RandomRain(number_of_drops=(200, 2000), drop_height=(5, 20), drop_width=(-5, 5), p=1)
    with torch.random.fork_rng():
        torch.manual_seed(int(rng.randint(2**31)))
        made = rain(torch.from_numpy(to_float(clean)).permute(2, 0, 1)[None])
    return to_uint8(made[0].permute(1, 2, 0).numpy(), "nearest")


def rains(args: argparse.Namespace) -> dict[str, Rain]:
    """How each kind that is asked for falls on a photo.

    Raises:
        UserError: the streaks or the generator can't be read, or a library is missing.
    """
    found: dict[str, Rain] = {"procedural": procedural, "albumentations": by_albumentations, "kornia": by_kornia}
    if "real" in args.kinds:
        layers = rain_pictures(args.streaks, "--streaks")
        found["real"] = functools.partial(real, part_of(layers, args.hold_out, "train"))
    if "generated" in args.kinds:
        netED = load_generator(args.netED, "--netED").to(pick_device(args.use_gpu, args.gpu_id))
        found["generated"] = functools.partial(generated, RainMaker(netED))
    for name in {"albumentations", "kornia"} & set(args.kinds):
        try:
            __import__(name)
        except ImportError:
            raise UserError(f"--kinds {name}: pip install {name}, or leave it out") from None
    return {kind: found[kind] for kind in args.kinds}


def make_pairs(args: argparse.Namespace, kind: str, rain: Rain) -> Path:
    """Rain on all photos: a folder with rain/ and norain/. The number of a rain decides what it is like."""
    folder = Path(args.out, kind)
    names = list_images(Path(args.clean))
    if not names:
        raise UserError(f"--clean: no image in {args.clean}")
    jobs = [(i, k) for i in range(len(names)) for k in range(VARIANTS)]
    for i, k in progress_bar(jobs, desc=f"rain: {kind}", unit="picture", leave=False):
        name = f"{names[i].as_posix()}_v{k}.png"
        if (folder / "norain" / name).exists():  # written last
            continue
        clean = to_eight_bits(read_image(Path(args.clean, names[i])))
        write_image(folder / "rain" / name, rain(clean, np.random.RandomState([i, k])))
        write_image(folder / "norain" / name, clean)
    return folder


def derain(args: argparse.Namespace, kind: str, seed: int, sets: dict[str, Path]) -> tuple[list[dict], dict]:
    """Train PReNet on a kind of rain and test it: a row for each test set, and the scores of its rainy images."""
    data, folder = Path(args.out, kind), Path(args.out, kind, f"seed{seed}")
    net = ["--recurrent_iter", STAGES, "--precision", "fp32", *device_flags(args)]
    first = next(iter(sets.values()))
    words = ["--data_path", data / "rain", "--gt_path", data / "norain", "--manualSeed", seed, "--workers", 0]
    words += ["--val_data_path", first / "rain", "--val_gt_path", first / "norain", "--batchSize", args.batchSize]
    words += ["--patchSize", PATCH, *net]
    file, minutes = train_derainer(folder / "model", math.ceil(args.steps / EPOCHS), 0, words)
    scores = {name: measure(file, pairs, folder / name, net) for name, pairs in sets.items()}
    row = {"kind": kind, "seed": seed}
    rows = [{**row, "test": name, **both["derained"], "minutes": minutes} for name, both in scores.items()]
    return rows, {name: both["rainy"] for name, both in scores.items()}


def table(rows: list[dict], rainy: dict[str, dict[str, float]]) -> str:
    """PSNR in dB / SSIM on Y as Markdown, mean and standard deviation over the seeds; a column for each test set."""
    lines = [f"| trained on | {' | '.join(rainy)} |", "|---" * (len(rainy) + 1) + "|"]
    before = [f"{scores['psnr_y']:.2f} / {scores['ssim_y']:.4f}" for scores in rainy.values()]
    lines.append(f"| (rainy) | {' | '.join(before)} |")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        cells = []
        for name in rainy:
            own = [row for row in rows if (row["kind"], row["test"]) == (kind, name)]
            ssim = np.mean([row["ssim_y"] for row in own])
            cells.append(f"{spread([row['psnr_y'] for row in own])} / {ssim:.4f}")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, __file__)
    flags.add_path(parser, "--clean", required=True, help="folder of photos without rain")
    flags.add_path(parser, "--streaks", help="folder of real rain on black, for the kind 'real'")
    parser.add_argument("--hold_out", type=cli.count, default=20, help="of --streaks, left out as in G's training")
    flags.add_netED(parser, "default")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME=FOLDER", help="test sets: rain/ and norain/")
    flags.add_path(parser, "--out", required=True, help="folder for everything; the same one goes on")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of rain")
    parser.add_argument("--seeds", nargs="+", type=cli.seed, default=[1, 2, 3], help="of the trainings")
    parser.add_argument("--steps", type=cli.positive_int, default=3000, help="of each training")
    parser.add_argument("--batchSize", type=cli.positive_int, default=4, help="crops in a step")
    flags.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if "real" in args.kinds and not args.streaks:
        raise UserError("--streaks: the kind 'real' needs a folder of real rain on black; or leave it out of --kinds")
    out, sets = Path(args.out), {}
    for text in args.test:
        name, equals, folder = text.partition("=")
        sets[name] = Path(folder).expanduser().resolve()
        if not (equals and name.isidentifier() and (sets[name] / "rain").is_dir()):
            raise UserError(f"--test {text}: give NAME=FOLDER, with rain/ and norain/ in the folder")
    settings = {name: getattr(args, name) for name in ("clean", "streaks", "hold_out", "netED", "steps", "batchSize")}
    with one_setting(out, settings | {f"test {name}": str(folder) for name, folder in sets.items()}):
        for kind, rain in rains(args).items():
            make_pairs(args, kind, rain)
    rows = []
    for seed in dict.fromkeys(args.seeds):
        for kind in dict.fromkeys(args.kinds):
            more, rainy = derain(args, kind, seed, sets)
            rows += more
            write_rows(out / "results.csv", rows)
    print_result(f"{table(rows, rainy)}\nwritten: {out / 'results.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
