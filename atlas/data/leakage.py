"""How much of the validation text is also in the training text."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from atlas.data.needles import Tokens

BLOCK = 128  # bytes; shorter ones repeat by chance
FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
PIECE = 1 << 16  # positions hashed at a time, so that the data stay in the cache
VALIDATION_BLOCKS = 1 << 16  # blocks compared at most, about
TRAINING_BLOCKS = 1 << 21
PIECES = 32  # of a text that are looked for
SHORTEST = 32  # tokens of a text that stand nowhere by chance


def shared_blocks(
    train: Tokens, validation: Tokens, *, block: int = BLOCK, symbols: int = 256
) -> tuple[float, NDArray[np.int64]]:
    """The share of the validation blocks that stand in training, and where in `validation` those compared begin.

    A block is any `block` tokens, below `symbols`, in a row, wherever they begin, so a copy that is shifted is found. A
    copy with a change in every block, or with other line ends, is not. Of a long text a sample is compared: the blocks
    whose hash begins with zeros, which are the same ones on both sides.
    """
    most = max(len(validation) / VALIDATION_BLOCKS, len(train) / TRAINING_BLOCKS, 1.0)
    zeros = ceil(log2(most))
    hashes, starts = _sample(validation, zeros, block, symbols)
    if not len(hashes):
        return 0.0, starts
    known = np.sort(_sample(train, zeros, block, symbols)[0])  # `np.isin` takes ten times as long for so many
    if not len(known):
        return 0.0, starts[:0]
    shared = known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes
    return float(shared.mean()), starts[shared]


def block_tokens(bytes_per_token: float) -> int:
    """Tokens of a block with about `BLOCK` bytes of text."""
    return max(round(BLOCK / bytes_per_token), 1)


def share_within(train: Tokens, texts: Mapping[str, Tokens]) -> dict[str, float | None]:
    """Of pieces of each text, evenly far apart, the share that stands in training; None for a text that is too short.

    For any text, however short beside training, where `shared_blocks` samples the blocks of both.
    """
    known = train.tobytes()
    return {name: _share(known, text.astype(train.dtype)) for name, text in texts.items()}


def _share(known: bytes, text: Tokens) -> float | None:
    if len(text) < SHORTEST:
        return None
    starts = np.unique(np.linspace(0, max(len(text) - BLOCK, 0), PIECES).astype(np.int64)).tolist()
    return sum(text[start : start + BLOCK].tobytes() in known for start in starts) / len(starts)


def _sample(
    text: Tokens, zeros: int, block: int = BLOCK, symbols: int = 256
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the blocks whose hash begins with so many zero bits, and where these blocks begin.

    The hash of the block at i is sum_j value[text[i + j]] FACTOR^j, from differences of one running sum.
    """
    values = np.random.default_rng(0).integers(0, 2**64, symbols, dtype=np.uint64)
    powers = _powers(FACTOR, PIECE + block - 1)
    inverses = _powers(pow(FACTOR, -1, 2**64), PIECE)
    limit = np.uint64(2 ** (64 - zeros) - 1)
    hashes, starts = [], []
    for first in range(0, len(text) - block + 1, PIECE):
        piece = text[first : first + PIECE + block - 1]
        sums = np.zeros(len(piece) + 1, dtype=np.uint64)
        np.cumsum(values[piece] * powers[: len(piece)], out=sums[1:])
        found = (sums[block:] - sums[:-block]) * inverses[: len(piece) - block + 1]
        chosen = np.flatnonzero(found <= limit)
        hashes.append(found[chosen])
        starts.append(first + chosen)
    if not hashes:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    return np.concatenate(hashes), np.concatenate(starts)


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """base^0 .. base^(count - 1) modulo 2**64."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
