"""The memories of one run over its steps: for each quantity a line for each place, and a heat map of all places."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from atlas.report.document import Chart
from atlas.report.lines import COLOURS, Lines, Trace
from atlas.report.marks import step_layout
from atlas.report.run_charts import step_chart
from atlas.report.run_record import RunRecord

PREFIX = "memory/"
COLUMNS = 200  # of a heat map: more are narrower than a pixel on a phone


def memory_charts(record: RunRecord, limit: int) -> list[Chart]:
    """memory/layer0/local0/weight_norm and the like. More places than colours have no lines, only the heat map."""
    groups: dict[str, list[str]] = {}
    for key in record.rows.values:
        if key.startswith(PREFIX):
            groups.setdefault(key.rpartition("/")[2], []).append(key)
    lines, layout = Lines(record, limit), step_layout(record)
    charts: list[Chart | None] = []
    for what, keys in sorted(groups.items()):
        places = {key: _place(key, what) for key in sorted(keys)}
        if len(places) <= len(COLOURS):
            traces = [
                trace
                for (key, place), colour in zip(places.items(), COLOURS, strict=False)
                for trace in lines.of(key, place, colour)
            ]
            charts.append(step_chart(f"Memory: {_words(what)}", traces, layout, _words(what)))
        if len(places) > 1:
            charts.append(_heat(record, what, places, layout))
    return [chart for chart in charts if chart is not None]


def _place(key: str, what: str) -> str:
    return key.removeprefix(PREFIX).removesuffix(what).strip("/").replace("/", " ") or what


def _words(what: str) -> str:
    return what.replace("_", " ")


def _heat(record: RunRecord, what: str, places: dict[str, str], layout: dict[str, Any]) -> Chart | None:
    """A row for each place, a column for each recorded step that no rollback undid."""
    rows = record.rows
    known = np.flatnonzero(~rows.undone & np.any([np.isfinite(rows.values[key]) for key in places], axis=0))
    if len(known) < 2:
        return None
    shown = known[np.unique(np.linspace(0, len(known) - 1, min(len(known), COLUMNS)).astype(int))]
    values: list[Sequence[float | None]] = [
        [float(f"{value:.4g}") if np.isfinite(value) else None for value in rows.values[key][shown]] for key in places
    ]
    trace: Trace = {
        "type": "heatmap", "x": rows.step[shown].tolist(), "y": [escape(place) for place in places.values()],
        "z": values, "colorscale": "Cividis", "colorbar": {"thickness": 10, "outlinewidth": 0},
        "hovertemplate": "step %{x:,}, %{y}: %{z:.4g}<extra></extra>",
    }  # fmt: skip
    axis = {"type": "category", "autorange": "reversed", "showgrid": False}
    shapes = {"xaxis": layout["xaxis"], "yaxis": axis, "hovermode": "closest", "showlegend": False}
    return Chart(f"Memory over layers: {_words(what)}", [trace], shapes)
