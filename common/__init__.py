"""Learning rain from data, making rainy/clean pairs from it, and removing rain (VRGNet, CVPR 2021).

Glossary. Words stand at every boundary, the paper's symbols inside the equations:

======== ===================== ==========================================================================
symbol   name in the code      meaning
======== ===================== ==========================================================================
O        ``rainy``             rainy image, (N, 3, H, W), RGB in [0, 1]
B        ``clean``             its ground truth without rain, same shape and range
R        ``rain``              rain layer, O = B + R; R >= 0, not bounded above
b        ``mu_b, logvar_b``    posterior N(mu_b, exp(logvar_b)) of the background, from BNet
z        ``mu_z, logvar_z``    posterior N(mu_z, exp(logvar_z)) of the rain code, from RNet; ``z`` is a draw
eps0^2   ``eps2``              prior variance of the background
BNet     ``netDerain``         Bayesian PReNet, removes rain (files ``DerainNet_state_N.pt``)
RNet, G  ``netED``             encoder and generator of rain (files ``ED_state_N.pt``)
D        ``netD``              critic that tells real rainy images from generated ones (``D_state_N.pt``)
\\-       derainer              any network from a rainy image to a clean one
\\-       patch, crop           the square that the networks train on; the act of cutting it from an image
\\-       core, halo            the part of a tile that is kept; the margin around it that is thrown away
\\-       knob                  angle, density, thickness or brightness of rain, see generation/measures.py
\\-       rank, process         one of those that torchrun starts for a job; rank 0 is the one that saves
======== ===================== ==========================================================================
"""

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path


def _stopped(number, frame):
    """Ctrl-C before a command has begun: one line and the end. PyTorch aborts, if it is raised while it is imported."""
    os.write(2, b"\nstopped by Ctrl-C\n")
    os._exit(130)


def _ask_again(unraisable):
    """Ctrl-C where Python can't raise it (in weak references, which h5py has many of): it comes again in a moment."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        timer = threading.Timer(0.01, os.kill, [os.getpid(), signal.SIGINT])
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(unraisable)


def _is_ours():
    """Whether this process runs a command of this project; programs of others have their own way with Ctrl-C."""
    before, _, after = " ".join(sys.orig_argv[1:]).partition("-m ")
    module = after.startswith("common.") and all(word.startswith("-") for word in before.split())
    program = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
    script = program.parent.name in ("for_syn", "for_spa") and program.parents[1] == Path(__file__).resolve().parents[1]
    return (module or script) and multiprocessing.parent_process() is None


if _is_ours() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stopped)  # until common/cli.py runs the command
    sys.unraisablehook = _ask_again
