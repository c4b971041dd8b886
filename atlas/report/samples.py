"""Continuations that a run wrote while it trained: how its text changes from step to step."""

from __future__ import annotations

from atlas.report.document import Block, Cell, Table
from atlas.report.lines import UNDONE as BY_ROLLBACK
from atlas.report.run_record import UNDONE, RunRecord
from atlas.report.wording import number_cell

MOST = 50  # of a prompt; the first and the last are kept
PROMPT = 60  # characters of a prompt in a heading: its end, which is what is continued


def sample_blocks(record: RunRecord) -> list[Block]:
    """A table for each prompt, the newest step first; [] for a run without samples. What a rollback undid is marked."""
    found: dict[str, list[tuple[int, str, bool]]] = {}
    for event in record.kind("sample"):
        prompt, text = str(event.get("prompt", "")), str(event.get("text", ""))
        found.setdefault(prompt, []).append((event["step"], text, bool(event.get(UNDONE))))
    return [_table(prompt, samples) for prompt, samples in found.items()]


def _table(prompt: str, samples: list[tuple[int, str, bool]]) -> Table:
    stride = -(-len(samples) // MOST)
    shown = [*samples[::-1][::stride], *(samples[:1] if (len(samples) - 1) % stride else [])]
    rows = [
        [number_cell(step, ",.0f"), Cell(text, code=True), Cell(BY_ROLLBACK if undone else "")]
        for step, text, undone in shown
    ]
    if not any(undone for _, _, undone in shown):
        rows = [row[:2] for row in rows]
    said = repr(prompt)[1:-1] or "no prompt"
    said = said if len(said) <= PROMPT else f"…{said[-PROMPT:]}"
    note = f"One of {stride} is shown, of {len(samples)}." if stride > 1 else ""
    return Table(f"After {said}", ("step", "continuation", "")[: len(rows[0])], rows, note)
