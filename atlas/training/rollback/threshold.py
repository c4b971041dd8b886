"""The rollback threshold that an observed run suggests (`rollback=observe`). Imports no torch.

ppl_delta is the ratio of a reading above its moving average. Threshold = 99th percentile + 1 standard deviation, at
least 5 %; above 10 % the run is too unstable for a watch.

Departure: for the deviation stands the root mean square of the readings above the moving average, about 0:
sqrt(mean(delta^2 | delta > 0)). Readings below the average come from learning; with their spread, a run that learns
fast would count as unstable. Where it learns fastest even a spike stays below the average, so the quarters of the
readings with which a run begins are left out while their median is below -5 %.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from atlas.config.atomic import write_atomically

THRESHOLD_FILE = "rollback_threshold.json"
PERCENTILE = 0.99
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
FLOOR = 0.05
CEILING = 0.10
STEEP = -FLOOR  # median of ppl_delta in a quarter: there a rise by the least threshold stays below the average
RMS = "root mean square above the average"  # of the readings there, about 0
READINGS_MIN = 20  # fewer have no 99th percentile


def quarters(deltas: Sequence[float]) -> list[tuple[int, float]]:
    """Number of readings in each quarter of a run, and their median: how steeply the perplexity falls there."""
    ends = [len(deltas) * quarter // 4 for quarter in range(5)]
    return [(end - start, median(deltas[start:end])) for start, end in pairwise(ends) if end > start]


def steep_readings(deltas: Sequence[float]) -> int:
    """How many readings of a run, from its first one, are left out as a steep descent."""
    steep = 0
    for count, middle in quarters(deltas):
        if middle >= STEEP:
            break
        steep += count
    return steep


def suggest_threshold(deltas: Sequence[float]) -> dict[str, Any]:
    """The suggested threshold with the distribution behind it; `threshold` is None if none can be suggested.

    Of all readings that are given: those of a steep descent are left out before.
    """
    enough = len(deltas) >= READINGS_MIN
    percentile = float(np.quantile(deltas, PERCENTILE)) if enough else None
    above = [delta for delta in deltas if delta > 0]
    deviation = sqrt(sum(delta**2 for delta in above) / len(above)) if above else 0.0
    suggested = None if percentile is None else percentile + deviation
    stable = suggested is not None and suggested <= CEILING
    return {
        "readings": len(deltas),
        "percentile_99": percentile,
        "deviation_above": deviation,
        "percentile_plus_deviation": suggested,
        "verdict": ("stable" if stable else "unstable") if enough else "too few readings",
        "threshold": max(suggested, FLOOR) if stable and suggested is not None else None,
        "quantiles": {str(share): float(np.quantile(deltas, share)) for share in QUANTILES if deltas},
    }


def describe_suggestion(found: dict[str, Any]) -> str:
    """What `write_suggestion` writes, in one line."""
    steep = found["left_out"]
    if found["verdict"] == "too few readings":
        start = "the warm-up and the steep descent" if steep else "the warm-up"
        return f"no rollback threshold can be suggested: {found['readings']} readings after {start} are too few"
    measured = f"without {steep} readings of a steep descent, " if steep else ""
    measured += f"99th percentile {found['percentile_99']:.2%} + {RMS} {found['deviation_above']:.2%}"
    if found["threshold"] is None:
        return f"the run is too unstable for a rollback threshold: {measured} of ppl_delta is above {CEILING:.0%}"
    return f"suggested rollback.threshold={found['threshold']:.3f}: {measured} of ppl_delta, at least {FLOOR:.0%}"


def write_suggestion(folder: Path, deltas: Sequence[float]) -> str:
    """Write rollback_threshold.json; returns the suggestion in one line."""
    steep = steep_readings(deltas)
    found = suggest_threshold(deltas[steep:]) | {"left_out": steep, "deltas": [round(delta, 6) for delta in deltas]}
    write_atomically(folder / THRESHOLD_FILE, json.dumps(found, indent=1) + "\n")
    return describe_suggestion(found)
