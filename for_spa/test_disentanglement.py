"""What single dimensions of the rain code do, on SPA-Data.

For each of nine random codes every dimension goes from -3 to 3 while the others keep their values. Writes one strip a
dimension and the sheets fake.jpg (all) and sheet.png (those that change the rain most, brightened) into seed10,
seed15, ..., and ranking.csv: how much each dimension changes the rain.

    python test_disentanglement.py --netED ED_state_800.pt --dims 22 24 110 --gif
    python test_disentanglement.py --netED ED_state_800.pt --figure generated

Next: generate_rain.py puts such rain on any photos.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags
from common.generation.latent import add_figures, run_figures
from common.training.checkpoint import generator_of
from common.training.device import pick_device

GENERATOR = (
    "Train one with train_spa_joint.py, name the authors' ED_state_800.pt with --netED, or take the "
    "generator that comes with the project: --netED default."
)


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    data = parser.add_argument_group("data")
    flags.add_path(data, "--save_fake", "./disentanglement_results/spa-data/", help="where the pictures go")
    flags.add_generator(parser.add_argument_group("model"), "./spamodels/ED_state_800.pt")
    run = parser.add_argument_group("run")
    add_figures(run)
    flags.add_unused(run, workers=2)
    flags.add_device(run)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    netED = generator_of(args, pick_device(args.use_gpu, args.gpu_id), GENERATOR)
    return run_figures(args, netED)


if __name__ == "__main__":
    sys.exit(cli.run(main))
