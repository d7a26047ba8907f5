"""One knob each for the angle, density, thickness and brightness of a generator's rain, learned without labels.

    python -m common.generation.controls --netED ED_state_N.pt

Writes ED_state_N.controls.json beside the checkpoint, by which generate_rain.py --angle 15 and RainAugment know what to
do, and a report (report.md, controls.png, a GIF of each knob) to ED_state_N_controls/.

How it works. Codes are drawn, their rain is measured, and linear regression of a measure on the code gives a score
s_k = b_k . z, N(0, 1) over all rain, along which that measure changes most. A knob moves the code so that its own score
takes a value and the other three keep theirs (along the dual of the b_k; plainly orthogonal directions would leave the
measures' own correlation as cross-talk). Which score makes which value is then measured on whole pictures. An angle
beyond what codes give is made by shearing the layer, which leaves density and brightness alone.
"""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import cli
from common.data.images import to_uint8, write_image
from common.data.pictures import row, sheet, write_gif
from common.errors import UserError
from common.files import read_small, write_bytes
from common.generation.latent import base_code
from common.generation.measures import Measures, measure
from common.generation.rain import RainMaker, Steer, fingerprint, sampled
from common.models import EDNet
from common.terminal import print_result, progress_bar
from common.training.checkpoint import load_generator
from common.training.runtime import pick_device

KNOBS = Measures._fields  # angle, density, thickness, brightness
UNITS = {"angle": "degrees", "density": "share of the pixels", "thickness": "px", "brightness": "0 to 1"}
VERSION = 1
REPORT, TITLE = "report.md", "# What the knobs of"
SUFFIX = ".controls.json"
PLACES = tuple(round(-2.5 + 0.5 * k, 1) for k in range(11))  # of a score on the measured curve
SIDE = 192  # px: of the pictures that tell the curve
COHERENCE = 0.5  # of these pictures
RIDGE = 1e-2  # of the regression, as a share of the number of samples
ENOUGH = 64  # patches with rain, below which nothing can be learned
WORTH = 0.5  # rank correlation below which a knob is said to do little
LEAN, LEANEST = 25.0, 60.0  # degrees: by how much a layer is sheared beyond its codes, and the angle at most
ROUNDS = 3  # of correcting scores by what they give


@dataclass(frozen=True)
class Controls:
    """What was learned of a generator.

    Attributes:
        scores: (4, nz) unit rows b_k.
        explained: share of each measure's variance (of its ranks) that its score explains, 0 to 1.
        curves: (4, 11), median value of each measure with its score at PLACES, on whole pictures; flat for an angle
            that is made by shearing alone.
        ranks: of each knob, Spearman's rank correlation of its place with its measure, on whole pictures.
        tolerance: of each knob: half of the values that are set lie nearer than this to what was asked for (median
            error), and nine of ten nearer than the second number; nan where there was no rain to measure.
        fingerprint: of the generator, see ``rain.fingerprint``.
    """

    scores: np.ndarray
    explained: list[float]
    curves: np.ndarray
    ranks: list[float]
    tolerance: list[tuple[float, float]]
    fingerprint: str

    def of_codes(self, knob: int) -> tuple[float, float]:
        """Lowest and highest value of a knob's curve."""
        curve = _rising(self.curves[knob])
        return float(curve.min()), float(curve.max())

    def reach(self, knob: int) -> tuple[float, float]:
        """Lowest and highest value that a knob can be set to; angles are sheared where codes give less."""
        low, high = self.of_codes(knob)
        if KNOBS[knob] == "angle":
            low, high = max(low - LEAN, -LEANEST), min(high + LEAN, LEANEST)
        return low, high

    def place(self, knob: int, value: float) -> float:
        """The score at which the curve of a knob has a value; clamped to the ends of the curve."""
        curve = _rising(self.curves[knob])
        values, places = (curve, PLACES) if curve[-1] >= curve[0] else (curve[::-1], PLACES[::-1])
        return float(np.interp(value, values, places))

    def digest(self) -> str:
        """A few digits that change with what was learned."""
        return hashlib.sha256(np.round(np.concatenate([self.scores.ravel(), self.curves.ravel()]), 4)).hexdigest()[:8]


