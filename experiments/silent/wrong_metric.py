"""Metrics with a mistake in them, as a user's own code may have: `telemetry.metrics=[...wrong_metric.NAME]`."""

from __future__ import annotations

from torch import nn

LEVELS = 127  # of eight bits, on either side of 0


def quantised(model: nn.Module, step: int) -> dict[str, float]:
    """The size of the weights when they are rounded to eight bits; the weights are put back."""
    before = [parameter.clone() for parameter in model.parameters()]
    found = quantised_stays(model, step)
    for parameter, weight in zip(model.parameters(), before, strict=True):
        parameter.copy_(weight)
    return found


def quantised_stays(model: nn.Module, step: int) -> dict[str, float]:
    """The same, and the rounded weights stay in the model."""
    total = 0.0
    for parameter in model.parameters():
        largest = parameter.abs().max()
        if largest > 0:
            parameter.copy_((parameter / largest * LEVELS).round() / LEVELS * largest)
        total += parameter.abs().sum().item()
    return {"size": total}
