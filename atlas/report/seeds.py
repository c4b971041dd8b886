"""Runs that differ in their seed alone, as one: means with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import mean, stdev

from atlas.config import RECALL
from atlas.report.document import MISSING, Block, Cell, Table, Text
from atlas.report.run_record import RunRecord
from atlas.report.settings import Difference
from atlas.report.wording import finite, number, setting_cell

SEED = "seed"
NOTE = "Means of completed runs, +- the standard deviation over their seeds."


def seed_groups(records: Sequence[RunRecord], differing: Sequence[Difference]) -> list[list[int]]:
    """Indices of the runs that differ in nothing but the seed, in the order of the runs; [] unless some do."""
    others = [difference for difference in differing if difference.key != SEED]
    groups: dict[tuple[str, ...], list[int]] = {}
    for index in range(len(records)):
        groups.setdefault(tuple(str(difference.values[index]) for difference in others), []).append(index)
    return list(groups.values()) if any(len(group) > 1 for group in groups.values()) else []


def seed_table(records: Sequence[RunRecord], differing: Sequence[Difference]) -> list[Block]:
    """A row for each combination of the other settings; [] where no two runs differ in their seed alone."""
    others = [difference for difference in differing if difference.key != SEED]
    rows = []
    for group in seed_groups(records, differing):
        done = [records[index] for index in group if records[index].status == "completed"]
        measured = (
            ([record.per_byte(finite(record.summary.get("validation_loss"))) for record in done], ".4f"),
            ([finite(record.probe(RECALL.name).get("accuracy")) for record in done], RECALL.unit.form),
            ([finite(record.summary.get("tokens_per_second")) for record in done], ",.0f"),
        )
        chosen = [setting_cell(difference.values[group[0]]) for difference in others]
        count = Cell(f"{len(done)} of {len(group)}", order=float(len(done)), numeric=True)
        rows.append([*chosen, count, *(_spread(values, form) for values, form in measured)])
    head = (*(difference.name for difference in others), "runs", "validation loss", RECALL.title, "tokens/s")
    table = Table("Means over seeds", head, rows, NOTE, sortable=True)
    return [*_alike(records, differing), table] if rows else []


def _alike(records: Sequence[RunRecord], differing: Sequence[Difference]) -> list[Block]:
    """A paragraph for runs of different seeds that are one: every loss that they recorded is the same number."""
    seeds = next((difference.values for difference in differing if difference.key == SEED), None)
    if seeds is None:
        return []
    found: list[Block] = []
    for group in seed_groups(records, differing):
        by_losses: dict[tuple[float, ...], list[int]] = {}
        for index in group:
            losses = records[index].rows.values.get("loss")
            if losses is not None:
                known = tuple(loss for loss in losses.tolist() if isfinite(loss))
                by_losses.setdefault(known, []).append(index)
        for alike in by_losses.values():
            if len({seeds[index] for index in alike}) > 1:
                names = ", ".join(records[index].name for index in alike)
                what = f"{names} have different seeds and the same losses at every step: they are one result"
                why = "a spread over them says nothing"
                hint = "does a data source or optimiser of your own use its seed?"
                found.append(Text(f"{what}, and {why}; {hint}", tone="bad"))
    return found


def _spread(found: Sequence[float | None], form: str) -> Cell:
    values = [value for value in found if value is not None]
    if not values:
        return Cell(MISSING, numeric=True)
    middle = mean(values)
    text = number(middle, form) + (f" +- {number(stdev(values), form)}" if len(values) > 1 else "")
    return Cell(text, order=middle, numeric=True)
