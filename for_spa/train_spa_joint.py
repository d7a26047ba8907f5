"""Joint training of BNet, RNet, G and D on SPA-Data: step 1 of the paper.

Writes DerainNet_state_N.pt, ED_state_N.pt, D_state_N.pt and the full training state to --model_dir, logs to --log_dir.

    python train_spa_joint.py --data_path SPA_DATA

Next: test_spa_joint.py removes rain with DerainNet_state_N.pt; train_spa_aug.py makes use of ED_state_N.pt.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags, precision
from common.data.pairs import validation_pairs
from common.data.patches import training_set
from common.evaluation.derain import validator
from common.models import Derain, Discriminator, EDNet
from common.training.device import pick_device
from common.training.ema import EMA
from common.training.folder import describe, open_folder
from common.training.joint import joint_draw, joint_step, start_from
from common.training.loop import Models, fit
from common.training.optimizer import adam
from common.training.seeds import seed_everything

DATA = (
    "Put SPA-Data (Wang et al., CVPR 2019) there, or name its folder with --data_path: its real_world.txt lists the "
    "pairs, 'rainy_path clean_path' a line, relative to that folder. For pairs in two folders use for_syn's scripts."
)


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    data = parser.add_argument_group("data")
    flags.add_path(data, "--data_path", "./data/spa-data/", help="folder of real_world.txt, a list of pairs, or a pack")
    data.add_argument("--batchSize", type=cli.positive_int, default=18, help="crops in a step, of all processes")
    data.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px, a power of two")
    model = parser.add_argument_group("model")
    model.add_argument("--nc", type=cli.number(int, 3, 3), default=3, help="image channels")
    model.add_argument("--nz", type=cli.width, default=128, help="length of the rain code")
    model.add_argument("--stage", type=cli.stages, default=6, help="stages of BNet")
    model.add_argument("--nef", type=cli.width, default=32, help="width of RNet and G")
    model.add_argument("--ndf", type=cli.width, help="width of D; left alone: 64 up to patch 64, 64*64/p beyond")
    flags.add_start_of_generator(model)
    flags.add_bnet_first(model)
    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--niter", type=cli.positive_int, default=800, help="epochs")
    # T13: 1 on the synthetic sets, 0.01 on SPA-Data
    optim.add_argument("--w_adv", type=cli.positive, default=0.01, help="weight of the adversarial term in loss_G")
    optim.add_argument("--lambda_gp", type=cli.nonnegative, default=10, help="weight of the gradient penalty")
    optim.add_argument(
        "--milestone",
        type=cli.positive_int,
        nargs="+",
        default=[400, 600, 650, 675, 690, 700],
        help="epochs: rates x 0.5",
    )
    optim.add_argument("--lrD", type=cli.positive, default=4e-4, help="learning rate of D")
    optim.add_argument("--lrDerain", type=cli.positive, default=2e-4, help="learning rate of BNet")
    optim.add_argument("--lrED", type=cli.positive, default=1e-4, help="learning rate of RNet and G")
    optim.add_argument("--n_dis", type=cli.positive_int, default=5, help="steps of D for one of the others")
    optim.add_argument("--eps2", type=cli.positive, default=1e-6, help="prior variance of the background")
    optim.add_argument("--ema", type=cli.below_one, default=0, help="also save a moving average of ED, with this decay")
    flags.add_training(parser, log_dir="./spalogs/", model_dir="./spamodels/")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with open_folder(args, __file__, "DerainNet", "ED", "D", *(["ED_ema"] if args.ema else [])) as folder:
        device = pick_device(args.use_gpu, args.gpu_id, training=True)
        args.manualSeed = seed_everything(args.manualSeed)
        args.ndf = args.ndf or min(64, 64 * 64 // args.patchSize)
        netDerain = Derain(stage=args.stage).to(device)
        precision.prepare(netDerain, device, args.precision, training=True)
        dataset, rule = training_set(args, DATA)
        held_out = validation_pairs(args)
        netED = EDNet(nc=args.nc, nz=args.nz, nef=args.nef, patch_size=args.patchSize).to(device)
        netD = Discriminator(image_size=args.patchSize, conv_dim=args.ndf).to(device)
        if folder.is_new:
            start_from(args, netDerain, netED)
        nets = {"DerainNet": netDerain, "ED": netED, "D": netD}
        optimizers = {
            "DerainNet": adam(netDerain.parameters(), args.lrDerain),
            "ED": adam(netED.parameters(), args.lrED),
            "D": adam(netD.parameters(), args.lrD),
        }
        if args.dry_run:
            return describe(folder, dataset, rule, held_out, nets, device)
        ema = EMA(netED, args.ema, every=args.n_dis) if args.ema else None
        fit(
            args=args,
            folder=folder,
            models=Models(nets | ({"ED_ema": ema.net} if ema else {}), optimizers, ema=ema),
            dataset=dataset,
            draw=joint_draw(args.n_dis, args.nz, args.bnet_first),
            step=joint_step(netDerain, netED, netD, optimizers, args.w_adv, args.lambda_gp, args.eps2),
            iters_per_epoch=args.iters_per_epoch,
            gamma=0.5,
            validate=validator(netDerain, held_out, device),
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
