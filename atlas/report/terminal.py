"""The comparison of runs as lines of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.report.document import Block, Document, Table, Text
from atlas.report.wording import VALIDATION_LOSS

COMPARISON = "comparison"  # anchor of its section
RUNS = "Runs"  # title of the table that is shown
HEALTH = "health"  # a column
KEPT = ("run", "status", "group", VALIDATION_LOSS)
GAP = "  "


def comparison_lines(document: Document, width: int | None = None) -> list[str]:
    """A row for each run, and what makes their comparison doubtful; [] for a report of one. With a `width` the columns
    that do not fit are left out: results from the right, then health, then settings, never the validation loss."""
    table = next((block for block in _comparison(document) if isinstance(block, Table) and block.title == RUNS), None)
    if table is None:
        return []
    columns = [[head, *(row[at].text for row in table.rows)] for at, head in enumerate(table.head)]
    numeric = [any(row[at].numeric for row in table.rows) for at in range(len(columns))]
    shown = [_aligned(column, right=right) for column, right in zip(columns, numeric, strict=True)]
    places = list(range(len(columns)))
    results = table.head.index(VALIDATION_LOSS) if VALIDATION_LOSS in table.head else 0
    order = sorted(places, key=lambda at: (at < results, table.head[at] != HEALTH, -at))
    for at in [at for at in order if table.head[at] not in KEPT]:
        if width is not None and len(GAP.join(shown[place][0] for place in places)) > width:
            places.remove(at)
    lines = [GAP.join(cells).rstrip() for cells in zip(*(shown[place] for place in places), strict=True)]
    return [*lines, *doubts(document)]


def doubts(document: Document) -> list[str]:
    """What makes the comparison of runs doubtful."""
    return [block.text for block in _comparison(document) if isinstance(block, Text) and block.tone == "bad"]


def _comparison(document: Document) -> Sequence[Block]:
    return next((section.blocks for section in document.sections if section.anchor == COMPARISON), ())


def _aligned(column: Sequence[str], *, right: bool) -> list[str]:
    width = max(map(len, column))
    return [f"{text:>{width}}" if right else f"{text:<{width}}" for text in column]
