"""MQAR, multi-query associative recall, as zoology defines it (arXiv 2312.04927, `data/multiquery_ar.py`).

Legend: N sequences, L tokens, V vocabulary, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas.data.needles import distinct

IGNORED = -100  # label of a position that is not scored
DIFFERS = (
    "zoology's MQAR, but: all ids of the model, 256 with bytes, for 8,192; id 0 for random filler; a model that was not"
    " trained on it; niah.samples sequences for 3,000; only questions beyond the reach of attention count."
)
POWER = 0.01  # exponent a of the gaps' power law: p(n) ~ a n^(a - 1)


@dataclass(frozen=True)
class MQARSequences:
    """Token ids and, where a key comes again, its value as the label of that position (the next token's place)."""

    inputs: NDArray[np.int64]  # [N, L]
    labels: NDArray[np.int64]  # [N, L], IGNORED elsewhere


def mqar_sequences(
    rng: np.random.Generator, count: int, length: int, *, vocabulary: int, pairs: int, random_filler: bool
) -> MQARSequences:
    """`count` sequences that start with P key-value pairs; then every key comes again once, at an even offset.

    Keys are ids 1 .. V/2 - 1, values V/2 .. V - 1, both distinct within a sequence. Filler is id 0, or any id where
    `random_filler`. Small offsets are the likelier (power law). The answer itself does not follow its query.
    """
    half = vocabulary // 2
    if not (1 <= pairs < half and 4 * pairs <= length):
        raise ValueError(f"pairs={pairs}: must be in [1, {min(half - 1, length // 4)}] (vocabulary/2 and length/4)")
    context = 2 * pairs
    keys = 1 + distinct(rng, count, pairs, half - 1)
    values = half + distinct(rng, count, pairs, vocabulary - half)
    query = context + 2 * _power_law_offsets(rng, count, pairs, (length - context) // 2)  # [N, P]

    filler = rng.integers(0, vocabulary, (count, length), dtype=np.int64)
    inputs = filler if random_filler else np.zeros_like(filler)
    inputs[:, 0:context:2] = keys
    inputs[:, 1:context:2] = values
    np.put_along_axis(inputs, query, keys, axis=1)
    labels = np.full((count, length), IGNORED, dtype=np.int64)
    np.put_along_axis(labels, query, values, axis=1)
    return MQARSequences(inputs, labels)


def _power_law_offsets(rng: np.random.Generator, count: int, size: int, places: int) -> NDArray[np.int64]:
    """[count, size] distinct offsets below `places`, drawn one after the other with p(n) ~ a (n + 1)^(a - 1).

    The `size` smallest of exponential times with these rates, in order of time, are such a draw.
    """
    rates = POWER * np.arange(1, places + 1) ** (POWER - 1)
    return np.argsort(rng.exponential(size=(count, places)) / rates, axis=1)[:, :size]
