"""Rows of one document each, those of a batch about equally long, so that hardly anything is padding.

The k-th row of a document begins at its token k T. A batch draws `POOL` rows for each of its own, every token of the
store being equally likely, sorts them by length and takes neighbours of the first drawn, as many as fill B T tokens.
Its rows are as long as the longest of them, so there are at least B.

Legend: B sequences of a full batch, T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlas.data.store import StoreSplit

POOL = 128
MOST = 16  # rows for each row of a full batch
EXAMPLES = 32  # batches from which the share of padding is told


class Rows(NamedTuple):
    """Where rows lie in a split: their first token, and how many targets each has."""

    starts: NDArray[np.int64]
    targets: NDArray[np.int64]

    @property
    def padding(self) -> int:
        return int(len(self.targets) * self.targets.max() - self.targets.sum())


def separate_rows(rng: np.random.Generator, split: StoreSplit, batch: int, sequence: int) -> Rows:
    """The rows of one batch, at least `batch`."""
    drawn = _pool(rng, split, POOL * batch, sequence)
    full = np.flatnonzero(drawn.targets == sequence)[:batch]
    chosen = (
        full if drawn.targets[0] == sequence and len(full) == batch else _neighbours(drawn.targets, batch, sequence)
    )
    return Rows(drawn.starts[chosen], drawn.targets[chosen])


def padding_share(split: StoreSplit, batch: int, sequence: int) -> float:
    """Of the positions of `EXAMPLES` batches."""
    rng = np.random.default_rng(0)
    examples = [separate_rows(rng, split, batch, sequence) for _ in range(EXAMPLES)]
    padding = sum(rows.padding for rows in examples)
    return padding / (padding + sum(int(rows.targets.sum()) for rows in examples))


def _pool(rng: np.random.Generator, split: StoreSplit, count: int, sequence: int) -> Rows:
    """The rows of `count` places; a place whose row has no target is left out, at most every second."""
    places = rng.integers(0, len(split.tokens), count, dtype=np.int64)
    numbers = np.searchsorted(split.ends, places, side="right")
    begins = np.where(numbers > 0, split.ends[numbers - 1], 0)
    starts = places - (places - begins) % sequence
    targets = np.minimum(split.ends[numbers] - starts - 1, sequence)
    some = targets > 0  # the last row of a document may hold its end alone
    return Rows(starts[some], targets[some])


def _neighbours(targets: NDArray[np.int64], batch: int, sequence: int) -> NDArray[np.int64]:
    """Which of the drawn rows form a batch around the first."""
    order = np.argsort(targets, kind="stable")
    place = int(np.flatnonzero(order == 0)[0])
    chosen, longest = order[:0], int(targets[0])
    for _ in range(2):  # the longest of the first choice tells how many there is room for
        count = min(batch * sequence // longest, batch * MOST)
        first = min(max(place - count // 2, 0), len(order) - count)
        chosen = order[first : first + count]
        longest = int(targets[chosen[-1]])
    return chosen
