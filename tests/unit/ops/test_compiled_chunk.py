"""The compiled chunk beside `FusedChunk` in float64, which `test_fused_chunk.py` holds against autograd."""

import ctypes

import pytest
import torch
from torch import Tensor

from atlas.config import Kernels
from atlas.kernels.library import use
from atlas.ops.compiled_chunk import LONGEST_PREFIX, CompiledChunk, kernel_for
from atlas.ops.fused_chunk import FusedChunk


def inputs(rows: int, count: int, width: int, hidden: int, features: int) -> list[Tensor]:
    """Fields lie in memory as cut out of a longer stretch, as a scan hands them over."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, width, hidden), (rows, 2 * hidden, features)]
    weights = [0.3 * torch.randn(shape, generator=generator) for shape in shapes]
    fields = [0.5 * torch.randn(rows, count + 5, size, generator=generator) for size in (*[width] * 3, *[features] * 2)]
    rate = torch.rand(rows, count + 5, generator=generator) * min(1, 8 / count)  # else rounding errors grow as well
    return [*weights, *(field[:, 3 : 3 + count] for field in (*fields, rate))]


def outputs_and_gradients(function: object, arguments: list[Tensor], used: tuple[int, ...] = (0, 1, 2)) -> list[Tensor]:
    arguments = [argument.requires_grad_() for argument in arguments]
    out = function(*arguments)  # type: ignore[operator]
    weights = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part) for part in out]
    loss = torch.stack([(out[index].sin() * weights[index]).sum() for index in used]).sum()
    return [*out, *torch.autograd.grad(loss, arguments, allow_unused=True, materialize_grads=True)]


def compare(kernel: ctypes.CDLL, prefix: bool, step: bool, arguments: list[Tensor], used: tuple[int, ...]) -> None:
    exact = [argument.detach().double() for argument in arguments]
    found = outputs_and_gradients(lambda *all: CompiledChunk.apply(kernel, prefix, step, *all), arguments, used)
    wanted = outputs_and_gradients(lambda *all: FusedChunk.apply(prefix, step, *all), exact, used)
    for ours, theirs in zip(found, wanted, strict=True):
        size = theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=3e-6 * size)


@pytest.mark.parametrize("step", [True, False])
@pytest.mark.parametrize("count", [1, 7, 8, 16, 30, 64])
def test_a_chunk_that_reads_its_prefix(kernel: ctypes.CDLL, count: int, step: bool) -> None:
    compare(kernel, True, step, inputs(3, count, 16, 8, 24), (0, 1, 2))


@pytest.mark.parametrize("step", [True, False])
@pytest.mark.parametrize("count", [5, 64, 200])
def test_a_chunk_that_reads_its_start(kernel: ctypes.CDLL, count: int, step: bool) -> None:
    compare(kernel, False, step, inputs(3, count, 24, 32, 24), (0, 1, 2))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (1, 2)])
def test_results_that_nothing_depends_on(kernel: ctypes.CDLL, prefix: bool, used: tuple[int, ...]) -> None:
    """The last chunk's weights are read by nothing, and a gradient may come from them alone."""
    compare(kernel, prefix, True, inputs(2, 12, 16, 16, 16), used)


def test_the_same_on_any_number_of_threads(kernel: ctypes.CDLL) -> None:
    arguments, found = inputs(5, 16, 16, 16, 16), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(outputs_and_gradients(lambda *all: CompiledChunk.apply(kernel, True, True, *all), arguments))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize("field", range(8))
def test_a_number_that_is_none_stays_none(kernel: ctypes.CDLL, field: int) -> None:
    """A diverged memory must be seen in the loss, and only the row that has it."""
    arguments = inputs(2, 16, 8, 8, 8)
    arguments[field][1].fill_(float("nan"))
    out, down, _ = CompiledChunk.apply(kernel, True, True, *arguments)
    assert out[1].isnan().any()
    assert down[1].isnan().any() or field in (2, 5)  # queries are not written
    assert not out[0].isnan().any()
    assert not down[0].isnan().any()


def test_what_it_does_not_take_is_left_to_pytorch(kernel: ctypes.CDLL) -> None:
    down, _, query, *_, features, _ = inputs(1, 4, 16, 8, 24)
    assert kernel_for(True, down, query, features) is kernel
    assert kernel_for(True, down.double(), query.double(), features.double()) is None
    assert kernel_for(True, down[:, :12], query[..., :12], features) is None
    assert kernel_for(True, down, query, features[..., :20]) is None
    long = query.expand(1, -1, -1).repeat(1, LONGEST_PREFIX, 1)
    assert kernel_for(True, down, long, features) is None
    assert kernel_for(False, down, long, features) is kernel
    use(Kernels.torch)
    assert kernel_for(True, down, query, features) is None
