"""G alone, on rain layers: straight, varied rain after hours on a CPU. Not the paper's joint training.

Writes ED_state_N.pt, a moving average of it that makes better rain (ED_ema_state_N.pt), D_state_N.pt and the full
training state to --model_dir, logs to --log_dir. The losses and their sources: common/training/generator.py.

    python train_syn_generator.py --streaks STREAKS
    python train_syn_generator.py --data_path rain --gt_path norain
    python train_syn_generator.py --streaks STREAKS --init_ED default

Next: train_syn_encoder.py trains RNet for it; generate_rain.py --netED ED_ema_state_N.pt makes rain;
python experiments/distance.py measures it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, flags
from common.data.layers import layer_set
from common.models import EDNet
from common.precision import set_arithmetic
from common.terminal import print_result
from common.training.checkpoint import load_weights
from common.training.device import pick_device
from common.training.ema import EMA
from common.training.folder import describe, open_folder
from common.training.generator import RainCritic, generator_draw, generator_step, init_decoder
from common.training.loop import Models, fit
from common.training.optimizer import adam
from common.training.seeds import seed_everything

DATA = (
    "Put the training pairs of Rain100L (Yang et al., CVPR 2017) there: rainy images into .../small/rain, clean ones "
    "into .../small/norain. Or name a folder of pictures of rain on black with --streaks."
)


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    data = parser.add_argument_group("data")
    flags.add_path(data, "--streaks", help="folder of rain on black, in place of pairs")
    flags.add_path(data, "--data_path", "./data/rain100L/train/small/rain", help="folder of rainy images, or a pack")
    flags.add_path(
        data, "--gt_path", "./data/rain100L/train/small/norain", help="folder of their clean partners; rain = O - B"
    )
    flags.add_pairing(data)
    data.add_argument("--hold_out", type=cli.count, default=0, help="layers, spread evenly by name, that are left out")
    data.add_argument("--variants", type=cli.positive_int, default=12, help="of each layer: turned, scaled; in memory")
    data.add_argument("--turn", type=cli.number(float, 0, 45), default=15, help="degrees a variant is turned at most")
    data.add_argument("--batchSize", type=cli.number(int, 2), default=32, help="crops in a step")
    data.add_argument("--patchSize", type=cli.patch_size, default=64, help="side of a crop in px, a power of two")
    model = parser.add_argument_group("model")
    model.add_argument("--nc", type=cli.number(int, 3, 3), default=3, help="image channels")
    model.add_argument("--nz", type=cli.width, default=128, help="length of the rain code")
    model.add_argument("--nef", type=cli.width, default=32, help="width of G")
    model.add_argument("--ndf", type=cli.width, default=32, help="width of D")
    flags.add_start_of_generator(model)
    optim = parser.add_argument_group("optimisation")
    help = "steps at the start in which D learns alone; left alone: 300 with --init_ED, else 0"
    optim.add_argument("--critic_first", type=cli.count, help=help)
    optim.add_argument("--niter", type=cli.positive_int, default=40, help="epochs")
    optim.add_argument("--w_gp", type=cli.nonnegative, default=0.5, help="weight of the gradient penalties R1 + R2")
    optim.add_argument("--milestone", type=cli.positive_int, nargs="+", default=[26, 34], help="epochs: rate x 0.5")
    optim.add_argument("--lr", type=cli.positive, default=2e-4, help="learning rate of G and D")
    optim.add_argument("--ema", type=cli.below_one, default=0.999, help="decay of the moving average of G")
    flags.add_run(
        parser,
        log_dir="./generator_syn100llogs/",
        model_dir="./generator_syn100lmodels/",
        iters_per_epoch=1000,
    )
    parser.set_defaults(workers=0)  # crops out of memory
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with open_folder(args, __file__, "ED", "D", "ED_ema") as folder:
        device = pick_device(args.use_gpu, args.gpu_id, training=True)
        args.manualSeed = seed_everything(args.manualSeed)
        dataset, rule = layer_set(args, DATA)
        netED = EDNet(nc=args.nc, nz=args.nz, nef=args.nef, patch_size=args.patchSize).to(device)
        grey = all(layer.pixels.shape[2] == 1 for layer in dataset.pairs)
        init_decoder(netED.decoder, grey)
        if args.init_ED and folder.is_new:
            load_weights(netED, args.init_ED, "--init_ED")
        first = args.critic_first
        if first is None:  # a critic that knows nothing would spoil a G that is trained
            first = 300 if args.init_ED else 0
        netD = RainCritic(args.patchSize, args.ndf, 1 if grey else 3).to(device)
        if args.dry_run:
            return describe(folder, dataset, rule, [], {"netED": netED, "netD": netD}, device)
        set_arithmetic(args.precision)
        betas = 0.0, 0.99
        optimizers = {
            "ED": adam(netED.decoder.parameters(), args.lr, betas),
            "D": adam(netD.parameters(), args.lr, betas),
        }
        ema = EMA(netED, args.ema, ramp=True)
        fit(
            args=args,
            folder=folder,
            models=Models({"ED": netED, "D": netD, "ED_ema": ema.net}, optimizers, ema=ema),
            dataset=dataset,
            draw=generator_draw(args.nz, first),
            step=generator_step(netED, netD, optimizers, args.w_gp),
            iters_per_epoch=args.iters_per_epoch,
            gamma=0.5,
        )
        made = folder.path / f"ED_ema_state_{args.niter}.pt"
        if made.exists():
            print_result(f"its rain on photos: generate_rain.py --netED {made} --data_path PHOTOS")
            print_result(f"a derainer that learns from it: train_syn_aug.py --netED {made} --clean_path PHOTOS")
            print_result("RNet has not learned. Rain on photos does not need it; train_syn_encoder.py trains it.")


if __name__ == "__main__":
    sys.exit(cli.run(main))
