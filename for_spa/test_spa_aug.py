"""Remove rain with a derainer of augmented training (A+), on SPA-Data, Internet-Data or any photos.

Writes one derained image per input, under the same name (a PNG for a JPEG), and report.html, a page with sliders; with
--gt_path also PSNR and SSIM as the paper computes them, on the screen, in that page and in metrics.csv. The original
PReNet release loads as well.

    python test_spa_aug.py --data_path rain --gt_path norain --model_dir Aug_DerainNet_state_200.pt --save_path derained
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.commands import derain, derain_flags

DATA = "Put the rainy test images of SPA-Data there (Wang et al., CVPR 2019), or name your own with --data_path."
CHECKPOINT = "Train one with train_spa_aug.py, or name another file with --model_dir."


def parse_args(argv=None):
    parser = derain_flags(
        cli.Parser(__doc__, __file__),
        data_path="./data/spa-data/test/small/rain",
        save_path="./aug_derained_results/spa-data/",
        model_dir="./aug_spamodels/Aug_DerainNet_state_200.pt",
    )
    return parser.parse_args(argv)


def main(argv=None):
    return derain(parse_args(argv), DATA, CHECKPOINT)


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
