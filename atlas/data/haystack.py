"""Haystacks: the filler around needles."""

# N sequences, M bytes of each

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from atlas.data.sampler import Random, of_rows

HAYSTACKS = ("noise", "random", "text", "none")
NOISE = b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "  # RULER single_1
PRINTABLE = (32, 127)  # the bytes of a random haystack


def build_haystacks(
    rng: Random, count: int, length: int, kinds: Mapping[str, float], text: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """[count, length] bytes. Each row is of one kind, drawn with the relative weights `kinds`.

    noise: RULER's five sentences over and over, from a random place. random: printable ASCII. text: a stretch of
    `text` from a random place. none: blanks.
    """
    names = [name for name in HAYSTACKS if kinds.get(name, 0) > 0]
    shares = np.cumsum([kinds[name] for name in names])
    kind = np.searchsorted(shares[:-1], rng.random((count,)) * shares[-1], side="right")
    rows = np.empty((count, length), dtype=np.uint8)
    for index, name in enumerate(names):
        chosen = kind == index
        rows[chosen] = _one_kind(of_rows(rng, chosen), name, int(chosen.sum()), length, text)
    return rows


def _one_kind(rng: Random, name: str, count: int, length: int, text: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    rows = np.empty((count, length), dtype=np.uint8)
    if name == "none":
        rows[:] = ord(" ")
    elif name == "random":
        rows[:] = rng.integers(*PRINTABLE, (count, length), dtype=np.uint8)
    elif name == "noise":
        noise = np.frombuffer(NOISE, dtype=np.uint8)
        rows[:] = noise[(rng.integers(0, len(noise), (count, 1), dtype=np.int64) + np.arange(length)) % len(noise)]
    elif text is None:
        raise ValueError("haystack.text: needs a text")
    else:
        starts = rng.integers(0, len(text) - length + 1, (count, 1), dtype=np.int64)
        rows[:] = text[starts + np.arange(length)]
    return rows
