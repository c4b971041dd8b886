"""A stand-in for a GPU that counts: tensors without values whose operations are counted as CUDA would launch them.

Python sees a CUDA device, so the code takes its CUDA branches; PyTorch's C++ sees a CPU tensor, so autograd and
autocast work where PyTorch was built without CUDA. An operation runs on the meta device: it has shapes and no values.
So a number read from the device is 1, and a boolean index selects everything.

What is counted:

    launches    operations that are not views and write; one each, though some of them launch several kernels
    waits       reads of device memory by the host: item, tolist, bool, copies to the CPU, and boolean indices
    copies      copies to the device for which the host waits: from memory that is not pinned, or without `non_blocking`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import return_and_correct_aliasing

DEVICE = torch.device("cuda", 0)
META = torch.device("meta")
FREE = ("empty", "new_empty", "detach", "alias", "_unsafe_view", "lift_fresh", "resize_", "set_")  # no kernel


@dataclass
class Counts:
    launches: Counter[str] = field(default_factory=Counter)  # by operation
    waits: Counter[str] = field(default_factory=Counter)
    copies: int = 0

    @property
    def total(self) -> int:
        return self.launches.total()

    def clear(self) -> None:
        self.launches.clear()
        self.waits.clear()
        self.copies = 0


_counts = Counts()


class DeviceTensor(Tensor):
    """A tensor of the stand-in. `values` is on the meta device."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> DeviceTensor:
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="cpu",
            requires_grad=False,
        )
        made.values = values
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, kinds: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        name = operation.overloadpacket.__name__
        if name == "_local_scalar_dense":
            _counts.waits[name] += 1
            return 1.0 if arguments[0].is_floating_point() else 1
        if name == "index":
            arguments = _whole_index(*arguments)
        if not (operation.is_view or name.startswith(FREE)):
            _counts.launches[name] += 1
        inner, inner_named = pytree.tree_map_only(Tensor, _values, (arguments, _on_meta(named)))
        out = pytree.tree_map_only(Tensor, DeviceTensor, operation(*inner, **inner_named))
        return return_and_correct_aliasing(operation, arguments, named, out)


def _values(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DeviceTensor):
        return tensor.values
    if tensor.dim():  # zeros that autograd makes in C++ for a gradient that nothing asked for
        _counts.launches["zeros"] += 1
    return tensor.to(META)


def _on_meta(named: dict[str, Any]) -> dict[str, Any]:
    return {**named, "device": META} if named.get("device") is not None else named


def _whole_index(tensor: Tensor, indices: list[Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
    """A boolean index makes the host wait for its number of elements; here it selects all."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype is torch.bool:
            _counts.waits["boolean index"] += 1
            _counts.launches["nonzero"] += 1
            whole = torch.empty(index.numel(), dtype=torch.int64, device=META)
            found += [DeviceTensor(whole) for _ in range(index.dim())]
        else:
            found.append(index)
    return tensor, found


class _Placement(TorchFunctionMode):
    """Sends what is asked for on the device there, and answers what the host reads from it."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: set[int] = set()

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, arguments: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = dict(named or {})
        first = arguments[0] if arguments else None
        on_device = isinstance(first, DeviceTensor)
        name = getattr(function, "__name__", "")
        if name in ("to", "cuda", "cpu") and isinstance(first, Tensor):
            return self._moved(function, name, first, arguments[1:], named)
        if name == "pin_memory":
            self.pinned.add(first.data_ptr())
            return first
        if on_device and name == "tolist":
            _counts.waits[name] += 1
            return torch.ones(first.shape, dtype=first.dtype).tolist()
        if named.get("device") is not None and torch.device(named["device"]) == DEVICE and not on_device:
            _counts.launches[name] += not name.startswith(FREE)
            return DeviceTensor(function(*arguments, **{**named, "device": META, "pin_memory": False}))
        return function(*arguments, **named)

    def _moved(
        self, function: Callable[..., Any], name: str, tensor: Tensor, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        places = {"cuda": DEVICE, "cpu": torch.device("cpu")}
        rest = [value for value in arguments if not isinstance(value, str | torch.device)]
        asked = [value for value in arguments if isinstance(value, str | torch.device)] + [named.pop("device", None)]
        place = places.get(name) or next((torch.device(value) for value in asked if value is not None), tensor.device)
        here = isinstance(tensor, DeviceTensor)
        if place.type == "cuda" and not here:
            quick = named.pop("non_blocking", False) and tensor.data_ptr() in self.pinned
            _counts.copies += not quick
            tensor = DeviceTensor(torch.empty_like(tensor, device=META))
        elif place.type == "cpu" and here:
            _counts.waits["copy to the CPU"] += 1
            tensor = torch.ones(tensor.shape, dtype=tensor.dtype)
        named.pop("non_blocking", None)
        return tensor.to(*rest, **named) if rest or named else tensor


def on_device(model: nn.Module) -> nn.Module:
    """The module with its parameters on the stand-in, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                held = DeviceTensor(torch.empty_like(parameter, device=META))
                module._parameters[name] = nn.Parameter(held)
    return model


def _autocast(device: str, *arguments: Any, **named: Any) -> torch.amp.autocast_mode.autocast:
    return torch.amp.autocast_mode.autocast("cpu" if device == "cuda" else device, *arguments, **named)


def _is_autocast_enabled(device: str) -> bool:
    return _asked("cpu" if device == "cuda" else device)


_asked = torch.is_autocast_enabled


def _groups_on_device(lists: Any, with_indices: bool = False) -> Any:
    found = _group(lists, with_indices)
    here = any(isinstance(tensor, DeviceTensor) for tensors in lists for tensor in tensors)
    return {((DEVICE if here else device), dtype): value for (device, dtype), value in found.items()}


FOREACH = tuple(_foreach_utils._foreach_supported_types)
_group = _foreach_utils._group_tensors_by_device_and_dtype


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens inside on the stand-in."""
    global _counts
    _counts = Counts()
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "autocast", _autocast))
        stack.enter_context(patch.object(torch, "is_autocast_enabled", _is_autocast_enabled))
        for module in ("torch.nn.utils.clip_grad", "torch.optim.optimizer"):
            stack.enter_context(patch(f"{module}._group_tensors_by_device_and_dtype", _groups_on_device))
        stack.enter_context(patch.object(_foreach_utils, "_foreach_supported_types", [*FOREACH, DeviceTensor]))
        stack.enter_context(_Placement())
        yield _counts
