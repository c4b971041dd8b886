"""Runs that differ in their seed alone, as one: means with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import mean, stdev

from atlas.config import RECALL
from atlas.report.comparable import group_of
from atlas.report.document import MISSING, Block, Cell, Table, Text
from atlas.report.run_record import RunRecord
from atlas.report.settings import REPEATS, SEED, Difference
from atlas.report.wording import VALIDATION_LOSS, finite, number, setting_cell

NOTE = (
    "Means of completed runs, one of each seed, +- the standard deviation over the seeds; how many of them have the"
    " number, where not all have."
)

Groups = Sequence[Sequence[int]]


def seed_groups(
    records: Sequence[RunRecord], differing: Sequence[Difference], comparable: Groups
) -> list[dict[str, list[int]]]:
    """Runs that differ in nothing but the seed, as seed -> their indices; [] unless some have several seeds.

    Those that cannot be compared are apart; one without a loss is with the first. One without settings is in none.
    """
    seeds = next((difference.values for difference in differing if difference.key == SEED), None)
    if seeds is None:
        return []
    place = {index: at for at, group in enumerate(comparable) for index in group}
    alike: dict[tuple[str, ...], list[int]] = {}
    for index, record in enumerate(records):
        if record.config:
            alike.setdefault(tuple(str(other.values[index]) for other in _others(differing)), []).append(index)
    found: list[dict[str, list[int]]] = []
    for indices in alike.values():
        first = next((place[index] for index in indices if index in place), None)
        parts: dict[int | None, dict[str, list[int]]] = {}
        for index in indices:
            parts.setdefault(place.get(index, first), {}).setdefault(str(seeds[index]), []).append(index)
        found += parts.values()
    return found if any(len(group) > 1 for group in found) else []


def seed_table(records: Sequence[RunRecord], differing: Sequence[Difference], comparable: Groups) -> list[Block]:
    """A row for each combination of the other settings; [] where no two runs differ in their seed alone."""
    others, grouped = _others(differing), ["group"] if len(comparable) > 1 else []
    rows = []
    for group in seed_groups(records, differing, comparable):
        indices = [index for runs in group.values() for index in runs]
        completed = [[records[at] for at in runs if records[at].status == "completed"] for runs in group.values()]
        done = [runs[-1] for runs in completed if runs]
        measured = (
            ([record.per_byte(finite(record.summary.get("validation_loss"))) for record in done], ".4f"),
            ([finite(record.probe(RECALL.name).get("accuracy")) for record in done], RECALL.unit.form),
            ([finite(record.summary.get("tokens_per_second")) for record in done], ",.0f"),
        )
        names = [Cell(max(group_of(index, comparable) for index in indices)) for _ in grouped]
        chosen = [setting_cell(difference.values[indices[0]]) for difference in others]
        count = Cell(f"{len(done)} of {len(group)}", order=float(len(done)), numeric=True)
        rows.append([*names, *chosen, count, *(_spread(values, form) for values, form in measured)])
    names_of_others = (difference.name for difference in others)
    head = (*grouped, *names_of_others, "seeds", VALIDATION_LOSS, RECALL.title, "tokens/s")
    table = Table("Means over seeds", head, rows, NOTE, sortable=True)
    return [*_alike(records, differing, comparable), table] if rows else []


def _others(differing: Sequence[Difference]) -> list[Difference]:
    return [difference for difference in differing if difference.key not in REPEATS]


def _alike(records: Sequence[RunRecord], differing: Sequence[Difference], comparable: Groups) -> list[Block]:
    """A paragraph for runs of different seeds that are one: every loss that they recorded is the same number."""
    found: list[Block] = []
    for group in seed_groups(records, differing, comparable):
        by_losses: dict[tuple[float, ...], dict[int, str]] = {}
        for index, seed in ((index, seed) for seed, runs in group.items() for index in runs):
            losses = records[index].rows.values.get("loss")
            if losses is not None:
                known = tuple(loss for loss in losses.tolist() if isfinite(loss))
                by_losses.setdefault(known, {})[index] = seed
        for alike in by_losses.values():
            if len(set(alike.values())) > 1:
                names = ", ".join(records[index].name for index in sorted(alike))
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
    text += f" ({len(values)} of {len(found)})" if len(values) < len(found) else ""
    return Cell(text, order=middle, numeric=True)
