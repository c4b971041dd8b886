"""RULER's single needle: a sentence with a word key and a 7-digit number in a text, and the question at its end."""

# N sequences, L tokens (bytes)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas.data.needles import RecallSequences

NEEDLE = "One of the special magic numbers for {word} is: {number}. "
QUESTION = (
    " What is the special magic number for {word} mentioned in the provided text?"
    " The special magic number for {word} mentioned in the provided text is: {number}"
)
DIGITS = 7
ADJECTIVES = ("brave", "calm", "dusty", "eager", "faint", "gentle", "hollow", "ivory", "jolly", "keen", "lucky", "mild")
NOUNS = ("anchor", "basket", "candle", "desert", "engine", "forest", "garden", "harbor", "island", "jacket", "kettle")


def ruler_sequences(
    rng: np.random.Generator, haystack: NDArray[np.uint8], *, length: int, depth: float
) -> RecallSequences:
    """One sequence of L tokens per row of `haystack` [N, at least L + 1]; its answer is the number, digit by digit.

    The needle stands at `depth` of the haystack that is kept (0 = its start, 1 = just before the question), moved back
    to the end of a word. Words are adjective-noun.
    """
    rows, distances = [], []
    for hay in haystack:
        word = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
        number = rng.integers(10 ** (DIGITS - 1), 10**DIGITS, dtype=np.int64)
        needle = NEEDLE.format(word=word, number=number).encode()
        question = QUESTION.format(word=word, number=number).encode()
        kept = length + 1 - len(needle) - len(question)
        if kept < 0:
            raise ValueError(f"length={length}: must be >= {length - kept} to hold the needle and its question")
        filler = hay[:kept].tobytes()
        place = _end_of_word(filler, round(depth * kept))
        rows.append(filler[:place] + needle + filler[place:] + question)
        distance = np.zeros(length, dtype=np.int64)
        distance[-DIGITS:] = length + 1 - DIGITS - (place + needle.index(b": ") + 2)
        distances.append(distance)
    tokens = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), length + 1)
    return RecallSequences(tokens, np.stack(distances))


def _end_of_word(text: bytes, place: int) -> int:
    """The latest place up to `place` that follows a blank or a line end; the text's start where there is none."""
    return max(text.rfind(b" ", 0, place), text.rfind(b"\n", 0, place)) + 1
