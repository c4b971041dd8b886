"""Charts over several runs: their losses in one picture, and parallel coordinates from settings to results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from math import inf, log10
from typing import Any

from atlas.config import LEVELS, RECALL, Unit
from atlas.report.against import LOSS, against_charts, is_wide
from atlas.report.document import MISSING, Block, Chart, Chooser
from atlas.report.lines import COLOURS, Lines, Trace, rounded
from atlas.report.marks import STEPS, common_range, outliers, range_of_runs
from atlas.report.run_record import RunRecord
from atlas.report.settings import Difference
from atlas.report.wording import VALIDATION_LOSS, finite, number, value_text

# Twelve hues that a reader finds again in the legend; sky is too near to blue.
RUN_COLOURS = (*COLOURS[:5], "@text", "@lime", "@violet", "@brown", "@magenta", "@red", "@cyan")
HOVER = "%{fullData.name}<br>step %{x}: %{y:.4g}<extra></extra>"
SMOOTH = "Moving means over 2 % of the rows."
LEGEND = "The orange line is the best run; the lower the validation loss of another run, the stronger its colour."
BEST = "The thick line is the best run."
NATS = "nats per byte"  # also of a run whose tokens are no bytes
OVERLAYS = (
    ("validation/loss", "Validation loss of all runs", NATS),
    ("loss", "Training loss of all runs", NATS),
    (f"niah/{RECALL.name}/accuracy", f"{RECALL.title} of all runs", RECALL.unit),
    ("tokens_per_second", "Throughput of all runs", "tokens per second"),
)
ABOVE = 1.08  # place of a result that is out of line
TICKS = 6  # values of a setting that an axis names; above that its ends


@dataclass(frozen=True)
class Field:
    """The runs that are compared, each with its label; `best` is the index of the best one."""

    records: Sequence[RunRecord]
    labels: Sequence[str]
    best: int | None
    comparable: bool = True  # by their validation losses

    @property
    def order(self) -> list[int]:
        """The best one last, so that it is drawn on top."""
        return sorted(range(len(self.records)), key=lambda index: index == self.best)

    @cached_property
    def losses(self) -> list[float | None]:
        """Of validation, nats per byte."""
        return [record.per_byte(record.result("validation_loss", "validation/loss")) for record in self.records]

    @property
    def many(self) -> bool:
        """Whether there are more runs than colours that tell them apart."""
        return len(self.records) > len(RUN_COLOURS)

    def colour(self, index: int) -> str:
        """Its own; of many runs by the rank of the validation loss, and the best one stands out."""
        if not self.many:
            return RUN_COLOURS[index]
        known, loss = sorted(loss for loss in self.losses if loss is not None), self.losses[index]
        if index == self.best:
            return "@vermillion"
        return "@muted" if loss is None else f"@scale{known.index(loss) / max(1, len(known) - 1):.2f}"


def comparison_charts(field: Field, differing: Sequence[Difference], limit: int) -> list[Block]:
    found = [finite(record.probe(RECALL.name).get("accuracy")) for record in field.records]
    losses = {LOSS: (NATS, field.losses)} if field.comparable else {}
    results = losses | {RECALL.title: (str(RECALL.unit), found)}
    runs = [(label, field.colour(index)) for index, label in enumerate(field.labels)]
    charts = [_parallel(field, differing), *against_charts(differing, results, runs)]
    for key, title, axis in OVERLAYS:
        charts.append(_overlay(field, key, title, axis, limit))
    drawn = [chart for chart in charts if chart is not None]
    return [Chooser(runs), *drawn] if drawn else []


def _overlay(field: Field, key: str, title: str, axis: str, limit: int) -> Chart | None:
    """A line for each run; None where no run has two points, which the table shows."""
    traces: list[Trace] = []
    smoothed = False
    for index in field.order:
        colour = field.colour(index)
        lines, width = Lines(field.records[index], limit), 2.6 if index == field.best else 1.4
        mean = lines.mean(key, "", colour, width=width)
        smoothed |= bool(mean)
        drawn = mean or lines.of(key, "", colour, width=width)
        if axis == NATS:
            record = field.records[index]
            size = record.train_bytes_per_token if key == "loss" else record.bytes_per_token
            drawn = [trace | {"y": rounded([loss / size for loss in trace["y"]])} for trace in drawn if size]
        named = {"name": escape(field.labels[index]), "hovertemplate": HOVER, "legendgroup": str(index)}
        traces += [trace | named for trace in drawn if trace.get("meta") != "undone"]
    if all(len(trace["y"]) < 2 for trace in traces):
        return None
    limits, note = (
        ([-0.05, 1.05], "") if axis == Unit.share else (range_of_runs if axis == NATS else common_range)(traces)
    )
    layout: dict[str, Any] = {"xaxis": STEPS, "yaxis": {"title": {"text": axis}}}
    layout |= {"hovermode": "closest", "showlegend": False}
    if limits:
        layout["yaxis"]["range"] = limits
    notes = [SMOOTH if smoothed else "", note]
    return Chart(title, traces, layout, " ".join(filter(None, notes)))


class _Axis:
    """One vertical axis: the place of a value between 0 and 1, and its labels."""

    def __init__(self, title: str, values: Sequence[Any], form: str = "", *, loss: bool = False) -> None:
        self.title, self.values, self.form = title, values, form
        numbers = [finite(value) for value in values]
        known = sorted({value for value in numbers if value is not None})
        self.texts = [value_text(value) if not form else number(value, form) for value in values]
        self.distinct = len(set(self.texts) - {MISSING})
        if form or (known and None not in numbers):
            scale = log10 if known and not form and is_wide(known) else float  # settings such as a learning rate
            limit, _ = outliers(known) if loss and known else (inf, [])
            inside = [value for value in known if value <= limit]
            low, high = (scale(inside[0]), scale(inside[-1])) if inside else (0.0, 1.0)
            span = (high - low) or 1.0
            self.places = [
                None if value is None else ABOVE if value > limit else (scale(value) - low) / span for value in numbers
            ]
        else:
            names = sorted(set(self.texts) - {MISSING}, key=_natural)
            at = {name: index / max(1, len(names) - 1) for index, name in enumerate(names)}
            self.places = [at.get(text) for text in self.texts]

    @property
    def ticks(self) -> dict[float, str]:
        """Place -> label in few digits: every value of a setting with few values, else both ends."""
        labels = [f"{value:g}" if isinstance(value, float) and not self.form else text
                  for value, text in zip(self.values, self.texts, strict=True)]  # fmt: skip
        found = {place: label for place, label in zip(self.places, labels, strict=True) if place is not None}
        ordered = dict(sorted(found.items()))
        if len(ordered) <= TICKS and all(b - a >= 0.07 for a, b in zip(list(ordered), list(ordered)[1:], strict=False)):
            return ordered
        ends = (min(ordered), max(place for place in ordered if place <= 1), max(ordered))
        return {place: ordered[place] for place in ends}


def _natural(name: str) -> list[Any]:
    """The order of names with numbers: c8 before c16."""
    return [int(part) if at % 2 else part for at, part in enumerate(re.split(r"(\d+)", name))]


def _parallel(field: Field, differing: Sequence[Difference]) -> Chart | None:
    records, compared = field.records, [level for level in LEVELS.values() if level.compared]
    accuracies = {
        level.name: [finite(record.probe(level.name).get("accuracy")) for record in records] for level in compared
    }
    axes = [_Axis(difference.name, difference.values) for difference in differing]
    axes += [
        _Axis("tokens/s", [record.result("tokens_per_second", "tokens_per_second") for record in records], ",.0f"),
        *(_Axis(level.title, accuracies[level.name], level.unit.form) for level in compared),
        *([_Axis(VALIDATION_LOSS, field.losses, ".4f", loss=True)] if field.comparable else []),
    ]
    axes = [axis for axis in axes if axis.distinct > 1]
    if len(axes) < 2:
        return None
    traces = [_coordinate(field, index, axes) for index in field.order]
    note = f"A line is a run, from its settings to its results. {LEGEND if field.many else BEST}"
    return Chart("Parallel coordinates", traces, _upright(axes), note, wide=True)


def _coordinate(field: Field, index: int, axes: Sequence[_Axis]) -> Trace:
    colour, best = field.colour(index), index == field.best
    return {
        "type": "scatter", "mode": "lines+markers", "name": escape(field.labels[index]), "showlegend": False,
        "legendgroup": str(index), "x": list(range(len(axes))), "y": [axis.places[index] for axis in axes],
        "customdata": [[escape(axis.title), escape(axis.texts[index])] for axis in axes],
        "hovertemplate": "%{fullData.name}<br>%{customdata[0]}: %{customdata[1]}<extra></extra>",
        "line": {"color": colour, "width": 3 if best else 1.4},
        "marker": {"color": colour, "size": 7 if best else 5},
    }  # fmt: skip


def _upright(axes: Sequence[_Axis]) -> dict[str, Any]:
    last = len(axes) - 1
    lines = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "layer": "below", "line": {"color": "@axis", "width": 1.5}}
        for x in range(len(axes))
    ]
    ticks = [
        {
            "x": x, "y": place, "text": escape(text), "showarrow": False, "xshift": -8 if x == last else 8,
            "xanchor": "right" if x == last else "left", "font": {"size": 11, "color": "@text"}, "bgcolor": "@veil",
        }
        for x, axis in enumerate(axes)
        for place, text in axis.ticks.items()
    ]  # fmt: skip
    titles = {"tickvals": list(range(len(axes))), "ticktext": [escape(axis.title) for axis in axes], "side": "top"}
    plain = {"showgrid": False, "zeroline": False, "showline": False, "fixedrange": True}
    return {
        "xaxis": {**titles, **plain, "range": [-0.35, last + 0.35]},
        "yaxis": {**plain, "range": [-0.06, 1.12], "showticklabels": False},
        "shapes": lines, "annotations": ticks, "hovermode": "closest", "hoverdistance": 30,
    }  # fmt: skip
