"""metrics.jsonl as columns, and which of its rows a rollback undid.

Legend: N rows, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from atlas.telemetry.run_files import Row

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MetricColumns:
    """Columns of N values; nan where a row has none. `undone`: a rollback went back to before that row."""

    step: NDArray[np.int64]
    segment: NDArray[np.int64]
    undone: NDArray[np.bool_]
    values: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.step)

    def has(self, key: str) -> bool:
        """Whether the column holds any number."""
        return key in self.values

    def last(self, key: str) -> float | None:
        """The newest value that no rollback undid."""
        if key not in self.values:
            return None
        known = self.values[key][~self.undone & np.isfinite(self.values[key])]
        return float(known[-1]) if len(known) else None


def to_columns(rows: Sequence[Row], rollbacks: Sequence[Row]) -> MetricColumns:
    """Rows of metrics.jsonl as columns. `rollbacks`: the events, each with its `step` and new `segment`.

    Of rows of one step and segment the last is the complete one.
    """
    newest: dict[tuple[int, int], Row] = {}
    for row in rows:
        step, segment = row.get("step"), row.get("segment")
        if is_place(step):
            newest[segment if is_place(segment) else 0, step] = row
    segments, steps = (np.array([key[part] for key in newest], dtype=np.int64) for part in (0, 1))
    kept = list(newest.values())
    names: Row = {}
    for row in kept:
        names.update(row)  # the fastest way to all their keys
    columns = {name: _column(kept, name) for name in names if name not in ("step", "segment")}
    values = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    return MetricColumns(steps, segments, _undone(steps, segments, rollbacks), values)


def is_place(value: Any) -> TypeGuard[int]:
    """Whether it can be the number of a step or a segment: an integer of 64 bits."""
    return type(value) is int and abs(value) < 1 << 63


def _column(rows: Sequence[Row], name: str) -> Floats:
    found = [row.get(name) for row in rows]
    try:
        return np.array(found, dtype=np.float64)
    except (TypeError, ValueError):  # a value that is not a number
        return np.array([value if isinstance(value, int | float) else np.nan for value in found], dtype=np.float64)


def _undone(step: NDArray[np.int64], segment: NDArray[np.int64], rollbacks: Sequence[Row]) -> NDArray[np.bool_]:
    """A row counts as undone if a later segment began at or before its step."""
    undone = np.zeros(len(step), dtype=np.bool_)
    begun = {int(event["segment"]): int(event["step"]) for event in rollbacks}
    for number in sorted({int(found) for found in segment} | set(begun)):
        first = step[segment == number]
        restored = [int(first[0]) - 1] if len(first) else []
        restored += [begun[number]] if number in begun else []
        undone |= (segment < number) & (step > min(restored))
    return undone
