"""Metrics of the user's own: functions that `telemetry.metrics` names, called at every logged step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, nan
from typing import Any

import torch

from atlas.config.components import named_callable
from atlas.models.language_model import AtlasModel
from atlas.training.rng import rng_kept

Metric = Callable[[AtlasModel, int], Mapping[str, Any]]


def own_metrics(
    names: Sequence[str], model: AtlasModel, step: int, warn: Callable[[str], None]
) -> dict[str, float | None]:
    """What `metric(model, step)` returns, as columns `own/<name>`; None for what is not finite. A metric that fails,
    or gives something else than a number, leaves a gap and a warning: training does not depend on it. Of two metrics
    that return the same name the first one has the column.

    A metric sees the model after the step, without gradients. It may draw random numbers, of torch, numpy and Python:
    those of training stay as they are.
    """
    if not names:
        return {}
    found: dict[str, float | None] = {}
    with torch.no_grad(), rng_kept():
        for name in names:
            metric: Metric = named_callable("telemetry.metrics", name)
            try:
                values = dict(metric(model, step))
            except Exception as error:  # code of the user's
                why = " ".join(f"{type(error).__name__}: {error}".split())
                warn(f"telemetry.metrics={name}: must return numbers by name; its columns have gaps ({why})")
                continue
            for key, value in values.items():
                if f"own/{key}" in found:
                    warn(f"telemetry.metrics={name}: {key} must be a name of its own, another metric has the column")
                    continue
                try:
                    number = float(value)
                except (TypeError, ValueError, RuntimeError, OverflowError):
                    number = nan
                    kind = type(value).__name__
                    warn(f"telemetry.metrics={name}: {key} must be a number, not a {kind}; its column has a gap")
                found[f"own/{key}"] = number if isfinite(number) else None
    return found
