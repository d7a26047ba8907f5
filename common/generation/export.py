"""A generator in half precision, to send to others: 11.5 MB for the paper's sizes, and every script loads it.

    python -m common.generation.export --netED ED_state_700.pt --out ED.pt

RNet and G keep the names and shapes of ED_state_N.pt.
"""

import argparse
import sys
from pathlib import Path

import torch

from .. import cli, flags
from ..errors import UserError
from ..training.checkpoint import load_generator, save


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_netED(required=True)
    parser.add_path("--out", required=True, help="the file to write, NAME.pt")
    flags.add_switch(parser, "--overwrite", "replace a file of this name")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    out, netED = Path(args.out), load_generator(args.netED, "--netED")
    if out.exists() and (not args.overwrite or out.samefile(args.netED)):
        raise UserError(f"--out: {out} exists; --overwrite replaces a file that is not --netED itself")
    state = {name: value.to(torch.float16) for name, value in netED.state_dict().items()}
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise UserError(f"--netED: {args.netED} has weights beyond 65504, too large for half precision; keep the file")
    out.parent.mkdir(parents=True, exist_ok=True)
    save(state, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; patches of {netED.patch_size} px, nz {netED.nz}, nef {netED.nef}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
