from __future__ import annotations

import numpy as np
import pytest

from atlas.report.thinning import moving_mean, thin


def test_few_values_all_stay() -> None:
    assert thin(np.arange(5.0), 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("at", [0, 1, 4321, 9998, 9999])
@pytest.mark.parametrize("value", [-50.0, 50.0])
def test_extremes_ends_and_what_is_asked_for_stay(at: int, value: float) -> None:
    values = np.random.default_rng(at).standard_normal(10_000)
    values[at] = value
    chosen = thin(values, 1000, kept=[777, 5000])
    assert {0, 777, 5000, 9999, at} <= set(chosen.tolist())
    assert len(chosen) <= 1002
    assert (np.diff(chosen) > 0).all()


def test_every_stretch_keeps_its_range() -> None:
    values = np.random.default_rng(0).standard_normal(1000)
    chosen = thin(values, 102)
    for stretch in np.array_split(np.arange(1000), 50):
        kept = values[np.intersect1d(chosen, stretch)]
        assert (kept.min(), kept.max()) == (values[stretch].min(), values[stretch].max())


def test_moving_mean_is_the_mean_of_each_window() -> None:
    values = np.random.default_rng(1).standard_normal(50)
    expected = [values[start : start + 7].mean() for start in range(44)]
    np.testing.assert_allclose(moving_mean(values, 7), expected, atol=1e-12)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 20])
def test_a_large_value_does_not_change_the_means_behind_it(width: int) -> None:
    """A perplexity of e^45 in one step, as of a spike that nothing rolled back."""
    values = np.arange(1.0, 21.0)
    values[8] = 3.5e19
    found = moving_mean(values, width)
    expected = [values[at : at + width].mean() for at in range(21 - width)]
    assert found.tolist() == pytest.approx(expected)
