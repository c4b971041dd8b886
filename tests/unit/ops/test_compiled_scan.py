"""The compiled scan beside `FusedChunk` (see `test_fused_chunk.py`) and `bound_norm` in float64."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from atlas.config import Kernels
from atlas.kernels.library import use
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights, bound_norm, norm_limits
from atlas.ops.rules.momentum import Momentum, MomentumState
from atlas.ops.rules.rule import ChunkEnd
from atlas.ops.whole_chunks import LONGEST_PREFIX, chosen_form, cpp
from atlas.ops.whole_chunks.torch import FusedChunk

pytestmark = pytest.mark.usefixtures("kernel")

NORM_MAX = 0.25  # some of the weights below are beyond it, some are not


def inputs(rows: int, count: int, width: int, hidden: int, features: int) -> list[Tensor]:
    """Fields lie in memory as cut out of a longer stretch, as a scan hands them over."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, width, hidden), (rows, 2 * hidden, features)]
    weights = [0.3 * torch.randn(shape, generator=generator) for shape in shapes]
    fields = [0.5 * torch.randn(rows, count + 5, size, generator=generator) for size in (*[width] * 3, *[features] * 2)]
    rate = torch.rand(rows, count + 5, generator=generator) * min(1, 8 / count)  # else rounding errors grow as well
    return [*weights, *(field[:, 3 : 3 + count] for field in (*fields, rate))]


def outputs_and_gradients(function: object, arguments: list[Tensor], used: tuple[int, ...] = (0, 1, 2)) -> list[Tensor]:
    """The gradients of the results are the same numbers in every precision, so no error is theirs."""
    arguments = [argument.requires_grad_() for argument in arguments]
    out = function(*arguments)  # type: ignore[operator]
    weights = [torch.linspace(-1, 1, part.numel(), device=part.device).to(part.dtype).view_as(part) for part in out]
    loss = torch.stack([(out[index] * weights[index]).sum() for index in used]).sum()
    return [*out, *torch.autograd.grad(loss, arguments, allow_unused=True, materialize_grads=True)]


def with_momentum(arguments: list[Tensor]) -> list[Tensor]:
    """Besides: the momentum before the first token, and the gates of the tokens, whose means are a chunk's."""
    generator = torch.Generator().manual_seed(1)
    momentum = [0.1 * torch.randn(part.shape, generator=generator) for part in arguments[:2]]
    return [*arguments, *momentum, torch.rand(*arguments[-1].shape, 2, generator=generator)]


def scanned(prefix: bool, end: ChunkEnd, chunk: int, *arguments: Tensor) -> tuple[Tensor, ...]:
    start, fields = FastWeights(*arguments[:2]), arguments[2:8]
    controls = arguments[10] if end is ChunkEnd.momentum else fields[-1][..., None][..., :0]
    tokens = ChunkInputs(*fields, controls=controls)
    if end is ChunkEnd.updates:
        out, weights = cpp.chunk_update(start, tokens, prefix)
        return out, *weights
    kept = momentum_state(arguments) if end is ChunkEnd.momentum else ()
    out, weights, kept = cpp.closed_chunks(end, start, kept, tokens, chunk, NORM_MAX, prefix)
    return out, *weights, *(kept[0] if kept else ())


def momentum_state(arguments: Sequence[Tensor]) -> MomentumState:
    nothing = arguments[0].new_zeros(len(arguments[0]))
    return MomentumState(FastWeights(*arguments[8:10]), nothing[:, None].expand(-1, 2), nothing)


