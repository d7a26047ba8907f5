"""Tools of VRGNet, from any folder:

    rain      put rain on photos: exact pairs of a rainy and a clean image
    derain    remove rain from images
    metrics   PSNR and SSIM of derained images, as a table and as a page
    compose   make pairs of photos and rain layers
    pack      put pairs into one file, for training

vrgnet COMMAND --help lists its flags.
"""

import argparse
import sys

from . import __version__, cli, flags
from .data import compose, pack
from .evaluation import metrics
from .evaluation.derain_folder import derain_folder
from .generation.knob_flags import add_knobs
from .generation.photos import rain_on_photos
from .training.checkpoint import generator_of, load_derainer
from .training.device import pick_device

RAIN = """Rain of a trained generator on any photos: exact rainy/clean pairs, ready for training, of any size.

Writes rain/NAME.png, norain/NAME.png, a list of the pairs, manifest.csv and report.html.

    vrgnet rain --data_path photos --save_path pairs --angle 15
"""
DERAIN = """Remove rain from images, with the derainer of the project or with a trained one.

Writes a derained image for each, and report.html, a page with sliders; with --gt_path also PSNR and SSIM.

    vrgnet derain --data_path rain --save_path derained
"""


def auto_or_scale(text: str) -> float | None:
    """A type of --scale: 'auto' is None."""
    return None if text == "auto" else cli.number(float, 0.1, 100)(text)


def rain_flags(parser: cli.Parser, save_path: str) -> cli.Parser:
    """The flags of ``rain`` and of generate_rain.py, whose default --save_path differs."""
    data = parser.add_argument_group("data")
    flags.add_path(data, "--data_path", required=True, help="folder of clean photos, or one photo")
    flags.add_path(data, "--save_path", save_path, help="where the pairs go")
    flags.add_netED(data)
    rain = parser.add_argument_group("rain")
    rain.add_argument("--num", type=cli.number(int, 1, 10_000), default=1, help="rains a photo")
    rain.add_argument("--seed", type=cli.seed, default=0, help="another one gives other rain")
    rain.add_argument("--intensity", type=cli.number(float, 0, 2), default=1.0, help="factor of the rain, 0 to 2")
    help = "how alike rain is all over a photo"
    rain.add_argument("--coherence", type=cli.number(float, 0, 1), default=0.5, help=help)
    flags.add_switch(rain, "--grey", "rain without colours")
    help = "factor of the size of the streaks; auto: 1 up to 512 px of the shorter side, longer and wider ones beyond"
    rain.add_argument("--scale", type=auto_or_scale, metavar="auto|S", help=help)
    add_knobs(parser)
    run = parser.add_argument_group("run")
    flags.add_switch(run, "--save_layer", "also save the rain alone, in layer/")
    flags.add_switch(run, "--overwrite", "first delete all pairs of an earlier run")
    flags.add_device(run)
    return parser


def rain(args: argparse.Namespace, generator: str) -> int:
    """Put rain on the photos that ``rain_flags`` name; see ``rain_on_photos`` for the exit code and errors.

    Args:
        generator: where a generator comes from, for the message when it is missing.
    """
    return rain_on_photos(args, generator_of(args, pick_device(args.use_gpu, args.gpu_id), generator))


def derain_flags(parser: cli.Parser, data_path: str | None, save_path: str, model_dir: str) -> cli.Parser:
    """The flags of ``derain`` and of the test scripts of A+, whose default paths differ; without one it is required."""
    data = parser.add_argument_group("data")
    flags.add_path(data, "--data_path", data_path, required=not data_path, help="folder of rainy images, or one image")
    flags.add_path(data, "--gt_path", help="clean images, for PSNR and SSIM")
    flags.add_pairing(data)
    flags.add_path(data, "--save_path", save_path, help="where the derained images go")
    model = parser.add_argument_group("model")
    help = "weights: a file, or a folder for its newest one; 'default', or without that folder: the project's"
    model.add_argument("--model_dir", type=flags.derainer_path, default=model_dir, help=help)
    run = parser.add_argument_group("run")
    flags.add_derainer(model, run)
    help = "margin of a tile in px, for a derainer of your own with --tile"
    run.add_argument("--tile_halo", type=cli.count, help=help)
    flags.add_deraining(run)
    return parser


def derain(args: argparse.Namespace, data: str, checkpoint: str) -> int:
    """Remove rain from the images that ``derain_flags`` name; see ``derain_folder`` for the exit code and errors.

    Args:
        data, checkpoint: where the images and the weights come from, for the messages when they are missing.
    """
    device = pick_device(args.use_gpu, args.gpu_id)
    net = load_derainer(args, checkpoint)
    return derain_folder(net.to(device), args, device, weights=args.model_dir, hint=data)


def _rain(argv: list[str]) -> int:
    parser = rain_flags(cli.Parser(RAIN, "vrgnet rain"), "./pairs/")
    return rain(parser.parse_args(argv), "Leave --netED out for the generator that comes with the project.")


def _derain(argv: list[str]) -> int:
    parser = derain_flags(cli.Parser(DERAIN, "vrgnet derain"), None, "./derained/", "default")
    weights = "Leave --model_dir out for the derainer that comes with the project."
    return derain(parser.parse_args(argv), "Name a folder of rainy images, or one image.", weights)


def main(argv: list[str] | None = None) -> int:
    """The command ``vrgnet``: takes the words after it, returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    mains = {"rain": _rain, "derain": _derain, "metrics": metrics.main, "compose": compose.main, "pack": pack.main}
    parser = argparse.ArgumentParser("vrgnet", "vrgnet COMMAND [FLAGS]", __doc__, formatter_class=cli.Formatter)
    parser.add_argument("--version", action="version", version=f"vrgnet {__version__}")
    parser.add_argument("command", choices=mains, help=argparse.SUPPRESS)
    name = parser.parse_args(words[:1]).command
    return cli.run(lambda: mains[name](words[1:]), torchrun=name in ("rain", "derain"))
