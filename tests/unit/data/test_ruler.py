import re

import numpy as np
import pytest

from atlas.data.haystack import build_haystacks
from atlas.data.ruler import PREFACE, ruler_in_ids, ruler_pieces, ruler_sequences

SENTENCE = re.compile(rb"One of the special magic numbers for (\S+) is: (\d{7})\. ")


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_number_of_the_needle_answers_the_question(depth: float) -> None:
    hay = build_haystacks(np.random.default_rng(0), 10, 700, {"noise": 1.0}, None)
    found = ruler_sequences(np.random.default_rng(1), hay, length=600, depth=depth)
    words = set()
    for tokens, distance in zip(found.tokens, found.distance, strict=True):
        row = bytes(tokens)
        needle = SENTENCE.search(row)
        assert needle is not None
        word, number = needle.groups()
        assert row.endswith(b"The special magic number for " + word + b" mentioned in the provided text is: " + number)
        assert row[needle.start() - 1 : needle.start()] in (b" ", b"\n")
        assert np.flatnonzero(distance).tolist() == list(range(593, 600))
        assert set(distance[593:].tolist()) == {row.rindex(number) - needle.start(2)}
        assert row.startswith(PREFACE)
        question = row.index(b"\nWhat is the special") - len(PREFACE)
        filler = question - len(needle.group())
        assert needle.start() - len(PREFACE) == pytest.approx(depth * filler, abs=8)
        words.add(word)
    assert len(words) > 5


def test_refuses_a_length_without_room() -> None:
    with pytest.raises(ValueError, match="length=100: must be >= "):
        ruler_sequences(np.random.default_rng(0), np.zeros((1, 101), dtype=np.uint8), length=100, depth=0.5)


def test_the_prompt_in_ids_is_that_in_bytes_where_ids_are_bytes() -> None:
    pieces = ruler_pieces(lambda text: list(text.encode()), range(48, 58))
    hay = build_haystacks(np.random.default_rng(0), 10, 700, {"none": 1.0}, None)  # a needle may stand anywhere in it
    for depth in (0.0, 0.4, 1.0):
        in_bytes = ruler_sequences(np.random.default_rng(1), hay, length=699, depth=depth)
        in_ids = ruler_in_ids(np.random.default_rng(1), hay, pieces, length=699, depth=depth)
        assert (in_ids.tokens == in_bytes.tokens).all()
        assert (in_ids.distance == in_bytes.distance).all()
