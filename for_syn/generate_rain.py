"""Rain of a trained generator on any photos: exact rainy/clean pairs, ready for training, of any size.

Writes rain/NAME.png and norain/NAME.png (NAME_v01.png ... with --num above 1) and to --save_path also
real_world.txt (SPA-Data's kind of list), manifest.csv and contact_sheet.jpg. The same seed gives the same rain; an
interrupted run goes on by the same command.

    python generate_rain.py --data_path photos --save_path pairs --angle 15

Next: train_syn_joint.py or train_syn_aug.py --data_path pairs/rain --gt_path pairs/norain.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.commands import rain, rain_flags

GENERATOR = "Leave --netED out for the generator that comes with the project, or train one: train_syn_joint.py."


def parse_args(argv=None):
    return rain_flags(cli.Parser(__doc__, __file__), save_path="./generated_results/rain100L/").parse_args(argv)


def main(argv=None):
    return rain(parse_args(argv), GENERATOR)


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
