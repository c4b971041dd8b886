"""Needles: key-value pairs written into a haystack, and where their answers are.

A needle is `marker key value`; a query is the same bytes again, so its value is the answer, given to the model after
the fact (teacher forcing). Every value byte follows from the pair and from the three bytes before it when
`1 + key_bytes <= 3` and `value_bytes <= 2`: a causal convolution of width 4 can bind it.

Legend: N sequences, L tokens, P pairs, E events (needles and queries), slot = bytes of an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas.data.sampler import Random
from atlas.data.symbols import BYTE_SYMBOLS, Symbols

Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class NeedleFormat:
    """How many symbols (bytes, with bytes as tokens) a key and a value have, and how many a value symbol can be."""

    key_bytes: int
    value_bytes: int
    value_alphabet: int
    symbols: Symbols = BYTE_SYMBOLS

    @property
    def slot(self) -> int:
        return 1 + self.key_bytes + self.value_bytes

    @property
    def values(self) -> Tokens:
        """The ids that a value symbol can be."""
        return self.symbols.values[: self.value_alphabet]

    def draw(self, rng: Random, count: int, pairs: int) -> Tokens:
        """Ids of the pairs, [N, P, slot]: keys distinct within a sequence, values independent and uniform."""
        letters = self.symbols.keys
        keys = distinct(rng, count, pairs, len(letters) ** self.key_bytes)
        places = len(letters) ** np.arange(self.key_bytes - 1, -1, -1)
        values = rng.integers(0, self.value_alphabet, (count, pairs, self.value_bytes), dtype=np.int64)
        events = np.empty((count, pairs, self.slot), dtype=self.symbols.dtype)
        events[:, :, 0] = self.symbols.marker
        events[:, :, 1 : 1 + self.key_bytes] = letters[keys[..., None] // places % len(letters)]
        events[:, :, 1 + self.key_bytes :] = self.symbols.values[values]
        return events


@dataclass(frozen=True)
class RecallSequences:
    """Token sequences with the answers marked."""

    tokens: Tokens  # [N, L + 1]: inputs are tokens[:, :-1], targets tokens[:, 1:]
    distance: NDArray[np.int64]  # [N, L]: tokens from target t back to the same byte of the pair's latest event;
    #                                      0 = target t is no answer

    @property
    def answers(self) -> NDArray[np.bool_]:
        """[N, L]: target t is an answer byte. The bytes of one answer are neighbours, in order."""
        return self.distance > 0


def distinct(rng: Random, count: int, size: int, population: int) -> NDArray[np.int64]:
    """[count, size] integers below `population`, no two of a row equal, every ordered choice equally likely.

    Floyd's algorithm, one column at a time for all rows, then a shuffle of each row.
    """
    chosen = np.empty((count, size), dtype=np.int64)
    for column in range(size):
        newest = population - size + column
        drawn = rng.integers(0, newest + 1, (count,), dtype=np.int64)
        taken = (chosen[:, :column] == drawn[:, None]).any(axis=1)
        chosen[:, column] = np.where(taken, newest, drawn)
    return rng.permuted(chosen, axis=1)


def write_needles(
    events: Tokens,  # [N, P, slot]: ids of every pair, see NeedleFormat.draw
    starts: NDArray[np.int64],  # [N, E]: position of each event's marker; events must not overlap
    pairs: NDArray[np.int64],  # [N, E]: which pair the event shows; -1 = no event
    haystack: Tokens,  # [N, L + 1]: filler, pushed apart by the events, its end left out
    value_bytes: int,
) -> RecallSequences:
    """Write events into haystacks. The first event of a pair is its needle, every later one is a query."""
    slot = events.shape[2]
    row, event = np.nonzero(pairs >= 0)
    position = starts[row, event][:, None] + np.arange(slot)  # [events, slot]
    free = np.ones(haystack.shape, dtype=np.bool_)
    free[row[:, None], position] = False
    filler = np.maximum(np.cumsum(free, axis=1) - 1, 0)
    tokens = np.take_along_axis(haystack, filler, axis=1)
    tokens[row[:, None], position] = events[row, pairs[row, event]]

    distance = np.zeros((haystack.shape[0], haystack.shape[1] - 1), dtype=np.int64)
    answer = position[:, slot - value_bytes :] - 1  # as targets
    distance[row[:, None], answer] = _distance_to_latest(starts, pairs)[row, event][:, None]
    return RecallSequences(tokens, distance)


def _distance_to_latest(starts: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N, E]: tokens from each event back to the latest earlier event of its pair; 0 for a needle."""
    earlier = (pairs[:, :, None] == pairs[:, None, :]) & (starts[:, None, :] < starts[:, :, None])
    latest = np.where(earlier, starts[:, None, :], -1).max(axis=2)
    return np.where(latest >= 0, starts - latest, 0)
