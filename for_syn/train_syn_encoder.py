"""RNet for a generator whose G is trained: from a rainy patch to the code of its rain. Not the paper's joint training.

Writes ED_state_N.pt (RNet, and G as it was) and the full training state to --model_dir, logs to --log_dir.
At the end also ED_half.pt: the same in half precision, 11.5 MB, to send to others. Every script loads it.
The two losses: common/training/encoder.py.

    python train_syn_encoder.py --netED ED_ema_state_40.pt --streaks STREAKS --clean PHOTOS --hold_out 20
    python train_syn_encoder.py --netED ED_ema_state_40.pt --data_path rain --gt_path norain --hold_out 20

With --hold_out an epoch ends with the correlation of G(RNet(O)) with O - B on what was held out, beside that with
another patch's rain. Next: test_interpolation.py --netED ED_state_N.pt; joint training by --init_ED ED_state_N.pt.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, distributed, flags
from common.data.layers import layer_set
from common.precision import set_arithmetic
from common.training.checkpoint import generator_of, save
from common.training.device import pick_device
from common.training.encoder import WARM_UP, encoder_draw, encoder_step, init_encoder, recovery_on
from common.training.folder import describe, open_folder
from common.training.loop import Models, fit
from common.training.optimizer import adam
from common.training.seeds import seed_everything

DATA = "Name folders of pairs, or rain on black and photos: --streaks STREAKS --clean PHOTOS."
NETED = "Give the file of train_syn_generator.py, ED_ema_state_N.pt."


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    data = parser.add_argument_group("data")
    flags.add_path(data, "--streaks", help="folder of rain on black, for the photos of --clean; in place of pairs")
    flags.add_path(data, "--clean", help="folder of photos without rain, for --streaks")
    flags.add_path(data, "--data_path", "./data/rain100L/train/small/rain", help="folder of rainy images, or a pack")
    flags.add_path(data, "--gt_path", "./data/rain100L/train/small/norain", help="folder of their clean partners")
    flags.add_pairing(data)
    data.add_argument("--hold_out", type=cli.count, default=0, help="layers and photos, or pairs, to measure on")
    data.add_argument("--variants", type=cli.positive_int, default=8, help="of each layer: turned, scaled; in memory")
    data.add_argument("--turn", type=cli.number(float, 0, 45), default=15, help="degrees a variant is turned at most")
    data.add_argument(
        "--batchSize", type=cli.positive_int, default=32, help="pairs in a step, beside a quarter of generated ones"
    )
    data.add_argument(
        "--patchSize", type=cli.patch_size, default=64, help="side of a crop in px, that of the generator"
    )
    model = parser.add_argument_group("model")
    flags.add_generator(model, "./generator_syn100lmodels/ED_ema_state_40.pt")
    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--niter", type=cli.positive_int, default=20, help="epochs")
    optim.add_argument("--w_real", type=cli.nonnegative, default=100, help="weight of the distance to real rain")
    optim.add_argument("--milestone", type=cli.positive_int, nargs="+", default=[14, 18], help="epochs: rate x 0.3")
    optim.add_argument("--lr", type=cli.positive, default=1e-3, help="learning rate of RNet")
    flags.add_run(
        parser,
        log_dir="./encoder_syn100llogs/",
        model_dir="./encoder_syn100lmodels/",
        iters_per_epoch=1000,
    )
    parser.set_defaults(workers=0)  # crops out of memory
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with open_folder(args, __file__, "ED") as folder:
        device = pick_device(args.use_gpu, args.gpu_id, training=True)
        args.manualSeed = seed_everything(args.manualSeed)
        netED = generator_of(args, device, NETED)
        dataset, rule = layer_set(args, DATA)
        held_out = layer_set(args, DATA, "held_out")[0] if args.hold_out else None
        init_encoder(netED.encoder.requires_grad_())
        if args.dry_run:
            return describe(folder, dataset, rule, held_out.pairs if held_out else [], {"netED": netED}, device)
        set_arithmetic(args.precision)
        optimizers = {"ED": adam(netED.encoder.parameters(), args.lr)}
        fit(
            args=args,
            folder=folder,
            models=Models({"ED": netED}, optimizers, frozen=netED.decoder),
            dataset=dataset,
            draw=encoder_draw(args.nz),
            step=encoder_step(netED, optimizers["ED"], args.w_real),
            iters_per_epoch=args.iters_per_epoch,
            gamma=0.3,
            warm_up=WARM_UP,
            validate=recovery_on(netED, held_out, device) if held_out else None,
        )
        if distributed.is_first():
            save({name: value.half().cpu() for name, value in netED.state_dict().items()}, folder.path / "ED_half.pt")


if __name__ == "__main__":
    sys.exit(cli.run(main))
