"""Checks of what the commands of this folder are given."""

from __future__ import annotations

import torch

from atlas.config import require
from atlas.config.arguments import names
from atlas.kernels import gpu


def require_device(device: str, *, interpreter: bool = False) -> None:
    """`interpreter`: on a CPU the Triton kernels run in triton's."""
    require(device in ("cpu", "cuda"), "device", device, "cpu or cuda")
    require(device == "cpu" or torch.cuda.is_available(), "device", device, "cpu: no GPU was found")
    needed = gpu.interpreted() or device == "cuda" or not interpreter
    require(needed, "device", device, "cuda, or TRITON_INTERPRET=1 must be set for triton's interpreter")


def require_positive(**values: int) -> None:
    for key, value in values.items():
        require(value > 0, key, value, ">= 1")


def integers(key: str, text: str, allowed: tuple[int, ...] = ()) -> list[int]:
    """A list of integers of at least 1, or of those `allowed`. Raises `ConfigError` for other lists and for none."""
    found = names(text)
    told = f"a list of {', '.join(map(str, allowed))}" if allowed else "a list of integers >= 1, such as 16,64"
    right = bool(found) and all(one.isdecimal() and int(one) > 0 for one in found)
    require(right and (not allowed or {*map(int, found)} <= {*allowed}), key, text, told)
    return [*map(int, found)]
