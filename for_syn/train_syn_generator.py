"""RNet, G and D alone, on the rain layers of pairs: a generator within two hours on a CPU. Not in the paper.

Writes ED_state_N.pt, a moving average of it that makes better rain (ED_ema_state_N.pt), D_state_N.pt and the full
training state to --model_dir, logs to --log_dir. The losses, and what is left out of joint training and why:
common/training/generator.py.

    python train_syn_generator.py --data_path rain --gt_path norain

Next: generate_rain.py --netED ED_ema_state_N.pt; python -m common.evaluation.distance says how good its rain is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.data.patches import training_set
from common.models import Discriminator, EDNet
from common.training.generator import train_generator
from common.training.run import describe, open_run
from common.training.runtime import pick_device, seed_everything

DATA = (
    "Put the training pairs of Rain100L (Yang et al., CVPR 2017) there: rainy images into .../small/rain, clean ones "
    "into .../small/norain. Or make pairs by python -m common.data.compose, and name them with --data_path, --gt_path."
)


def networks(args):
    """Prefixes of the files that this training writes."""
    return ("ED", "D", "ED_ema") if args.ema else ("ED", "D")


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    data = parser.group("data")
    data.add_path("--data_path", "./data/rain100L/train/small/rain", help="folder of rainy images, or a pack")
    data.add_path("--gt_path", "./data/rain100L/train/small/norain", help="folder of their clean partners")
    data.add_argument("--batchSize", type=cli.number(int, 2), default=18, help="crops in a step")
    data.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px, a power of two")
    model = parser.group("model")
    model.add_argument("--nc", type=cli.number(int, 3, 3), default=3, help="image channels")
    model.add_argument("--nz", type=cli.width, default=128, help="length of the rain code")
    model.add_argument("--nef", type=cli.width, default=32, help="width of RNet and G")
    model.add_argument("--ndf", type=cli.width, default=32, help="width of D, of which it takes four times less")
    optim = parser.group("optimisation")
    optim.add_argument("--niter", type=cli.positive_int, default=60, help="epochs")
    optim.add_argument("--w_adv", type=cli.positive, default=1.0, help="weight of the adversarial term")
    optim.add_argument("--w_div", type=cli.nonnegative, default=10.0, help="weight of the term that keeps rains apart")
    optim.add_argument("--lambda_gp", type=cli.nonnegative, default=10, help="weight of the gradient penalty")
    optim.add_argument("--milestone", type=cli.positive_int, nargs="+", default=[40, 50], help="epochs: rates x 0.5")
    optim.add_argument("--lrD", type=cli.positive, default=4e-4, help="learning rate of D")
    optim.add_argument("--lrED", type=cli.positive, default=2e-4, help="learning rate of RNet and G")
    optim.add_argument("--beta1", type=cli.below_one, default=0.5, help="of Adam, for both")
    optim.add_argument("--n_dis", type=cli.positive_int, default=2, help="steps of D for one of RNet and G")
    optim.add_argument("--ema", type=cli.below_one, default=0.998, help="decay of the moving average of ED; 0: none")
    cli.add_run(parser, log_dir="./generator_syn100llogs/", model_dir="./generator_syn100lmodels/", iters_per_epoch=500)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with open_run(args, __file__, networks) as run:
        device = pick_device(args.use_gpu, args.gpu_id)
        args.manualSeed = seed_everything(args.manualSeed)
        dataset, rule = training_set(args, device, DATA)
        netED = EDNet(nc=args.nc, nz=args.nz, nef=args.nef, patch_size=args.patchSize).to(device)
        netD = Discriminator(image_size=args.patchSize, conv_dim=args.ndf).to(device)
        if args.dry_run:
            return describe(run, dataset, rule, [], {"netED": netED, "netD": netD}, device)
        train_generator(
            run=run,
            netED=netED,
            netD=netD,
            lrED=args.lrED,
            lrD=args.lrD,
            beta1=args.beta1,
            w_adv=args.w_adv,
            w_div=args.w_div,
            lambda_gp=args.lambda_gp,
            n_dis=args.n_dis,
            ema=args.ema,
            milestone=args.milestone,
            gamma=0.5,
            dataset=dataset,
            device=device,
            **cli.loop_settings(args),
        )


if __name__ == "__main__":
    sys.exit(cli.run(main))
