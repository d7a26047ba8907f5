"""The flags that several scripts share, in groups; their types are those of cli.py."""

import argparse

from .cli import (
    Parser,
    boolean,
    count,
    derainer_name,
    derainer_path,
    generator_path,
    key_value,
    number,
    patch_size,
    pattern,
    positive,
    positive_int,
    seed,
    stages,
    width,
)
from .errors import UserError


def add_switch(group: argparse.ArgumentParser, flag: str, help: str) -> None:
    """A boolean flag, off by default; alone it means true."""
    group.add_argument(flag, type=boolean, nargs="?", const=True, default=False, help=help)


def add_pairing(group: argparse.ArgumentParser, rain: bool = True) -> None:
    """--pair_by and --side_by_side, for every pair of folders of a command, see ``pairs.Pairing``.

    Args:
        rain: whether the pairs are rainy and clean images, for which there is --dark_rain.
    """
    group.add_argument(
        "--pair_by",
        type=pattern,
        nargs=2,
        metavar=("RAINY", "CLEAN"),
        help="how names pair, where no rule finds it: {} is what both share, * anything, as in 'rain-{}' 'norain-{}'",
    )
    group.add_argument(
        "--side_by_side",
        choices=("left", "right"),
        help="the half that is rainy, where each image holds both; leave the folder of clean images out then",
    )
    if rain:
        add_switch(
            group,
            "--dark_rain",
            "take pairs whose rainy image is the darker one; without it nearly all such pairs are refused",
        )


def add_derainer(group: argparse.ArgumentParser, sizes: argparse.ArgumentParser) -> None:
    """The flags that choose a derainer (to one group) and the sizes of images that it can take (to another)."""
    group.add_argument(
        "--derainer",
        type=derainer_name,
        default="prenet",
        metavar="NAME",
        help="prenet, or a network of your own: package.module:Class or path/to/file.py:Class (docs/derainers.md)",
    )
    group.add_argument(
        "--derainer_args",
        type=key_value,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of that class",
    )
    group.add_argument("--recurrent_iter", type=stages, default=6, help="stages of prenet")
    sizes.add_argument(
        "--pad_to",
        type=number(int, 1, 4096),
        default=1,
        help="pad images to multiples of so many px, for a network of your own",
    )
    add_switch(sizes, "--pad_square", "and to squares, for the same")


ROUNDED = (
    "auto: as PyTorch does by itself, on a GPU factors of convolutions rounded to 10 bits (TF32), fp32 on a CPU; fp32: "
    "exact; tf32 (GPUs): factors of products, too"
)


def add_speed(group: argparse.ArgumentParser, default: str = "auto", several: bool = False) -> None:
    """--precision, of which ``several`` may be allowed."""
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "tf32", "bf16"),
        default=[default] if several else default,
        **({"nargs": "+"} if several else {}),
        help=f"{ROUNDED}; bf16: the derainer in bfloat16 (8 bits), the rest as tf32 on a GPU and as fp32 on a CPU. "
        "Weights and losses stay fp32",
    )


def add_recording(group: argparse.ArgumentParser) -> None:
    """--cuda_graphs."""
    add_switch(group, "--cuda_graphs", "on a GPU, in one process: record whole steps and replay them (docs/scaling.md)")


def add_device(group: argparse.ArgumentParser) -> None:
    """--use_gpu and --gpu_id."""
    group.add_argument("--use_gpu", type=boolean, default=True, help="use a CUDA GPU; without one the CPU is used")
    group.add_argument("--gpu_id", default="0", help="which GPU; under torchrun a list, or 0 for the first ones")


def add_deraining(group: argparse.ArgumentParser) -> None:
    """The flags of every script that removes rain."""
    help = "core of a tile in px, its halo comes on top; 0: whole image; -1: tiles only where memory is short"
    group.add_argument("--tile", type=number(int, -1), default=-1, help=help)
    help = "to 8 bits; the published images are truncated, nearest gains about 0.1 dB"
    group.add_argument("--rounding", choices=("truncate", "nearest"), default="truncate", help=help)
    add_switch(group, "--keep_format", "write JPEG where the image is one; else it becomes PNG, which loses nothing")
    add_speed(group, default="fp32")  # as published tables are made
    add_device(group)


def add_tile_halo(group: argparse.ArgumentParser) -> None:
    """The tiles of derainers whose receptive field is not known."""
    group.add_argument("--tile_halo", type=count, help="margin of a tile in px, for a derainer of your own with --tile")


