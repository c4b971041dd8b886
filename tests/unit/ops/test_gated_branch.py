"""The compiled gated branch beside PyTorch's operations in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas.config import Kernels
from atlas.kernels.library import use
from atlas.ops.gated_branch import gated_branch
from atlas.ops.gated_branch import torch as plain

each_sum = pytest.mark.parametrize("adds", [False, True])


def inputs(*shape: int) -> list[Tensor]:
    """Attended, m W_g, bias and sharpness; the gates are open, closed and between."""
    generator = torch.Generator().manual_seed(0)
    attended, linear = (torch.randn(shape, generator=generator) for _ in range(2))
    return [attended, linear, torch.randn(shape[-1], generator=generator), torch.tensor(4.0)]


def outputs_and_gradients(
    function: Callable[..., tuple[Tensor, Tensor]], arguments: list[Tensor], adds: bool, *, of: str = "both"
) -> list[Tensor]:
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    out, gate = function(*arguments, adds=adds)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    losses = {"branch": (out.sin() * weights).sum(), "gate": (gate.cos() * weights).sum()}
    loss = losses[of] if of != "both" else losses["branch"] + losses["gate"]
    gradients = torch.autograd.grad(loss, arguments, allow_unused=True, materialize_grads=True)
    return [out, gate, *gradients]


@each_sum
@pytest.mark.parametrize("of", ["branch", "gate", "both"])
@pytest.mark.parametrize("shape", [(1, 8), (3, 130, 16), (2, 5, 7, 24), (0, 8)])
@pytest.mark.usefixtures("kernel")
def test_the_kernel_is_pytorch_s_operations(shape: tuple[int, ...], of: str, adds: bool) -> None:
    """130 tokens: more rows than a block. `of="gate"`: its gradient reaches the sharpness alone."""
    arguments = inputs(*shape)
    found = outputs_and_gradients(gated_branch, arguments, adds, of=of)
    reference = partial(plain.gated_branch, sharpness_max=inf)
    wanted = outputs_and_gradients(reference, [one.double() for one in arguments], adds, of=of)
    for mine, exact in zip(found, wanted, strict=True):
        size = exact.abs().max().item() if exact.numel() else 0.0
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=3e-6 * size)
    if of == "gate":
        assert not any(part.any() for part in found[2:5])


@pytest.mark.parametrize("form", [gated_branch, plain.gated_branch])
@pytest.mark.parametrize("limit", [3.9, 4.0, 4.1])
@pytest.mark.usefixtures("kernel")
def test_the_gradient_of_the_gates_ends_at_the_largest_sharpness(form: Callable[..., Any], limit: float) -> None:
    arguments = inputs(3, 130, 16)
    found = outputs_and_gradients(partial(form, sharpness_max=limit), arguments, True)
    of = "both" if limit > 4 else "branch"
    wanted = outputs_and_gradients(partial(form, sharpness_max=inf), arguments, True, of=of)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@each_sum
@pytest.mark.usefixtures("kernel")
def test_a_result_does_not_depend_on_layout_or_threads(adds: bool) -> None:
    attended, linear, *others = inputs(8, 200, 16)
    threads, found = torch.get_num_threads(), []
    try:
        for count, given in ((1, attended), (3, attended), (2, attended.mT.contiguous().mT)):
            torch.set_num_threads(count)
            found.append(outputs_and_gradients(gated_branch, [given, linear, *others], adds))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@each_sum
@pytest.mark.parametrize("kernels", [Kernels.auto, Kernels.torch])
@pytest.mark.usefixtures("kernel")
def test_a_closed_gate_is_exactly_0_and_an_open_one_exactly_1(kernels: Kernels, adds: bool) -> None:
    use(kernels)
    attended, linear, _, sharpness = inputs(4, 8)
    bias = torch.tensor([-1e4, float("-inf"), -110.0, 1e4, float("inf"), 110.0, float("nan"), 0.0])
    out, gate = gated_branch(attended, linear, bias, sharpness, adds=adds)
    use(Kernels.auto)
    content = attended + linear if adds else attended
    assert not gate[:, :3].any()
    assert not out[:, :3].any()
    assert gate[:, 3:6].eq(1).all()
    assert torch.equal(out[:, 3:6], content[:, 3:6])
    assert gate[:, 6].isnan().all()
    assert gate[:, 7].isfinite().all()


@pytest.mark.usefixtures("kernel")
def test_what_the_kernel_does_not_take_is_left_to_pytorch() -> None:
    def compiled(arguments: list[Tensor]) -> bool:
        out, _ = gated_branch(*(part.requires_grad_() for part in arguments), adds=True)
        return "atlas" in str(out.grad_fn.next_functions)  # type: ignore[union-attr]

    assert compiled(inputs(2, 3, 8))
    assert not compiled(inputs(2, 3, 12))
    assert not compiled([part.double() for part in inputs(2, 3, 8)])
    attended, linear, bias, sharpness = inputs(2, 3, 8)
    assert not compiled([attended[:1], linear, bias, sharpness])
