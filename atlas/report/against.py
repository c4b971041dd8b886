"""A result against a setting of several runs: a dot per run, and a line through the means."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import mean
from typing import Any

from atlas.report.document import Chart
from atlas.report.lines import Trace
from atlas.report.settings import Difference
from atlas.report.wording import finite

WIDE = 100.0  # the largest value over the smallest from which on an axis is logarithmic
LEAST_VALUES = 3  # of a setting: two are a table


def is_wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows these values better."""
    return min(values) > 0 and max(values) / min(values) >= WIDE


def against_charts(
    differing: Sequence[Difference], losses: Sequence[float | None], labels: Sequence[str]
) -> list[Chart]:
    """The validation loss against each setting that is a number with at least `LEAST_VALUES` values, less the seed."""
    charts = []
    for difference in differing:
        values = [finite(value) for value in difference.values]
        pairs = [
            (value, loss, name)
            for value, loss, name in zip(values, losses, labels, strict=True)
            if value is not None and loss is not None
        ]
        distinct = sorted({value for value, _, _ in pairs})
        if difference.key != "seed" and None not in values and len(distinct) >= LEAST_VALUES:
            charts.append(_chart(difference.name, pairs, distinct))
    return charts


def _chart(name: str, pairs: Sequence[tuple[float, float, str]], distinct: Sequence[float]) -> Chart:
    dots: Trace = {
        "type": "scatter", "mode": "markers", "name": "runs", "showlegend": False,
        "x": [value for value, _, _ in pairs], "y": [loss for _, loss, _ in pairs],
        "text": [escape(label) for _, _, label in pairs],
        "hovertemplate": "%{text}<br>" + escape(name) + " %{x:.4g}: %{y:.4f}<extra></extra>",
        "marker": {"color": "@blue", "size": 8},
    }  # fmt: skip
    means: Trace = {
        "type": "scatter", "mode": "lines", "name": "mean", "showlegend": False, "hoverinfo": "skip",
        "x": list(distinct),
        "y": [mean(loss for value, loss, _ in pairs if value == x) for x in distinct],
        "line": {"color": "@muted", "width": 1.4},
    }  # fmt: skip
    axis: dict[str, Any] = {"title": {"text": escape(name)}, "type": "log" if is_wide(distinct) else "linear"}
    layout = {"xaxis": axis, "yaxis": {"title": {"text": "nats per byte"}}, "hovermode": "closest"}
    return Chart(
        f"Validation loss against {name}", [means, dots], layout, "A dot is a run; the line goes through the means."
    )
