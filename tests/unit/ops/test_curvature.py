"""The limits of a chunk's writes: what it leaves alone, what it scales down, and gradients with and without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.ops.chunk_scan import Scan, open_state
from atlas.ops.curvature import causally_damped, curvature, damped_rates, damping
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.rules.gd import GradientDescent

WIDTH, CHUNK = 8, 32


def test_the_curvature_is_the_sum_over_the_tokens_and_its_largest_eigenvalue_ends_below_the_limit() -> None:
    torch.manual_seed(0)
    key = F.normalize(torch.randn(2, 3 * CHUNK, WIDTH, dtype=torch.float64), dim=-1)
    key[:, CHUNK : 2 * CHUNK] = key[:, CHUNK : CHUNK + 1]  # a chunk of equal keys
    rate = torch.full((2, 3 * CHUNK), 0.5, dtype=torch.float64)
    rate[:, 2 * CHUNK :] = 0.02
    by_token = sum(rate[0, t] * torch.outer(key[0, t], key[0, t]) for t in range(CHUNK, 2 * CHUNK))
    found = curvature(key.unflatten(1, (3, CHUNK)), rate.unflatten(1, (3, CHUNK)))
    torch.testing.assert_close(found[0, 1], by_token)
    share = damping(found, 2.0)
    assert share[:, 1].tolist() == pytest.approx([0.125, 0.125])  # 32 equal keys at a rate of 0.5
    assert share[:, 2].tolist() == [1, 1]
    assert (torch.linalg.eigvalsh(found * share[..., None, None]) <= 2 + 1e-9).all()
    damped = damped_rates(key, rate, CHUNK, 2.0)
    torch.testing.assert_close(damped, rate * share.repeat_interleave(CHUNK, dim=1))
    assert damping(torch.zeros(1, WIDTH, WIDTH), 2.0).tolist() == [1]


def gradient(dtype: torch.dtype, curvature_max: float) -> Tensor:
    """Of all reads of 64 chunks, by W_init and keys; keys point in much the same direction."""
    torch.manual_seed(1)
    query, value = (F.normalize(torch.randn(1, 64 * CHUNK, WIDTH), dim=-1).to(dtype) for _ in range(2))
    key = F.normalize(torch.randn(1, 64 * CHUNK, WIDTH) + 1.5, dim=-1).to(dtype)
    weights = [torch.randn(1, WIDTH, WIDTH) * 0.1, torch.randn(1, 2 * WIDTH, WIDTH) * (4 / WIDTH) ** 0.25]
    leaves = [key.requires_grad_(), *(matrix.to(dtype).requires_grad_() for matrix in weights)]
    rate = torch.full((1, 64 * CHUNK), 0.5, dtype=dtype)
    tokens = ChunkInputs(query, key, value, query, key, rate, rate.new_zeros(1, 64 * CHUNK, 0))
    scan = Scan(GradientDescent(), CHUNK, 8.0, True, curvature_max=curvature_max)
    out, _ = scan(open_state(GradientDescent(), FastWeights(*leaves[1:]), curved=curvature_max > 0), tokens)
    of_leaves = torch.autograd.grad((out * torch.randn(out.shape).to(dtype)).sum(), leaves)
    return torch.cat([one.flatten().double() for one in of_leaves])


def test_gradients_through_many_chunks_of_keys_that_are_alike_are_right_with_the_limit_and_explode_without() -> None:
    exact, limited = gradient(torch.float64, 2.0), gradient(torch.float32, 2.0)
    assert (limited - exact).norm() < 1e-3 * exact.norm()
    assert gradient(torch.float64, 0.0).norm() > 1e6 * exact.norm()


def test_equal_keys_of_a_local_chunk_write_as_if_their_rates_added_up_to_less_than_the_limit() -> None:
    torch.manual_seed(0)
    key = F.normalize(torch.randn(3, CHUNK, WIDTH, dtype=torch.float64), dim=-1)
    key[1] = key[1, :1]
    rate = torch.rand(3, CHUNK, dtype=torch.float64)
    rate[2] *= 0.1
    damped = causally_damped(key, rate, 2.0)
    assert rate[1].sum() > 10 > 2 >= damped[1].sum() > 1.5
    assert damped[1, 0] == rate[1, 0]
    assert torch.equal(damped[2], rate[2])  # where little is written nothing changes, to the last bit
    along = [sum(rate[0, i] * (key[0, i] @ key[0, t]) ** 2 for i in range(t + 1)) for t in range(CHUNK)]
    wanted = torch.stack([rate[0, t] * min(1.0, 1 / float(along[t])) ** 2 for t in range(CHUNK)])
    torch.testing.assert_close(damped[0], wanted)
    first = curvature(key[:, :20], rate[:, :20])
    later = causally_damped(key[:, 20:], rate[:, 20:], 2.0, first)  # cut anywhere
    torch.testing.assert_close(later, damped[:, 20:])


def test_gradients_through_runs_of_equal_keys_in_local_chunks_are_right_with_the_limit_and_explode_without() -> None:
    exact, limited = gradient_local(torch.float64, 2.0), gradient_local(torch.float32, 2.0)
    assert (limited - exact).norm() < 1e-3 * exact.norm()
    assert gradient_local(torch.float64, 0.0).norm() > 1e6 * exact.norm()


def gradient_local(dtype: torch.dtype, curvature_max: float) -> Tensor:
    """Of all reads of 16 chunks of 16 tokens at a rate of 0.6, by W_init and keys; all keys of a chunk are equal."""
    torch.manual_seed(1)
    query, value = (F.normalize(torch.randn(1, 256, WIDTH), dim=-1).to(dtype) for _ in range(2))
    key = F.normalize(torch.randn(1, 16, 1, WIDTH), dim=-1).repeat(1, 1, 16, 1).flatten(1, 2).to(dtype)
    weights = [torch.randn(1, WIDTH, WIDTH) * 0.1, torch.randn(1, 2 * WIDTH, WIDTH) * (4 / WIDTH) ** 0.25]
    leaves = [key.requires_grad_(), *(matrix.to(dtype).requires_grad_() for matrix in weights)]
    rate = torch.full((1, 256), 0.6, dtype=dtype)
    tokens = ChunkInputs(query, key, value, query, key, rate, rate.new_zeros(1, 256, 0))
    scan = Scan(GradientDescent(), 16, 8.0, False, curvature_max_local=curvature_max)
    state = open_state(GradientDescent(), FastWeights(*leaves[1:]), curved_local=curvature_max > 0)
    out, _ = scan(state, tokens)
    of_leaves = torch.autograd.grad((out * torch.randn(out.shape).to(dtype)).sum(), leaves)
    return torch.cat([one.flatten().double() for one in of_leaves])
