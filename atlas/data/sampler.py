"""Counter-based randomness: random numbers depend on (seed, stream, step, row) and on nothing drawn before.

So a resumed or rolled back run sees exactly the batches that it would have seen, without any saved sampler state, and
the rows of a batch can be made apart from each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

BATCHES = 2  # raised when the same seed gives other training batches: checkpoints of another number are not continued
SEPARATE_BATCHES = 3  # the same for sources whose rows hold one document each


def batches_of(data: Mapping[str, Any]) -> int:
    """The number for a source with these settings."""
    return SEPARATE_BATCHES if data.get("documents") == "separate" else BATCHES


class Stream(IntEnum):
    """Independent random streams of one seed. A number is never reused: the batches of old runs depend on it."""

    text = 1
    recall = 2
    carry_offset = 3
    validation = 4
    probe = 5
    calibration = 6
    sparse = 7
    blend = 8


VALIDATION_SEED = 0  # validation batches are the same for every seed of a run


def generator(seed: int, stream: Stream, step: int, row: int = 0) -> np.random.Generator:
    """Generator of one row of one step. Philox is keyed by (seed, stream); step and row are the two upper words of its
    256-bit counter, so the numbers of two rows never overlap."""
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, 0, row, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class RowGenerators:
    """A generator for each of N rows, used like one `np.random.Generator` that draws arrays [N, ...].

    Row r of an array comes from generator r alone, so it does not depend on which rows are drawn with it.
    """

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self._generators = generators

    @classmethod
    def of_step(cls, seed: int, stream: Stream, step: int, rows: range) -> RowGenerators:
        return cls([generator(seed, stream, step, row) for row in rows])

    def chosen(self, rows: NDArray[np.bool_]) -> RowGenerators:
        """The generators of the rows where `rows` [N] is true."""
        return RowGenerators([self._generators[row] for row in np.flatnonzero(rows).tolist()])

    def integers(self, low: int, high: int, size: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        drawn = np.empty(size, dtype=dtype)
        for row, rng in enumerate(self._generators):
            drawn[row] = rng.integers(low, high, size[1:], dtype=dtype)
        return drawn

    def random(self, size: tuple[int, ...]) -> NDArray[np.float64]:
        drawn = np.empty(size)
        for row, rng in enumerate(self._generators):
            drawn[row] = rng.random(size[1:])
        return drawn

    def permuted(self, array: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
        """`array` [N, ...] with each row shuffled along `axis` >= 1."""
        shuffled = np.empty_like(array)
        for row, rng in enumerate(self._generators):
            shuffled[row] = rng.permuted(array[row], axis=axis - 1)
        return shuffled


Random = np.random.Generator | RowGenerators  # where what one generator draws for N rows, N generators may draw as well


def of_rows(rng: Random, rows: NDArray[np.bool_]) -> Random:
    """What draws for the rows where `rows` [N] is true."""
    return rng.chosen(rows) if isinstance(rng, RowGenerators) else rng
