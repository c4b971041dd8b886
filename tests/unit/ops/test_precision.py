"""Gradients through the inner loop in float32, beside float64."""

from __future__ import annotations

import pytest

from atlas.config import MemoryConfig, Rule
from experiments.precision.__main__ import ALLOWED, Memory, error

HIGHEST = 1.0


def test_the_highest_rate_is_the_end_of_the_range() -> None:
    assert MemoryConfig(rate_max=HIGHEST, rate_init=0.1).rate_max == HIGHEST
    with pytest.raises(ValueError, match=r"^model.memory.rate_max=1.01: must be in \(0, 1\]$"):
        MemoryConfig(rate_max=HIGHEST + 0.01)


@pytest.mark.parametrize("rule", list(Rule))
def test_gradients_of_different_keys_are_right_to_1_percent_at_the_highest_rate(rule: Rule) -> None:
    assert error(rule, Memory("local", tokens=64, chunk=16), equal=1, rate=HIGHEST) < ALLOWED


def test_gradients_beyond_it_are_not() -> None:
    assert error(Rule.momentum, Memory("local", tokens=128, chunk=1), equal=1, rate=4.0) > ALLOWED
