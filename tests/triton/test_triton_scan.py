"""The Triton scan beside `FusedChunk` and the rule's chunk end in float64, by the interpreter of triton on a CPU.

`make triton` runs these tests; without triton or its interpreter they are skipped.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import Kernels
from atlas.kernels import gpu
from atlas.ops.chunk_scan import Scan, ScanState, open_state
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights, norm_limits
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.rules.momentum import Momentum
from atlas.ops.rules.rule import ChunkEnd
from atlas.ops.whole_chunks import chosen_form, triton
from atlas.ops.whole_chunks import torch as plain_form
from tests.unit.ops.test_compiled_scan import (
    NORM_MAX,
    inputs,
    momentum_state,
    outputs_and_gradients,
    plain,
    with_momentum,
)

pytestmark = pytest.mark.skipif(
    not (gpu.interpreted() and find_spec("triton")), reason="needs triton and TRITON_INTERPRET=1: make triton"
)

# ||ours - exact|| / ||exact|| of outputs and gradients
LIMITS = {"float32": (1e-6, 1e-6), "emulated": (2e-3, 1.5e-2)}


def scanned(products: str, prefix: bool, end: ChunkEnd, chunk: int, *arguments: Tensor) -> tuple[Tensor, ...]:
    start, fields = FastWeights(*arguments[:2]), arguments[2:8]
    momentum = end is ChunkEnd.momentum
    tokens = ChunkInputs(*fields, controls=arguments[10] if momentum else fields[-1][..., None][..., :0])
    variant = triton.Variant(chunk, *start.down.shape[1:], start.up.shape[2], prefix, momentum, products)
    kept = momentum_state(arguments).momentum if momentum else None
    return triton.scan(variant, norm_limits(start, NORM_MAX), tokens, start, kept)


def compare(
    prefix: bool,
    end: ChunkEnd,
    chunk: int,
    arguments: list[Tensor],
    products: str = "float32",
    used: tuple[int, ...] | None = None,
) -> None:
    results = 5 if end is ChunkEnd.momentum else 3
    used = used or tuple(range(results))
    exact = [argument.detach().double() for argument in arguments]
    found = outputs_and_gradients(partial(scanned, products, prefix, end, chunk), arguments, used)
    wanted = outputs_and_gradients(partial(plain, prefix, end, chunk), exact, used)
    for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        limit = LIMITS[products][index >= results]
        error = ((ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-30)).item()
        assert error <= limit, f"result {index}: {error:.1e}"


def small(count: int, rows: int = 2) -> list[Tensor]:
    """Keys, queries and values of length 1, as in the model; the first row stays inside the bound."""
    down, up, query, key, value, query_features, key_features, rate = inputs(rows, count, 16, 16, 16)
    for part in (down, up, rate):
        part[0] *= 0.1
    vectors = (F.normalize(part, dim=-1) for part in (query, key, value, query_features, key_features))
    return [down, up, *vectors, rate]


@pytest.mark.parametrize("products", list(LIMITS))
@pytest.mark.parametrize("prefix", [True, False], ids=["local", "global"])
@pytest.mark.parametrize("chunk", [8, 16, 24, 32])
def test_gd(chunk: int, prefix: bool, products: str) -> None:
    """Chunks of half a tile, one, one and a half, and two."""
    compare(prefix, ChunkEnd.step, chunk, small(3 * chunk), products)


@pytest.mark.parametrize("products", list(LIMITS))
@pytest.mark.parametrize("prefix", [True, False], ids=["local", "global"])
@pytest.mark.parametrize("chunk", [8, 16, 40])
def test_momentum(chunk: int, prefix: bool, products: str) -> None:
    arguments = with_momentum(small(3 * chunk))
    arguments[10][0] = torch.tensor([0.0, 1.0])  # theta 0 and alpha 0: W is the last chunk's update alone
    compare(prefix, ChunkEnd.momentum, chunk, arguments, products)


def test_a_chunk_of_64_and_unequal_widths() -> None:
    compare(True, ChunkEnd.step, 64, inputs(1, 128, 16, 32, 64))


@pytest.mark.parametrize("end", [ChunkEnd.step, ChunkEnd.momentum])
def test_a_long_chunk_that_is_read_at_its_start_is_cut_into_blocks(end: ChunkEnd) -> None:
    chunk = 2 * triton.LONGEST
    arguments = with_momentum(small(2 * chunk, rows=1)) if end is ChunkEnd.momentum else small(2 * chunk, rows=1)
    results = 5 if end is ChunkEnd.momentum else 3

    def in_blocks(*given: Tensor) -> tuple[Tensor, ...]:
        momentum = end is ChunkEnd.momentum
        tokens = ChunkInputs(*given[2:8], controls=given[10] if momentum else given[7][..., None][..., :0])
        kept = momentum_state(given) if momentum else ()
        out, weights, kept = triton.closed_chunks(
            end, FastWeights(*given[:2]), kept, tokens, chunk, NORM_MAX, prefix=False
        )
        return out, *weights, *(kept[0] if momentum else ())

    exact = [argument.detach().double() for argument in arguments]
    found = outputs_and_gradients(in_blocks, arguments, tuple(range(results)))
    wanted = outputs_and_gradients(partial(plain, False, end, chunk), exact, tuple(range(results)))
    for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        error = ((ours.double() - theirs).norm() / theirs.norm()).item()
        assert error <= LIMITS["emulated"][index >= results], f"result {index}"


def test_both_bounds_are_reached_and_not_reached() -> None:
    arguments = small(48)
    _, *weights = scanned("float32", True, ChunkEnd.step, 16, *arguments)
    limits = norm_limits(FastWeights(*arguments[:2]), NORM_MAX)
    beyond = [
        (part.square().sum((1, 2)).sqrt() > 0.999 * limit).tolist() for part, limit in zip(weights, limits, strict=True)
    ]
    assert beyond == [[False, True]] * 2


@pytest.mark.parametrize("used", [(0,), (1,), (2, 4), (3,)])
def test_results_that_nothing_depends_on(used: tuple[int, ...]) -> None:
    compare(True, ChunkEnd.momentum, 16, with_momentum(small(32)), used=used)


@pytest.mark.parametrize("end", [ChunkEnd.step, ChunkEnd.momentum])
def test_without_gradients_it_is_the_same(end: ChunkEnd) -> None:
    arguments = with_momentum(small(64)) if end is ChunkEnd.momentum else small(64)
    with torch.no_grad():
        found = scanned("float32", True, end, 32, *arguments)
    for ours, kept in zip(found, scanned("float32", True, end, 32, *arguments), strict=True):
        assert torch.equal(ours, kept)


@pytest.mark.parametrize("field", range(11))
def test_a_number_that_is_none_stays_in_its_row(field: int) -> None:
    arguments = with_momentum(small(32))
    arguments[field][1].fill_(float("nan"))
    out, down, up, *_ = scanned("float32", True, ChunkEnd.momentum, 16, *arguments)
    assert out[1].isnan().any()
    assert torch.stack([down[1].isnan().any(), up[1].isnan().any()]).any() or field in (2, 5)  # queries are not written
    assert not torch.cat([part[0].flatten() for part in (out, down, up)]).isnan().any()


@pytest.mark.parametrize("rule", [GradientDescent(), Momentum(0.5, 0.9)], ids=["gd", "momentum"])
def test_a_scan_under_autocast_uses_the_kernels_for_its_whole_chunks(rule: GradientDescent | Momentum) -> None:
    """And PyTorch's operations for the open ones at both ends; a recomputed backward pass is the same."""
    down, up, *fields = small(50)
    controls = torch.rand(2, 50, len(rule.controls), generator=torch.Generator().manual_seed(1))
    tokens = ChunkInputs(*fields, controls=controls)
    found: dict[tuple[Kernels, bool], list[Tensor]] = {}
    for kernels, recompute in ((Kernels.torch, False), (Kernels.triton, False), (Kernels.triton, True)):
        gpu.use(kernels)
        given = [part.detach().clone().requires_grad_() for part in (down, up, *tokens)]
        scan = Scan(rule, 16, NORM_MAX, read_at_start=False, recompute=recompute)
        with torch.autocast("cpu", torch.bfloat16):
            state: ScanState = open_state(rule, FastWeights(*given[:2]))
            first, state = scan(state, ChunkInputs(*(part[:, :5] for part in given[2:])))
            second, state = scan(state, ChunkInputs(*(part[:, 5:] for part in given[2:])))
        out = torch.cat((first, second), dim=1)
        gradients = torch.autograd.grad(out.sin().sum(), given, allow_unused=True, materialize_grads=True)
        found[kernels, recompute] = [out, *state.start, *gradients]
    exact = found[Kernels.torch, False]
    for other in (found[Kernels.triton, False], found[Kernels.triton, True]):
        assert not torch.equal(other[0], exact[0])  # so the kernels were used
        for ours, theirs in zip(other, exact, strict=True):
            assert (ours - theirs).norm() <= 3e-2 * theirs.norm() + 1e-6


def test_what_they_do_not_take_is_left_to_pytorch() -> None:
    gpu.use(Kernels.triton)

    def form(
        *widths: int,
        chunk: int = 16,
        half: ChunkEnd | None = ChunkEnd.step,
        double: bool = False,
        prefix: bool = True,
    ) -> object:
        down, up, *fields = (part.double() if double else part for part in inputs(1, 32, *widths))
        tokens = ChunkInputs(*fields, controls=fields[-1][..., None])
        return chosen_form(FastWeights(down, up), tokens, chunk, prefix=prefix, half=half)

    assert form(16, 16, 16) is triton
    assert form(16, 16, 16, half=None) is not triton
    assert form(16, 16, 16, double=True) is plain_form
    assert form(16, 8, 16) is not triton
    assert form(48, 16, 16) is not triton
    assert form(16, 16, 153) is plain_form  # features of degree 2
    assert form(16, 16, 16, chunk=129) is not triton
    assert form(16, 16, 16, chunk=256) is not triton
    assert form(16, 16, 16, chunk=256, prefix=False) is triton
    assert form(16, 16, 16, chunk=200, prefix=False) is not triton
    gpu.use(Kernels.auto)
    assert form(16, 16, 16) is not triton  # the interpreter is for tests only
