"""The Triton products of the Q-K projection beside PyTorch's operations in float64, by the interpreter of triton."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from atlas.config import Kernels
from atlas.kernels import gpu
from atlas.ops.qk_projection import Accumulator, chosen_form, cpp, project, triton
from atlas.ops.qk_projection import torch as plain

pytestmark = pytest.mark.skipif(
    not (gpu.interpreted() and find_spec("triton")), reason="needs triton and TRITON_INTERPRET=1: make triton"
)
LIMIT = 1e-6  # ||ours - exact|| / ||exact|| of outputs and gradients


def inputs(rows: int, tokens: int, width: int = 16) -> list[Tensor]:
    """Queries and keys lie in memory as cut out of a longer stretch; the start is not symmetric."""
    generator = torch.Generator().manual_seed(tokens)
    start = 0.1 * torch.randn(rows, width, width, generator=generator)
    fields = (0.2 * torch.randn(rows, tokens + 5, width, generator=generator) for _ in range(2))
    return [start, *(field[:, 3 : 3 + tokens] for field in fields)]


def outputs_and_gradients(form: object, given: list[Tensor], used: tuple[int, ...] = (0, 1)) -> list[Tensor]:
    leaves = [part.detach().requires_grad_() for part in given]
    out = form.causal_products(*leaves)  # type: ignore[attr-defined]
    weights = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype, device=part.device).view_as(part) for part in out]
    loss = torch.stack([(out[index].sin() * weights[index]).sum() for index in used]).sum()
    return [*out, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("used", [(0, 1), (0,), (1,)])
@pytest.mark.parametrize("tokens", [1, 31, 32, 75])
def test_it_is_the_products(tokens: int, used: tuple[int, ...]) -> None:
    given = inputs(2, tokens)
    exact = outputs_and_gradients(plain, [part.double() for part in given], used)
    for index, (ours, theirs) in enumerate(zip(outputs_and_gradients(triton, given, used), exact, strict=True)):
        error = (ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-30)
        assert error <= LIMIT, f"result {index}"


def test_a_number_that_is_none_stays_in_its_row() -> None:
    given = inputs(2, 40)
    given[2][1, 3] = float("nan")
    out, total = triton.causal_products(*given)
    assert out[1, 4:].isnan().all()
    assert total[1].isnan().all()
    assert not torch.cat((out[0].flatten(), total[0].flatten())).isnan().any()


def test_a_projection_under_autocast_uses_them() -> None:
    start, query, key = inputs(2, 40)
    sums = Accumulator(start, torch.ones(2), 0)
    found = {}
    for kernels in (Kernels.torch, Kernels.triton):
        gpu.use(kernels)
        with torch.autocast("cpu", torch.bfloat16):
            found[kernels] = chosen_form(start, query, key), *project(sums, query, key, per_key=False)
    assert found[Kernels.triton][0] is triton
    assert found[Kernels.torch][0] is not triton
    torch.testing.assert_close(found[Kernels.triton][1:], found[Kernels.torch][1:], rtol=1e-4, atol=1e-4)


def test_what_they_do_not_take_is_left_to_others() -> None:
    gpu.use(Kernels.triton)
    given = inputs(2, 40)
    assert chosen_form(*given) is not triton  # without autocast: float32 is wanted
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen_form(*given) is triton
        assert chosen_form(*(part.double() for part in given)) is plain
        assert chosen_form(*inputs(2, 40, width=8)) is cpp
        gpu.use(Kernels.auto)
        assert chosen_form(*given) is cpp  # the interpreter is for tests only