def plain(prefix: bool, end: ChunkEnd, chunk: int, *arguments: Tensor) -> tuple[Tensor, ...]:
    """Chunk by chunk, closed by the rule."""
    weights, outputs = FastWeights(*arguments[:2]), []
    rule = Momentum(theta=0.5, alpha=0.5)
    state = momentum_state(arguments) if arguments[8:] else None
    fields = [*arguments[2:8], *arguments[10:]]
    for parts in zip(*(field.split(chunk, dim=1) for field in fields), strict=True):
        out, *after = FusedChunk.apply(prefix, end is ChunkEnd.step, *weights, *parts[:6])
        if state:
            kept = rule.keep(state, ChunkInputs(*parts))
            after, kept = rule.close(weights, FastWeights(*after), kept)
            state = MomentumState(*kept)
        weights = FastWeights(*after) if end is ChunkEnd.updates else bound_norm(FastWeights(*after), NORM_MAX)
        outputs.append(out)
    return torch.cat(outputs, dim=1), *weights, *(state.momentum if state else ())


ALL = (0, 1, 2)  # results


def compare(
    prefix: bool,
    end: ChunkEnd,
    chunk: int,
    arguments: list[Tensor],
    used: tuple[int, ...] = ALL,
    forms: Sequence[Callable[..., tuple[Tensor, ...]]] = (),
) -> None:
    ours, exactly = forms or [partial(form, prefix, end, chunk) for form in (scanned, plain)]
    exact = [argument.detach().double() for argument in arguments]
    found, wanted = outputs_and_gradients(ours, arguments, used), outputs_and_gradients(exactly, exact, used)
    for part, theirs in zip(found, wanted, strict=True):
        size = theirs.abs().max().item()
        torch.testing.assert_close(part.double(), theirs, rtol=1e-5, atol=3e-6 * size)


def with_shared_features(function: Callable[..., tuple[Tensor, ...]], *arguments: Tensor) -> tuple[Tensor, ...]:
    """Features of degree 1: the queries and keys themselves, which stand in `arguments` once."""
    query, key = arguments[2:4]
    return function(*arguments[:5], query, key, *arguments[5:])


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("end", list(ChunkEnd))
@pytest.mark.parametrize("chunk", [1, 7, 16, 70])
@pytest.mark.parametrize("used", [(0,), (1, 2), (0, 1, 2)])
def test_features_that_are_the_queries_and_keys(chunk: int, end: ChunkEnd, prefix: bool, used: tuple[int, ...]) -> None:
    arguments = inputs(3, chunk * (1 if end is ChunkEnd.updates else 3), 16, 8, 16)
    arguments = with_momentum(arguments) if end is ChunkEnd.momentum else arguments
    both = [partial(with_shared_features, partial(form, prefix, end, chunk)) for form in (scanned, plain)]
    compare(prefix, end, chunk, [*arguments[:5], *arguments[7:]], used, both)


@pytest.mark.parametrize("end", [ChunkEnd.step, ChunkEnd.updates])
@pytest.mark.parametrize("count", [1, 7, 8, 16, 30, 64])
def test_a_chunk_that_reads_its_prefix(count: int, end: ChunkEnd) -> None:
    compare(True, end, count, inputs(3, count, 16, 8, 24))


@pytest.mark.parametrize("end", [ChunkEnd.step, ChunkEnd.updates])
@pytest.mark.parametrize("count", [5, 64, 200])
def test_a_chunk_that_reads_its_start(count: int, end: ChunkEnd) -> None:
    compare(False, end, count, inputs(3, count, 24, 32, 24))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("chunk", [1, 8, 20, 80])
def test_chunks_one_after_the_other(chunk: int, prefix: bool) -> None:
    arguments = inputs(4, 80, 16, 8, 16)
    for part in (*arguments[:2], arguments[-1]):
        part[0] *= 0.1
    norms = [part.square().sum((1, 2)).sqrt() for part in scanned(prefix, ChunkEnd.step, chunk, *arguments)[1:]]
    limits = norm_limits(FastWeights(*arguments[:2]), NORM_MAX)
    beyond = [(norm > 0.999 * limit).tolist() for norm, limit in zip(norms, limits, strict=True)]
    assert [(row[0], any(row)) for row in beyond] == [(False, True)] * 2
    compare(prefix, ChunkEnd.step, chunk, arguments)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (1, 2)])
