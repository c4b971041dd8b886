"""Several runs compared: the best ones, the table, the failed ones, and the settings in which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from atlas.config import RECALL
from atlas.report.comparable import apart, comparable_groups, group_of
from atlas.report.comparison_charts import Field, comparison_charts
from atlas.report.document import MISSING, Block, Cell, Markdown, Section, Table, Text
from atlas.report.health import health_cell
from atlas.report.run_record import RunRecord
from atlas.report.run_section import OVERVIEW, overview_cells
from atlas.report.seeds import seed_table
from atlas.report.settings import Difference
from atlas.report.wording import brief, finite, setting_cell, status_cell, value_text

NAMED = 4  # settings in a run's label; all of them are in the table


def best_run(records: Sequence[RunRecord], among: Sequence[int]) -> int | None:
    """Index of the completed run with the lowest validation loss; None if no such run measured one."""
    losses = {}
    for index in among:
        loss = records[index].per_byte(finite(records[index].summary.get("validation_loss")))
        if records[index].status == "completed" and loss is not None:
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
    groups = comparable_groups(records)
    crowned = groups if len(groups) < 2 else [group for group in groups if len(group) > 1]
    bests = [best for group in crowned if (best := best_run(records, group)) is not None]
    warning = apart(records, groups)
    best = None if warning else next(iter(bests), None)
    blocks: list[Block] = [Text(warning, tone="bad")] if warning else []
    blocks += [_best_run_text(records, labels, index, groups) for index in bests]
    blocks += [] if bests or warning else [Text("Best run: none yet, since no completed run has a validation loss.")]
    blocks += [*seed_table(records, differing, groups), _table(records, differing, anchors, bests, groups)]
    field = Field(records, labels, best, comparable=not warning)
    blocks += [*_failed(records, labels, anchors), *comparison_charts(field, differing, limit)]
    blocks += _linked_settings(differing)
    return Section("Comparison", "comparison", blocks)


def counts(records: Sequence[RunRecord]) -> str:
    found = Counter(record.status for record in records)
    return ", ".join(f"{number} {status}" for status, number in found.most_common())


def _best_run_text(
    records: Sequence[RunRecord], labels: Sequence[str], best: int, groups: Sequence[Sequence[int]]
) -> Text:
    loss = records[best].per_byte(finite(records[best].summary.get("validation_loss")))
    recall = finite(records[best].probe(RECALL.name).get("accuracy"))
    of = f" of {group_of(best, groups)}" if len(groups) > 1 else ""
    found = f"validation loss {loss:.4f} nats/byte, {RECALL.title} {RECALL.unit.text(recall)}"
    return Text(f"Best run{of}: {labels[best]}, {found}.", tone="good")


def _table(
    records: Sequence[RunRecord],
    differing: Sequence[Difference],
    anchors: Sequence[str],
    bests: Sequence[int],
    groups: Sequence[Sequence[int]],
) -> Table:
    results = [overview_cells(record) for record in records]
    measured = [at for at in range(len(OVERVIEW)) if any(cells[at].text != MISSING for cells in results)]
    grouped = ["group"] if len(groups) > 1 else []
    head = [
        "run",
        "status",
        "health",
        *grouped,
        *(difference.name for difference in differing),
        *(OVERVIEW[at] for at in measured),
    ]
    rows = []
    for index, record in enumerate(records):
        order = float(record.name) if record.name.isdecimal() else None
        name = Cell(record.name + (" (best)" if index in bests else ""), order=order, link=anchors[index])
        chosen = [setting_cell(difference.values[index]) for difference in differing]
        group = [Cell(group_of(index, groups)) for _ in grouped]
        how = status_cell(record.status), health_cell(record)
        rows.append([name, *how, *group, *chosen, *(results[index][at] for at in measured)])
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
