"""The memory network and its bounds."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from atlas.ops.fast_weights import FastWeights, bound_error, bound_norm, hidden_layer, read


def random_weights() -> FastWeights:
    torch.manual_seed(0)
    down = torch.randn(2, 4, 3, dtype=torch.float64)
    return FastWeights(down, torch.randn(2, 6, 5, dtype=torch.float64))


def test_read_is_the_gated_mlp_of_each_row() -> None:
    weights = random_weights()
    query, features = torch.randn(2, 7, 4, dtype=torch.float64), torch.randn(2, 7, 5, dtype=torch.float64)
    out = read(weights, query, features)
    for row in range(2):
        W1, (W2, W3) = weights.down[row], weights.up[row].chunk(2)
        for t in range(7):
            phi = features[row, t]
            torch.testing.assert_close(out[row, t], query[row, t] + W1 @ (F.silu(W2 @ phi) * (W3 @ phi)))


def test_the_slope_is_the_derivative_of_silu() -> None:
    pre = torch.linspace(-6, 6, 26, dtype=torch.float64).view(1, 1, 26).requires_grad_()
    hidden = hidden_layer(pre)
    (gradient,) = torch.autograd.grad(hidden.activated.sum(), pre)
    torch.testing.assert_close(hidden.slope, gradient[..., :13])


def test_a_bounded_error_keeps_its_direction_and_stays_below_1() -> None:
    torch.manual_seed(0)
    error = torch.randn(6, 4, dtype=torch.float64) * torch.logspace(-3, 6, 6, dtype=torch.float64).unsqueeze(-1)
    bounded = bound_error(error)
    norm = error.norm(dim=-1)
    torch.testing.assert_close(bounded.norm(dim=-1), norm / (1 + norm**2).sqrt())
    torch.testing.assert_close(F.cosine_similarity(bounded, error, dim=-1), torch.ones(6, dtype=torch.float64))


def test_only_matrices_beyond_the_bound_are_scaled_back_to_it() -> None:
    weights = random_weights()
    weights.down[0] *= 100
    weights.up[1] *= 100
    bounded = bound_norm(weights, 4.0)
    down, up = 4 * 3**0.5, 4 * (3 * 5 / 4) ** 0.5
    torch.testing.assert_close(bounded.down[0].norm().item(), down)
    torch.testing.assert_close(bounded.up[1].norm().item(), up)
    torch.testing.assert_close(bounded.down[0] / down, weights.down[0] / weights.down[0].norm())
    torch.testing.assert_close(bounded.down[1], weights.down[1])
    torch.testing.assert_close(bounded.up[0], weights.up[0])


def test_a_memory_without_width_is_empty_and_stays_so() -> None:
    empty = FastWeights(torch.zeros(2, 0, 8), torch.zeros(2, 8, 0))
    bounded = bound_norm(empty, 1.0)
    assert (bounded.down.shape, bounded.up.shape) == ((2, 0, 8), (2, 8, 0))
