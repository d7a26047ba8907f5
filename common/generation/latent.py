"""What the rain code z means: from one rain to another, single dimensions, random rains (docs/method.md, 6)."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.images import read_image, size_text, to_float, to_uint8, write_image
from ..data.pairs import find_pairs
from ..data.pictures import beside, enlarged, reduced, row, sheet, strip, write_gif
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
JPEG_SIDE = 65500  # px: no JPEG is longer


def interpolate(netED: EDNet, z_a: Tensor, z_b: Tensor, weights: Sequence[float] = WEIGHTS) -> Tensor:
    """Grey rain of codes on the way from B to A, at unit variance all along: z = (wA + (1-w)B) / sqrt(w^2 + (1-w)^2).

    Args:
        z_a, z_b: (1, nz).
        weights: w of A, each in [0, 1].

    Returns:
        (len(weights), p, p) >= 0, the maximum over the channels of G(z).
    """
    codes = [(w * z_a + (1 - w) * z_b) / (w**2 + (1 - w) ** 2) ** 0.5 for w in weights]
    return sampled(netED, torch.cat(codes)).amax(1)


def sweep(netED: EDNet, z: Tensor, dimension: int, values: Sequence[float] = VALUES) -> Tensor:
    """Rain layers while one dimension takes each value and the others keep theirs; ``z`` is not changed (T2).

    Args:
        z: (1, nz) base code.
        dimension: 0 to nz - 1.

    Returns:
        (len(values), nc, p, p) >= 0.
    """
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
    """Rain layers of random codes, enlarged to about ``side`` px, and how much brighter than they are they are shown.

    Returns:
        (s, s, 3) uint8 each, and the factor: 1 for rain that is bright enough to be seen.
    """
    rain = sampled(netED, base_code(netED.nz, seed, number))
    gain = brightening(rain)
    return [enlarged(layer, side) for layer in _pixels(gain * rain, "nearest")], gain


def brightening(rain: Tensor) -> float:
    """The factor, from 1 to 10, with which faint rain layers (N, nc, p, p) are shown."""
    return float(np.clip(0.8 / max(np.quantile(_grey_or_rgb(rain), 0.995), 1e-6), 1, 10).round(1))


def _grey_or_rgb(layers: Tensor) -> np.ndarray:
    """(N, p, p) or (N, 3, p, p) to (N, p, p, 3)."""
    layers = layers[:, None].expand(-1, 3, -1, -1) if layers.ndim == 3 else layers
    return layers.permute(0, 2, 3, 1).cpu().numpy()


def _pixels(layers: Tensor, rounding: str = "truncate") -> list[np.ndarray]:
    return list(to_uint8(_grey_or_rgb(layers), rounding))


def run_interpolation(
    *,
    netED: EDNet,  # on the device, in eval mode
    data_path: str,  # folder of rainy images, of which the first two by name are A and B
    gt_path: str,  # their clean partners
    posterior: str,  # 'draw': z from its posterior by ``seed``; 'mean': mu
    seed: int,
    save_patch: str,  # the crops
    save_inputfake: str,  # clean crops with the rain on the way from B to A
    save_rainfake: str,  # that rain alone, and the sheet of it all
    hint: str,  # what belongs into data_path, for the message when it is missing
) -> int:
    """The interpolation of the paper: every picture of it as a file, and a sheet; prints where.

    Raises:
        UserError: fewer than two pairs, or images that are smaller than the patch or unlike their partners.
    """
    pairs = find_pairs(data_path, gt_path, "--data_path, --gt_path", hint)[0]
    if len(pairs) < 2:
        raise UserError(f"--data_path: two rainy images are needed, {data_path} holds one. {hint}".rstrip())
    if len(pairs) > 2:
        print(f"--data_path: {len(pairs)} images; the first two by name are taken")
    _check_folders((data_path, gt_path), save_patch, save_inputfake, save_rainfake)
    names = [_lossless(pair.name.replace("/", "_")) for pair in pairs[:2]]
    if names[0] == names[1]:
        names = [f"A_{names[0]}", f"B_{names[1]}"]
    rng, p, crops = np.random.RandomState(CROP_SEED), netED.patch_size, []
    for pair in pairs[:2]:
        rainy, clean = read_image(pair.rainy), read_image(pair.clean)
        if rainy.shape != clean.shape:
            sizes = f"{size_text(rainy.shape)}, its clean partner {pair.clean} {size_text(clean.shape)}"
            raise UserError(f"--data_path: {pair.rainy} is {sizes}; both must have one size")
        height, width = rainy.shape[:2]
        if min(height, width) < p:
            raise UserError(f"--data_path: {pair.rainy} is {width}x{height}, smaller than the {p} px patch of --netED")
        top = rng.randint(0, height - p + 1)
        left = rng.randint(0, width - p + 1)
        crops.append([to_float(image)[top : top + p, left : left + p] for image in (rainy, clean)])
    rainy, clean = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) for images in zip(*crops, strict=True))
    for prefix, images in (("input", rainy), ("gt", clean), ("rain", rainy - clean)):
        for name, image in zip(names, _pixels(images), strict=True):
            write_image(Path(save_patch, prefix + name), image)

    eps = base_code(netED.nz, seed, 2) if posterior == "draw" else torch.zeros(2, netED.nz)
    device = next(netED.parameters()).device
    with torch.no_grad():
        z_a, z_b = netED(rainy.to(device), eps.to(device))[3].split(1)
    rain = interpolate(netED, z_a, z_b).cpu()
    bright = [np.floor(255 * (v / 255) ** GAMMA).astype(np.uint8) for v in _pixels(rain)]
    fakes = [_pixels(image + rain[:, None]) for image in clean]
    for k, w in enumerate(progress_bar(WEIGHTS, desc="saving", unit="weight")):
        write_image(Path(save_rainfake, f"{w:.2f}_rainfake.png"), bright[k])
        write_image(Path(save_inputfake, f"{w:.2f}_O1fake.png"), fakes[0][k])
        write_image(Path(save_inputfake, f"{w:.2f}_O2fake.png"), fakes[1][k])
    rows = [(bright, [f"w = {w:g}" for w in WEIGHTS])]
    rows += [(images, [f"on {name}", *[""] * (len(WEIGHTS) - 1)]) for images, name in zip(fakes, names, strict=True)]
    path = Path(save_rainfake, "interpolation.png")
    write_image(path, sheet([([enlarged(image, TILE) for image in images], labels) for images, labels in rows]))
    print(f"crops: {save_patch}\nrain on them: {save_inputfake}\nrain: {save_rainfake}\npicture: {path}")
    return 0


def _lossless(name: str) -> str:
    """A name under which a crop stays as it is."""
    return f"{Path(name).stem}.png" if Path(name).suffix.lower() in (".jpg", ".jpeg") else name


def _check_folders(inputs: Sequence[str], *outputs: str) -> None:
    """Results must not land among the inputs, where they would be taken for inputs the next time."""
    for output in outputs:
        for folder in inputs:
            if Path(output).resolve().is_relative_to(Path(folder).resolve()):
                raise UserError(f"{output} is an input folder or lies in it; choose a folder outside {folder}")


def run_disentanglement(
    *,
    netED: EDNet,  # on the device, in eval mode
    save_fake: str,
    seeds: Sequence[int],  # of the base codes
    dims: Sequence[int] | None,  # dimensions for animations; None: those three that change the rain most
    gif: bool,  # make animations
) -> int:
    """Sweep every dimension of every base code: strips, sheets, a ranking of the dimensions; prints where.

    Raises:
        UserError: the code has no such dimension.
    """
    folder, nz = Path(save_fake), netED.nz
    check_dimensions(dims or (), nz)
    changes = np.zeros((len(seeds), nz))
    bar = progress_bar(total=len(seeds) * nz, desc="sweeping", unit="dimension")
    for s, seed in enumerate(seeds):
        z, strips, rains = base_code(nz, seed), [], []
        for d in range(nz):
            rain = sweep(netED, z, d)
            changes[s, d] = change(rain)
            rains.append(rain)
            tiles = _pixels(rain)
            write_image(folder / f"seed{seed}" / f"{d}.png", strip(tiles, WHITE))
            strips.append(strip([reduced(enlarged(tile, TILE), TILE) for tile in tiles], WHITE))
            bar.update()
        big = strip(strips, WHITE, axis=0)
        if big.shape[0] <= JPEG_SIDE:
            write_image(folder / f"seed{seed}" / "fake.jpg", big)
        else:
            print(f"{nz} dimensions are too many for one JPEG: fake.png in its place")
            write_image(folder / f"seed{seed}" / "fake.png", big)
        order = np.argsort(-changes[s], kind="stable")[:TOP]
        gain = brightening(torch.cat([rains[d] for d in order]))
        labels = [f"z{d}: {changes[s, d]:.2g}" for d in order]
        shown = [strip([enlarged(tile, TILE) for tile in _pixels(gain * rains[d])], WHITE) for d in order]
        whole = beside(labels, shown, WHITE)
        title = f"one dimension of the code a row, from -3 to 3; change in grey levels a step; shown {gain:g}x brighter"
        write_image(folder / f"seed{seed}" / "sheet.png", row([whole], [title], whole.shape[1]))
    bar.close()
    mean = changes.mean(0)
    ranking = np.argsort(-mean, kind="stable")
    _write_ranking(folder / "ranking.csv", ranking, changes, seeds)
    print("dimensions that change the rain most, in grey levels from one picture of the sweep to the next:")
    print(" ".join(f" {d}: {mean[d]:.2g}" for d in ranking[:8]))
    print(f"written: {folder / 'ranking.csv'}, and a folder for each of the seeds {', '.join(map(str, seeds))}")
    print(f"picture, the {TOP} dimensions with most change: {folder / f'seed{seeds[0]}' / 'sheet.png'}")
    if gif:
        for seed in seeds:
            for d in dims or ranking[:3].tolist():
                path = folder / f"seed{seed}" / f"dim{d}.gif"
                write_gif(path, _to_and_fro(netED, base_code(nz, seed), d), 90)
                if seed == seeds[0]:
                    print(f"animation: {path}")
    return 0


def check_dimensions(dims: Sequence[int], nz: int) -> None:
    """Raises:
    UserError: a dimension is not there.
    """
    wrong = [d for d in dims if not 0 <= d < nz]
    if wrong:
        raise UserError(f"--dims: there is no dimension {wrong[0]}; the code of this generator has 0 to {nz - 1}")


def _to_and_fro(netED: EDNet, z: Tensor, dimension: int) -> list[np.ndarray]:
    """Frames of a sweep up and down again, without the ends twice; each says its value."""
    tiles = [enlarged(tile, SIDE) for tile in _pixels(sweep(netED, z, dimension))]
    frames = [
        row([tile], [f"z{dimension} = {v:+.1f}"], max(tile.shape[1], 96)) for tile, v in zip(tiles, VALUES, strict=True)
    ]
    return frames + frames[-2:0:-1]


def _write_ranking(path: Path, ranking: np.ndarray, changes: np.ndarray, seeds: Sequence[int]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["rank", "dimension", "mean_change", *(f"seed{seed}" for seed in seeds)])
    for rank, d in enumerate(ranking, 1):
        writer.writerow([rank, d, *(f"{value:.6g}" for value in (changes[:, d].mean(), *changes[:, d]))])
    write_bytes(path, out.getvalue().encode())


def run_generated(netED: EDNet, save_fake: str, seed: int, rows: int = 8, columns: int = 8) -> int:
    """A sheet of random rains, generated.png; prints where."""
    rain, gain = generated(netED, rows * columns, seed, 2 * TILE)
    path = Path(save_fake, "generated.png")
    lines = [strip(rain[i : i + columns], WHITE) for i in range(0, len(rain), columns)]
    write_image(path, strip(lines, WHITE, axis=0))
    print(f"picture: {path}{f' (rain shown {gain:g}x brighter)' if gain > 1 else ''}")
    return 0


def run_diversity(netED: EDNet, save_fake: str, seed: int, number: int = 30) -> int:
    """An animation of random rains, one after the other, diversity.gif; prints where."""
    rain, gain = generated(netED, number, seed, SIDE)
    path = Path(save_fake, "diversity.gif")
    write_gif(path, [row([r], [f"z {k} of {number}"], max(r.shape[1], 96)) for k, r in enumerate(rain, 1)], 300)
    print(f"animation: {path}{f' (rain shown {gain:g}x brighter)' if gain > 1 else ''}")
    return 0
