"""The charts of one run: loss, perplexity, its delta, gates, NIAH, speed, and every other column but the memory's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from atlas.config import LEVELS
from atlas.report.document import Chart
from atlas.report.lines import COLOURS, Lines, Trace, level_line
from atlas.report.marks import common_range, step_layout
from atlas.report.run_record import RunRecord
from atlas.report.wording import finite

LOSSES = ("loss", "loss/recall", "loss/text", "validation/loss", "validation/loss_ema")
GATES = ("gate/mean", "gate/std", "gate/polarised")
DELTA = "Perplexity delta of the watched sequences"
UPDATES = "update_ratio/"
MEMORY_USE = ("memory_use/on", "memory_use/off", "memory_use/frozen")
LIMIT = re.compile(r"\(limit (\d{1,30}(?:\.\d+)?)%\)")  # in the message of a spike
NEAR = 3.0  # times the threshold: the range of the delta that is shown first
NOT_DRAWN = (
    "time",
    "tokens",
    "ppl_delta",
    "perplexity",
    "tokens_per_second",
    "niah/accuracy",
    *LOSSES,
    *GATES,
    *MEMORY_USE,
)


def run_charts(record: RunRecord, limit: int) -> list[Chart]:
    """All charts that have something to show, with at most `limit` points a line."""
    lines, layout = Lines(record, limit), step_layout(record)
    found = [
        _loss(lines, layout),
        _perplexity(lines, layout),
        _delta(lines, layout),
        _gates(lines, layout),
        _memory_use(lines, layout),
        _niah(lines, layout),
        _speed(lines, layout),
        _updates(lines, layout),
        *_others(lines, layout),
    ]
    return [chart for chart in found if chart is not None]


def step_chart(
    title: str, traces: Sequence[Trace], layout: dict[str, Any], axis: str, note: str = "", **more: Any
) -> Chart | None:
    """`more` goes to the y axis."""
    if not traces:
        return None
    named = sum(trace.get("showlegend", True) for trace in traces)
    values = {"title": {"text": escape(axis)}, **more}
    if "range" not in more and more.get("type") != "log":
        limits, note = common_range(traces)
        values |= {"range": limits} if limits else {}
    return Chart(title, traces, layout | {"yaxis": values, "showlegend": named > 1}, note)


def _ends(record: RunRecord) -> list[int]:
    steps = record.rows.step
    return [int(steps.min()), int(steps.max())] if len(steps) else []


def _loss(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    traces = lines.smoothed("loss", "training", "@blue")
    if lines.record.rows.has("loss/recall"):  # else all of it is text
        for part, name, colour in (("loss/text", "text", "@orange"), ("loss/recall", "recall tasks", "@green")):
            traces += lines.mean(part, name, colour, width=1.4) or lines.of(part, name, colour, width=1.4)
    traces += lines.of("validation/loss", "validation", "@vermillion", width=2.2)
    traces += lines.of("validation/loss_ema", "validation, averaged weights", "@purple", width=2.2)
    baseline = finite(lines.record.summary.get("baseline_loss"))
    if traces and baseline is not None:
        traces.append(level_line(_ends(lines.record), baseline, lines.record.baseline_name))
    return step_chart("Loss", traces, layout, f"nats per {lines.record.token}")


def _perplexity(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    """Of the text in a step's batch; that of the validation loss stands among the results."""
    return step_chart(
        "Training perplexity", lines.smoothed("perplexity", "training", "@blue"), layout, "perplexity", type="log"
    )


