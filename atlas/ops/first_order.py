"""Backward passes that have no derivative of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Gradients = TypeVar("Gradients")


def first_order(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """`once_differentiable` of PyTorch, but the error comes at once: `torch.autograd.grad` with inputs passes by
    PyTorch's, and a second derivative then lacks this part. Raises RuntimeError under `create_graph=True`."""

    @wraps(backward)
    def checked(*args: Any) -> Gradients:
        if torch.is_grad_enabled():
            raise RuntimeError("create_graph=True: second derivatives are not supported, gradients are")
        return backward(*args)

    return checked
