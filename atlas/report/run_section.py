"""The section of the report on one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

import numpy as np

from atlas.config import LEVELS, level_of
from atlas.report.document import MISSING, Block, Cell, Facts, Section, Table, Text
from atlas.report.memory_charts import memory_charts
from atlas.report.options import options_of
from atlas.report.recall_grid import needle_blocks, probe_history
from atlas.report.run_charts import MEMORY_USE, run_charts
from atlas.report.run_record import RunRecord
from atlas.report.samples import sample_blocks
from atlas.report.wording import (
    TONES,
    VALIDATION_LOSS,
    count,
    finite,
    number,
    number_cell,
    overhead_name,
    size_cell,
    status_cell,
    utc_time,
)
from atlas.telemetry.run_files import Row

BY_WEIGHT = tuple(reversed(LEVELS.values()))  # the last level says most about the trained model
SHOWN_EVENTS = ("spike", "rollback", "watch", "warning", "error", "notice", "end")
EVENT_TONES = {"error": "bad", "spike": "bad", "rollback": "bad", "warning": "busy", "watch": "busy"}
MADE_WITH = ("model", "ablation", "chunk_size", "data", "optim")
MOST_WARNINGS = 5  # above the results
MOST_EVENTS = 200  # in the table; else a run that warns at every step fills the page


def run_sections(record: RunRecord, label: str, anchor: str, limit: int) -> list[Section]:
    """A page of one run. `limit`: most points of a line."""
    found = [
        Section(label, anchor, _run_blocks(record, limit)),
        Section("Samples", "samples", sample_blocks(record)),
        Section("Memory, layer by layer", "memory", memory_charts(record, limit), folded=True),
        Section("Numbers", "numbers", [_series(record)] if len(record.rows) else [], folded=True),
    ]
    return [section for section in found if section.blocks]


def folded_section(record: RunRecord, label: str, anchor: str, limit: int) -> Section:
    """One of several runs."""
    blocks = [*_run_blocks(record, limit), *sample_blocks(record), *memory_charts(record, limit)]
    return Section(label, anchor, [*blocks, *([_series(record)] if len(record.rows) else [])], folded=True)


def _run_blocks(record: RunRecord, limit: int) -> list[Block]:
    blocks: list[Block] = [*(Text(problem, tone="bad") for problem in record.problems)]
    reason = str(record.summary.get("reason") or "")
    if reason:
        blocks.append(Text(f"{record.status}: {reason}", tone=TONES.get(record.status, "")))
    blocks += [*_warnings(record), _facts(record)]
    blocks += run_charts(record, limit) if len(record.rows) else [Text("No step was recorded yet.")]
    return [*blocks, *_events(record), probe_history(record), *needle_blocks(record)]


def _warnings(record: RunRecord) -> list[Block]:
    """What the run warned of, each message once; the table of events has the steps."""
    said = list(dict.fromkeys(f"{event['kind']}: {_event_text(event)}" for event in record.kind("watch", "warning")))
    rest = len(said) - MOST_WARNINGS
    more = [Text(f"{count(rest, 'more warning')} in the table of events", tone="busy")] if rest > 0 else []
    return [*(Text(text, tone="busy") for text in said[:MOST_WARNINGS]), *more]


def _facts(record: RunRecord) -> Facts:
    summary = record.summary
    steps = f"{number(record.step, ',.0f')} of {number(summary.get('steps') or None, ',.0f')}"
    validation = record.result("validation_loss", "validation/loss")
    nats = f" nats per {record.token}"
    perplexity = MISSING if validation is None else f"{validation:.4f}{nats}, perplexity {exp(min(validation, 80)):.2f}"
    segment = record.place[0] if record.place else 0
    options = ", ".join(
        f"{group}={option}" for group, option in options_of(record.config).items() if group in MADE_WITH
    )
    facts = [
        ("status", status_cell(record.status_in_words)),
        *([("options", Cell(options))] if options else []),
        ("steps", Cell(steps)),
        ("tokens", Cell(number(record.result("tokens", "tokens"), ",.0f"))),
        ("segments", Cell(f"{count(len(record.kind('rollback')), 'rollback')}, now in segment {segment}")),
        ("training loss", Cell(number(record.result("loss", "loss"), ".4f", nats))),
        ("validation loss", Cell(perplexity)),
        *_bits_per_byte(record),
        (record.baseline_name, Cell(number(summary.get("baseline_loss"), ".4f", nats))),
        *((title, Cell(str(found.get("verdict", MISSING)))) for title, found in _probes(record)),
        *_memory_use(record),
        ("throughput", Cell(number(record.result("tokens_per_second", "tokens_per_second"), ",.0f", " tokens/s"))),
        ("peak memory", size_cell(summary.get("peak_memory_bytes"))),
        ("overhead", Cell(_overhead(record))),
        ("parameters", Cell(number(summary.get("parameters") or None, ",.0f"))),
        ("device", Cell(str(summary.get("device") or MISSING))),
        ("last row", Cell(utc_time(record.last_time))),
        ("revision", Cell(str(summary.get("git") or MISSING))),
        ("versions", Cell(_pairs(summary.get("versions")))),
        ("folder", Cell(record.folder.name)),
    ]
    return Facts(facts)


def _probes(record: RunRecord) -> list[tuple[str, Mapping[str, Any]]]:
    names = [*LEVELS, *(level for level in record.levels if level not in LEVELS)]  # those of the user's own last
    found = [(level_of(name).title, record.probe(name)) for name in names]
    return [(title, probe) for title, probe in found if probe]


def _memory_use(record: RunRecord) -> list[tuple[str, Cell]]:
    on, off, frozen = (number(record.rows.last(key), ".4f") for key in MEMORY_USE)
    text = f"loss of the watched rows {on} nats with it, {off} with it off, {frozen} if it writes nothing"
    return [] if on == MISSING else [("memory", Cell(text))]


def _overhead(record: RunRecord) -> str:
    shares = record.summary.get("overhead")
    found = {name: finite(share) for name, share in shares.items()} if isinstance(shares, dict) else {}
    return ", ".join(f"{overhead_name(name)} {share:.2%}" for name, share in found.items() if share) or MISSING


def _pairs(versions: object) -> str:
    found = versions.items() if isinstance(versions, dict) else ()
    return ", ".join(f"{name} {version}" for name, version in found) or MISSING


def _series(record: RunRecord) -> Table:
    """The charts in numbers: of the rows that no rollback undid."""
    rows = record.rows
    table = []
    for name, values in rows.values.items():
        known = np.isfinite(values) & ~rows.undone
        if name in ("time", "tokens") or not known.any():
            continue
        found, steps = values[known], rows.step[known]
        low, high = int(found.argmin()), int(found.argmax())
        numbers = [found[0], found[-1], found[low], steps[low], found[high], steps[high]]
        cells = [number_cell(float(n), ",.0f" if at in (3, 5) else ",.4g") for at, n in enumerate(numbers)]
        table.append([Cell(name), number_cell(int(known.sum()), ",.0f"), *cells])
    head = ("series", "values", "first", "last", "lowest", "at step", "highest", "at step")
    undone = int(rows.undone.sum())
    note = f"Without {count(undone, 'row')} that a rollback undid." if undone else ""
    return Table("Series in numbers", head, table, note, sortable=True)


def _events(record: RunRecord) -> list[Block]:
    events = record.kind(*SHOWN_EVENTS)
    if not events:
        return []
    shown = events if len(events) <= MOST_EVENTS else [*events[: MOST_EVENTS // 2], *events[-MOST_EVENTS // 2 :]]
    note = f"{len(events) - len(shown)} events in the middle are left out." if len(shown) < len(events) else ""
    rows = [
        [
            number_cell(event["step"], ",.0f"),
            Cell(event["kind"], tone=EVENT_TONES.get(event["kind"], "")),
            Cell(_event_text(event)),
        ]
        for event in shown
    ]
    return [Table("What happened", ("step", "event", ""), rows, note)]


def _event_text(event: Row) -> str:
    if event["kind"] == "rollback":
        back = f"back from step {event.get('from_step', MISSING)} to {event['step']}: {event.get('reason', '')}"
        return f"{back}; {event.get('change', '')}; segment {event.get('segment', MISSING)}"
    parts: Sequence[object] = (event.get("watch"), event.get("status"), event.get("message"), event.get("reason"))
    return ": ".join(str(part) for part in parts if part)


def _bits_per_byte(record: RunRecord) -> list[tuple[str, Cell]]:
    """Of a run whose tokens are no bytes, for comparisons with others; the losses beside it are per token."""
    bits = finite(record.summary.get("validation_bits_per_byte"))
    if bits is None or record.bytes_per_token == 1.0:
        return []
    return [("bits per byte", Cell(f"{bits:.4f} of the validation text, {record.bytes_per_token:.2f} bytes per token"))]


def overview_cells(record: RunRecord) -> list[Cell]:
    """The results that a comparison shows, in the order of `OVERVIEW`."""
    return [
        number_cell(record.per_byte(record.result("validation_loss", "validation/loss")), ".4f"),
        number_cell(record.training_per_byte(record.result("loss", "loss")), ".4f"),
        *(number_cell(record.probe(level.name).get("accuracy"), level.unit.form) for level in BY_WEIGHT),
        number_cell(record.result("tokens_per_second", "tokens_per_second"), ",.0f"),
        size_cell(record.summary.get("peak_memory_bytes")),
        number_cell(len(record.kind("rollback")) if record.events else None, ".0f"),
        number_cell(record.step, ",.0f"),
    ]


OVERVIEW = (
    VALIDATION_LOSS, "training nats/byte", *(level.title for level in BY_WEIGHT), "tokens/s", "peak memory",
    "rollbacks", "steps made",
)  # fmt: skip
