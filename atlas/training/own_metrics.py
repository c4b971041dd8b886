"""Metrics of the user's own: functions that `telemetry.metrics` names, called at every logged step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

import torch

from atlas.config.components import named_callable
from atlas.models.language_model import AtlasModel
from atlas.training.state import rng_kept

Metric = Callable[[AtlasModel, int], Mapping[str, float]]


def own_metrics(names: Sequence[str], model: AtlasModel, step: int) -> dict[str, float | None]:
    """What `metric(model, step)` returns, as columns `own/<name>`; None for what is not finite.

    A metric sees the model after the step, without gradients. It may draw random numbers, of torch, numpy and Python:
    those of training stay as they are.
    """
    if not names:
        return {}
    found: dict[str, float | None] = {}
    with torch.no_grad(), rng_kept():
        for name in names:
            metric: Metric = named_callable("telemetry.metrics", name)
            found |= {f"own/{key}": value if isfinite(value) else None for key, value in metric(model, step).items()}
    return found