def _rising(curve: np.ndarray) -> np.ndarray:
    """A curve made monotone, in the direction of its ends: the middle between the envelopes from below and above."""
    sign = 1 if curve[-1] >= curve[0] else -1
    up = sign * curve
    return sign * (np.maximum.accumulate(up) + np.minimum.accumulate(up[::-1])[::-1]) / 2


def steering(scores: np.ndarray, knobs: Sequence[int], places: Sequence[float] | np.ndarray) -> Steer:
    """What moves codes (N, nz) so that the scores of some knobs take given places and those of the others stay.

    Args:
        scores: (4, nz), see ``Controls``.
        knobs: indices of those that are set.
        places: their scores.
    """
    b = torch.from_numpy(scores.astype(np.float32))
    dual = torch.linalg.pinv(b.double()).float()[:, list(knobs)]  # (nz, k): each changes one score alone
    wanted = torch.tensor(list(places), dtype=torch.float32)

    def steer(codes: Tensor) -> Tensor:
        now = codes @ b[list(knobs)].T.to(codes)
        return codes + (wanted.to(codes) - now) @ dual.T.to(codes)

    return steer


# --- learning ------------------------------------------------------------------------------------------------------


def regress(codes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """The direction along which a measure changes most, by linear regression of its normal scores on the codes.

    Args:
        codes: (N, nz).
        values: (N,), nan for samples without it.

    Returns:
        A unit vector (nz,), and the share of the variance that it explains in codes it was not fitted to.

    Raises:
        ValueError: it is the same in all rain, or there is hardly any rain.
    """
    from scipy.stats import norm, rankdata  # takes a second to import, and only learning needs it

    there = np.isfinite(values)
    if there.sum() < ENOUGH or np.ptp(values[there]) == 0:
        raise ValueError("nothing to learn from")
    x, y = codes[there], norm.ppf((rankdata(values[there]) - 0.5) / there.sum())

    def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)

    first, second = slice(0, len(x) // 2), slice(len(x) // 2, None)
    right = [np.corrcoef(x[b] @ fit(x[a], y[a]), y[b])[0, 1] for a, b in ((first, second), (second, first))]
    whole = fit(x, y)
    return whole / np.linalg.norm(whole), float(np.mean(np.clip(np.nan_to_num(right), 0, 1) ** 2))


def learn(netED: EDNet, number: int, seed: int) -> tuple[np.ndarray, list[float]]:
    """Scores (4, nz) and what they explain, from the rain of ``number`` random codes.

    Raises:
        UserError: this generator makes hardly any rain, or a measure is the same in all of it.
    """
    codes = base_code(netED.nz, seed, number)
    layers = sampled(netED, codes).cpu().numpy()
    bar = progress_bar(layers, desc="measuring rain", unit="patch", leave=False)
    values = np.array([measure(layer) for layer in bar], float)
    scores, explained = [], []
    for k, knob in enumerate(KNOBS):
        try:
            direction, share = regress(codes.double().numpy(), values[:, k])
        except ValueError:
            raise UserError(
                f"--netED: {knob} can't be learned: the {number} rains of this generator hold none, or all the same; "
                "train it longer, or look at it by test_disentanglement.py --figure generated"
            ) from None
        scores.append(direction)
        explained.append(share)
    return np.array(scores), explained


def picture_layers(
    maker: RainMaker, steer: Steer | None, number: int, seed: int, lean: float = 0.0, side: int = SIDE
) -> list[np.ndarray]:
    """Rain layers of whole pictures, (nc, side, side) each; the same random numbers for the same seed."""
    side = max(side, 2 * maker.netED.patch_size)
    rngs = (np.random.RandomState([seed % 2**32, k]) for k in range(number))
    return [maker.layer(side, side, COHERENCE, rng, steer, lean).cpu().numpy() for rng in rngs]


def response(
    maker: RainMaker, scores: np.ndarray, pictures: int, seed: int, progress: tqdm | None = None
) -> np.ndarray:
    """What whole pictures measure while one knob after the other goes through PLACES: (4, 11, pictures, 4)."""
    found = np.empty((len(KNOBS), len(PLACES), pictures, len(KNOBS)))
    for k in range(len(KNOBS)):
        for p, place in enumerate(PLACES):
            layers = picture_layers(maker, steering(scores, [k], [place]), pictures, seed)
            found[k, p] = [measure(layer) for layer in layers]
            if progress is not None:
                progress.update()
    return found


def medians(values: np.ndarray) -> np.ndarray:
    """Median of each column, nan values left out: (N, M) to (M,); nan for columns of nan alone."""
    there = [column[np.isfinite(column)] for column in values.T]
    return np.array([np.median(column) if len(column) else np.nan for column in there])


def curves_of(found: np.ndarray) -> np.ndarray:
    """Median over the pictures of each knob's own measure, (4, 11); gaps, where there was no rain, take neighbours.

    Raises:
        UserError: there was rain nowhere.
    """
    curves = np.empty((len(KNOBS), len(PLACES)))
    for k in range(len(KNOBS)):
        own = found[k, :, :, k]
        line = medians(own.T)
        there = np.isfinite(line)
        if not there.any():
            raise UserError(f"--netED: its whole pictures hold no rain whose {KNOBS[k]} could be measured")
        curves[k] = np.interp(PLACES, np.array(PLACES)[there], line[there])
    return curves


def rank_correlations(found: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each knob's place with each measure, over all pictures: (4, 4); see response."""
    from scipy.stats import spearmanr

    table = np.zeros((len(KNOBS), len(KNOBS)))
    places = np.repeat(PLACES, found.shape[2])
    for k in range(len(KNOBS)):
        for m in range(len(KNOBS)):
            values = found[k, :, :, m].ravel()
            there = np.isfinite(values)
            if there.sum() > 2 and np.ptp(values[there]) > 0:
                table[k, m] = spearmanr(places[there], values[there]).statistic
    return table


def cross_talk(found: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """How far each measure moves from the first to the last place of a knob, in deviations of that measure: (4, 4).

    Args:
        spread: (4,), standard deviation of each measure over pictures whose knobs are left alone.

    Returns:
        nan where one of the ends has no rain to measure.
    """
    first, last = (np.stack([medians(found[k, place]) for k in range(len(KNOBS))]) for place in (0, -1))
    return (last - first) / np.maximum(spread, 1e-12)


# --- setting -------------------------------------------------------------------------------------------------------


def solved(
    maker: RainMaker, controls: Controls, wanted: dict[str, float], seed: int = 0, pictures: int = 6
) -> tuple[dict[str, float], dict[str, float]]:
    """What the curves of the knobs have to be asked for, so that pictures have given values; see ``clamped`` before.

    The curves hold for one knob at a time. What pictures measure corrects them, a few times.

    Args:
        wanted: knob -> value, one or more.

    Returns:
        What to ask for, see ``steered_to``; and the values that pictures then have, in the median: nan where they have
        no rain.
    """
    knobs = [KNOBS.index(name) for name in wanted]
    targets = np.array(list(wanted.values()), float)
    scale = np.array([max(np.ptp(controls.reach(k)), 1e-9) for k in knobs])
    asked, error = begun(controls, wanted), np.inf
    best, reached = asked, np.full(len(knobs), np.nan)
    for _ in range(ROUNDS):
        layers = asked_layers(maker, controls, asked, pictures, seed)
        got = medians(np.array([measure(layer) for layer in layers])[:, knobs])
        if not np.isfinite(got).all():
            break
        if (now := np.abs((got - targets) / scale).max()) < error:
            best, error, reached = asked, now, got
        asked = dict(asked)
        for name, target, value in zip(wanted, targets, got, strict=True):  # what was missing, on top
            if name == "angle":
                asked["lean"] = round(asked["lean"] + _tangent(target) - _tangent(value), 4)
            else:
                asked[name] += target - value
    return best, dict(zip(wanted, map(float, reached), strict=True))


def _tangent(degrees: float) -> float:
    return float(np.tan(np.radians(degrees)))


def begun(controls: Controls, wanted: dict[str, float]) -> dict[str, float]:
    """What the curves alone say of how to get these values: each knob's, and for an angle the rest as 'lean'."""
    asked = dict(wanted)
    if "angle" in wanted:
        asked["angle"] = float(np.clip(wanted["angle"], *controls.of_codes(KNOBS.index("angle"))))
        asked["lean"] = round(_tangent(wanted["angle"]) - _tangent(asked["angle"]), 4)
    return asked


def steered_to(controls: Controls, asked: dict[str, float]) -> Steer:
    """What moves codes to where the curves of the knobs have these values; 'lean' is for the layer alone."""
    names = [name for name in asked if name != "lean" and np.ptp(controls.curves[KNOBS.index(name)]) > 0]
    knobs = [KNOBS.index(name) for name in names]
    places = [controls.place(k, asked[name]) for k, name in zip(knobs, names, strict=True)]
    return steering(controls.scores, knobs, np.round(places, 3))  # rounded: the same on machines that sum differently


def asked_layers(
    maker: RainMaker, controls: Controls, asked: dict[str, float], pictures: int, seed: int
) -> list[np.ndarray]:
    """``picture_layers`` of what the curves are asked for, sheared where that says so."""
    return picture_layers(maker, steered_to(controls, asked), pictures, seed, asked.get("lean", 0.0))


def clamped(controls: Controls, wanted: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Values within reach of the knobs, and a warning for each that was not, or whose knob does little."""
    found, warnings = {}, []
    for name, value in wanted.items():
        low, high = controls.reach(KNOBS.index(name))
        found[name] = min(max(value, low), high)
        if (rank := controls.ranks[KNOBS.index(name)]) < WORTH:
            warnings.append(f"{name}: this generator has hardly learned it (rank correlation {rank:.2f})")
        if not low <= value <= high:
            reach = f"{low:.3g} to {high:.3g}; taking {found[name]:.3g}"
            warnings.append(f"{name} {value:g} is beyond what this generator can do, {reach}")
    return found, warnings


# --- files ---------------------------------------------------------------------------------------------------------


def path_of(checkpoint: Path) -> Path:
    """Where the controls of a checkpoint are: NAME.controls.json beside it."""
    return Path(checkpoint).with_suffix(SUFFIX)


def save(controls: Controls, path: Path) -> None:
    """Write controls as JSON.

    Raises:
        UserError: the folder can't be written to.
    """
    content = {"vrgnet_controls": VERSION, "knobs": KNOBS, "places": PLACES} | asdict(controls)
    text = json.dumps(content, default=lambda array: np.round(array, 6).tolist(), indent=1)
    write_bytes(path, text.encode())


def load(path: Path, netED: EDNet, flag: str = "--netED") -> Controls:
    """Read what was learned of a generator.

    Raises:
        UserError: it is missing, damaged, or of another generator.
    """
    checkpoint = shlex.quote(str(path).removesuffix(SUFFIX) + ".pt")
    learn_it = f"learn it by: python -m common.generation.controls --netED {checkpoint}"
    try:
        content = json.loads(read_small(path))
    except FileNotFoundError:
        raise UserError(f"{flag}: the knobs of this generator are not known, there is no {path}; {learn_it}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: can't be read ({getattr(error, 'strerror', None) or 'no JSON'}); {learn_it}"
        ) from None
    try:
        if content["vrgnet_controls"] != VERSION or content["knobs"] != list(KNOBS):
            raise ValueError
        scores, curves = (np.array(content[key], np.float64) for key in ("scores", "curves"))
        tolerance = [tuple(map(float, pair)) for pair in content["tolerance"]]
        whole = scores.shape == (len(KNOBS), netED.nz) and curves.shape == (len(KNOBS), len(PLACES))
        with np.errstate(over="ignore"):
            whole = whole and np.allclose(np.linalg.norm(scores, axis=1), 1, atol=1e-3) and np.isfinite(curves).all()
        explained, ranks = (list(map(float, content[key])) for key in ("explained", "ranks"))
        whole = whole and len(explained) == len(ranks) == len(KNOBS)
        if not whole or [len(pair) for pair in tolerance] != [2] * len(KNOBS):
            raise ValueError
        mark = str(content["fingerprint"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: is not what this program reads as controls of such a generator; {learn_it}") from None
    if mark != fingerprint(netED):
        raise UserError(f"{path}: is of another generator; {learn_it}")
    return Controls(scores, explained, curves, ranks, tolerance, mark)


# --- the command ---------------------------------------------------------------------------------------------------


def tolerances(maker: RainMaker, controls: Controls, seed: int, tries: int, progress: tqdm | None = None) -> np.ndarray:
    """How near single pictures come to what they are asked for: absolute errors, (4, tries, pictures)."""
    pictures = 4
    found = np.empty((len(KNOBS), tries, pictures))
    for k, name in enumerate(KNOBS):
        low, high = controls.reach(k)
        for t, value in enumerate(np.linspace(low, high, tries + 2)[1:-1]):
            asked, _ = solved(maker, controls, {name: float(value)}, seed)
            layers = asked_layers(maker, controls, asked, pictures, seed + 1 + t)
            found[k, t] = [abs(measure(layer)[k] - value) for layer in layers]
            if progress is not None:
                progress.update()
    return found


def turned(
    maker: RainMaker, controls: Controls, knob: int, steps: int, seed: int, pictures: int = 1
) -> list[tuple[float, list[np.ndarray]]]:
    """Rain of pictures while a knob goes from its lowest to its highest value: (value, layers (nc, H, W)) each."""
    frames = []
    for value in np.linspace(*controls.reach(knob), steps):
        asked = begun(controls, {KNOBS[knob]: float(value)})
        layers = asked_layers(maker, controls, asked, pictures, seed)
        frames.append((float(value), layers))
    return frames


def _picture(layer: np.ndarray, gain: float) -> np.ndarray:
    return to_uint8(gain * np.ascontiguousarray(layer.transpose(1, 2, 0)))


def report(controls: Controls, found: np.ndarray, spread: np.ndarray, name: str) -> str:
    """The report as Markdown: reach, rank correlation, tolerance and cross-talk of each knob."""
    ranks, talk = rank_correlations(found), cross_talk(found, spread)
    lines = [f"{TITLE} {name} do", ""]
    lines += [f"Measured on whole pictures of {found.shape[2]} codes, with one knob at a time.", ""]
    lines += ["| knob | from | to | unit | rank correlation | median error | 9 of 10 within | explained in z |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for k, knob in enumerate(KNOBS):
        low, high = controls.reach(k)
        half, most = controls.tolerance[k]
        share = f"{100 * controls.explained[k]:.0f} %"
        cells = [
            knob,
            f"{low:.3g}",
            f"{high:.3g}",
            UNITS[knob],
            f"{ranks[k, k]:.3f}",
            f"{half:.2g}",
            f"{most:.2g}",
            share,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Cross-talk: how far a measure moves while a knob goes from one end to the other, in deviations of that",
    ]
    lines += ["measure over rain whose knobs are left alone (in brackets: rank correlation).", ""]
    lines += [f"| knob | {' | '.join(KNOBS)} |", "|---" * (len(KNOBS) + 1) + "|"]
    for k, knob in enumerate(KNOBS):
        moved = ("no rain" if np.isnan(talk[k, m]) else f"{talk[k, m]:+.2f}" for m in range(len(KNOBS)))
        cells = [f"{text} ({ranks[k, m]:+.2f})" for m, text in enumerate(moved)]
        lines.append(f"| {knob} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_netED(required=True)
    parser.add_path("--out", help="folder of the report; left alone: NAME_controls beside the checkpoint")
    parser.add_argument("--samples", type=cli.number(int, 2 * ENOUGH, 2**20), default=8192, help="codes to learn from")
    parser.add_argument(
        "--pictures", type=cli.number(int, 2, 10_000), default=12, help="whole pictures at each place of a knob"
    )
    parser.add_argument("--seed", type=cli.seed, default=0, help="of codes and pictures")
    cli.add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    path = Path(args.netED)
    netED = load_generator(path, "--netED").eval().requires_grad_(False)
    netED = netED.to(pick_device(args.use_gpu, args.gpu_id))
    out = Path(args.out) if args.out else path.with_name(f"{path.stem}_controls")
    maker = RainMaker(netED)
    foreign = (out / REPORT).is_file() and not (out / REPORT).read_bytes().startswith(TITLE.encode())
    if foreign or out.is_file():
        raise UserError(f"--out: {out} holds something else; choose another folder")
    controls, found, spread = learn_controls(maker, args.samples, args.pictures, args.seed)
    save(controls, path_of(path))
    text = report(controls, found, spread, path.name)
    write_bytes(out / REPORT, text.encode(errors="replace"))
    rows = []
    for k, knob in enumerate(KNOBS):
        frames = [(value, layer) for value, (layer,) in turned(maker, controls, k, 7, args.seed + 7)]
        gain = float(np.clip(0.9 / max(max(np.quantile(layer, 0.999) for _, layer in frames), 1e-6), 1, 10))
        shown = [(f"{knob} {value:.3g}", _picture(layer, gain)) for value, layer in frames]
        rows.append(([picture for _, picture in shown], [label for label, _ in shown]))
        there = [row([picture], [label], picture.shape[1]) for label, picture in shown]
        write_gif(out / f"{knob}.gif", there + there[-2:0:-1], 250)
    write_image(out / "controls.png", sheet(rows))
    print_result(text)
    print(f"controls: {path_of(path)}\nreport: {out / REPORT}, a GIF of each knob beside it")
    print(f"picture: {out / 'controls.png'}")
    return 0


def learn_controls(
    maker: RainMaker, samples: int, pictures: int, seed: int, tries: int = 5
) -> tuple[Controls, np.ndarray, np.ndarray]:
    """Learn the knobs of a generator and measure what they do.

    Args:
        samples: codes to learn from.
        pictures: whole pictures at each place of a knob.
        tries: values of each knob at which the tolerance is measured.

    Returns:
        The controls; what pictures measured, see ``response``; the deviations of the measures, see ``cross_talk``.

    Raises:
        UserError: see ``learn``.
    """
    scores, explained = learn(maker.netED, samples, seed)
    with progress_bar(total=len(KNOBS) * (len(PLACES) + tries), desc="turning knobs", unit="place", leave=False) as bar:
        found = response(maker, scores, pictures, seed, bar)
        plain = np.array([measure(layer) for layer in picture_layers(maker, None, 4 * pictures, seed + 1)])
        ranks = [1.0] * len(KNOBS)
        controls = Controls(
            scores, explained, curves_of(found), ranks, [(0.0, 0.0)] * len(KNOBS), fingerprint(maker.netED)
        )
        angle = KNOBS.index("angle")
        if rank_correlations(found)[angle, angle] < WORTH:  # codes would change everything else for next to nothing
            controls.curves[angle] = np.median(controls.curves[angle])
        found = found.copy()
        for p, (_, layers) in enumerate(turned(maker, controls, angle, len(PLACES), seed, pictures)):
            found[angle, p] = [measure(layer) for layer in layers]  # with what is sheared
        controls = replace(controls, ranks=np.diag(rank_correlations(found)).tolist())
        errors = tolerances(maker, controls, seed, tries, bar).reshape(len(KNOBS), -1)
    errors = [row[np.isfinite(row)] for row in errors]
    tolerance = [
        (float(np.median(row)), float(np.quantile(row, 0.9))) if len(row) else (np.nan, np.nan) for row in errors
    ]
    return replace(controls, tolerance=tolerance), found, np.nanstd(plain, axis=0)


if __name__ == "__main__":
    sys.exit(cli.run(main))
