"""The comparison of runs as lines of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.report.document import Document, Table

RUNS = "Runs"  # title of the table that is shown
KEPT = ("run", "status", "validation loss")
GAP = "  "


def comparison_lines(document: Document, width: int | None = None) -> list[str]:
    """A row for each run; [] for a report of one. With a `width` the columns that do not fit are left out from the
    right: results first, then settings, never the validation loss."""
    blocks = [block for section in document.sections for block in section.blocks]
    table = next((block for block in blocks if isinstance(block, Table) and block.title == RUNS), None)
    if table is None:
        return []
    columns = [[head, *(row[at].text for row in table.rows)] for at, head in enumerate(table.head)]
    numeric = [any(row[at].numeric for row in table.rows) for at in range(len(columns))]
    shown = [_aligned(column, right=right) for column, right in zip(columns, numeric, strict=True)]
    lines = dict(zip(table.head, shown, strict=True))
    for head in [head for head in reversed(table.head) if head not in KEPT]:
        if width is not None and len(GAP.join(column[0] for column in lines.values())) > width:
            del lines[head]
    return [GAP.join(cells).rstrip() for cells in zip(*lines.values(), strict=True)]


def _aligned(column: Sequence[str], *, right: bool) -> list[str]:
    width = max(map(len, column))
    return [f"{text:>{width}}" if right else f"{text:<{width}}" for text in column]
