"""What the rain code z means: from one rain to another, single dimensions, random rains (docs/rain.md)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import cli, flags
from ..data.images import JPEG, require_outside, to_float, to_uint8, write_image
from ..data.pairs import Pair, pairs_of
from ..data.pictures import enlarged, grid, reduced, row, sheet, strip, write_gif
from ..errors import UserError
from ..files import write_bytes
from ..models import EDNet
from ..terminal import progress_bar
from .rain import sampled

WEIGHTS = tuple(round(0.05 * k, 2) for k in range(21))  # of A; B has the rest
SEEDS = tuple(range(10, 51, 5))
VALUES = tuple(round(-3 + 0.4 * k, 1) for k in range(16))
CROP_SEED = 66
TOP = 12  # dimensions on sheet.png
GAMMA = 0.7  # brightens the saved rain, which is faint
TILE, WHITE = 64, 3  # px: a tile of the big sheet at most, and the lines between tiles
SIDE = 256  # px: about the side of an animation


def interpolate(netED: EDNet, z_a: Tensor, z_b: Tensor, weights: Sequence[float] = WEIGHTS) -> Tensor:
    """Grey rain of codes on the way from B to A, at unit variance all along: z = (wA + (1-w)B) / sqrt(w^2 + (1-w)^2).

    Codes A and B (1, nz) to the maximum over the channels of G(z), (len(weights), p, p) >= 0.
    """
    codes = [(w * z_a + (1 - w) * z_b) / (w**2 + (1 - w) ** 2) ** 0.5 for w in weights]
    return sampled(netED, torch.cat(codes)).amax(1)


def sweep(netED: EDNet, z: Tensor, dimension: int, values: Sequence[float] = VALUES) -> Tensor:
    """Rain layers (len(values), nc, p, p) >= 0 of a code (1, nz) whose one dimension takes each value; z stays (T2)."""
    codes = z.repeat(len(values), 1)
    codes[:, dimension] = torch.tensor(values, dtype=z.dtype, device=z.device)
    return sampled(netED, codes)


def change(pictures: Tensor) -> float:
    """Mean absolute change from one picture to the next, in grey levels, of layers (N, nc, p, p) clamped to [0, 1]."""
    return 255 * pictures.clamp(0, 1).diff(dim=0).abs().mean().item()


def base_code(nz: int, seed: int, number: int = 1) -> Tensor:
    """z ~ N(0, I), (number, nz), from torch.manual_seed(seed) on the CPU."""
    return torch.randn(number, nz, generator=torch.Generator().manual_seed(seed))


def generated(netED: EDNet, number: int, seed: int, side: int) -> tuple[list[np.ndarray], float]:
    """Rain of random codes, (s, s, 3) uint8 of about ``side`` px each, and the factor of its brightness, from 1 on."""
    rain = sampled(netED, base_code(netED.nz, seed, number))
    gain = brightening(rain)
    return [enlarged(layer, side) for layer in pixels(gain * rain, "nearest")], gain


def brightening(rain: Tensor) -> float:
    """The factor, from 1 to 10, with which faint rain layers (N, nc, p, p) are shown."""
    return float(np.clip(0.8 / max(np.quantile(rain.cpu().numpy(), 0.995), 1e-6), 1, 10).round(1))


def pixels(layers: Tensor, rounding: str = "truncate") -> list[np.ndarray]:
    """(N, 3, p, p) to (p, p, 3) uint8 each."""
    return list(to_uint8(layers.permute(0, 2, 3, 1).cpu().numpy(), rounding))


def run_interpolation(args: argparse.Namespace, netED: EDNet, seed: int, hint: str) -> int:
    """The interpolation of the paper: every picture of it as a file, and a sheet; prints where.

    ``seed`` draws the codes, with --posterior draw; ``hint`` says what belongs into --data_path, where it is missing.

    Raises:
        UserError: fewer than two pairs, or images that are smaller than the patch or unlike their partners.
    """
    pairs, save_patch, save_rainfake = pairs_of(args, hint)[0], args.save_patch, args.save_rainfake
    if len(pairs) < 2:
        raise UserError(f"--data_path: two rainy images are needed, {args.data_path} holds one. {hint}".rstrip())
    if len(pairs) > 2:
        print(f"--data_path: {len(pairs)} images; the first two by name are taken")
    inputs = {"--data_path": args.data_path, "--gt_path": args.gt_path}
    for flag in ("save_patch", "save_inputfake", "save_rainfake"):
        require_outside(f"--{flag}", getattr(args, flag), inputs)
    paths = [Path(pair.name.replace("/", "_")) for pair in pairs[:2]]
    names = [str(path.with_suffix(".png") if path.suffix.lower() in JPEG else path) for path in paths]
    if names[0] == names[1]:  # a.jpg and a.png, a/b.png and a_b.png
        names = [f"A_{names[0]}", f"B_{names[1]}"]
    rng = np.random.RandomState(CROP_SEED)
    crops = [_cropped(pair, netED.patch_size, rng) for pair in pairs[:2]]
    rainy, clean = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) for images in zip(*crops, strict=True))
    for prefix, images in (("input", rainy), ("gt", clean), ("rain", rainy - clean)):
        for name, image in zip(names, pixels(images), strict=True):
            write_image(Path(save_patch, prefix + name), image)

    eps = base_code(netED.nz, seed, 2) if args.posterior == "draw" else torch.zeros(2, netED.nz)
    device = next(netED.parameters()).device
    with torch.no_grad():
        z_a, z_b = netED(rainy.to(device), eps.to(device))[3].split(1)
    rain = interpolate(netED, z_a, z_b)[:, None].expand(-1, 3, -1, -1).cpu()
    bright = [np.floor(255 * (v / 255) ** GAMMA).astype(np.uint8) for v in pixels(rain)]
    fakes = [pixels(image + rain) for image in clean]
    for k, w in enumerate(progress_bar(WEIGHTS, desc="saving", unit="weight")):
        write_image(Path(save_rainfake, f"{w:.2f}_rainfake.png"), bright[k])
        write_image(Path(args.save_inputfake, f"{w:.2f}_O1fake.png"), fakes[0][k])
        write_image(Path(args.save_inputfake, f"{w:.2f}_O2fake.png"), fakes[1][k])
    rows = [(bright, [f"w = {w:g}" for w in WEIGHTS])]
    rows += [(images, [f"on {name}", *[""] * (len(WEIGHTS) - 1)]) for images, name in zip(fakes, names, strict=True)]
    path = Path(save_rainfake, "interpolation.png")
    write_image(path, sheet([([enlarged(image, TILE) for image in images], labels) for images, labels in rows]))
    print(f"crops: {save_patch}\nrain on them: {args.save_inputfake}\nrain: {save_rainfake}\npicture: {path}")
    return 0


def _cropped(pair: Pair, p: int, rng: np.random.RandomState) -> list[np.ndarray]:
    """A crop of both images at one random place: (p, p, 3) float32 in [0, 1] each."""
    rainy, clean = pair.read()
    pair.require_patch(rainy, p)
    top, left = (rng.randint(0, side - p + 1) for side in rainy.shape[:2])
    return [to_float(image)[top : top + p, left : left + p] for image in (rainy, clean)]


def add_figures(group: flags.Group) -> None:
    """The flags of ``run_figures``."""
    help = "sweeps of every dimension; a sheet of random rains; an animation of random rains"
    group.add_argument("--figure", choices=("sweeps", "generated", "diversity"), default="sweeps", help=help)
    flags.add_switch(group, "--gif", "also animate the dimensions of --dims")
    help = "dimensions to animate; else the three that change most"
    group.add_argument("--dims", type=cli.count, nargs="+", help=help)
    group.add_argument("--manualSeed", type=cli.seed, help="one seed of the codes, in place of 10, 15, ..., 50")


def run_figures(args: argparse.Namespace, netED: EDNet) -> int:
    """The pictures that --figure names, in the folder --save_fake; prints where.

    Raises:
        UserError: flags contradict each other, or the code has no dimension of --dims.
    """
    seeds = SEEDS if args.manualSeed is None else (args.manualSeed,)
    if args.figure != "sweeps":
        if args.dims or args.gif:
            raise UserError(f"--dims, --gif: they belong to the sweeps; leave them or --figure {args.figure} out")
        return (_run_generated if args.figure == "generated" else _run_diversity)(netED, Path(args.save_fake), seeds[0])
    if args.dims and not args.gif:
        raise UserError("--dims: it chooses dimensions to animate; add --gif")
    return _run_sweeps(netED, Path(args.save_fake), seeds, args.dims or (), args.gif)


def _run_sweeps(netED: EDNet, folder: Path, seeds: Sequence[int], dims: Sequence[int], gif: bool) -> int:
    """Sweep every dimension of the code of every seed: strips, sheets, a ranking of the dimensions."""
    nz = netED.nz
    wrong = [d for d in dims if not 0 <= d < nz]
    if wrong:
        raise UserError(f"--dims: there is no dimension {wrong[0]}; the code of this generator has 0 to {nz - 1}")
    bar = progress_bar(total=len(seeds) * nz, desc="sweeping", unit="dimension")
    changes = np.array([_sweep_all(netED, seed, folder / f"seed{seed}", bar) for seed in seeds])
    bar.close()
    mean = changes.mean(0)
    ranking = np.argsort(-mean, kind="stable").tolist()
    lines = [["rank", "dimension", "mean_change", *(f"seed{seed}" for seed in seeds)]]
    for rank, d in enumerate(ranking, 1):
        lines.append([str(rank), str(d), *(f"{value:.6g}" for value in (mean[d], *changes[:, d]))])
    write_bytes(folder / "ranking.csv", "".join(",".join(line) + "\n" for line in lines).encode())
    print("dimensions that change the rain most, in grey levels from one picture of the sweep to the next:")
    print(" ".join(f" {d}: {mean[d]:.2g}" for d in ranking[:8]))
    print(f"written: {folder / 'ranking.csv'}, and a folder for each of the seeds {', '.join(map(str, seeds))}")
    print(f"picture, the {TOP} dimensions with most change: {folder / f'seed{seeds[0]}' / 'sheet.png'}")
    for seed in seeds if gif else ():
        for d in dims or ranking[:3]:
            path = folder / f"seed{seed}" / f"dim{d}.gif"
            write_gif(path, _to_and_fro(netED, base_code(nz, seed), d), 90)
            if seed == seeds[0]:
                print(f"animation: {path}")
    return 0


def _sweep_all(netED: EDNet, seed: int, folder: Path, bar: tqdm) -> list[float]:
    """Write the strips and sheets of one base code; returns the change by each dimension."""
    rains, strips = [], []
    for d in range(netED.nz):
        rains.append(sweep(netED, base_code(netED.nz, seed), d))
        tiles = pixels(rains[-1])
        write_image(folder / f"{d}.png", strip(tiles, WHITE))
        strips.append(strip([reduced(enlarged(tile, TILE), TILE) for tile in tiles], WHITE))
        bar.update()
    write_image(folder / "fake.jpg", strip(strips, WHITE, axis=0))
    changes = [change(rain) for rain in rains]
    order = np.argsort([-value for value in changes], kind="stable")[:TOP]
    gain = brightening(torch.cat([rains[d] for d in order]))
    shown = [strip([enlarged(tile, TILE) for tile in pixels(gain * rains[d])], WHITE) for d in order]
    whole = sheet([([tiles], [f"z{d}: {changes[d]:.2g}"]) for d, tiles in zip(order, shown, strict=True)])
    title = f"one dimension of the code a row, from -3 to 3; change in grey levels a step; shown {gain:g}x brighter"
    write_image(folder / "sheet.png", row([whole], [title], whole.shape[1]))
    return changes


def _to_and_fro(netED: EDNet, z: Tensor, dimension: int) -> list[np.ndarray]:
    """Frames of a sweep up and down again, without the ends twice; each says its value."""
    tiles = [enlarged(tile, SIDE) for tile in pixels(sweep(netED, z, dimension))]
    frames = [row([t], [f"z{dimension} = {v:+.1f}"], max(t.shape[1], 96)) for t, v in zip(tiles, VALUES, strict=True)]
    return frames + frames[-2:0:-1]


def _run_generated(netED: EDNet, folder: Path, seed: int) -> int:
    """A sheet of 8x8 random rains."""
    rain, gain = generated(netED, 64, seed, 2 * TILE)
    path = folder / "generated.png"
    write_image(path, grid(rain, 8, WHITE))
    print(f"picture: {path}{f' (rain shown {gain:g}x brighter)' if gain > 1 else ''}")
    return 0


def _run_diversity(netED: EDNet, folder: Path, seed: int) -> int:
    """An animation of 30 random rains, one after the other."""
    rain, gain = generated(netED, 30, seed, SIDE)
    path = folder / "diversity.gif"
    write_gif(path, [row([r], [f"z {k} of 30"], max(r.shape[1], 96)) for k, r in enumerate(rain, 1)], 300)
    print(f"animation: {path}{f' (rain shown {gain:g}x brighter)' if gain > 1 else ''}")
    return 0
