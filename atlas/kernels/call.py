"""The one place where kernels are called and where the address of a tensor is taken.

A `Kernel` states the shape of every tensor that it reads and writes, as a function of its sizes. A call checks its
inputs against these shapes, lays them out as the kernel reads them, makes the results, and holds all tensors until the
kernel returns. So a kernel never sees memory that is too short, of another type, freed, or overlapping where it writes.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.library import custom_op
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from atlas.kernels.library import library, loaded

GRANULE = 8  # widths are multiples of it: the narrowest vector of the kernels
STRIDES = 3  # of a `Tensor` in matrix.h, besides the width, whose stride is 1

# By name; None for a tensor that is left out. The sizes themselves are a NamedTuple of int and float fields in the
# order of the structure of the same name in the C++ source, where `threads` comes before them.
Shapes = dict[str, tuple[int, ...] | None]


def takes(*tensors: Tensor, widths: Iterable[int]) -> bool:
    """Whether there are kernels, and they take such tensors: strided float32 on a CPU, widths of whole granules."""
    if any(width <= 0 or width % GRANULE for width in widths):
        return False
    for part in tensors:
        if part.dtype is not torch.float32 or part.device.type != "cpu" or part.layout is not torch.strided:
            return False
        if type(part) is not Tensor and is_traceable_wrapper_subclass(part):  # a DTensor, for example
            return False
    return library() is not None


@dataclass(frozen=True)
class Kernel:
    """A function of the compiled library: `int name(const Sizes*, const Tensor* inputs, const Tensor* results)`.

    It returns 0, or 1 where its working memory could not be had.
    """

    name: str
    inputs: Callable[[Any], Shapes]
    results: Callable[[Any], Shapes]  # float32
    widths: tuple[str, ...] = ("width",)  # sizes that are whole granules
    strided: frozenset[str] = field(default_factory=frozenset)  # inputs read by their strides, others are contiguous
    optional: frozenset[str] = field(default_factory=frozenset)  # inputs that may be None whatever the sizes
    masks: frozenset[str] = field(default_factory=frozenset)  # inputs that are bool, others are float32
    zeroed: bool = False  # the results start at zero

    def __call__(self, sizes: Any, *given: Tensor | None) -> list[Tensor | None]:
        """Raises `ValueError` for sizes and tensors that the kernel cannot take."""
        if min(sizes) < 0 or any(getattr(sizes, width) % GRANULE for width in self.widths):
            raise ValueError(f"{self.name}: {sizes}, widths must be multiples of {GRANULE}")
        shapes = self.inputs(sizes)
        if len(given) != len(shapes):
            raise ValueError(f"{self.name}: {len(given)} tensors, must be {len(shapes)}")
        held = [self._laid_out(*pair, tensor) for pair, tensor in zip(shapes.items(), given, strict=True)]
        results = self.empty(sizes)
        if getattr(loaded(), self.name)(_packed(sizes), _described(held), _described(results)):
            raise MemoryError(f"{self.name}: no memory for its working space")
        return results

    def empty(self, sizes: Any) -> list[Tensor | None]:
        """The results before the call. Also right for symbolic sizes and fake tensors."""
        make = torch.zeros if self.zeroed else torch.empty
        shapes = self.results(sizes).values()
        return [None if shape is None else make(shape, dtype=torch.float32, device="cpu") for shape in shapes]

    def _laid_out(self, name: str, shape: tuple[int, ...] | None, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            if shape is not None and name not in self.optional:
                raise ValueError(f"{self.name}: {name} is missing")
            return None
        dtype = torch.bool if name in self.masks else torch.float32
        if shape is None or tensor.shape != shape or tensor.dtype is not dtype or tensor.device.type != "cpu":
            wanted = "left out" if shape is None else f"{dtype} {list(shape)} on cpu"
            found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device.type}"
            raise ValueError(f"{self.name}: {name} is {found}, must be {wanted}")
        tensor = tensor.resolve_conj().resolve_neg()
        if name in self.strided and tensor.stride(-1) == 1:
            return tensor
        return tensor.contiguous()


def _described(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_int64]:
    """As an array of `Tensor` of matrix.h. Whoever calls this must hold the tensors for as long as it is used."""
    numbers: list[int] = []
    for tensor in tensors:
        if tensor is None:
            numbers += [0] * (1 + STRIDES)
        else:
            strides = tensor.stride()[:STRIDES]
            numbers += (tensor.data_ptr(), *strides, *[0] * (STRIDES - len(strides)))
    return (ctypes.c_int64 * len(numbers))(*numbers)


def floats(name: str, sizes: Any) -> int:
    """What one of the library's `..._floats` functions says of these sizes."""
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
    hidden: Callable[..., tuple[str, ...]] = lambda *_: (),
) -> CustomOpDef:
    """A kernel as an operator `atlas::...` of PyTorch, which compilers, exporters and fake tensors can see.

    `arguments` makes the kernel's sizes and tensors of the operator's arguments. Results that the sizes leave out are
    not returned, nor are those whose name begins as one of `hidden`.
    """
    name, _, signature = schema.partition("(")

    def returned(given: Any, sizes: Any, results: list[Tensor | None]) -> Any:
        unseen = hidden(*given)
        pairs = zip(kernel.results(sizes), results, strict=True)
        found = [part for name, part in pairs if part is not None and not (unseen and name.startswith(unseen))]
        return found if schema.endswith("[]") else tuple(found) if schema.endswith(")") else found[0]

    def run(*given: Any) -> Any:
        sizes, tensors = arguments(*given)
        return returned(given, sizes, kernel(sizes, *tensors))

    def fake(*given: Any) -> Any:
        sizes, _ = arguments(*given)
        return returned(given, sizes, kernel.empty(sizes))

    defined = custom_op(f"atlas::{name}", run, mutates_args=(), device_types="cpu", schema=f"({signature}")
    defined.register_fake(fake)
    return defined
