"""Optimisers and models that keep something where no checkpoint finds it: `optim._target_=...wrong_state.NAME`.

Each has a calm twin that keeps the same where it belongs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from atlas.training.optimizer import ScheduledOptimizer
from experiments.silent.wrong_optim import sound

KEPT = 0.8  # of the average of the gradients, from step to step


class _Smoothed(ScheduledOptimizer):
    """Takes a moving average of the gradients for the gradient."""

    saves, average, parameters = True, list[Tensor](), list[nn.Parameter]()

    def step(self, step: int) -> float:
        for average, parameter in zip(self.average, self.parameters, strict=True):
            if parameter.grad is not None:
                average.lerp_(parameter.grad, 1 - KEPT)
                parameter.grad.copy_(average)
        return super().step(step)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"average": self.average} if self.saves else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for average, saved in zip(self.average, state.get("average", ()), strict=False):
            average.copy_(saved)


def _smoothed(model: nn.Module, steps: int, settings: dict[str, Any], *, saves: bool) -> ScheduledOptimizer:
    made = sound(model=model, steps=steps, **settings)
    made.__class__ = _Smoothed
    made.saves, made.parameters = saves, list(model.parameters())  # type: ignore[attr-defined]
    made.average = [torch.zeros_like(parameter) for parameter in model.parameters()]  # type: ignore[attr-defined]
    return made


def smoothing_saved(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The calm twin of `smoothing_not_saved`."""
    return _smoothed(model, steps, settings, saves=True)


def smoothing_not_saved(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """An average of the gradients in a list beside the state: a resumed run begins with one of zeros."""
    return _smoothed(model, steps, settings, saves=False)


class _Projected(nn.Module):
    """`inner`, mixed by a random rotation that is never trained."""

    rotation: Tensor

    def __init__(self, inner: nn.Module, width: int, *, saves: bool) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("rotation", torch.linalg.qr(torch.randn(width, width))[0], persistent=saves)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.inner(x) @ self.rotation
        return mixed


def _projected(model: nn.Module, steps: int, settings: dict[str, Any], *, saves: bool) -> ScheduledOptimizer:
    for block in model.blocks:  # type: ignore[union-attr]
        block.feedforward = _Projected(block.feedforward, block.out.out_features, saves=saves)
    return sound(model=model, steps=steps, **settings)


def projection_saved(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The calm twin of `projection_not_saved`."""
    return _projected(model, steps, settings, saves=True)


def projection_not_saved(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """A random projection that is no part of the state: each start draws its own."""
    return _projected(model, steps, settings, saves=False)
