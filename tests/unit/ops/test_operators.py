"""The kernels as operators of PyTorch: their schema, their shapes without data, their gradients, and compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from atlas.ops.banded_attention import cpp as attention
from atlas.ops.gated_branch import cpp as gate
from atlas.ops.memory_inputs import cpp as inputs
from atlas.ops.mixed_queries import cpp as mixed
from atlas.ops.newton_schulz import cpp as orthogonal
from atlas.ops.qk_projection import cpp as products
from atlas.ops.rms_norm import cpp as norm
from atlas.ops.rms_norm import rms_norm
from atlas.ops.rules.rule import ChunkEnd
from atlas.ops.swiglu import cpp as gated
from atlas.ops.swiglu import swiglu
from atlas.ops.whole_chunks import cpp as chunks

pytestmark = pytest.mark.usefixtures("kernel")


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


VALID = torch.ones(2, 16, dtype=torch.bool)
PAIRS = leaf(2, 2, 16, 8), leaf(2, 2, 16, 8)
FIELDS = (leaf(3, 8, 8), leaf(3, 8, 8), leaf(3, 8, 8), leaf(3, 8, 16), leaf(3, 8, 16), leaf(3, 8))
WEIGHTS = leaf(3, 8, 8), leaf(3, 16, 16)
CALLS = {
    "norm": (norm.forward, (leaf(10, 16), leaf(16))),
    "swiglu": (gated.forward, (leaf(10, 32),)),
    "gated branch": (gate.forward, (leaf(70, 16), leaf(70, 16), leaf(16), leaf(), True, 30.0)),
    "inputs": (inputs.forward, (leaf(2, 2, 48), leaf(2, 7, 48), leaf(3, 48), 2)),
    "mixed queries": (mixed.forward, (leaf(6, 9, 16), leaf(6, 9, 16), leaf(3))),
    "attention": (attention.forward, (leaf(2, 2, 9, 8), *PAIRS, VALID, None, None, 8)),
    "attention with a prefix": (
        attention.forward,
        (leaf(2, 2, 9, 8), *PAIRS, VALID, leaf(2, 3, 8), leaf(2, 3, 8), 8),
    ),
    "newton_schulz": (orthogonal.forward, (leaf(3, 19, 8), 2, 0.1)),
    "products": (products.forward, (leaf(3, 8, 8), leaf(3, 9, 8), leaf(3, 9, 8))),
}
SCANS = {
    "step": (*FIELDS, None, *WEIGHTS, None, None, 4, True, int(ChunkEnd.step), 9.0, 9.0, True),
    "momentum": (*FIELDS, leaf(3, 2, 2), *WEIGHTS, *WEIGHTS, 4, True, int(ChunkEnd.momentum), 9.0, 9.0, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_an_operator_keeps_the_rules_of_operators(name: str) -> None:
    opcheck(*CALLS[name])


@pytest.mark.parametrize("name", SCANS)
def test_the_scan_keeps_the_rules_of_operators(name: str) -> None:
    """Without comparing all results after tracing: a part of what is kept for the backward pass is never written."""
    opcheck(chunks.forward, SCANS[name], test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("name", CALLS)
def test_without_data_the_results_have_the_same_shapes_and_strides(name: str) -> None:
    operator, arguments = CALLS[name]

    def described(results: Any) -> list[tuple[Any, ...]]:
        parts = [results] if isinstance(results, Tensor) else results
        return [(part.shape, part.stride(), part.dtype) for part in parts]

    mode = FakeTensorMode()
    fake = [mode.from_tensor(part) if isinstance(part, Tensor) else part for part in arguments]
    with mode:
        found = described(operator(*fake))
    assert found == described(operator(*arguments))


def test_fake_and_meta_tensors_go_through_the_public_functions() -> None:
    mode = FakeTensorMode()
    x, weight = mode.from_tensor(torch.ones(4, 16)), mode.from_tensor(torch.ones(16))
    with mode:
        assert rms_norm(x, weight).shape == (4, 16)
        assert swiglu(x).shape == (4, 8)
    assert rms_norm(torch.ones(4, 16, device="meta"), torch.ones(16, device="meta")).shape == (4, 16)


@pytest.mark.slow
def test_a_compiled_function_is_the_same_without_a_break_in_its_graph() -> None:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        return swiglu(rms_norm(x, weight)).square()

    x, weight = leaf(4, 5, 16), leaf(16)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = [
        [out, *torch.autograd.grad(out.sum(), (x, weight))] for out in (function(x, weight), compiled(x, weight))
    ]
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", SCANS)
def test_a_second_derivative_is_refused(name: str) -> None:
    out = chunks.forward(*SCANS[name])[0]
    (gradient,) = torch.autograd.grad(out.sum(), FIELDS[1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula was registered"):
        gradient.sum().backward()
