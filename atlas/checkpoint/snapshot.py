"""Takes a checkpoint's payload out of the running state: plain containers, tensors copied to the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCALARS = (type(None), bool, int, float, str, bytes)


class SnapshotError(TypeError):
    """A value that a checkpoint cannot hold, since it could not be read back safely. The message names its place."""


def snapshot(payload: dict[str, Any]) -> dict[str, Any]:
    """A copy of `payload` that training no longer changes. Tensors that share memory share it in the copy too.

    Any dict becomes a plain one. Raises `SnapshotError` for what `torch.load(weights_only=True)` would refuse.
    """
    seen: dict[tuple[Any, ...], Tensor] = {}
    copied: dict[str, Any] = _copy(payload, "payload", seen)
    if any(device.type == "cuda" for device, *_ in seen):
        torch.cuda.synchronize()  # copies from a GPU have only been started
    return copied


def _copy(value: Any, place: str, seen: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return _copy_tensor(value, seen)
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise SnapshotError(f"{place}: key {key!r} must be a string or an integer")
        return {key: _copy(item, f"{place}[{key!r}]", seen) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copy(item, f"{place}[{index}]", seen) for index, item in enumerate(value))
    if type(value) in SCALARS:
        return value
    raise SnapshotError(f"{place}: {type(value).__name__} cannot be kept in a checkpoint")


def _copy_tensor(tensor: Tensor, seen: dict[tuple[Any, ...], Tensor]) -> Tensor:
    """The copy is made once per view, so that tied weights are kept once."""
    source = tensor.detach()
    view = (
        source.device,
        source.untyped_storage().data_ptr(),
        source.storage_offset(),
        source.dtype,
        source.shape,
        source.stride(),
    )
    if source.numel() == 0:
        return source.cpu().clone()
    if view not in seen:
        seen[view] = source.clone() if source.device.type == "cpu" else _from_gpu(source)
    return seen[view]


def _from_gpu(source: Tensor) -> Tensor:
    """In pinned memory, which the device writes by itself, several times as fast as other memory."""
    pinned = torch.empty_like(source, device="cpu", pin_memory=True)
    return pinned.copy_(source, non_blocking=True)
