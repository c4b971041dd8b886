"""Watchers of what the model computes, whatever it has learned."""

from __future__ import annotations

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import Record

LEAK = 0.01  # of the root mean square of the outputs; a sound model computes the same bits


def leaks(record: Record) -> Finding | None:
    """Of rows that see each other, what they see of the future says nothing more."""
    found = record.leaks
    if found is None or max(found.rows, found.future) <= LEAK:
        return None
    if found.rows > LEAK:
        seen = f"other rows of the batch change the outputs of a row by {found.rows:.0%}"
        why, hint = (
            "what a row means depends on its neighbours, and generation reads it alone",
            "its order of batch and heads",
        )
    else:
        seen = f"tokens change the outputs before them by {found.future:.0%}"
        why, hint = "it sees what it is to predict, which generation does not have", "its masks and convolutions"
    value = max(found.rows, found.future)
    return Finding("leaks", record.step, value, seen, why, f"to look at code of your own in the model: {hint}")
