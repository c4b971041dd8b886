from functools import partial

import pytest
import torch
from torch import Tensor

from atlas.ops.dual_form import ChunkInputs, read_prefix, token_gradients, write_sum
from atlas.ops.fast_weights import FastWeights, read, subtract
from atlas.ops.whole_chunks.torch import FusedChunk

N, C, D, H, P = 3, 7, 6, 5, 8


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(N, D, H), (N, 2 * H, P), (N, C, D), (N, C, D), (N, C, D), (N, C, P), (N, C, P), (N, C)]
    values = [0.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [value.requires_grad_() for value in values]


def plain(prefix: bool, step: bool, down: Tensor, up: Tensor, *fields: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    start = FastWeights(down, up)
    tokens = ChunkInputs(*fields, controls=fields[-1].new_zeros(N, C, 0))
    writes = token_gradients(start, tokens.key, tokens.value, tokens.key_features, tokens.rate)
    out = read_prefix(start, writes, tokens) if prefix else read(start, tokens.query, tokens.query_features)
    update = write_sum(writes)
    return out, *(subtract(start, update) if step else update)


def outputs_and_gradients(function: object, arguments: list[Tensor]) -> list[Tensor]:
    out = function(*arguments)  # type: ignore[operator]
    weights = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part) for part in out]
    loss = torch.stack([(part.sin() * weight).sum() for part, weight in zip(out, weights, strict=True)]).sum()
    return [*out, *torch.autograd.grad(loss, arguments)]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("step", [True, False])
def test_the_fused_chunk_is_the_plain_one_in_outputs_and_every_gradient(prefix: bool, step: bool) -> None:
    arguments = inputs()
    forms = partial(FusedChunk.apply, prefix, step), partial(plain, prefix, step)
    fused, expected = (outputs_and_gradients(form, arguments) for form in forms)
    for ours, theirs in zip(fused, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_its_memory_is_freed_after_the_backward_pass() -> None:
    """A function that keeps its own output alive would leak a chunk per training step."""
    arguments = inputs()
    out, _, _ = FusedChunk.apply(True, False, *arguments)
    node = out.grad_fn
    out.sum().backward()
    try:
        kept = node.saved_tensors
    except RuntimeError:
        kept = ()
    assert kept == ()
