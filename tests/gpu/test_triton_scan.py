"""The Triton kernels compiled for the device, beside float64 on the CPU; see `tests/triton` for the rest."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights, norm_limits
from atlas.ops.rules.rule import ChunkEnd
from atlas.ops.whole_chunks import triton
from tests.unit.ops.test_compiled_scan import (
    NORM_MAX,
    inputs,
    momentum_state,
    outputs_and_gradients,
    plain,
    with_momentum,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OUTPUTS, GRADIENTS = 2e-2, 5e-2  # ||ours - exact|| / ||exact||


def scanned(prefix: bool, end: ChunkEnd, chunk: int, *arguments: Tensor) -> tuple[Tensor, ...]:
    start, fields, momentum = FastWeights(*arguments[:2]), arguments[2:8], end is ChunkEnd.momentum
    tokens = ChunkInputs(*fields, controls=arguments[10] if momentum else fields[-1][..., None][..., :0])
    variant = triton.variant_of(start, chunk, prefix, momentum)
    kept = momentum_state(arguments).momentum if momentum else None
    return triton.scan(variant, norm_limits(start, NORM_MAX), tokens, start, kept)


@pytest.mark.parametrize("end", [ChunkEnd.step, ChunkEnd.momentum])
@pytest.mark.parametrize("prefix", [True, False], ids=["local", "global"])
@pytest.mark.parametrize("chunk", [8, 16, 24, 64])
@pytest.mark.parametrize("width", [16, 64])
def test_it_is_the_scan_and_gives_the_same_bits_again(width: int, chunk: int, prefix: bool, end: ChunkEnd) -> None:
    arguments = inputs(8, 3 * chunk, width, width, width)
    for part in (*arguments[:2], arguments[-1]):
        part[0] *= 0.1  # the first row stays inside the bound
    arguments = with_momentum(arguments) if end is ChunkEnd.momentum else arguments
    exact = [argument.detach().double() for argument in arguments]
    wanted = outputs_and_gradients(partial(plain, prefix, end, chunk), exact)
    given = [argument.detach().cuda() for argument in arguments]
    found, again = (outputs_and_gradients(partial(scanned, prefix, end, chunk), given) for _ in range(2))
    results = 5 if end is ChunkEnd.momentum else 3
    for index, (ours, theirs, twice) in enumerate(zip(found, wanted, again, strict=True)):
        allowed = (OUTPUTS if index < results else GRADIENTS) * theirs.norm()
        assert (ours.cpu().double() - theirs).norm() <= allowed, index
        assert torch.equal(ours, twice), index
