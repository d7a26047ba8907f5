"""Whether recorded steps of small networks agree with run ones on this GPU, in a process that may crash or hang.

    python -m common.training.trial fp32 cuda:0

runs before steps are recorded; what comes out is remembered for this GPU, driver, PyTorch and cuDNN. Under torchrun the
processes of the job do it together.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from .. import distributed
from ..files import write_bytes
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
        known = json.loads(memory().read_bytes())
        return known if isinstance(known, dict) else {}
    return {}


def reason(precision: str, where: torch.device) -> str:
    """Why this GPU must not record steps; empty where a trial was right, now or before, and within a trial.

    Of several processes each has its GPU, and all must have been right.
    """
    if where.type != "cuda" or os.environ.get(distributed.PREFIX):
        return ""
    key = f"{machine()}, {distributed.world_size()} processes, {precision}"
    problem = _known().get(key)
    if None in distributed.gather(problem):
        print("--cuda_graphs: a trial with small networks, up to some minutes, once on this machine", flush=True)
        problem, certain = _try(precision, where)
        if certain and distributed.local_rank() == 0:
            with contextlib.suppress(Exception):  # a home that can't be written to
                write_bytes(memory(), json.dumps(_known() | {key: problem}, indent=2).encode())
    first = distributed.first_reason(str(problem or ""))
    return f"{first} (delete {memory()} to try again)" if first else ""


def _try(precision: str, where: torch.device) -> tuple[str, bool]:
    """What is wrong, and whether it will be wrong again."""
    what, root = "a trial with small networks", str(Path(__file__).resolve().parents[2])
    env = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_ERROR_FILE"}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")])), distributed.PREFIX: "trial/"}
    command = [*COMMAND, precision, str(where)]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"{what} hung for {LIMIT} seconds", True
    if done.returncode < 0:
        return f"{what} crashed (signal {-done.returncode})", True
    last = ([line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["it said nothing"])[-1]
    if done.returncode == DIFFERS:
        return f"{what} failed: {last.removeprefix('--cuda_graphs: ')}", True
    return (f"{what} could not run ({last[:200]})", False) if done.returncode else ("", True)


def main(precision: str, where: torch.device) -> int:
    """Joint steps of small networks, proven, replayed, and compared once more; prints the verdict."""
    from ..models import Derain, Discriminator, EDNet  # these import this module
    from ..precision import prepare
    from .graphs import recorder
    from .joint import joint_draw, joint_step
    from .optimizer import adam
    from .proof import RecordedStep

    torch.manual_seed(0)
    nets = Derain(2).to(where), EDNet(3, 8, 4, 16).to(where), Discriminator(16, 8).to(where)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        prepare(nets[0], where, precision, training=True)
        names = ("DerainNet", "ED", "D")
        optimizers = {name: adam(net.parameters(), 2e-4) for name, net in zip(names, nets, strict=True)}
        step = joint_step(*nets, optimizers, w_adv=1.0, lambda_gp=10.0, eps2=1e-6)
        recorded = RecordedStep(step, recorder(where), precision, STEPS // 2, CYCLE, list(nets), optimizers, gain=0)
        draw = joint_draw(CYCLE, 8)
        for index in range(STEPS):
            rainy, clean = torch.rand(2, 4, 3, 16, 16, device=where).unbind()
            recorded(*draw(rainy, clean, index, 4 * distributed.world_size()))
    print(output.getvalue().strip())
    return 0 if " agree (" in output.getvalue() and "going on without" not in output.getvalue() else DIFFERS


if __name__ == "__main__":
    from .. import cli

    gpu = torch.device(sys.argv[2])
    torch.cuda.set_device(gpu)
    sys.exit(cli.run(lambda: main(sys.argv[1], gpu), torchrun=True))
