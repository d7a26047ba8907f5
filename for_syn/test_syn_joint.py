"""Remove rain with BNet of joint training, on the synthetic sets (Rain100L, Rain100H, Rain1400) or any images.

Writes one derained image per input, under the same name (a PNG for a JPEG), and report.html, a page with sliders; with
--gt_path also PSNR and SSIM as the paper computes them, on the screen, in that page and in metrics.csv.

    python test_syn_joint.py --data_path rain --gt_path norain --netDerain DerainNet_state_700.pt --save_path derained
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags
from common.evaluation.derain_folder import derain_folder
from common.training.checkpoint import load_joint
from common.training.device import pick_device

DATA = "Put the rainy test images of Rain100L there (Yang et al., CVPR 2017), or name your own with --data_path."
CHECKPOINT = "Train one with train_syn_joint.py, or name the authors' DerainNet_state_700.pt with --netDerain."


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    data = parser.add_argument_group("data")
    flags.add_path(data, "--data_path", "./data/rain100L/test/small/rain", help="folder of rainy images, or one image")
    flags.add_path(data, "--gt_path", help="clean images, for PSNR and SSIM")
    flags.add_pairing(data)
    flags.add_path(data, "--save_path", "./derained_results/rain100L/", help="where the derained images go")
    model = parser.add_argument_group("model")
    model.add_argument("--stage", type=cli.stages, default=6, help="stages of BNet, as in its training")
    flags.add_path(model, "--netDerain", "./syn100lmodels/DerainNet_state_700.pt", help="weights of BNet")
    flags.add_deraining(parser.add_argument_group("run"))
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.use_gpu, args.gpu_id)
    net = load_joint(args, CHECKPOINT)
    return derain_folder(net.to(device), args, device, weights=args.netDerain, hint=DATA)


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
