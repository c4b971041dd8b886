"""Lines of a run over its steps, as plotly traces: thinned, with undone rows drawn faintly."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas.report.metric_columns import Floats
from atlas.report.run_record import RunRecord
from atlas.report.thinning import moving_mean, thin

Trace = dict[str, Any]

FEW = 60  # points up to which each is marked
SMOOTHED = 50  # the moving mean covers one in so many rows
MANY = 100  # rows from which on a line is smoothed
COLOURS = ("@blue", "@vermillion", "@green", "@purple", "@orange", "@sky")
LARGEST = 1e30
UNDONE = "undone by a rollback"


class Lines:
    """Makes the lines of one run, with at most `limit` points each beside the steps of its events."""

    def __init__(self, record: RunRecord, limit: int) -> None:
        self.record, self.limit = record, limit
        eventful = [event["step"] for event in record.kind("spike", "rollback")]
        eventful += [event["from_step"] for event in record.kind("rollback") if isinstance(event.get("from_step"), int)]
        self._eventful = np.array(sorted(set(eventful)), dtype=np.int64)

    def of(self, key: str, name: str, colour: str, **style: Any) -> list[Trace]:
        """The line of a column, and a faint one of its undone rows; [] for a column without a number."""
        rows = self.record.rows
        if not rows.has(key):
            return []
        measured = np.isfinite(rows.values[key])
        live, undone = measured & ~rows.undone, measured & rows.undone
        traces = [self._line(rows.step[live], rows.values[key][live], name, colour, **style)] if live.any() else []
        if undone.any():
            line = self._line(rows.step[undone], rows.values[key][undone], f"{name}, {UNDONE}", colour, dash="dot")
            faint = {"mode": "lines", "opacity": 0.45, "hoverinfo": "skip", "showlegend": False, "meta": "undone"}
            traces.append(line | faint)
        return traces

    def smoothed(self, key: str, name: str, colour: str) -> list[Trace]:
        """The column as it is, faintly, and its moving mean where there are many rows."""
        plain, mean = self.of(key, name, colour), self.mean(key, name, colour)
        if not mean:
            return plain
        faint = plain[0] | {"opacity": 0.35, "line": {"color": colour, "width": 1}, "showlegend": False, "meta": "raw"}
        return [faint, *plain[1:], *(trace | {"meta": "mean"} for trace in mean)]

    def mean(self, key: str, name: str, colour: str, width: float = 2.2) -> list[Trace]:
        """The moving mean over 2 % of the rows; [] for a column of few."""
        rows = self.record.rows
        if not rows.has(key):
            return []
        live = np.isfinite(rows.values[key]) & ~rows.undone
        if live.sum() < MANY:
            return []
        covered = int(live.sum()) // SMOOTHED
        mean = moving_mean(rows.values[key][live], covered)
        return [self._line(rows.step[live][covered - 1 :], mean, f"{name}, mean", colour, width=width)]

    def _line(
        self,
        steps: NDArray[np.int64],
        values: Floats,
        name: str,
        colour: str,
        *,
        dash: str = "solid",
        width: float = 1.6,
    ) -> Trace:
        kept = np.flatnonzero(np.isin(steps, self._eventful)).tolist()
        chosen = thin(values, self.limit, kept)
        trace: Trace = {
            "type": "scatter",
            "mode": "lines+markers" if len(chosen) <= FEW else "lines",
            "name": escape(name),
            "x": steps[chosen].tolist(),
            "y": rounded(values[chosen]),
            "line": {"color": colour, "width": width, "dash": dash},
        }
        if trace["mode"] != "lines":
            trace["marker"] = {"color": colour, "size": 5}
        return trace


def rounded(values: Floats | Sequence[float]) -> list[float]:
    """Values in five digits, which are enough for a screen and halve the page; limited to what a browser can draw."""
    return [float(f"{min(max(value, -LARGEST), LARGEST):.5g}") for value in values]


def level_line(steps: Sequence[int], value: float, name: str, colour: str = "@muted") -> Trace:
    """A level across the chart, such as a threshold."""
    return {
        "type": "scatter", "mode": "lines", "name": escape(name), "x": list(steps), "y": [value] * len(steps),
        "line": {"color": colour, "width": 1.4, "dash": "dash"}, "hoverinfo": "skip", "meta": "level",
    }  # fmt: skip
