"""Training without augmentation on a small sample of SPA-Data: what train_spa_smallsample_aug.py is compared with.

The same pairs, the same number of steps and samples, no generator. Writes NoAug05_DerainNet_state_N.pt (05:
--fake_ratio 0.5, which sets the number of steps) and the full training state to --model_dir, logs to --log_dir.

    python train_spa_smallsample_noaug.py --data_path SPA_DATA

Next: test_spa_aug.py removes rain with NoAug05_DerainNet_state_N.pt.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, derainer, flags, precision
from common.data.pairs import validation_pairs
from common.data.patches import training_set
from common.evaluation.derain import Windows, validator
from common.training.augment import aug_draw, aug_step, ratio_digits, steps_per_epoch
from common.training.checkpoint import load_weights
from common.training.device import pick_device
from common.training.folder import describe, open_folder
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
    data.add_argument("--train_num", type=cli.positive_int, default=1000, help="pairs in the sample")
    data.add_argument("--seed", type=cli.seed, default=5, help="of the choice of these pairs, and of nothing else")
    data.add_argument("--batchSize", type=cli.positive_int, default=18, help="crops in a step, of all processes")
    data.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px")
    model = parser.add_argument_group("model")
    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--niter", type=cli.positive_int, default=200, help="epochs")
    optim.add_argument("--fake_ratio", type=cli.nonnegative, default=0.5, help="that of the training to compare with")
    optim.add_argument(
        "--milestone", type=cli.positive_int, nargs="+", default=[50, 150, 200], help="epochs: rate x 0.2"
    )
    optim.add_argument("--lr", type=cli.positive, default=1e-3, help="learning rate")
    flags.add_w_l1(optim)
    validation = flags.add_training(parser, log_dir="./noaug05_spalogs/", model_dir="./noaug05_spamodels/")
    flags.add_derainer(model, validation)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    name = f"NoAug{ratio_digits(args.fake_ratio)}_DerainNet"
    with open_folder(args, __file__, name) as folder:
        device = pick_device(args.use_gpu, args.gpu_id, training=True)
        args.manualSeed = seed_everything(args.manualSeed)
        net = derainer.build(args).to(device)
        if args.init_Derain and folder.is_new:
            load_weights(net, args.init_Derain, "--init_Derain")
        derainer.check(net, args.batchSize, args.patchSize, device)
        precision.prepare(net, device, args.precision, training=True)
        dataset, rule = training_set(args, DATA)
        held_out = validation_pairs(args)
        validate = validator(net, held_out, device, Windows.from_flags(args))
        if args.dry_run:
            return describe(folder, dataset, rule, held_out, {"derainer": net}, device)
        optimizer = adam(net.parameters(), args.lr)
        fit(
            args=args,
            folder=folder,
            models=Models({name: net}, {name: optimizer}),
            dataset=dataset,
            draw=aug_draw(None, args.batchSize),
            step=aug_step(net, None, optimizer, args.batchSize, args.w_l1),
            iters_per_epoch=steps_per_epoch(args.iters_per_epoch, args.fake_ratio),
            gamma=0.2,
            validate=validate,
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
