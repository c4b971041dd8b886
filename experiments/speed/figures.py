"""Rows of measurements -> the figures that tables, targets and charts show. Imports no torch."""

from __future__ import annotations

from statistics import median
from typing import Any, NamedTuple

Row = dict[str, Any]


class Ratio(NamedTuple):
    """Ratio of medians, with the lowest and the highest of the rounds taken one by one."""

    value: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.lowest:.2f} to {self.highest:.2f})"


def measured(row: Row | None) -> bool:
    return row is not None and "reason" not in row


def find(results: Row, part: str, name: str, **wanted: Any) -> Row | None:
    """The measured row of a part with this name and these values; None where there is none."""
    rows: list[Row] = results.get(part, {}).get("rows", [])
    wanted["name"] = name
    fitting = (row for row in rows if measured(row) and all(row.get(key) == value for key, value in wanted.items()))
    return next(fitting, None)


def anchor(results: Row, part: str, **wanted: Any) -> Row | None:
    """The faster one of the two plain Transformers."""
    rows = [find(results, part, name, **wanted) for name in ("transformer", "transformer_atlas")]
    return min((row for row in rows if row is not None), key=lambda row: median(row["seconds"]), default=None)


def tokens_per_second(row: Row) -> float:
    tokens: int = row["batch"] * row["sequence"]
    seconds: float = median(row["seconds"])
    return tokens / seconds


def speed_ratio(row: Row | None, other: Row | None) -> Ratio | None:
    """How many times as many tokens per second `row` makes as `other`; both of one race."""
    if row is None or other is None:
        return None
    work = row["batch"] * row["sequence"] / (other["batch"] * other["sequence"])
    rounds = [work * theirs / ours for ours, theirs in zip(row["seconds"], other["seconds"], strict=True)]
    return Ratio(tokens_per_second(row) / tokens_per_second(other), min(rounds), max(rounds))


def highest_ratio(row: Row | None, other: Row | None, peak_flops: float | None) -> float | None:
    """What `speed_ratio` would be if `row` did nothing but its matrix products, all at the machine's peak rate."""
    if row is None or other is None or peak_flops is None or "flops" not in row:
        return None
    tokens: int = row["batch"] * row["sequence"]
    return tokens * peak_flops / row["flops"] / tokens_per_second(other)


def time_ratio(row: Row | None, other: Row | None) -> Ratio | None:
    """How many times as long `row` takes as `other`; both of one race."""
    if row is None or other is None:
        return None
    rounds = [ours / theirs for ours, theirs in zip(row["seconds"], other["seconds"], strict=True)]
    return Ratio(median(row["seconds"]) / median(other["seconds"]), min(rounds), max(rounds))


def quotient(row: Row | None, other: Row | None, key: str) -> float | None:
    """`key` of one row over that of another; None unless both have it."""
    if row is None or other is None or key not in row or key not in other:
        return None
    value: float = row[key] / other[key]
    return value


def lengths(results: Row, part: str, key: str) -> list[int]:
    """The context lengths of a part's measured rows, shortest first."""
    return sorted({row[key] for row in results.get(part, {}).get("rows", []) if measured(row)})
