"""The flags that several scripts share, in groups; types that any flag may have are in cli.py."""

import argparse

from . import cli, weights

Group = argparse._ActionsContainer  # a parser, or a titled section of its --help


def add_path(group: Group, flag: str, default: str | None = None, **more) -> None:
    """A flag that takes a file or folder."""
    group.add_argument(flag, type=cli.path, default=default, **more)


def generator_path(text: str) -> str:
    """The path of a generator, or the word for the one that comes with the project."""
    return str(weights.GENERATOR) if text == "default" else cli.path(text)


def derainer_path(text: str) -> str:
    """The path of a derainer's weights, or the word for those that come with the project."""
    return str(weights.DERAINER) if text == "default" else cli.path(text)


def add_netED(group: Group, default: str | None = "default", **more) -> None:
    """--netED, which takes a file or 'default'."""
    help = "weights of RNet and G; 'default': the generator that comes with the project"
    group.add_argument("--netED", type=generator_path, default=default, help=help, **more)


def add_switch(group: Group, flag: str, help: str) -> None:
    """A boolean flag, off by default; alone it means true."""
    group.add_argument(flag, type=cli.boolean, nargs="?", const=True, default=False, help=help)


def pattern(text: str) -> str:
    """A pattern of names, with one {}."""
    if text.count("{}") != 1:
        raise argparse.ArgumentTypeError(f"expected one {{}}, for the part that both names share, got {text!r}")
    return text


def add_pairing(group: Group, rain: bool = True) -> None:
    """--pair_by and --side_by_side, see ``pairs.Pairing``; --dark_rain where the pairs are rainy and clean images."""
    help = "how names pair, where no rule finds it: {} is what both share, * anything, as in 'rain-{}' 'norain-{}'"
    group.add_argument("--pair_by", type=pattern, nargs=2, metavar=("RAINY", "CLEAN"), help=help)
    help = "the half that is rainy, where each image holds both; leave the folder of clean images out then"
    group.add_argument("--side_by_side", choices=("left", "right"), help=help)
    if rain:
        help = "take pairs whose rainy image is the darker one; without it nearly all such pairs are refused"
        add_switch(group, "--dark_rain", help)


def derainer_name(text: str) -> str:
    """prenet, package.module:Class, or path/to/file.py:Class, whose path is made absolute."""
    module, _, name = text.rpartition(":")
    return f"{cli.path(module)}:{name}" if module.endswith(".py") else text


def add_derainer(group: Group, sizes: Group) -> None:
    """The flags that choose a derainer (to one group) and the sizes of images that it can take (to another)."""
    help = "prenet, or a network of your own: package.module:Class or path/to/file.py:Class (docs/derainers.md)"
    group.add_argument("--derainer", type=derainer_name, default="prenet", metavar="NAME", help=help)
    help = "arguments of that class"
    group.add_argument("--derainer_args", nargs="+", default=[], metavar="KEY=VALUE", help=help)
    group.add_argument("--recurrent_iter", type=cli.stages, default=6, help="stages of prenet")
    help = "pad images to multiples of so many px, for a network of your own"
    sizes.add_argument("--pad_to", type=cli.number(int, 1, 4096), default=1, help=help)
    add_switch(sizes, "--pad_square", "and to squares, for the same")


ROUNDED = (
    "auto: as PyTorch does by itself, on a GPU factors of convolutions rounded to 10 bits (TF32), fp32 on a CPU; fp32: "
    "exact; tf32 (GPUs): factors of products, too"
)


def add_speed(group: Group, default: str | list[str] = "auto", **more) -> None:
    """--precision of a derainer."""
    help = "bf16: the derainer in bfloat16 (8 bits), the rest as tf32 on a GPU and as fp32 on a CPU"
    help = f"{ROUNDED}; {help}. Weights and losses stay fp32"
    group.add_argument("--precision", choices=("auto", "fp32", "tf32", "bf16"), default=default, help=help, **more)


def add_device(group: Group) -> None:
    """--use_gpu and --gpu_id."""
    group.add_argument("--use_gpu", type=cli.boolean, default=True, help="use a CUDA GPU; without one the CPU is used")
    group.add_argument("--gpu_id", default="0", help="which GPU; under torchrun a list, or 0 for the first ones")


def add_deraining(group: Group) -> None:
    """The flags of every script that removes rain."""
    help = "core of a tile in px, its halo comes on top; 0: whole image; -1: tiles only where memory is short"
    group.add_argument("--tile", type=cli.number(int, -1), default=-1, help=help)
    help = "to 8 bits; the published images are truncated, nearest gains about 0.1 dB"
    group.add_argument("--rounding", choices=("truncate", "nearest"), default="truncate", help=help)
    add_switch(group, "--keep_format", "write JPEG where the image is one; else it becomes PNG, which loses nothing")
    add_speed(group, default="fp32")  # as published tables are made
    add_device(group)


