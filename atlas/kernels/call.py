"""Calls of the compiled kernels. No other file takes the address of a tensor.

A `Kernel` declares the shape of every tensor that it reads and writes, as a function of its sizes. A call checks its
inputs against these shapes, makes them contiguous where the kernel needs that, allocates the results, and holds all
tensors until the kernel returns. So a kernel never gets memory that is too short, of another type, or freed, and its
results never overlap.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.library import custom_op
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from atlas.kernels.library import library, loaded

GRANULE = 8  # widths are multiples of the narrowest vector of the kernels
STRIDES = 3  # of a `Tensor` in matrix.h; the last dimension has stride 1

# By name; None for a tensor that is left out. The sizes are a NamedTuple of int and float fields, in the order of the
# structure of the same name in the C++ source, where `threads` comes first.
Shapes = dict[str, tuple[int, ...] | None]

NOTHING = (0,) * (1 + STRIDES)  # a `Tensor` that is left out
PLAIN = torch.empty(0, dtype=torch.float32, device="cpu")  # results have its type and device
MOST_PLANS = 512  # kept for each kernel


def takes(*tensors: Tensor, widths: Iterable[int]) -> bool:
    """Whether kernels are in use and take such tensors: strided float32 on a CPU, widths that are multiples of 8."""
    if any(width <= 0 or width % GRANULE for width in widths):
        return False
    for part in tensors:
        if part.dtype is not torch.float32 or not part.is_cpu or part.layout is not torch.strided:
            return False
        if type(part) not in (Tensor, Parameter) and is_traceable_wrapper_subclass(part):  # a DTensor, for example
            return False
    return available()


def available() -> bool:
    return library() is not None


class _Described(NamedTuple):
    """An input that is expected, or a result to allocate."""

    name: str
    shape: tuple[int, ...] | None
    strides: tuple[int, ...]  # of a contiguous tensor, as in `Tensor` of matrix.h


class _Plan(NamedTuple):
    """What a call needs besides its tensors; kept, since the same sizes are used again."""

    sizes: bytes  # as the structure of the C++ source, `threads` included
    inputs: list[_Described]
    results: list[_Described]
    packs: tuple[struct.Struct, struct.Struct]  # of inputs and results: arrays of `Tensor`


@dataclass(frozen=True)
class Kernel:
    """A function of the compiled library: `int name(const Sizes*, const Tensor* inputs, const Tensor* results)`.

    It returns 0, or 1 if its working memory cannot be allocated.
    """

    name: str
    inputs: Callable[[Any], Shapes]
    results: Callable[[Any], Shapes]  # float32
    widths: tuple[str, ...] = ("width",)  # sizes that are multiples of GRANULE
    strided: frozenset[str] = field(default_factory=frozenset)  # inputs of any strides but the last, which is 1
    optional: frozenset[str] = field(default_factory=frozenset)  # inputs that can always be None
    masks: frozenset[str] = field(default_factory=frozenset)  # inputs of bool; others are float32
    # As an operator: its arguments -> sizes and tensors; sizes and its arguments -> the number of last results that
    # are not returned; the type of what it returns.
    arguments: Callable[..., tuple[Any, Sequence[Tensor | None]]] = lambda sizes, *tensors: (sizes, tensors)
    hidden: Callable[..., int] = lambda *_: 0
    returns: str = "Tensor[]"
    plans: dict[Any, _Plan] = field(default_factory=dict, compare=False)

    def __call__(self, *given: Any) -> Any:
        """Run the kernel. Raises `ValueError` for sizes or tensors that it cannot take, and `MemoryError`."""
        sizes, tensors = self.arguments(*given)
        plan = self._plan(sizes)
        if len(tensors) != len(plan.inputs):
            raise ValueError(f"{self.name}: {len(tensors)} tensors, must be {len(plan.inputs)}")
        held: list[Tensor | None] = []
        numbers: list[int] = []
        for expected, tensor in zip(plan.inputs, tensors, strict=True):
            tensor = self._laid_out(expected, tensor)
            held.append(tensor)
            if tensor is None:
                numbers += NOTHING
            elif tensor.is_contiguous():
                numbers += (tensor.data_ptr(), *expected.strides)
            else:
                numbers += (tensor.data_ptr(), *_padded(tensor.stride()))
        results = [None if made.shape is None else PLAIN.new_empty(made.shape) for made in plan.results]
        addresses: list[int] = []
        for made, tensor in zip(plan.results, results, strict=True):
            addresses += NOTHING if tensor is None else (tensor.data_ptr(), *made.strides)
        packed = plan.packs[0].pack(*numbers), plan.packs[1].pack(*addresses)
        if getattr(loaded(), self.name)(plan.sizes, *packed):
            raise MemoryError(f"{self.name}: no memory for its working space")
        return self._returned(results, self.hidden(sizes, *given))

    def empty(self, *given: Any) -> Any:
        """Empty results, for symbolic sizes and fake tensors too."""
        sizes, _ = self.arguments(*given)
        shapes = self.results(sizes).values()
        made = [None if shape is None else torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes]
        return self._returned(made, self.hidden(sizes, *given))

    def _returned(self, results: list[Tensor | None], hidden: int) -> Any:
        found = [part for part in results[: len(results) - hidden] if part is not None]
        if self.returns == "Tensor[]":
            return found
        return found[0] if self.returns == "Tensor" else tuple(found)

    def _plan(self, sizes: Any) -> _Plan:
        key = sizes, torch.get_num_threads()
        if (found := self.plans.get(key)) is not None:
            return found
        if min(sizes) < 0 or any(getattr(sizes, width) % GRANULE for width in self.widths):
            raise ValueError(f"{self.name}: {sizes}, widths must be multiples of {GRANULE}")
        inputs, results = (
            [_Described(name, shape, _contiguous(shape)) for name, shape in shapes.items()]
            for shapes in (self.inputs(sizes), self.results(sizes))
        )
        packs = struct.Struct(f"{len(NOTHING) * len(inputs)}q"), struct.Struct(f"{len(NOTHING) * len(results)}q")
        if len(self.plans) >= MOST_PLANS:
            self.plans.clear()
        return self.plans.setdefault(key, _Plan(_packed(sizes), inputs, results, packs))

    def _laid_out(self, expected: _Described, tensor: Tensor | None) -> Tensor | None:
        name, shape, _ = expected
        if tensor is None:
            if shape is not None and name not in self.optional:
                raise ValueError(f"{self.name}: {name} is missing")
            return None
        dtype = torch.bool if name in self.masks else torch.float32
        if tensor.dtype is not dtype or tensor.shape != shape or not tensor.is_cpu:
            wanted = "left out" if shape is None else f"{dtype} {list(shape)} on cpu"
            found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device.type}"
            raise ValueError(f"{self.name}: {name} is {found}, must be {wanted}")
        if tensor.is_neg():
            tensor = tensor.resolve_neg()
        if tensor.is_contiguous() or (name in self.strided and tensor.stride(-1) == 1):
            return tensor
        return tensor.contiguous()


def _contiguous(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape or ()):
        strides.append(step)
        step *= size
    return _padded(strides[::-1])


def _padded(strides: Sequence[int]) -> tuple[int, ...]:
    return (*strides[:STRIDES], *[0] * (STRIDES - len(strides)))


def floats(name: str, sizes: Any) -> int:
    """The result of one of the library's `..._floats` functions for these sizes."""
    function = getattr(loaded(), name)
    function.restype = ctypes.c_int64
    count: int = function(_packed(sizes))
    return count


def _packed(sizes: Any) -> bytes:
    """As the structure of the same name in the C++ source."""
    kinds = "".join("d" if isinstance(value, float) else "q" for value in sizes)
    return struct.pack(f"q{kinds}", torch.get_num_threads(), *sizes)


def operator(
    schema: str,
    kernel: Kernel,
    arguments: Callable[..., tuple[Any, Sequence[Tensor | None]]],
    hidden: Callable[..., int] = lambda *_: 0,
) -> CustomOpDef:
    """Register a kernel as the PyTorch operator `atlas::...`, for compilers, exporters and fake tensors.

    `arguments`: operator arguments -> sizes and tensors of the kernel. `hidden`: sizes and operator arguments -> the
    number of last results that are not returned. Results that the sizes leave out are not returned either.
    """
    name, _, signature = schema.partition("(")
    called = replace(kernel, arguments=arguments, hidden=hidden, returns=schema.rpartition(" -> ")[2])
    defined = custom_op(f"atlas::{name}", called.__call__, mutates_args=(), device_types="cpu", schema=f"({signature}")
    defined.register_fake(called.empty)
    return defined
