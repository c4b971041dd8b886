"""The charts of one run: loss, perplexity, its delta, gates, NIAH, speed, memory, and every other recorded column."""

from __future__ import annotations

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
NEAR = 3.0  # times the threshold: the range of the delta that is shown first
NOT_DRAWN = ("time", "tokens", "ppl_delta", "perplexity", "tokens_per_second", "niah/accuracy", *LOSSES, *GATES)


def run_charts(record: RunRecord, limit: int) -> list[Chart]:
    """All charts that have something to show, with at most `limit` points a line."""
    lines, layout = Lines(record, limit), step_layout(record)
    found = [
        _loss(lines, layout),
        _perplexity(lines, layout),
        _delta(lines, layout),
        _gates(lines, layout),
        _niah(lines, layout),
        _speed(lines, layout),
        *_memory(lines, layout),
        _updates(lines, layout),
        *_others(lines, layout),
    ]
    return [chart for chart in found if chart is not None]


def _chart(
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
        traces.append(level_line(_ends(lines.record), baseline, "bigram baseline"))
    token = "byte" if lines.record.bytes_per_token == 1.0 else "token"
    return _chart("Loss", traces, layout, f"nats per {token}")


def _perplexity(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    traces = lines.smoothed("perplexity", "training", "@blue")
    return _chart("Perplexity", traces, layout, "perplexity", type="log")


def _delta(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    """Perplexity delta. The threshold is the lowest limit of a spike; it is higher for a noisy run."""
    record = lines.record
    traces = lines.of("ppl_delta", "above its moving average", "@blue")
    threshold = finite(record.config.get("rollback.threshold"))
    if not traces or threshold is None:
        return _chart(DELTA, traces, layout, "ppl_delta", tickformat=".1%")
    found = [value for trace in traces for value in trace["y"]]
    shown = [max(min(found), -NEAR * threshold), min(max(*found, 1.5 * threshold), NEAR * threshold)]
    traces.append(level_line(_ends(record), threshold, f"threshold {threshold:.1%}", "@vermillion"))
    reach = f"go from {min(found):,.1%} to {max(found):,.1%}" if len(found) > 1 else f"are {found[0]:,.1%}"
    note = f"Readings {reach}; a double click shows all of them."
    clipped = shown[0] > min(found) or shown[1] < max(found)
    margin = 0.05 * (shown[1] - shown[0])
    limits = [shown[0] - margin, shown[1] + margin]
    return _chart(DELTA, traces, layout, "ppl_delta", note if clipped else "", tickformat=".1%", range=limits)


def _gates(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    names = ("mean", "standard deviation", "polarised share")
    traces = [
        trace for key, name, colour in zip(GATES, names, COLOURS, strict=False) for trace in lines.of(key, name, colour)
    ]
    return _chart("Memory gates", traces, layout, "gate", range=[-0.03, 1.03])


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
    return _chart("Needle in a haystack", traces, layout, "found", range=[-0.05, 1.05])


def _speed(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    traces = lines.smoothed("tokens_per_second", "training steps", "@green")
    return _chart("Throughput", traces, layout, "tokens per second", rangemode="tozero")


def _memory(lines: Lines, layout: dict[str, Any]) -> Iterable[Chart | None]:
    """memory/layer0/local0/weight_norm and the like: one chart for each quantity, a line for each place."""
    groups: dict[str, list[str]] = {}
    for key in lines.record.rows.values:
        if key.startswith("memory/"):
            groups.setdefault(key.rpartition("/")[2], []).append(key)
    for what, keys in sorted(groups.items()):
        traces: list[Trace] = []
        for index, key in enumerate(sorted(keys)):
            place = key.removeprefix("memory/").removesuffix(what).strip("/") or what
            dash = ("solid", "dash", "dot")[index // len(COLOURS) % 3]
            traces += lines.of(key, place.replace("/", " "), COLOURS[index % len(COLOURS)], dash=dash)
        yield _chart(f"Memory: {what.replace('_', ' ')}", traces, layout, what.replace("_", " "))


def _updates(lines: Lines, layout: dict[str, Any]) -> Chart | None:
    traces: list[Trace] = []
    for index, key in enumerate(key for key in lines.record.rows.values if key.startswith(UPDATES)):
        dash = ("solid", "dash", "dot")[index // len(COLOURS) % 3]
        traces += lines.of(key, key.removeprefix(UPDATES), COLOURS[index % len(COLOURS)], dash=dash)
    return _chart("Update of a step over the weights", traces, layout, "ratio of norms", type="log")


def _others(lines: Lines, layout: dict[str, Any]) -> Iterable[Chart | None]:
    """A chart for every other recorded column."""
    drawn = {f"niah/{level}/{what}" for level in LEVELS for what in ("accuracy", "control", "chance", "key_blind")}
    for key in lines.record.rows.values:
        if key not in NOT_DRAWN and key not in drawn and not key.startswith(("memory/", UPDATES)):
            yield _chart(_title(key), lines.of(key, key, "@blue"), layout, key)


def _title(key: str) -> str:
    known = {"lr": "Learning rate", "grad_norm": "Gradient norm", "loss/polarisation": "Gate polarisation loss"}
    return known.get(key, key.replace("_", " ").capitalize())
