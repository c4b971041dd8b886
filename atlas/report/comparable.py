"""Which runs can be compared by their validation losses: those of one text, whose losses count the same targets."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from atlas.report.document import MISSING
from atlas.report.run_record import RunRecord

OWN_TEXT = ("atlas.data.text.", "atlas.data.mixed.", "atlas.data.tokens.")  # sources that validate on all of their text
PLACES = ("data.path", "data.paths")  # where a text lies, which says nothing of one that is known by its hash
NAMED = 6  # runs of a group
STORE = ("documents", "train_bytes", "validation_tokens")  # of the start event of a run on a token store


def comparable_groups(records: Sequence[RunRecord]) -> list[list[int]]:
    """Indices of the runs with a validation loss, in groups that can be compared."""
    groups: list[list[int]] = []
    for index, record in enumerate(records):
        if record.result("validation_loss", "validation/loss") is None:
            continue
        alike = [group for group in groups if any(_alike(record, records[other]) for other in group)]
        groups = [group for group in groups if group not in alike]
        groups.append(sorted([index, *(other for group in alike for other in group)]))
    return sorted(groups)


def group_name(place: int) -> str:
    """A, B, ... Z, 27, ..."""
    return ascii_uppercase[place] if place < len(ascii_uppercase) else str(place + 1)


def group_of(index: int, groups: Sequence[Sequence[int]]) -> str:
    return next((group_name(place) for place, group in enumerate(groups) if index in group), MISSING)


def apart(records: Sequence[RunRecord], groups: Sequence[Sequence[int]]) -> str:
    """A sentence on runs that cannot be compared; "" where all of them can."""
    if len(groups) < 2:
        return ""
    told = []
    for place, group in enumerate(groups):
        names = ", ".join([*(records[index].name for index in group[:NAMED]), *(["..."] if len(group) > NAMED else [])])
        first = records[group[0]]
        start = next(iter(first.kind("start")), {})
        apart_rows = ", documents=separate" if first.config.get("data.documents") == "separate" else ""
        what = f" ({_end(str(start['source']))}{apart_rows})" if "source" in start else ""
        told.append(f"{group_name(place)}: {names}{what}")
    why = "their validation losses are of different texts or targets"
    return f"Not all runs can be compared, since {why}. {'; '.join(told)}."


def _end(source: str, length: int = 40) -> str:
    """Paths differ at their end."""
    return source if len(source) <= length else f"…{source[1 - length :]}"


def _alike(one: RunRecord, other: RunRecord) -> bool:
    """Whether they validate on the same rows, or on rows that the same source has drawn from the same text."""
    digests = one.summary.get("validation_digest"), other.summary.get("validation_digest")
    return (bool(digests[0]) and digests[0] == digests[1]) or _source(one) == _source(other)


def _source(record: RunRecord) -> tuple[Any, ...]:
    """What the validation rows are drawn from. A text with several tokenizers is one text."""
    target = str(record.config.get("data._target_", ""))
    start = next(iter(record.kind("start")), {})
    text: Any = record.summary.get("data_digest")
    if all(isinstance(start.get(key), int) for key in STORE):
        text = start["documents"], start["train_bytes"], round(start["validation_tokens"] * record.bytes_per_token)
    if text and target.startswith(OWN_TEXT):
        return text, record.config.get("data.documents", "packed")
    settings = {key: value for key, value in record.config.items() if key.startswith("data.")}
    return text, *sorted((key, str(value)) for key, value in settings.items() if not text or key not in PLACES)
