import pytest
import torch
from torch import Tensor

from atlas.ops.causal_convolution import causal_convolution

B, LAGS, D = 2, 4, 3


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return sum(x[:, LAGS - 1 - lag : x.shape[1] - lag] * weight[lag] for lag in range(LAGS))


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 11, 12])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_it_is_the_plain_sum_in_output_and_gradients(monkeypatch: pytest.MonkeyPatch, tokens: int, block: int) -> None:
    monkeypatch.setattr("atlas.ops.causal_convolution.BLOCK_ELEMENTS", block * B * D)
    generator = torch.Generator().manual_seed(tokens)
    x, weight, gradient = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((B, LAGS - 1 + tokens, D), (LAGS, D), (B, tokens, D))
    )
    inputs = x.requires_grad_(), weight.requires_grad_()
    ours, theirs = causal_convolution(*inputs), plain(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    expected = torch.autograd.grad(theirs, inputs, gradient)
    for mine, reference in zip(torch.autograd.grad(ours, inputs, gradient), expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-13, atol=1e-13)
