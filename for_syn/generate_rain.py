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

from common import cli, flags
from common.generation.photos import Rain, rain_on_photos
from common.training.checkpoint import generator_of
from common.training.device import pick_device

PHOTOS = "Name a folder of clean photos, or one photo."
GENERATOR = "Leave --netED out for the generator that comes with the project, or train one: train_syn_joint.py."


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    data = parser.group("data")
    data.add_path("--data_path", required=True, help="folder of clean photos, or one photo")
    data.add_path("--save_path", "./generated_results/rain100L/", help="where the pairs go")
    data.add_netED("default")
    flags.add_rain(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    rain = Rain(args.seed, args.num, args.intensity, args.coherence, args.grey, args.scale, flags.knobs(args))
    return rain_on_photos(
        netED=generator_of(args, pick_device(args.use_gpu, args.gpu_id), GENERATOR),
        data_path=args.data_path,
        save_path=args.save_path,
        rain=rain,
        save_layer=args.save_layer,
        overwrite=args.overwrite,
        hint=PHOTOS,
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
