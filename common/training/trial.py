"""Whether recorded steps of small networks agree with run ones on this GPU, in a process that may crash or hang.

    python -m common.training.trial

The training scripts run it by themselves before they record steps, and remember what came out for this GPU, driver,
PyTorch and cuDNN. Under torchrun the processes of the job do it together.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from .. import cli, ranks
from ..errors import UserError
from ..files import read_small, write_bytes
from . import device

COMMAND = [sys.executable, "-m", f"{__package__}.trial"]
LIMIT = 300  # seconds
DIFFERS = 3  # exit code
CYCLE, STEPS = 2, 40


def machine() -> str:
    """The GPU and what computes on it."""
    parts = torch.cuda.get_device_name(), f"driver {device.driver()}", f"PyTorch {torch.__version__}"
    return ", ".join([*parts, f"cuDNN {torch.backends.cudnn.version()}"])


def memory() -> Path:
    """The file of what came out."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vrgnet" / "recordings.json"


def _known() -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_small(memory()))
        return found if isinstance(found, dict) else {}
    return {}


def reason(precision: str) -> str:
    """Why this machine must not record steps; empty where a trial was right, now or before.

    Of several processes each has its GPU, and all must have been right.
    """
    key = f"{machine()}, {ranks.count()} processes, {precision}"
    found = _known().get(key)
    if None in ranks.gather(found):
        print("--cuda_graphs: a trial with small networks, up to some minutes, once on this machine", flush=True)
        found, certain = _try(precision)
        if certain and ranks.local_rank() == 0:
            with contextlib.suppress(Exception):  # a home that can't be written to
                write_bytes(memory(), json.dumps(_known() | {key: found}, indent=2).encode())
    told = ranks.any_reason(str(found or ""))
    return f"{told} (delete {memory()} to try again)" if told else ""


def _try(precision: str) -> tuple[str, bool]:
    """What the process says, and whether it will say the same again."""
    root = str(Path(__file__).resolve().parents[2])
    env = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_ERROR_FILE"}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")])), ranks.PREFIX: "trial/"}
    flags = ["--precision", precision, "--gpu_id", str(torch.cuda.current_device())]
    try:
        done = subprocess.run([*COMMAND, *flags], env=env, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"a trial with small networks hung for {LIMIT} seconds", True
    if done.returncode < 0:
        return f"a trial with small networks crashed (signal {-done.returncode})", True
    last = ([line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["it said nothing"])[-1]
    if done.returncode == DIFFERS:
        return f"a trial with small networks failed: {last.removeprefix('--cuda_graphs: ')}", True
    return (f"a trial with small networks could not run ({last[:200]})", False) if done.returncode else ("", True)


def small_steps(where: torch.device, precision: str) -> str:
    """Joint steps of small networks, proven, replayed, and compared once more: what was said."""
    from ..models import Derain, Discriminator, EDNet  # these import what imports this
    from ..speed import Speed
    from . import joint, proof

    torch.manual_seed(0)
    speed = Speed(precision, again=STEPS // 2)
    nets = Derain(2).to(where), EDNet(3, 8, 4, 16).to(where), Discriminator(16, 8).to(where)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        speed.prepare(nets[0], where)
        proof.GAIN = 0.0  # of small networks nothing follows
        optimizers = joint.joint_optimizers(*nets, 2e-4, 1e-4, 4e-4, speed)
        step = joint.joint_step(*nets, optimizers, 1.0, 10.0, CYCLE, 1e-6, speed, {})
        for index in range(STEPS):
            rainy, clean = torch.rand(2, 4, 3, 16, 16, device=where).unbind()
            step(rainy, clean, index)
    return said.getvalue()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, module=__spec__.name)
    parser.add_argument("--gpu_id", type=cli.count, default=0, help="which GPU")
    cli.add_speed(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError(f"no CUDA GPU can be used here{': ' * bool(why := device.trouble())}{why}")
    where = torch.device("cuda", args.gpu_id)
    torch.cuda.set_device(where)
    said = small_steps(where, args.precision)
    print(f"{machine()}\n{said.strip()}")
    return 0 if " agree (" in said and "going on without" not in said else DIFFERS


if __name__ == "__main__":
    sys.exit(cli.run(main, torchrun=True))
