"""A generator in half precision, to send to others: 11.5 MB for the paper's sizes, and every script loads it.

    python -m common.generation.export --netED ED_state_700.pt --out ED.pt

RNet and G keep the names and shapes of ED_state_N.pt. Prints how much the rounding changes the rain.
"""

import argparse
import sys
from pathlib import Path

import torch

from .. import cli, flags
from ..errors import UserError
from ..models import EDNet
from ..training.checkpoint import load_generator, save
from .latent import base_code
from .rain import sampled

CODES = 256  # random codes whose rain is compared


def halved(netED: EDNet) -> dict[str, torch.Tensor]:
    """The weights as float16, by name.

    Raises:
        UserError: one is too large for float16.
    """
    state = {name: value.to(torch.float16) for name, value in netED.state_dict().items()}
    wrong = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if wrong:
        raise UserError(f"--netED: {wrong[0]} has weights beyond 65504, too large for half precision; keep the file")
    return state


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_netED(required=True)
    parser.add_path("--out", required=True, help="the file to write, NAME.pt")
    flags.add_switch(parser, "--overwrite", "replace a file of this name")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    out = Path(args.out)
    netED = load_generator(args.netED, "--netED").eval()
    if out.exists() and (not args.overwrite or out.is_dir() or out.samefile(args.netED)):
        raise UserError(f"--out: {out} exists; --overwrite replaces a file that is not --netED itself")
    state = halved(netED)
    codes = base_code(netED.nz, 0, CODES)
    rain = sampled(netED, codes)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(state, out)
    off = 255 * (sampled(load_generator(out, "--out").eval(), codes) - rain).abs()
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; patches of {netED.patch_size} px, nz {netED.nz}, nef {netED.nef}")
    print(f"the rain of {CODES} codes moves by {off.mean():.2g} grey levels in the mean, by {off.max():.2g} at most")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
