"""Interpolation between the rains of two images, on SPA-Data.

Writes the two crops, the rain on the way from B (w = 0.00) to A (w = 1.00), both crops with that rain, and a sheet of
it all, interpolation.png.

    python test_interpolation.py --data_path rain --gt_path norain --netED ED_state_800.pt

Next: test_disentanglement.py shows what single dimensions of the rain code do.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags
from common.generation.latent import run_interpolation
from common.training.checkpoint import generator_of
from common.training.device import pick_device
from common.training.seeds import seed_everything

DATA = "Put two rainy images of SPA-Data there (Wang et al., CVPR 2019) and their clean partners into --gt_path."
GENERATOR = (
    "Train one with train_spa_joint.py, name the authors' ED_state_800.pt with --netED, or take the "
    "generator that comes with the project: --netED default."
)


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    data = parser.add_argument_group("data")
    results = "./interpolation_results"
    flags.add_path(data, "--data_path", f"{results}/test_data/spa-data/rain", help="folder of two rainy images")
    flags.add_path(data, "--gt_path", f"{results}/test_data/spa-data/norain", help="folder of their clean partners")
    flags.add_pairing(data)
    flags.add_path(data, "--save_patch", f"{results}/test_data/spa-data/crop_patch/", help="where the crops go")
    flags.add_path(
        data, "--save_inputfake", f"{results}/generated_data/spa-data/input_fake/", help="where crops with new rain go"
    )
    flags.add_path(data, "--save_rainfake", f"{results}/generated_data/spa-data/rain_fake/", help="where the rain goes")
    model = parser.add_argument_group("model")
    flags.add_generator(model, "./spamodels/ED_state_800.pt")
    model.add_argument("--patch_size", type=cli.patch_size, default=64, help="side of a patch in px")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--posterior", choices=("draw", "mean"), default="draw", help="draw the codes from their posterior, or its mean"
    )
    run.add_argument("--manualSeed", type=cli.seed, help="seed of that draw; drawn and printed if left alone")
    flags.add_unused(run, stage=6, workers=2)
    flags.add_device(run)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.use_gpu, args.gpu_id)
    netED = generator_of(args, device, GENERATOR)
    seed = seed_everything(args.manualSeed) if args.posterior == "draw" else 0
    return run_interpolation(args, netED, seed, DATA)


if __name__ == "__main__":
    sys.exit(cli.run(main))
