"""Marks of spikes and rollbacks in a chart over steps, and the range of values that it shows first."""

from __future__ import annotations

from collections.abc import Sequence
from html import unescape
from statistics import median_low
from typing import Any

import numpy as np

from atlas.report.lines import Trace
from atlas.report.run_record import RunRecord

Layout = dict[str, Any]
STEPS = {"title": {"text": "step"}, "unifiedhovertitle": {"text": "step %{x:,}"}}
FAR = 3.0  # times the spread of the better half, and
TWICE = 2.0  # times its largest value: a result above both is out of line
ROOM = 1.0  # values further out than this many times the common spread are shown by zooming only
MARGIN = 0.06


def step_layout(record: RunRecord) -> Layout:
    """Axis of steps; a rollback is a shaded band over the undone steps, a spike a line."""
    shapes, labels = [], []
    for restored, events in _by_target(record).items():
        reached = max(event.get("from_step") or restored for event in events)
        shapes.append(_band(restored, reached))
        times = f" ×{len(events)}" if len(events) > 1 else ""
        segments = ", ".join(str(event.get("segment", "?")) for event in events)
        labels.append(_label(reached, f"rollback{times} to {restored:,}, segment {segments}"))
    went_back = {event.get("from_step") for event in record.kind("rollback")}
    for step in sorted({event["step"] for event in record.kind("spike")} - went_back):
        shapes.append(_line(step))
        labels.append(_label(step, "spike"))
    return {"xaxis": STEPS, "shapes": shapes, "annotations": labels, "hovermode": "x unified"}


def _by_target(record: RunRecord) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for event in record.kind("rollback"):
        found.setdefault(event["step"], []).append(event)
    return found


def _band(start: int, end: int) -> Layout:
    return {
        "type": "rect", "x0": start, "x1": end, "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
        "fillcolor": "@shade", "line": {"width": 0},
    }  # fmt: skip


def _line(step: int) -> Layout:
    line = {"color": "@vermillion", "width": 1.2, "dash": "dot"}
    return {"type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _label(step: int, text: str) -> Layout:
    return {
        "x": step, "y": 1, "yref": "paper", "yanchor": "bottom", "text": text, "showarrow": False,
        "font": {"size": 11, "color": "@vermillion"},
    }  # fmt: skip


def outliers(values: Sequence[float]) -> tuple[float, list[float]]:
    """The largest value in line with the better half of `values`, of which low ones are good; and those above it."""
    middle = median_low(values)
    limit = max(middle + FAR * (middle - min(values)), TWICE * abs(middle))
    return limit, [value for value in values if value > limit]


def range_of_runs(traces: Sequence[Trace]) -> tuple[list[float] | None, str]:
    """`common_range` of the runs in line with the better half: one that diverged does not flatten the others."""
    highest = [float(np.quantile(np.array(trace["y"], dtype=np.float64), 0.99)) for trace in traces]
    limit, outside = outliers(highest)
    found, note = common_range([trace for trace, top in zip(traces, highest, strict=True) if top <= limit])
    if not outside:
        return found, note
    inside = [trace["y"] for trace, top in zip(traces, highest, strict=True) if top <= limit]
    low, high = min(map(min, inside)), max(map(max, inside))
    room = MARGIN * ((high - low) or abs(high) or 1.0)
    names = ", ".join(unescape(trace["name"]) for trace, top in zip(traces, highest, strict=True) if top > limit)
    return found or [low - room, high + room], f"Out of range, up to {max(outside):,.4g}: {names}."


def common_range(traces: Sequence[Trace]) -> tuple[list[float] | None, str]:
    """The range of the y axis without rare extreme values, and a note on them; (None, "") if everything fits."""
    drawn = [trace for trace in traces if trace.get("meta") != "undone"]
    if not drawn:
        return None, ""
    common = np.concatenate([np.array(trace["y"], dtype=np.float64) for trace in drawn])
    low, high = (float(found) for found in np.quantile(common, [0.01, 0.99]))
    spread = max(high - low, 1e-3 * abs(high), 1e-9)
    lowest, highest = low - ROOM * spread, high + ROOM * spread
    outside = [
        (value, step)
        for trace in traces
        for step, value in zip(trace["x"], trace["y"], strict=True)
        if not lowest <= value <= highest
    ]
    if not outside:
        return None, ""
    inside = common[(common >= lowest) & (common <= highest)]
    bottom, top = float(inside.min()), float(inside.max())
    room = MARGIN * max(top - bottom, spread)
    value, step = max(outside, key=lambda found: abs(found[0]))
    note = f"Not all values fit: {value:,.4g} at step {step:,} lies outside."
    return [bottom - room, top + room], note
