"""Several runs compared: the best one, the table, the failed ones, and the settings in which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from atlas.config import RECALL
from atlas.report.comparison_charts import Field, comparison_charts
from atlas.report.document import MISSING, Block, Cell, Markdown, Section, Table, Text
from atlas.report.run_record import RunRecord
from atlas.report.run_section import OVERVIEW, overview_cells
from atlas.report.seeds import seed_table
from atlas.report.settings import Difference
from atlas.report.wording import brief, finite, setting_cell, status_cell, value_text

NAMED = 4  # settings in a run's label; all of them are in the table


def best_run(records: Sequence[RunRecord]) -> int | None:
    """Index of the completed run with the lowest validation loss; None if no such run measured one."""
    losses = {}
    for index, record in enumerate(records):
        loss = record.per_byte(finite(record.summary.get("validation_loss")))
        if record.status == "completed" and loss is not None:
            losses[index] = loss
    return min(losses, key=lambda index: losses[index]) if losses else None


def label(name: str, index: int, differing: Sequence[Difference]) -> str:
    """A run's name with the settings in which it differs from the others: the first ones, where there are many."""
    shown = [f"{d.name}={brief(value_text(d.values[index]))}" for d in differing[:NAMED]]
    rest = len(differing) - len(shown)
    return " ".join([name, *shown, *([f"+{rest}"] if rest else [])])


def comparison_section(
    records: Sequence[RunRecord], differing: Sequence[Difference], labels: Sequence[str], anchors: Sequence[str],
    limit: int,
) -> Section:  # fmt: skip
    best = best_run(records)
    blocks: list[Block] = [_best_run_text(records, labels, best), *seed_table(records, differing)]
    blocks.append(_table(records, differing, anchors, best))
    blocks += [*_failed(records, labels, anchors), *comparison_charts(Field(records, labels, best), differing, limit)]
    blocks += _linked_settings(differing)
    return Section("Comparison", "comparison", blocks)


def counts(records: Sequence[RunRecord]) -> str:
    found = Counter(record.status for record in records)
    return ", ".join(f"{number} {status}" for status, number in found.most_common())


def _best_run_text(records: Sequence[RunRecord], labels: Sequence[str], best: int | None) -> Text:
    if best is None:
        return Text("Best run: none yet, since no completed run has a validation loss.")
    loss = records[best].per_byte(finite(records[best].summary.get("validation_loss")))
    recall = finite(records[best].probe(RECALL.name).get("accuracy"))
    return Text(
        f"Best run: {labels[best]}, validation loss {loss:.4f}, {RECALL.title} {RECALL.unit.text(recall)}.", tone="good"
    )


def _table(
    records: Sequence[RunRecord], differing: Sequence[Difference], anchors: Sequence[str], best: int | None
) -> Table:
    results = [overview_cells(record) for record in records]
    measured = [at for at in range(len(OVERVIEW)) if any(cells[at].order is not None for cells in results)]
    head = ["run", "status", *(difference.name for difference in differing), *(OVERVIEW[at] for at in measured)]
    rows = []
    for index, record in enumerate(records):
        order = float(record.name) if record.name.isdigit() else None
        name = Cell(record.name + (" (best)" if index == best else ""), order=order, link=anchors[index])
        chosen = [setting_cell(difference.values[index]) for difference in differing]
        rows.append([name, status_cell(record.status), *chosen, *(results[index][at] for at in measured)])
    note = "" if differing else "The runs do not differ in any setting."
    return Table("Runs", head, rows, note, sortable=True)


def _failed(records: Sequence[RunRecord], labels: Sequence[str], anchors: Sequence[str]) -> list[Block]:
    rows = [
        [
            Cell(labels[index], link=anchors[index]),
            status_cell(record.status_in_words),
            Cell(str(record.summary.get("reason") or MISSING)),
        ]
        for index, record in enumerate(records)
        if record.status != "completed"
    ]
    return [Table("Not completed", ("run", "status", "error"), rows)] if rows else []


def _linked_settings(differing: Sequence[Difference]) -> list[Block]:
    rows = [[Cell(d.key), Cell(", ".join(d.along))] for d in differing if d.along]
    return [Table("Settings that change together", ("setting", "changes with it"), rows)] if rows else []


def decision_blocks(found: Mapping[str, Any], document: str) -> list[Block]:
    """A decision made from the sweep: `found` is its decision.json, `document` its decision.md."""
    outcome = str(found.get("outcome") or MISSING)
    said = [str(found[key]) for key in ("headline", "reason") if found.get(key)]
    passed = found.get("passed", outcome != "STOP")
    blocks: list[Block] = [Text(": ".join([outcome, *said]), tone="good" if passed else "bad")]
    return [*blocks, Markdown(document)] if document else blocks