def add_run(
    parser: Parser, log_dir: str, model_dir: str, iters_per_epoch: int = 3000, derainer: bool = False
) -> Parser:
    """The flags of every training run: how long, how safe, where. Returns their group.

    Args:
        derainer: whether one is trained, whose speed can be chosen.
    """
    run = parser.group("run")
    run.add_argument("--resume", type=count, default=0, help="start again from epoch N; without it a training goes on")
    add_switch(run, "--overwrite", "delete an earlier run")
    run.add_argument("--iters_per_epoch", type=positive_int, default=iters_per_epoch, help="steps of an epoch")
    run.add_argument("--save_every", type=positive_int, default=50, help="epochs between weight files; the last always")
    run.add_argument("--save_minutes", type=positive, default=10, help="between full states within an epoch")
    run.add_argument("--log_every", type=positive_int, default=10, help="steps between entries of the logs")
    run.add_path("--log_dir", log_dir, help="TensorBoard files, log.csv, options.json")
    run.add_path("--model_dir", model_dir, help="checkpoints")
    run.add_argument("--workers", type=count, default=4, help="processes that read images, where these are not in RAM")
    run.add_argument("--manualSeed", type=seed, help="seed of everything; drawn and printed if left alone")
    add_switch(run, "--dry_run", "only say what would be done")
    help = "where decoded images are kept; auto: on the GPU, or else in RAM, where they fit in a third of it"
    run.add_argument("--cache", choices=("auto", "ram", "gpu", "none"), default="auto", help=help)
    if derainer:
        add_speed(run)
    else:
        run.add_argument("--precision", choices=("auto", "fp32", "tf32"), default="auto", help=ROUNDED)
    add_recording(run)
    add_device(run)
    return run


def add_training(parser: Parser, log_dir: str, model_dir: str) -> Parser:
    """The flags that every training script of a derainer shares. Returns the group of validation."""
    add_run(parser, log_dir, model_dir, derainer=True)
    val = parser.group("validation")
    val.add_path("--val_data_path", help="folder of rainy images; the best derainer on them is kept as ..._best.pt")
    val.add_path("--val_gt_path", help="folder of their clean partners")
    add_pairing(val)
    val.add_argument("--val_every", type=positive_int, default=1, help="epochs between validations; the last always")
    return val


def add_generator(group: argparse.ArgumentParser, netED: str, patch: bool = False) -> None:
    """--netED and its sizes, which are read from the file where they are left alone."""
    group.add_netED(netED)
    group.add_argument("--nc", type=number(int, 3, 3), default=3, help="image channels")
    group.add_argument("--nz", type=width, default=128, help="length of the rain code")
    group.add_argument("--nef", type=width, default=32, help="width of RNet and G")
    if patch:
        group.add_argument("--patch_size", type=patch_size, default=64, help="side of a patch in px")


def add_photos(data: Parser) -> None:
    """--clean_path of augmented training, see ``augment.crops``."""
    help = "folder of photos without rain, on which generated rain falls; without --data_path all samples are of these"
    data.add_path("--clean_path", help=help)


def add_start_of_derainer(group: Parser) -> None:
    """--init_Derain of augmented training, see ``augment.start_from``."""
    help = "weights of the derainer to start from; 'default': those of the project, made with --recurrent_iter 3"
    group.add_argument("--init_Derain", type=derainer_path, help=help)


def add_start_of_generator(group: Parser) -> None:
    """--init_ED."""
    help = "weights of RNet and G to start from; 'default': the generator that comes with the project"
    group.add_argument("--init_ED", type=generator_path, help=help)


def add_start(group: Parser) -> None:
    """--init_ED and --init_Derain of joint training, see ``start_from``."""
    add_start_of_generator(group)
    group.add_path("--init_Derain", help="weights of BNet to start from, DerainNet_state_N.pt")


def add_unused(group: argparse.ArgumentParser, **defaults: int) -> None:
    """Flags of the reference that change nothing here; they are taken, so that its command lines run."""
    for name, default in defaults.items():
        group.add_argument(f"--{name}", type=count, default=default, help="changes nothing, for old command lines")


def add_figures(group: argparse.ArgumentParser) -> None:
    """The flags of test_disentanglement.py that choose pictures."""
    help = "sweeps of every dimension; a sheet of random rains; an animation of random rains"
    group.add_argument("--figure", choices=("sweeps", "generated", "diversity"), default="sweeps", help=help)
    add_switch(group, "--gif", "also animate the dimensions of --dims")
    group.add_argument("--dims", type=count, nargs="+", help="dimensions to animate; else the three that change most")
    group.add_argument("--manualSeed", type=seed, help="one seed of the codes, in place of 10, 15, ..., 50")


def check_figures(args: argparse.Namespace) -> None:
    """Raises:
    UserError: flags of ``add_figures`` that contradict each other.
    """
    if args.figure != "sweeps" and (args.gif or args.dims):
        raise UserError(f"--dims, --gif: they belong to the sweeps; leave them or --figure {args.figure} out")
    if args.dims and not args.gif:
        raise UserError("--dims: it chooses dimensions to animate; add --gif")
