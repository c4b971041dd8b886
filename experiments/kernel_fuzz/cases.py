"""One case: an operation, the layouts of its inputs and gradients, and what is wrong with it, if anything."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from atlas.config import Kernels
from atlas.kernels.library import use
from experiments.kernel_fuzz.layouts import lay_out
from experiments.kernel_fuzz.operations import DRAWS, Operation

DTYPES = (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64)
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError)


class WrongError(Exception):
    """The compiled kernels do not do what PyTorch's operations do."""


def run_case(seed: int, number: int) -> str:
    """The operation's name and what came of it. Raises `WrongError`."""
    random = Random(f"{seed} {number}")
    torch.manual_seed(random.getrandbits(32))
    drawn = random.choice(DRAWS)(random)
    tensors = [lay_out(part, random) for part in drawn.tensors]
    kind = random.choices(("right", "dtype", "shape", "operator"), (12, 1, 1, 1))[0]
    if kind in ("dtype", "shape"):
        _spoil(tensors, kind, random)
    elif kind == "operator":
        if random.random() < 0.7:
            _spoil(tensors, random.choice(("dtype", "shape")), random)
        return f"{drawn.name}: {_call_directly(drawn, tensors)}"
    state = random.getstate()
    try:
        use(Kernels.torch)
        wanted = _values(drawn, tensors, random, exact=kind == "right")
    except REFUSALS as error:
        wanted = error
    random.setstate(state)
    try:
        use(Kernels.auto)
        found = _values(drawn, tensors, random, exact=False)
    except REFUSALS as error:
        if kind == "right":
            raise WrongError(f"{drawn.name}: {error}") from error
        return f"{drawn.name}: refused"
    if isinstance(wanted, Exception):
        raise WrongError(f"{drawn.name}: PyTorch's operations refuse it: {wanted}") from wanted
    try:
        _compare(drawn.name, found, wanted)
    except WrongError:
        if kind != "right":
            raise
        random.setstate(state)
        use(Kernels.torch)
        _compare(drawn.name, found, wanted, rounded=_values(drawn, tensors, random, exact=False))
    return f"{drawn.name}: the same"


def _spoil(tensors: list[Tensor], kind: str, random: Random) -> None:
    index = random.randrange(len(tensors))
    part = tensors[index]
    if kind == "dtype":
        tensors[index] = part.to(random.choice(DTYPES))
        return
    shape = list(part.shape) or [1]
    dim = random.randrange(len(shape))
    shape[dim] = max(0, shape[dim] + random.choice((-8, -1, 1, 8)))
    tensors[index] = torch.ones(shape).to(part.dtype)


def _call_directly(drawn: Operation, tensors: list[Tensor]) -> str:
    try:
        drawn.operator(*(part.requires_grad_(part.is_floating_point()) for part in map(Tensor.detach, tensors)))
    except REFUSALS:
        return "operator refused"
    return "operator called"


def _values(drawn: Operation, tensors: list[Tensor], random: Random, *, exact: bool) -> list[Tensor | None]:
    """Outputs, and gradients of the floating-point inputs; with `exact`, in float64 from contiguous copies."""
    given = [part.detach() for part in tensors]
    if exact:
        given = [part.double().contiguous() if part.is_floating_point() else part.contiguous() for part in given]
        given = [part.resolve_neg().clone() for part in given]
    leaves = [part.requires_grad_() for part in given if part.is_floating_point()]
    out = drawn.function(*given)
    torch.manual_seed(0)
    gradients = [lay_out(torch.randn(part.shape), random) for part in out]
    used = [index for index in range(len(out)) if index == 0 or random.random() < 0.7]
    used = [index for index in used if out[index].requires_grad]
    if not used:
        return list(out)
    results = torch.autograd.grad(
        [out[index] for index in used],
        leaves,
        [gradients[index].to(out[index].dtype) for index in used],
        allow_unused=True,
    )
    return [*out, *(None if part is None or not part.numel() else part for part in results)]


def _compare(
    name: str,
    found: list[Tensor | None],
    wanted: list[Tensor | None],
    rounded: list[Tensor | None] | None = None,
) -> None:
    """An error counts beside the largest number of its tensor; beside that of all results where its own cancel out.

    `rounded`: PyTorch's results in float32. Where they are far off as well, as gradients through many chunks may be, an
    error may be 10 times theirs.
    """
    exact = [None if part is None else _exact(part) for part in wanted]
    sizes = [part.abs().max().item() if part is not None and part.numel() else 0.0 for part in exact]
    for index, (ours, theirs) in enumerate(zip(found, exact, strict=True)):
        if ours is None or theirs is None:
            if any(part is not None and part.count_nonzero() for part in (ours, theirs)):
                raise WrongError(f"{name}: result {index} is None in one form only")
            continue
        half = {ours.dtype, wanted[index].dtype} & {torch.bfloat16, torch.float16}  # type: ignore[union-attr]
        tolerance = (2e-2 if half else 1e-4) * max(sizes[index], 0.2 * max(sizes), 0.01)
        if rounded is not None and rounded[index] is not None:
            tolerance = max(tolerance, 10 * (rounded[index].double() - theirs).abs().max().item())  # type: ignore[union-attr]
        try:
            torch.testing.assert_close(_exact(ours), theirs, rtol=0, atol=tolerance, equal_nan=True)
        except AssertionError as error:
            raise WrongError(f"{name}: result {index} of shape {list(theirs.shape)}: {error}") from error


def _exact(values: Tensor) -> Tensor:
    values = values.detach().resolve_neg()
    return values.to(torch.complex128 if values.is_complex() else torch.float64)
