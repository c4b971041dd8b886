"""Columns of one run as a plotly figure, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from atlas.config import require
from atlas.report.lines import COLOURS, Lines, Trace
from atlas.report.run_record import read_run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LOSSES = ("loss", "loss/text", "loss/recall", "validation/loss")
MOST_POINTS = 2000  # of a line
# The page's colours on white (page.js), which readers with any colour vision tell apart.
SHADES = dict(zip(COLOURS, ("#0072b2", "#d55e00", "#009e73", "#b5528c", "#c98500", "#3a9bd9"), strict=True))


def run_figure(folder: Path, columns: Sequence[str] = ()) -> Figure:
    """The columns over the steps, by default the losses; what a rollback undid is dotted. Raises `ConfigError`."""
    from plotly.graph_objects import Figure

    record = read_run(folder, folder.name)
    known = record.rows.values
    for column in columns:
        require(column in known, "columns", column, f"some of {', '.join(known)}")
    lines = Lines(record, MOST_POINTS)
    chosen = columns or [name for name in LOSSES if name in known]
    traces = [
        trace for name, colour in zip(chosen, cycle(COLOURS), strict=False) for trace in lines.of(name, name, colour)
    ]
    title = {"title": {"text": folder.name}, "xaxis": {"title": {"text": "step"}}, "template": "plotly_white"}
    return Figure(data=[_coloured(trace) for trace in traces], layout=title)


def _coloured(trace: Trace) -> Trace:
    shade = SHADES[trace["line"]["color"]]
    marker = {"marker": trace["marker"] | {"color": shade}} if "marker" in trace else {}
    return trace | {"line": trace["line"] | {"color": shade}} | marker
