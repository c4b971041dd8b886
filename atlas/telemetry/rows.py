"""Rows of metrics.jsonl: their fixed keys, their clock fields, and what is kept of them when a run is resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from atlas.config.atomic import write_atomically
from atlas.config.untrusted import open_regular
from atlas.telemetry.jsonl import parse_row

# In every row, in this order, null when not measured. Readers of old runs depend on them.
ROW_KEYS = (
    "step",
    "segment",
    "tokens",
    "loss",
    "perplexity",
    "ppl_delta",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "gate/mean",
    "gate/std",
    "gate/polarised",
    "niah/accuracy",
)
# These depend on the machine and the time; everything else is the same in two runs of one seed.
CLOCK_FIELDS = ("time", "tokens_per_second", "step_seconds", "checkpoint_seconds", "probe_seconds", "peak_memory_bytes")


def make_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as a row: the fixed keys first, then the others in the order they came."""
    return {**dict.fromkeys(ROW_KEYS), **values}


def without_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` without its clock fields, for comparing two runs."""
    return {key: value for key, value in row.items() if key not in CLOCK_FIELDS}


def last_place(
    places: Iterable[tuple[Any, Any]], events: Iterable[Mapping[str, Any]], segment: int = 0
) -> tuple[int, int] | None:
    """Segment and step of the newest state that a run's files tell of; None where they tell of none.

    `places`: those of its rows; `segment`: that of its newest start, which may have gone back. A rollback begins a
    segment that has no row yet; the checkpoints after it are in it.
    """
    told: list[tuple[Any, Any]] = []
    of_event = 0
    for event in events:
        if event.get("kind") == "start":
            told, of_event = [], segment
        if event.get("kind") in ("start", "rollback", "checkpoint"):
            of_event = event.get("segment", of_event)
            told.append((of_event, event.get("step")))
    found = [*places, *told]
    return max((place for place in found if all(type(number) is int for number in place)), default=None)


def keep_rows_until(path: Path, segment: int, step: int) -> int:
    """Drop the rows that a run continued from (`segment`, `step`) will write again; return how many were dropped.

    Rows of earlier segments stay, whatever their steps: they record what a rollback undid. So do lines that are none of
    ours: somebody else has written them.
    """
    if not path.exists():
        return 0
    with open_regular(path) as file:
        lines = file.read().splitlines(keepends=True)
    kept = [line for line in lines if not _is_later(line, segment, step)]
    if len(kept) == len(lines):
        return 0
    write_atomically(path, b"".join(kept), durable=True)
    return len(lines) - len(kept)


def _is_later(line: bytes, segment: int, step: int) -> bool:
    row = parse_row(line) or {}
    position = row.get("segment") or 0, row.get("step")
    return all(type(number) is int for number in position) and position > (segment, step)
