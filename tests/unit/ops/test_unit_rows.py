import torch
from torch.nn import functional as F

from atlas.ops.unit_rows import unit_rows


def test_it_is_normalize_and_a_row_of_zeros_gets_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    x[1, 2] = 0
    x.requires_grad_()
    ours, theirs = unit_rows(x), F.normalize(x, dim=-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    (mine,), (expected,) = (torch.autograd.grad(out, x, gradient) for out in (ours, theirs))
    expected[1, 2] = 0
    torch.testing.assert_close(mine, expected, rtol=1e-13, atol=1e-13)
