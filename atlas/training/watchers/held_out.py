"""How much of the validation rows training reads as well, for a data source that names no text behind its rows.

Pieces of rows are compared by their hashes. Left out are pieces of few different tokens, and those that validation has
twice: they come again in any text of their kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas.data.batch import Batch

LONGEST, SHORTEST = 64, 32  # tokens of a piece; half a row at most, so that rows cut elsewhere have some in common
STRIDE = 16  # tokens from one piece of a training row to the next, and of validation in a stretch
DIFFERENT = 8  # tokens at least in a piece
STRETCHES = 32  # at least, to say anything

Rows = NDArray[np.int64]  # [B, T]


class HeldOut:
    """The stretches of validation rows, and which of them training has read. A stretch is read if one of the pieces
    that begin in it is."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        rows = [row for batch in batches for row in text_rows(batch)]  # a recall task has none
        self.size = min((len(row) for row in rows), default=0) // 2
        self.size = min(self.size, LONGEST) if self.size >= SHORTEST else 0
        pieces = list(self._pieces(rows)) if self.size else []
        nothing = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
        hashes, stretches = (np.concatenate(parts) for parts in zip(nothing, *pieces, strict=True))
        self._hashes, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        alone = counts == 1
        self._hashes, self._stretches = self._hashes[alone], stretches[first[alone]]
        self._read = np.zeros(stretches.max(initial=0) + 1, dtype=bool)
        self.count = len(np.unique(self._stretches))

    @property
    def compares(self) -> bool:
        return self.count >= STRETCHES

    @property
    def share(self) -> float:
        """Of the stretches, that was read."""
        return int(self._read.sum()) / self.count

    def see(self, batch: Batch) -> None:
        """A training batch, on the CPU."""
        rows = text_rows(batch)
        if rows.shape[1] < self.size:
            return
        pieces = np.lib.stride_tricks.sliding_window_view(rows, self.size, axis=1)[:, ::STRIDE]
        found = hashes_of(pieces).ravel()
        at = np.minimum(np.searchsorted(self._hashes, found), len(self._hashes) - 1)
        self._read[self._stretches[at[self._hashes[at] == found]]] = True

    def _pieces(self, rows: Sequence[NDArray[np.int64]]) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        """Of each row: hashes of its pieces, and the stretches in which these begin."""
        first = 0
        for row in rows:
            pieces = np.lib.stride_tricks.sliding_window_view(row, self.size)
            rich = 1 + (np.diff(np.sort(pieces, axis=1), axis=1) > 0).sum(1) >= DIFFERENT
            yield hashes_of(pieces)[rich], first + np.flatnonzero(rich) // STRIDE
            first += len(row) // STRIDE + 1


def text_rows(batch: Batch) -> Rows:
    rows: Rows = batch.inputs[~batch.recall & (batch.weights > 0).any(1)].numpy()
    return rows


def hashes_of(pieces: NDArray[Any]) -> NDArray[np.uint64]:
    """Of pieces [..., n]."""
    found: NDArray[np.uint64] = (pieces.astype(np.uint64) * _factors(pieces.shape[-1])).sum(-1)
    return found


@cache
def _factors(count: int) -> NDArray[np.uint64]:
    return np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
