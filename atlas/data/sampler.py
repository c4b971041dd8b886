"""Counter-based randomness: the random numbers of a step depend on (seed, stream, step) and on nothing drawn before.

So a resumed or rolled back run sees exactly the batches that it would have seen, without any saved sampler state.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Independent random streams of one seed. A number is never reused: the batches of old runs depend on it."""

    text = 1
    recall = 2
    carry_offset = 3
    validation = 4
    probe = 5
    calibration = 6


VALIDATION_SEED = 0  # validation batches are the same for every seed of a run


def generator(seed: int, stream: Stream, step: int) -> np.random.Generator:
    """Generator of one step. Philox is keyed by (seed, stream); the step is the top word of its 256-bit counter,
    so the numbers of two steps never overlap."""
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, 0, 0, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
