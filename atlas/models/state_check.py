"""Checks that a state fits the model and the number of sequences, and names what differs.

The chunks that the state was made with are not checked: they can change between two calls.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atlas.models.memory import MemoryState


def shapes(state: tuple[object, ...]) -> object:
    """The same tree with the shape of every tensor."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.shape, state)


def mismatch(found: object, wanted: object, batch: int, cached: int, like: Tensor, name: str) -> str:
    """The first difference of the state `found` from `wanted`, the shapes for one sequence; "" if there is none.

    `cached`: tokens that attention without a window holds. Device and precision must be those of `like`.
    """
    if isinstance(wanted, torch.Size):
        return _mismatch_of_tensor(found, [wanted[0] * batch, *(size or cached for size in wanted[1:])], like, name)
    if not isinstance(wanted, tuple):
        return "" if type(found) is type(wanted) else f"{name} is {_kind(found)}: must be {_kind(wanted)}"
    if not isinstance(found, tuple) or type(found) is not type(wanted):
        return f"{name} is {_kind(found)}: must be {_kind(wanted)}"
    if len(found) != len(wanted):
        return f"{name} has {len(found)} parts: must have {len(wanted)}"
    fields = getattr(wanted, "_fields", None)
    cached = 0 if isinstance(wanted, MemoryState) else cached
    for index, (part, want) in enumerate(zip(found, wanted, strict=True)):
        own = f"{name}.{fields[index]}" if fields else f"{name}[{index}]"
        if message := mismatch(part, want, batch, cached, like, own):
            return message
    return ""


def _mismatch_of_tensor(found: object, shape: list[int], like: Tensor, name: str) -> str:
    if not isinstance(found, Tensor):
        return f"{name} is {_kind(found)}: must be a tensor"
    if list(found.shape) != shape:
        return f"{name} of shape {list(found.shape)}: must be of shape {shape}"
    if found.device != like.device:
        return f"{name} on {found.device}: must be on {like.device}, as the model's weights"
    if (found.dtype is torch.float64) != (like.dtype is torch.float64) and found.is_floating_point():
        return f"{name} of {found.dtype}: must be of {like.dtype}, as the model's weights"
    return ""


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
