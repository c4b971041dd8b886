"""The compiled scan beside `FusedChunk` (see `test_fused_chunk.py`) and `bound_norm` in float64."""

import ctypes
from functools import partial

import pytest
import torch
from torch import Tensor

from atlas.config import Kernels
from atlas.kernels.library import use
from atlas.ops.compiled_scan import LONGEST_PREFIX, CompiledScan, scan_kernel
from atlas.ops.fast_weights import FastWeights, bound_norm, norm_limits
from atlas.ops.fused_chunk import FusedChunk

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
    arguments = [argument.requires_grad_() for argument in arguments]
    out = function(*arguments)  # type: ignore[operator]
    weights = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part) for part in out]
    loss = torch.stack([(out[index].sin() * weights[index]).sum() for index in used]).sum()
    return [*out, *torch.autograd.grad(loss, arguments, allow_unused=True, materialize_grads=True)]


def compiled(kernel: ctypes.CDLL, prefix: bool, step: bool, chunk: int, *arguments: Tensor) -> tuple[Tensor, ...]:
    limits = norm_limits(FastWeights(*arguments[:2]), NORM_MAX)
    found: tuple[Tensor, ...] = CompiledScan.apply(kernel, chunk, prefix, step, limits, True, *arguments)
    return found


def plain(prefix: bool, step: bool, chunk: int, *arguments: Tensor) -> tuple[Tensor, ...]:
    weights, outputs = FastWeights(*arguments[:2]), []
    for fields in zip(*(field.split(chunk, dim=1) for field in arguments[2:]), strict=True):
        out, *after = FusedChunk.apply(prefix, step, *weights, *fields)
        weights = bound_norm(FastWeights(*after), NORM_MAX) if step else FastWeights(*after)
        outputs.append(out)
    return torch.cat(outputs, dim=1), *weights


ALL = (0, 1, 2)  # results


def compare(
    kernel: ctypes.CDLL, prefix: bool, step: bool, chunk: int, arguments: list[Tensor], used: tuple[int, ...] = ALL
) -> None:
    exact = [argument.detach().double() for argument in arguments]
    found = outputs_and_gradients(partial(compiled, kernel, prefix, step, chunk), arguments, used)
    wanted = outputs_and_gradients(partial(plain, prefix, step, chunk), exact, used)
    for ours, theirs in zip(found, wanted, strict=True):
        size = theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=3e-6 * size)


@pytest.mark.parametrize("step", [True, False])
@pytest.mark.parametrize("count", [1, 7, 8, 16, 30, 64])
def test_a_chunk_that_reads_its_prefix(kernel: ctypes.CDLL, count: int, step: bool) -> None:
    compare(kernel, True, step, count, inputs(3, count, 16, 8, 24))


@pytest.mark.parametrize("step", [True, False])
@pytest.mark.parametrize("count", [5, 64, 200])
def test_a_chunk_that_reads_its_start(kernel: ctypes.CDLL, count: int, step: bool) -> None:
    compare(kernel, False, step, count, inputs(3, count, 24, 32, 24))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("chunk", [1, 8, 20, 80])
def test_chunks_one_after_the_other(kernel: ctypes.CDLL, chunk: int, prefix: bool) -> None:
    arguments = inputs(4, 80, 16, 8, 16)
    for part in (*arguments[:2], arguments[-1]):
        part[0] *= 0.1
    norms = [part.square().sum((1, 2)).sqrt() for part in compiled(kernel, prefix, True, chunk, *arguments)[1:]]
    limits = norm_limits(FastWeights(*arguments[:2]), NORM_MAX)
    beyond = [(norm > 0.999 * limit).tolist() for norm, limit in zip(norms, limits, strict=True)]
    assert [(row[0], any(row)) for row in beyond] == [(False, True)] * 2
    compare(kernel, prefix, True, chunk, arguments)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (1, 2)])
def test_results_that_nothing_depends_on(kernel: ctypes.CDLL, prefix: bool, used: tuple[int, ...]) -> None:
    """The last chunk's weights are read by nothing, and a gradient may come from them alone."""
    compare(kernel, prefix, True, 4, inputs(2, 12, 16, 16, 16), used)


def test_the_same_on_any_number_of_threads(kernel: ctypes.CDLL) -> None:
    arguments, found = inputs(5, 16, 16, 16, 16), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(outputs_and_gradients(partial(compiled, kernel, True, True, 4), arguments))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize("field", range(8))
def test_a_number_that_is_none_stays_none(kernel: ctypes.CDLL, field: int) -> None:
    """A diverged memory must be seen in the loss, and only the row that has it."""
    arguments = inputs(2, 16, 8, 8, 8)
    arguments[field][1].fill_(float("nan"))
    out, down, _ = compiled(kernel, True, True, 8, *arguments)
    assert out[1].isnan().any()
    assert down[1].isnan().any() or field in (2, 5)  # queries are not written
    assert not out[0].isnan().any()
    assert not down[0].isnan().any()


@pytest.mark.parametrize("prefix", [True, False])
def test_without_gradients_it_is_the_same_and_keeps_two_chunks(kernel: ctypes.CDLL, prefix: bool) -> None:
    arguments = inputs(2, 200, 16, 8, 16)
    limits = norm_limits(FastWeights(*arguments[:2]), NORM_MAX)
    for chunk in (8, 100):
        with torch.no_grad():
            found = CompiledScan.apply(kernel, chunk, prefix, True, limits, False, *arguments)
        for ours, kept in zip(found, compiled(kernel, prefix, True, chunk, *arguments), strict=True):
            assert torch.equal(ours, kept)


def test_what_it_does_not_take_is_left_to_pytorch(kernel: ctypes.CDLL) -> None:
    down, up, *fields = inputs(1, 4, 16, 8, 24)
    assert scan_kernel(4, True, down, up, *fields) is kernel
    assert scan_kernel(4, True, down, up.double(), *fields) is None
    assert scan_kernel(4, True, down, up, *(field.double() for field in fields)) is None
    assert scan_kernel(4, True, down[:, :12], up, *fields) is None
    assert scan_kernel(4, True, down, up[..., :20], *fields) is None
    assert scan_kernel(LONGEST_PREFIX + 1, True, down, up, *fields) is None
    assert scan_kernel(LONGEST_PREFIX + 1, False, down, up, *fields) is kernel
    use(Kernels.torch)
    assert scan_kernel(4, True, down, up, *fields) is None
