"""RULER's single needle: a sentence with a word key and a 7-digit number in a text, and the question at its end.

Legend: N sequences, L tokens (bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from atlas.data.needles import RecallSequences, Tokens
from atlas.data.symbols import RulerPieces

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
    "RULER's niah_single_2, but: a token is a byte, or the number spelt in digits; text of the run for essays, the"
    " needle at the end of a word (of a token) at a depth of the grid;"
    f" {len(ADJECTIVES) * len(NOUNS)} keys; all digits must be the likeliest, those before being"
    " given, where RULER looks for the number in 128 generated tokens; niah.samples for 500."
)


def ruler_pieces(encode: Callable[[str], Sequence[int]], digits: Sequence[int]) -> RulerPieces:
    """The prompt in ids, each piece encoded on its own; a number is spelt digit by digit."""

    def ids(text: str) -> NDArray[np.uint32]:
        return np.array(encode(text), dtype=np.uint32)

    needle = [ids(text) for text in NEEDLE.replace(" {word}", "|").replace("{number}", "|").split("|")]
    question = [ids(text) for text in QUESTION.replace(" {word}", "|").replace("{number}", "|").split("|")][:3]
    words = {word: ids(f" {word}") for word in (f"{one}-{noun}" for one in ADJECTIVES for noun in NOUNS)}
    return RulerPieces(
        ids(PREFACE.decode()),
        (needle[0], needle[1], needle[2]),
        (question[0], question[1], question[2]),
        words,
        np.array(digits, dtype=np.uint32),
    )


def ruler_in_ids(
    rng: np.random.Generator, haystack: Tokens, pieces: RulerPieces, *, length: int, depth: float
) -> RecallSequences:
    """As `ruler_sequences`, in the ids of a tokenizer. The needle stands between two tokens, also inside of a word."""
    rows, distances = [], []
    for hay in haystack:
        word = pieces.words[f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"]
        number = rng.integers(10 ** (DIGITS - 1), 10**DIGITS, dtype=np.int64)
        digits = pieces.digits[[int(digit) for digit in str(number)]]
        before = np.concatenate([pieces.needle[0], word, pieces.needle[1]])
        needle = np.concatenate([before, digits, pieces.needle[2]])
        asked = (pieces.question[0], word, pieces.question[1], word, pieces.question[2], digits)
        question = np.concatenate(asked)
        kept = length + 1 - len(pieces.preface) - len(needle) - len(question)
        if kept < 0:
            raise ValueError(f"length={length}: must be >= {length - kept} to hold the needle and its question")
        place = round(depth * kept)
        rows.append(np.concatenate([pieces.preface, hay[:place], needle, hay[place:kept], question]))
        distance = np.zeros(length, dtype=np.int64)
        distance[-DIGITS:] = length + 1 - DIGITS - (len(pieces.preface) + place + len(before))
        distances.append(distance)
    return RecallSequences(np.stack(rows).astype(np.uint32), np.stack(distances))


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
