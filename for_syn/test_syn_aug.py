"""Remove rain with a derainer of augmented training (A+), on the synthetic sets or any photos.

Writes one derained image per input, under the same name (a PNG for a JPEG), and report.html, a page with sliders; with
--gt_path also PSNR and SSIM as the paper computes them, on the screen, in that page and in metrics.csv. The original
PReNet release loads as well.

    python test_syn_aug.py --data_path rain --gt_path norain --model_dir Aug_DerainNet_state_200.pt --save_path derained
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags
from common.evaluation.derain_folder import derain_folder
from common.training.checkpoint import load_derainer
from common.training.device import pick_device

DATA = "Put the rainy test images of Rain100L there (Yang et al., CVPR 2017), or name your own with --data_path."
CHECKPOINT = "Train one with train_syn_aug.py, or name another file with --model_dir."


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    data = parser.group("data")
    data.add_path("--data_path", "./data/rain100L/test/small/rain", help="folder of rainy images, or one image")
    data.add_path("--gt_path", help="clean images, for PSNR and SSIM")
    flags.add_pairing(data)
    data.add_path("--save_path", "./aug_derained_results/rain100L/", help="where the derained images go")
    model = parser.group("model")
    model.add_path(
        "--model_dir",
        "./aug_syn100lmodels/Aug_DerainNet_state_200.pt",
        help="weights: a file, or a folder for its newest one; without a default folder the project's derainer",
    )
    run = parser.group("run")
    flags.add_derainer(model, run)
    flags.add_tile_halo(run)
    flags.add_deraining(run)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.use_gpu, args.gpu_id)
    net = load_derainer(args, CHECKPOINT)
    return derain_folder(net.to(device), args, device, weights=args.model_dir, hint=DATA)


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