def _delta(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    """Perplexity delta. The threshold is the least limit of a spike; of a noisy run the limit is higher."""
    record = lines.record
    traces = lines.of("ppl_delta", "above its moving average", "@blue")
    threshold = finite(record.config.get("rollback.threshold"))
    if not traces or threshold is None:
        return step_chart(DELTA, traces, layout, "ppl_delta", tickformat=".1%")
    found = [value for trace in traces for value in trace["y"]]
    limits = [value for trace in _limits(record) for value in trace["y"]]
    high = max([NEAR * threshold, *(1.2 * limit for limit in limits)])
    shown = [max(min(found), -NEAR * threshold), min(max(*found, 1.5 * threshold), high)]
    traces.append(level_line(_ends(record), threshold, f"least limit {threshold:.1%}", "@vermillion"))
    traces += _limits(record)
    reach = f"go from {min(found):,.1%} to {max(found):,.1%}" if len(found) > 1 else f"are {found[0]:,.1%}"
    note = f"Readings {reach}."
    clipped = shown[0] > min(found) or shown[1] < max(found)
    margin = 0.05 * (shown[1] - shown[0])
    axis = [shown[0] - margin, shown[1] + margin]
    return step_chart(DELTA, traces, layout, "ppl_delta", note if clipped else "", tickformat=".1%", range=axis)


def _limits(record: RunRecord) -> list[Trace]:
    """The limits that the spikes went over."""
    said = [(event["step"], LIMIT.search(str(event.get("message")))) for event in record.kind("spike")]
    found = [(step, float(limit[1]) / 100) for step, limit in said if limit]
    if not found:
        return []
    return [
        {
            "type": "scatter", "mode": "markers", "name": "limit of a spike", "meta": "level",
            "x": [step for step, _ in found], "y": [limit for _, limit in found],
            "marker": {"color": "@vermillion", "size": 16, "symbol": "line-ew-open", "line": {"width": 2.5}},
        }
    ]  # fmt: skip


def _gates(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    names = ("mean", "standard deviation", "polarised share")
    traces = [
        trace for key, name, colour in zip(GATES, names, COLOURS, strict=False) for trace in lines.of(key, name, colour)
    ]
    return step_chart("Memory gates", traces, layout, "gate", range=[-0.03, 1.03])


def _memory_use(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    """Of the watched rows; what was measured once stands among the results."""
    names = ("memory on", "memory off", "memory writes nothing")
    found = [lines.of(key, name, colour) for key, name, colour in zip(MEMORY_USE, names, COLOURS, strict=False)]
    traces = [trace for own in found for trace in own]
    several = any(len(trace["y"]) > 1 for trace in traces)
    return step_chart("What the memory is worth", traces if several else [], layout, f"nats per {lines.record.token}")


def _niah(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    record, traces = lines.record, []
    for level, colour in zip(reversed(LEVELS.values()), COLOURS, strict=False):
        traces += lines.of(f"niah/{level.name}/accuracy", level.label, colour, width=2.2)
        traces += lines.of(f"niah/{level.name}/control", f"{level.name}, memory off", colour, dash="dash", width=1.2)
        traces += lines.of(f"niah/{level.name}/key_blind", f"{level.name}, key-blind", colour, dash="dot", width=1.2)
    thresholds = {finite(record.probe(level).get("threshold")) for level in LEVELS} - {None}
    if traces:
        ends = _ends(record)
        traces += [level_line(ends, float(level or 0), f"wanted: {level:g}") for level in sorted(thresholds, key=str)]
    return step_chart("Needle in a haystack", traces, layout, "found", range=[-0.05, 1.05])


def _speed(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    traces = lines.smoothed("tokens_per_second", "training steps", "@green")
    return step_chart("Throughput", traces, layout, "tokens per second", rangemode="tozero")


def _updates(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    traces: list[Trace] = []
    for index, key in enumerate(key for key in lines.record.rows.values if key.startswith(UPDATES)):
        dash = ("solid", "dash", "dot")[index // len(COLOURS) % 3]
        traces += lines.of(key, key.removeprefix(UPDATES), COLOURS[index % len(COLOURS)], dash=dash)
    return step_chart("Update of a step over the weights", traces, layout, "ratio of norms", type="log")


def _others(lines: Lines, layout: dict[str, Any]) -> Iterable[Chart | None]:
    """A chart for every other recorded column."""
    drawn = {f"niah/{level}/{what}" for level in LEVELS for what in ("accuracy", "control", "chance", "key_blind")}
    for key in lines.record.rows.values:
        if key not in NOT_DRAWN and key not in drawn and not key.startswith(("memory/", UPDATES)):
            yield step_chart(_title(key), lines.of(key, key, "@blue"), layout, key)


def _title(key: str) -> str:
    known = {"lr": "Learning rate", "grad_norm": "Gradient norm", "loss/polarisation": "Gate polarisation loss"}
    return known.get(key, key.replace("_", " ").capitalize())
