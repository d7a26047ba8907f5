"""Augmented training (A+) on the synthetic sets (Rain100L, Rain100H, Rain1400): step 2 of the paper.

A derainer learns from real pairs and from clean crops on which the generator G of --netED rains. Writes
Aug_DerainNet_state_N.pt and the full training state to --model_dir, logs to --log_dir.

    python train_syn_aug.py --data_path rain --gt_path norain --netED ED_state_700.pt

Next: test_syn_aug.py removes rain with Aug_DerainNet_state_N.pt.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, derainer, flags, precision
from common.data.pairs import validation_pairs
from common.evaluation.derain import Windows, validator
from common.generation.bank import bank_of
from common.generation.knob_flags import add_knobs, knobs
from common.training.augment import aug_draw, aug_step, crops, pick_generator, share
from common.training.checkpoint import load_weights
from common.training.device import pick_device
from common.training.folder import describe, open_folder
from common.training.loop import Models, fit
from common.training.optimizer import adam
from common.training.seeds import seed_everything

NAME = "Aug_DerainNet"  # of the weights' files
DATA = (
    "Put the training pairs of Rain100L (Yang et al., CVPR 2017) there: rainy images into .../small/rain, clean ones "
    "into .../small/norain. Or name your own folders with --data_path and --gt_path."
)
GENERATOR = (
    "Train one with train_syn_joint.py, name the authors' ED_state_700.pt with --netED, or take the "
    "generator that comes with the project: --netED default."
)


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    data = parser.add_argument_group("data")
    flags.add_path(data, "--data_path", "./data/rain100L/train/small/rain", help="folder of rainy images, or a pack")
    flags.add_path(data, "--gt_path", "./data/rain100L/train/small/norain", help="folder of their clean partners")
    flags.add_photos(data)
    data.add_argument("--batchSize", type=cli.positive_int, default=18, help="crops in a step, of all processes")
    data.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px, as in G's training")
    model = parser.add_argument_group("model")
    flags.add_generator(model, "./syn100lmodels/ED_state_700.pt")
    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--niter", type=cli.positive_int, default=200, help="epochs")
    optim.add_argument("--fake_ratio", type=cli.nonnegative, default=0.5, help="generated samples for a real one")
    optim.add_argument(
        "--milestone", type=cli.positive_int, nargs="+", default=[50, 100, 150], help="epochs: rate x 0.2"
    )
    optim.add_argument("--lr", type=cli.positive, default=1e-3, help="learning rate")
    flags.add_w_l1(optim)
    add_knobs(parser)
    validation = flags.add_training(parser, log_dir="./aug_syn100llogs/", model_dir="./aug_syn100lmodels/")
    flags.add_derainer(model, validation)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with open_folder(args, __file__, NAME) as folder:
        device = pick_device(args.use_gpu, args.gpu_id, training=True)
        args.manualSeed = seed_everything(args.manualSeed)
        net = derainer.build(args).to(device)  # before G: it starts the same with and without augmentation
        if args.init_Derain and folder.is_new:
            load_weights(net, args.init_Derain, "--init_Derain")
        ranges = knobs(args)
        netED = pick_generator(args, device, GENERATOR, any_crop=bool(ranges))
        bank = bank_of(args, netED, ranges)
        derainer.check(net, args.batchSize, args.patchSize, device)
        precision.prepare(net, device, args.precision, training=True)
        dataset, rule = crops(args, DATA)
        held_out = validation_pairs(args)
        validate = validator(net, held_out, device, Windows.from_flags(args))
        if args.dry_run:
            return describe(folder, dataset, rule, held_out, {"derainer": net, "netED": netED}, device)
        optimizer = adam(net.parameters(), args.lr)
        n_real, iters_per_epoch = share(args)
        fit(
            args=args,
            folder=folder,
            models=Models({NAME: net}, {NAME: optimizer}, frozen=netED),
            dataset=dataset,
            draw=aug_draw(netED, n_real, bank and bank.crop, args.manualSeed),
            step=aug_step(net, netED, optimizer, n_real, args.w_l1),
            iters_per_epoch=iters_per_epoch,
            gamma=0.2,
            validate=validate,
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