def test_results_that_nothing_depends_on(prefix: bool, used: tuple[int, ...]) -> None:
    """The last chunk's weights are read by nothing, and a gradient may come from them alone."""
    compare(prefix, ChunkEnd.step, 4, inputs(2, 12, 16, 16, 16), used)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("chunk", [1, 8, 20, 80])
def test_chunks_with_momentum(chunk: int, prefix: bool) -> None:
    arguments = with_momentum(inputs(4, 80, 16, 8, 16))
    arguments[10][0] = torch.tensor([0.0, 1.0])  # theta 0 and alpha 0: W is the last chunk's update alone
    compare(prefix, ChunkEnd.momentum, chunk, arguments, (0, 1, 2, 3, 4))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("used", [(0,), (1,), (3,), (2, 4), (1, 4)])
def test_results_with_momentum_that_nothing_depends_on(prefix: bool, used: tuple[int, ...]) -> None:
    compare(prefix, ChunkEnd.momentum, 4, with_momentum(inputs(2, 12, 16, 16, 16)), used)


def test_without_momentum_and_retention_of_all_it_is_a_plain_step() -> None:
    arguments = inputs(2, 32, 16, 8, 16)
    both = [*with_momentum(arguments)[:10], torch.zeros(2, 32, 2)]
    plain_step = scanned(True, ChunkEnd.step, 8, *arguments)
    found = scanned(True, ChunkEnd.momentum, 8, *both)[:3]
    for ours, theirs in zip(found, plain_step, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_same_on_any_number_of_threads() -> None:
    arguments, found = with_momentum(inputs(5, 16, 16, 16, 16)), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(outputs_and_gradients(partial(scanned, True, ChunkEnd.momentum, 4), arguments))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize("field", range(11))
def test_a_number_that_is_none_stays_none(field: int) -> None:
    """A diverged memory must be seen in the loss, and only the row that has it."""
    arguments = with_momentum(inputs(2, 16, 8, 8, 8))
    arguments[field][1].fill_(float("nan"))
    out, down, up, *_ = scanned(True, ChunkEnd.momentum, 8, *arguments)
    assert out[1].isnan().any()
    assert torch.stack([down[1].isnan().any(), up[1].isnan().any()]).any() or field in (2, 5)  # queries are not written
    assert not out[0].isnan().any()
    assert not torch.cat([down[0], up[0]]).isnan().any()


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("end", [ChunkEnd.step, ChunkEnd.momentum])
def test_without_gradients_it_is_the_same(end: ChunkEnd, prefix: bool) -> None:
    arguments = inputs(2, 200, 16, 8, 16)
    for chunk in (8, 100):
        given = with_momentum(arguments) if end is ChunkEnd.momentum else arguments
        with torch.no_grad():
            found = scanned(prefix, end, chunk, *given)
        for ours, kept in zip(found, scanned(prefix, end, chunk, *given), strict=True):
            assert torch.equal(ours, kept)


def test_what_it_does_not_take_is_left_to_pytorch() -> None:
    down, up, *fields = inputs(1, 4, 16, 8, 24)

    def taken(down: Tensor, up: Tensor, *fields: Tensor, chunk: int = 4, prefix: bool = True) -> bool:
        tokens = ChunkInputs(*fields, controls=fields[-1][..., None])
        return chosen_form(FastWeights(down, up), tokens, chunk, prefix=prefix) is cpp

    assert taken(down, up, *fields)
    assert not taken(down, up.double(), *fields)
    assert not taken(down, up, *(field.double() for field in fields))
    assert not taken(down[:, :12], up, *fields)
    assert not taken(down, up[..., :20], *fields)
    assert not taken(down, up, *fields, chunk=LONGEST_PREFIX + 1)
    assert taken(down, up, *fields, chunk=LONGEST_PREFIX + 1, prefix=False)
    use(Kernels.torch)
    assert not taken(down, up, *fields)