def add_run(
    parser: cli.Parser, log_dir: str, model_dir: str, iters_per_epoch: int = 3000, derainer: bool = False
) -> None:
    """The flags of every training run: how long, how safe, where; of a ``derainer`` also its start and its speed."""
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--resume", type=cli.count, default=0, help="start again from epoch N; without it a training goes on")
    add_switch(run, "--overwrite", "delete an earlier run")
    add("--iters_per_epoch", type=cli.positive_int, default=iters_per_epoch, help="steps of an epoch")
    add("--save_every", type=cli.positive_int, default=50, help="epochs between weight files; the last always")
    add("--save_minutes", type=cli.positive, default=10, help="between full states within an epoch")
    add("--log_every", type=cli.positive_int, default=10, help="steps between entries of the logs")
    add_path(run, "--log_dir", log_dir, help="TensorBoard files, log.csv, options.json")
    add_path(run, "--model_dir", model_dir, help="checkpoints")
    add("--workers", type=cli.count, default=4, help="processes that read images, where these are not in RAM")
    add("--manualSeed", type=cli.seed, help="seed of everything; drawn and printed if left alone")
    add_switch(run, "--dry_run", "only say what would be done")
    help = "where decoded images are kept; auto: in RAM, where they fit in a third of it"
    add("--cache", choices=("auto", "ram", "none"), default="auto", help=help)
    if derainer:
        help = "weights to start from, of the derainer (in joint training of BNet, too); 'default': the project's, "
        help += "for --recurrent_iter 3 or --stage 3"
        add("--init_Derain", type=derainer_path, help=help)
        add_speed(run)
    else:
        add("--precision", choices=("auto", "fp32", "tf32"), default="auto", help=ROUNDED)
    add_switch(run, "--cuda_graphs", "on a GPU, in one process: record whole steps and replay them (docs/scaling.md)")
    add_device(run)


def add_training(parser: cli.Parser, log_dir: str, model_dir: str) -> Group:
    """The flags that every training script of a derainer shares. Returns the group of validation."""
    add_run(parser, log_dir, model_dir, derainer=True)
    val = parser.add_argument_group("validation")
    help = "folder of rainy images; the best derainer on them is kept as ..._best.pt"
    add_path(val, "--val_data_path", help=help)
    add_path(val, "--val_gt_path", help="folder of their clean partners")
    add_pairing(val)
    val.add_argument(
        "--val_every", type=cli.positive_int, default=1, help="epochs between validations; the last always"
    )
    return val


def add_generator(group: Group, netED: str) -> None:
    """--netED and its sizes, which are read from the file where they are left alone."""
    add_netED(group, netED)
    group.add_argument("--nc", type=cli.number(int, 3, 3), default=3, help="image channels")
    group.add_argument("--nz", type=cli.width, default=128, help="length of the rain code")
    group.add_argument("--nef", type=cli.width, default=32, help="width of RNet and G")


def add_photos(group: Group) -> None:
    """--clean_path of augmented training, see ``augment.crops``."""
    help = "folder of photos without rain, on which generated rain falls; without --data_path all samples are of these"
    add_path(group, "--clean_path", help=help)


def add_start_of_generator(group: Group) -> None:
    """--init_ED."""
    help = "weights of RNet and G to start from; 'default': the generator that comes with the project"
    group.add_argument("--init_ED", type=generator_path, help=help)


def add_w_l1(group: Group) -> None:
    """--w_l1 of augmented training, see ``losses.restoration_loss``."""
    help = "weight of the mean absolute error beside -SSIM, which hardly sees a shift of light; not the paper's"
    group.add_argument("--w_l1", type=cli.nonnegative, default=0.0, metavar="WEIGHT", help=help)


def add_bnet_first(group: Group) -> None:
    """--bnet_first of joint training, see ``joint.joint_draw``."""
    help = "steps at the start in which RNet and G stay as they are; BNet learns in each n_dis-th of them, D in all"
    group.add_argument("--bnet_first", type=cli.count, default=0, help=help)


def add_unused(group: Group, **defaults: int) -> None:
    """Flags of the reference that change nothing here; they are taken, so that its command lines run."""
    for name, default in defaults.items():
        group.add_argument(f"--{name}", type=cli.count, default=default, help="changes nothing, for old command lines")
