"""Newton-Schulz: what it does to singular values, to batches, to tall matrices and to zero; and the compiled kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atlas.ops.newton_schulz import COEFFICIENTS, cpp, newton_schulz


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5), (1, 6)])
def test_it_is_the_odd_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    U, sigma, Vh = torch.linalg.svd(matrix, full_matrices=False)
    a, b, c = COEFFICIENTS
    sigma = sigma / matrix.norm()
    for _ in range(5):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    torch.testing.assert_close(newton_schulz(matrix.unsqueeze(0), 5, 0.0)[0], U @ torch.diag(sigma) @ Vh)


def test_five_iterations_bring_singular_values_near_1() -> None:
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0] for _ in range(2))
    sigma = torch.logspace(
        -1, 0, 64, dtype=torch.float64
    )  # each at least 1/100 of the norm of the matrix, which is 3.4
    after = torch.linalg.svdvals(newton_schulz((U * sigma @ V).unsqueeze(0), 5))
    assert 0.68 < after.min().item() < after.max().item() < 1.21


def test_a_batch_is_its_matrices_one_by_one() -> None:
    torch.manual_seed(0)
    batch = torch.randn(3, 2, 4, 7, dtype=torch.float64)
    each = torch.stack([newton_schulz(matrix.unsqueeze(0), 5)[0] for matrix in batch.flatten(0, 1)])
    torch.testing.assert_close(newton_schulz(batch, 5), each.view_as(batch))


def test_a_tall_matrix_is_the_transpose_of_its_wide_one() -> None:
    torch.manual_seed(0)
    tall = torch.randn(2, 9, 4, dtype=torch.float64)
    torch.testing.assert_close(newton_schulz(tall, 5), newton_schulz(tall.mT, 5).mT)


def test_zero_stays_zero_with_a_gradient_that_the_floor_bounds() -> None:
    zero = torch.zeros(1, 4, 4, dtype=torch.float64, requires_grad=True)
    out = newton_schulz(zero, 5, floor=0.1)
    (gradient,) = torch.autograd.grad(out[0, 0, 0], zero)
    assert torch.count_nonzero(out) == 0
    torch.testing.assert_close(gradient.max().item(), COEFFICIENTS[0] ** 5 / 0.1)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 19, 8), (1, 40, 24), (2, 2, 24, 153), (3, 8, 48)])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded", "sliced"])
def test_the_kernel_is_the_plain_one_in_output_and_gradient(shape: tuple[int, ...], layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, weight = (torch.randn(shape, generator=generator) for _ in range(2))
    if layout == "transposed":
        matrix, weight = (part.mT.contiguous().mT for part in (matrix, weight))
    elif layout == "expanded":
        matrix, weight = (part[:1].expand(shape) for part in (matrix, weight))
    elif layout == "sliced":
        matrix, weight = (torch.cat((part, part), dim=-1)[..., : shape[-1]] for part in (matrix, weight))
    found: list[Tensor] = []
    wanted: list[Tensor] = []
    for results, dtype in ((found, torch.float32), (wanted, torch.float64)):
        given = matrix.to(dtype).requires_grad_()
        out = newton_schulz(given, 5, 0.1)
        results += [out, *torch.autograd.grad(out, given, weight.to(dtype))]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.usefixtures("kernel")
def test_the_kernel_has_the_gradient_of_zero_and_keeps_a_nan_to_its_matrix() -> None:
    zero = torch.zeros(1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(cpp.newton_schulz(zero, 5, 0.1)[0, 0, 0], zero)
    torch.testing.assert_close(gradient.max().item(), COEFFICIENTS[0] ** 5 / 0.1)
    batch = torch.eye(8).repeat(2, 1, 1)
    batch[0, 3, 3] = torch.nan
    out = cpp.newton_schulz(batch, 5, 0.1)
    assert out[0].isnan().any()
    assert out[1].isfinite().all()
