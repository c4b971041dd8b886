"""RULER's single needle: a sentence with a word key and a 7-digit number in a text, and the question at its end."""

# N sequences, L tokens (bytes)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas.data.needles import RecallSequences

NEEDLE = "One of the special magic numbers for {word} is: {number}. "
PREFACE = (
    b"A special magic number is hidden within the following text. Make sure to memorize it."
    b" I will quiz you about the number afterwards.\n"
)
QUESTION = (
    "\nWhat is the special magic number for {word} mentioned in the provided text?"
    " The special magic number for {word} mentioned in the provided text is: {number}"
)
DIGITS = 7
NUMBERS = 9 * 10 ** (DIGITS - 1)  # the first digit is no 0
ADJECTIVES = ("brave", "calm", "dusty", "eager", "faint", "gentle", "hollow", "ivory", "jolly", "keen", "lucky", "mild")
NOUNS = ("anchor", "basket", "candle", "desert", "engine", "forest", "garden", "harbor", "island", "jacket", "kettle")
DIFFERS = (
    "RULER's niah_single_2, but: a token is a byte; text of the run for essays, the needle at the end of a word at a"
    f" depth of the grid; {len(ADJECTIVES) * len(NOUNS)} keys; all digits must be the likeliest, those before being"
    " given, where RULER looks for the number in 128 generated tokens; niah.samples for 500."
)


def ruler_sequences(
    rng: np.random.Generator, haystack: NDArray[np.uint8], *, length: int, depth: float
) -> RecallSequences:
    """One sequence of L tokens per row of `haystack` [N, at least L + 1]; its answer is the number, digit by digit.

    RULER's prompt for one needle and one question. The needle stands at `depth` of the haystack that is kept (0 = its
    start, 1 = just before the question), moved back to the end of a word. Words are adjective-noun. `DIFFERS` says what
    RULER does otherwise.
    """
    rows, distances = [], []
    for hay in haystack:
        word = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
        number = rng.integers(10 ** (DIGITS - 1), 10**DIGITS, dtype=np.int64)
        needle = NEEDLE.format(word=word, number=number).encode()
        question = QUESTION.format(word=word, number=number).encode()
        kept = length + 1 - len(PREFACE) - len(needle) - len(question)
        if kept < 0:
            raise ValueError(f"length={length}: must be >= {length - kept} to hold the needle and its question")
        filler = hay[:kept].tobytes()
        place = _end_of_word(filler, round(depth * kept))
        rows.append(PREFACE + filler[:place] + needle + filler[place:] + question)
        distance = np.zeros(length, dtype=np.int64)
        distance[-DIGITS:] = length + 1 - DIGITS - (len(PREFACE) + place + needle.index(b": ") + 2)
        distances.append(distance)
    tokens = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), length + 1)
    return RecallSequences(tokens, np.stack(distances))


def _end_of_word(text: bytes, place: int) -> int:
    """The latest place up to `place` that follows a blank or a line end; the text's start where there is none."""
    return max(text.rfind(b" ", 0, place), text.rfind(b"\n", 0, place)) + 1
