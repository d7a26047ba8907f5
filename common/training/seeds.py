"""Random numbers: one seed for all generators, and their state for checkpoints."""

import random

import numpy as np
import torch

from .. import distributed


def seed_everything(seed: int | None) -> int:
    """Seed every generator, alike in all processes; None draws a seed and prints it. Returns the seed."""
    if seed is None:
        seed = distributed.broadcast(random.SystemRandom().randrange(2**31))
        print(f"manualSeed: {seed} (drawn; --manualSeed {seed} repeats this run)")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def rng_state() -> dict:
    """The state of every generator, as tensors and plain values only."""
    _, keys, position, has_gauss, cached = np.random.get_state()
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of the GPU in use
        "numpy": [torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, list(numbers), gauss],
    }


def set_rng_state(state: dict) -> None:
    """Put every generator back to a state of ``rng_state``."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and (states := state["cuda"]):
        torch.cuda.set_rng_state(states[0])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
