"""Polynomial features: dimension, kernel, refusal."""

from __future__ import annotations

from math import factorial

import pytest
import torch
from torch.nn import functional as F

from atlas.ops.features import feature_counts, feature_norm, homogeneous_features, polynomial_features


def test_dimension_of_the_papers_case() -> None:
    assert feature_counts(64, 2) == [1, 64, 2080]
    assert feature_counts(64, 3) == [1, 64, 2080, 45760]
    assert polynomial_features(torch.zeros(64), 2).shape == (2145,)


@pytest.mark.parametrize("width", [1, 2, 5, 16])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_dimension_is_what_is_announced(width: int, degree: int) -> None:
    assert polynomial_features(torch.zeros(3, width), degree).shape == (3, sum(feature_counts(width, degree)))


def test_every_monomial_up_to_degree_2_is_there() -> None:
    x = torch.tensor([2.0, 3.0, 5.0])
    root = 2**-0.5
    expected = [1, 2, 3, 5, 4 * root, 9 * root, 25 * root, 6, 10, 15]
    assert sorted(polynomial_features(x, 2).tolist()) == pytest.approx(sorted(expected))


def test_the_kernel_is_the_truncated_exponential() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 7, dtype=torch.float64)
    dot = (x * y).sum(-1)
    for degree in (2, 3):
        kernel = (polynomial_features(x, degree) * polynomial_features(y, degree)).sum(-1)
        torch.testing.assert_close(kernel, sum(dot**i / factorial(i) for i in range(degree + 1)))
    for degree in (1, 2, 3):
        kernel = (homogeneous_features(x, degree) * homogeneous_features(y, degree)).sum(-1)
        torch.testing.assert_close(kernel, dot**degree)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_norm_of_a_unit_vector(degree: int) -> None:
    torch.manual_seed(0)
    x = F.normalize(torch.randn(5, 8, dtype=torch.float64), dim=-1)
    norms = polynomial_features(x, degree).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, feature_norm(degree)))


@pytest.mark.parametrize("degree", [0, 4])
def test_another_degree_is_refused(degree: int) -> None:
    with pytest.raises(ValueError, match=f"degree={degree}: must be one of"):
        polynomial_features(torch.zeros(4), degree)
