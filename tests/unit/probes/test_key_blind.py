"""Readers that ignore the key, and how certain a share is."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from atlas.config import NIAHConfig
from atlas.data.needles import NeedleFormat
from atlas.probes.haystacks import Questions, build_questions
from atlas.probes.key_blind import key_blind_readers, lower_bound


def by_hand(seen: list[list[int]], answers: list[int]) -> Questions:
    """A question a sequence, values of one byte."""
    count = len(seen)
    zero = np.zeros((count, 1, 1), dtype=np.int64)
    values = np.array(seen, dtype=np.int64)[:, None, :, None]
    answer = np.array(answers, dtype=np.int64).reshape(count, 1, 1)
    return Questions(
        "multi_key", "noise", 8, 0.0, 0.1, np.zeros((count, 8), np.int64), zero, answer, zero[..., 0], values,
        np.arange(10),
    )  # fmt: skip


def test_readers_by_hand() -> None:
    questions = by_hand([[5, 7, 7, 2], [5, 7, 2, -1], [3, 3, 8, 8]], [7, 5, 8])
    found = key_blind_readers(questions, np.ones((3, 1), dtype=np.bool_))
    assert found == {
        "first value": pytest.approx((0 + 1 + 0) / 3),
        "last value": pytest.approx((0 + 0 + 1) / 3),
        "most frequent value": pytest.approx((1 + 1 / 3 + 1 / 2) / 3),  # a tie is broken at random
        "random value": pytest.approx((2 / 4 + 1 / 3 + 2 / 4) / 3),
    }
    only_last = key_blind_readers(questions, np.array([[False], [False], [True]]))
    assert only_last == {"first value": 0, "last value": 1, "most frequent value": 0.5, "random value": 0.5}


@pytest.mark.parametrize("task", ["single", "multi_key", "multi_query"])
def test_seen_are_the_values_before_the_question_in_the_order_of_the_bytes(task: str) -> None:
    needles = NeedleFormat(key_bytes=2, value_bytes=2, value_alphabet=16)
    settings = NIAHConfig(samples=20)
    questions = build_questions(np.random.default_rng(0), settings, needles, None, task, 256, 0.5)
    for row, tokens in enumerate(questions.inputs.tolist()):
        markers = [place for place, token in enumerate(tokens) if token == 1]
        values = [tokens[place + 3 : place + 5] for place in markers]
        for query, seen in enumerate(questions.seen[row].tolist()):
            before = len(values) - questions.seen.shape[1] + query
            assert seen[:before] == values[:before]
            assert all(value == [-1, -1] for value in seen[before:])
            assert questions.answer[row, query].tolist() in values[:before]


def test_the_lower_bound_is_the_share_at_which_so_many_are_found_once_in_a_hundred() -> None:
    assert lower_bound(0, 24) == 0.0
    assert lower_bound(24, 24) == pytest.approx(0.01 ** (1 / 24))
    share = lower_bound(17, 24)
    assert sum(comb(24, k) * share**k * (1 - share) ** (24 - k) for k in range(17, 25)) == pytest.approx(0.01)
    normal = 0.5 - 2.326 * (0.25 / 2000) ** 0.5
    assert lower_bound(1000, 2000) == pytest.approx(normal, abs=5e-4)  # binomial coefficients are beyond a float
