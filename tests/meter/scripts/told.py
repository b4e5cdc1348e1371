"""What the scripts of this folder tell: each loss to its last bit, and in the end the states of all random generators."""

from __future__ import annotations

import hashlib
import os
import random
from typing import Any

import numpy as np
import torch

STEPS = int(os.environ.get("STEPS", "12"))


def begin(seed: int = 7) -> None:
    """Seed every generator."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (its global state is what is compared)
    torch.manual_seed(seed)


def tell(*words: object) -> None:
    """Write one line in one go: two processes may share the pipe."""
    line = " ".join([f"rank {os.environ.get('RANK', '0')}", *map(str, words)])
    os.write(1, line.encode() + b"\n")


def tell_loss(loss: Any) -> None:
    """Tell a loss, tensor or number, to its last bit."""
    tell("loss", float(loss).hex())


def tell_states() -> None:
    """Tell what the generators would do next."""
    states = {
        "python": repr(random.getstate()).encode(),
        "numpy": repr([*np.random.get_state()][1:]).encode(),  # noqa: NPY002  (as above)
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    for name, state in states.items():
        tell(name, hashlib.sha256(state).hexdigest())
