import numpy as np
import pytest

from atlas.data.needles import NeedleFormat, distinct, write_needles
from atlas.data.symbols import KEY_ALPHABET, MARKER, VALUE_ALPHABET

HAY = np.frombuffer(b"abcdefghijklmnopqrst", dtype=np.uint8)


def test_write_needles_by_hand() -> None:
    events = np.frombuffer(b"\x01K1\x01L2", dtype=np.uint8).reshape(1, 2, 3)
    starts = np.array([[1, 5, 8, 12]])
    pairs = np.array([[0, 1, -1, 0]])
    found = write_needles(events, starts, pairs, HAY[None, :16], value_bytes=1)
    assert bytes(found.tokens[0]) == b"a\x01K1b\x01L2cdef\x01K1g"  # the haystack goes on after each event
    assert found.distance[0].tolist() == [0] * 13 + [11, 0]  # byte 14 answers byte 3; as a target it is number 13
    assert np.flatnonzero(found.answers[0]).tolist() == [13]


def test_distance_is_to_the_latest_event_and_answers_are_whole() -> None:
    events = np.frombuffer(b"\x01K12", dtype=np.uint8).reshape(1, 1, 4)
    starts = np.array([[9, 0, 4]])  # in any order
    found = write_needles(events, starts, np.zeros((1, 3), dtype=np.int64), HAY[None, :14], value_bytes=2)
    assert bytes(found.tokens[0]) == b"\x01K12\x01K12a\x01K12b"
    assert found.distance[0].tolist() == [0, 0, 0, 0, 0, 4, 4, 0, 0, 0, 5, 5, 0]


def test_pairs_have_distinct_keys_and_values_of_the_alphabet() -> None:
    events = NeedleFormat(key_bytes=1, value_bytes=2, value_alphabet=10).draw(np.random.default_rng(0), 50, 52)
    assert (events[:, :, 0] == MARKER).all()
    assert all(sorted(row) == sorted(KEY_ALPHABET) for row in events[:, :, 1])
    assert set(events[:, :, 2:].ravel().tolist()) == set(VALUE_ALPHABET[:10].tolist())


def test_values_are_uniform_and_independent() -> None:
    events = NeedleFormat(key_bytes=2, value_bytes=2, value_alphabet=4).draw(np.random.default_rng(0), 1000, 16)
    joint = np.unique(events[:, :, 3:].reshape(-1, 2), axis=0, return_counts=True)[1]
    assert joint / 16_000 == pytest.approx(np.full(16, 1 / 16), abs=0.008)


@pytest.mark.parametrize(("size", "population"), [(1, 1), (3, 3), (2, 4)])
def test_distinct_draws_every_ordered_choice_equally_often(size: int, population: int) -> None:
    drawn = distinct(np.random.default_rng(0), 24_000, size, population)
    choices, counts = np.unique(drawn, axis=0, return_counts=True)
    expected = int(np.prod(np.arange(population, population - size, -1)))
    assert len(choices) == expected
    assert all(len(set(choice)) == size for choice in choices.tolist())
    assert counts / 24_000 == pytest.approx(np.full(expected, 1 / expected), rel=0.1)
