"""(seed, purpose, counters) -> a generator: a draw depends on these and on nothing else."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# One number per purpose, so that no two of them ever share a stream.
VALIDATION, ORDER, AUGMENT, DROPOUT, WEIGHTS, SUBSET, MIX, CROSS_VALIDATION = range(8)
FIT, UNLABELLED, K_FOLD = 8, 9, 10
UNLABELLED_ORDER, VIEWS, EFFECTS = 11, 12, 13


def seed_of(seed: int, purpose: int, *counters: int) -> int:
    """A 63-bit seed for `purpose` at `counters` (epoch, batch, step, rank ...).

    Mixed by NumPy's SeedSequence, whose output is fixed across platforms and versions.
    """
    words = np.random.SeedSequence((seed, purpose, *counters)).generate_state(1, np.uint64)
    return int(words[0] >> 1)


def generator(seed: int, purpose: int, *counters: int) -> "torch.Generator":
    """A CPU generator seeded by `seed_of`: the draws are the same whatever device trains."""
    import torch  # here: `numpy_generator` chooses the images of a run that is only planned

    return torch.Generator().manual_seed(seed_of(seed, purpose, *counters))


def numpy_generator(seed: int, purpose: int, *counters: int) -> np.random.Generator:
    """NumPy's default generator, seeded by the SeedSequence that `seed_of` mixes."""
    return np.random.default_rng(np.random.SeedSequence((seed, purpose, *counters)))
