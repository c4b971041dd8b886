"""Haystacks: the filler around needles.

Legend: N sequences, M tokens of each.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from atlas.data.needles import Tokens
from atlas.data.sampler import Random, of_rows
from atlas.data.symbols import BYTE_SYMBOLS, Symbols

HAYSTACKS = ("noise", "random", "text", "none")


def build_haystacks(
    rng: Random,
    count: int,
    length: int,
    kinds: Mapping[str, float],
    text: Tokens | None,
    symbols: Symbols = BYTE_SYMBOLS,
) -> Tokens:
    """[count, length] ids. Each row is of one kind, drawn with the relative weights `kinds`.

    noise: RULER's five sentences over and over, from a random place. random: printable ASCII, one by one. text: a
    stretch of `text` from a random place. none: blanks.
    """
    names = [name for name in HAYSTACKS if kinds.get(name, 0) > 0]
    shares = np.cumsum([kinds[name] for name in names])
    kind = np.searchsorted(shares[:-1], rng.random((count,)) * shares[-1], side="right")
    rows = np.empty((count, length), dtype=symbols.dtype)
    for index, name in enumerate(names):
        chosen = kind == index
        rows[chosen] = _one_kind(of_rows(rng, chosen), name, int(chosen.sum()), length, text, symbols)
    return rows


def _one_kind(rng: Random, name: str, count: int, length: int, text: Tokens | None, symbols: Symbols) -> Tokens:
    rows = np.empty((count, length), dtype=symbols.dtype)
    if name == "none":
        rows[:] = symbols.blank
    elif name == "random":
        rows[:] = symbols.random[rng.integers(0, len(symbols.random), (count, length), dtype=np.uint8)]
    elif name == "noise":
        noise = symbols.noise
        rows[:] = noise[(rng.integers(0, len(noise), (count, 1), dtype=np.int64) + np.arange(length)) % len(noise)]
    elif text is None:
        raise ValueError("haystack.text: needs a text")
    else:
        starts = rng.integers(0, len(text) - length + 1, (count, 1), dtype=np.int64)
        rows[:] = text[starts + np.arange(length)]
    return rows
