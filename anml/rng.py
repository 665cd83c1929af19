"""Named random generators, all derived from one seed; no global random state anywhere.

A generator's stream depends on the seed and on its name alone: ("episode", 17) draws the same whether or not episodes
0 to 16 ran in this process. A resumed training therefore continues exactly, with no generator state to save.
"""

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, *name: str | int) -> int:
    """Return a 63-bit seed for a named stream."""
    digest = hashlib.sha256(repr((seed, *name)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_generator(seed: int, *name: str | int) -> torch.Generator:
    """Return a CPU torch generator for a named stream (drawing on the CPU makes all devices agree)."""
    return torch.Generator().manual_seed(derived_seed(seed, *name))


def numpy_generator(seed: int, *name: str | int) -> np.random.Generator:
    """Return a numpy generator for a named stream."""
    return np.random.default_rng(derived_seed(seed, *name))
