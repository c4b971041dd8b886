"""A result against a setting of several runs: a dot per run, and a line through the means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from math import inf, log10
from statistics import mean
from typing import Any

from atlas.config import Unit
from atlas.report.document import Chart
from atlas.report.lines import Trace
from atlas.report.marks import outliers
from atlas.report.settings import REPEATS, Difference
from atlas.report.wording import count, finite, value_text

WIDE = 10.0  # the largest value over the smallest from which on an axis is logarithmic: learning rates, lengths
LOSS = "Validation loss"  # low is good, and a diverged run's is out of range
APART = 1 / 8  # of the axis: between values that are both named
LONGEST_NAME = 7  # characters
LEAST_VALUES = 3  # of a setting that each run has its own value of: two are a table
NOTE = "A dot is a run; the line goes through the means."


def is_wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows these values better."""
    return min(values) > 0 and max(values) / min(values) >= WIDE


def against_charts(
    differing: Sequence[Difference],
    results: Mapping[str, tuple[str, Sequence[float | None]]],
    runs: Sequence[tuple[str, str]],
) -> list[Chart]:
    """Each result against each setting, less those that only repeat a run. `results`: title -> unit of the axis, a
    value for each run; `runs`: label and colour.

    Of a setting with numbers the axis has their distances, of another one its values stand in their order.
    """
    charts = []
    for difference in (difference for difference in differing if difference.key not in REPEATS):
        numbers = [finite(value) for value in difference.values]
        places: list[Any] = [value_text(value) for value in difference.values] if None in numbers else numbers
        for title, (unit, values) in results.items():
            dots = [
                (place, value, index)
                for index, (place, value) in enumerate(zip(places, values, strict=True))
                if value is not None
            ]
            distinct = list(dict.fromkeys(place for place, _, _ in dots))
            if len(distinct) >= LEAST_VALUES or 1 < len(distinct) < len(dots):
                charts.append(_chart(difference.name, title, unit, dots, distinct, runs))
    return charts


def _chart(
    name: str,
    title: str,
    unit: str,
    dots: Sequence[tuple[Any, float, int]],
    distinct: Sequence[Any],
    runs: Sequence[tuple[str, str]],
) -> Chart:
    numeric = not isinstance(distinct[0], str)
    ordered = sorted(distinct) if numeric else distinct
    limit, outside = outliers([value for _, value, _ in dots]) if title == LOSS else (inf, [])
    means = {x: [value for place, value, _ in dots if place == x and value <= limit] for x in ordered}
    traces: list[Trace] = [
        {
            "type": "scatter", "mode": "lines", "name": "mean", "showlegend": False, "hoverinfo": "skip",
            "x": [escape(x) if isinstance(x, str) else x for x in ordered if means[x]],
            "y": [mean(found) for found in means.values() if found],
            "line": {"color": "@muted", "width": 1.4},
        }
    ]  # fmt: skip
    traces += [
        {
            "type": "scatter", "mode": "markers", "name": escape(runs[index][0]), "showlegend": False,
            "x": [escape(place) if isinstance(place, str) else place], "y": [value], "legendgroup": str(index),
            "hovertemplate": "%{fullData.name}<br>" + escape(title.lower()) + " %{y:.4g}<extra></extra>",
            "marker": {"color": runs[index][1], "size": 8},
        }
        for place, value, index in dots
    ]  # fmt: skip
    kind = "category" if not numeric else "log" if is_wide(ordered) else "linear"
    plain = {} if kind == "category" else {"tickformat": "~g", **_ticks(ordered, kind)}  # 0.0001, not 100 micro
    layout: dict[str, Any] = {"xaxis": {"title": {"text": escape(name)}, "type": kind, **plain}, "hovermode": "closest"}
    layout["yaxis"] = {"title": {"text": escape(unit)}}
    if unit == Unit.share:
        layout["yaxis"]["range"] = [-0.05, 1.05]
    if outside:
        inside = [value for _, value, _ in dots if value <= limit]
        room = 0.06 * (max(inside) - min(inside)) or 0.06 * abs(max(inside))
        layout["yaxis"]["range"] = [min(inside) - room, max(inside) + room]
    note = f"{NOTE} {count(len(outside), 'run')} above: {max(outside):,.4g} at most." if outside else NOTE
    return Chart(f"{title} against {name}", traces, layout, note)


def _ticks(values: Sequence[float], kind: str) -> dict[str, Any]:
    """The values themselves, where their names do not run into each other; those that a search chose do."""
    names, places = [value_text(value) for value in values], [log10(x) if kind == "log" else x for x in values]
    gap = APART * (places[-1] - places[0])
    clear = all(len(name) <= LONGEST_NAME for name in names) and all(b - a >= gap for a, b in pairwise(places))
    if clear or kind != "log":
        return {"tickvals": values, "ticktext": names} if clear else {}
    return {"dtick": "D2" if values[-1] < 1000 * values[0] else 1}  # 1, 2, 5, 10, or powers of ten
