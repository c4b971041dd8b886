"""Runs that differ in their seed alone, and a result against a setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest

from atlas.report.against import LOSS, against_charts
from atlas.report.comparison_charts import Field, comparison_charts
from atlas.report.document import Chart, Facts, Table, Text
from atlas.report.marks import outliers
from atlas.report.metric_columns import to_columns
from atlas.report.run_record import RunRecord
from atlas.report.run_section import run_sections
from atlas.report.seeds import seed_table
from atlas.report.settings import Difference

LOSSES = [2.0, 2.2, 3.0, 3.4, None, 1.0]


def record(index: int, status: str = "completed") -> RunRecord:
    summary = {"status": status, "validation_loss": LOSSES[index], "tokens_per_second": 100.0 + index}
    return RunRecord(Path(str(index)), str(index), {"seed": 0}, summary, to_columns([], []), [], {}, None, [])


RECORDS = [record(0), record(1), record(2), record(3), record(4, "failed"), record(5)]
RATES = Difference("optim.lr", "lr", [1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2])
RUNS = [(letter, "@blue") for letter in "abcdef"]
SEEDS = Difference("seed", "seed", [0, 1, 0, 1, 0, 1])
ALL = [list(range(6))]  # runs that can be compared


def test_runs_of_one_setting_are_a_mean_with_its_spread() -> None:
    (table,) = seed_table(RECORDS, [RATES, SEEDS], ALL)
    assert isinstance(table, Table)
    assert list(table.head) == ["lr", "seeds", "validation nats/byte", "NIAH recall", "tokens/s"]
    texts = [[cell.text for cell in row] for row in table.rows]
    assert [row[0] for row in texts] == ["0.0001", "0.001", "0.01"]
    assert [row[1] for row in texts] == ["2 of 2", "2 of 2", "1 of 2"]
    assert [row[2] for row in texts] == [
        f"{mean([2.0, 2.2]):.4f} +- {stdev([2.0, 2.2]):.4f}",
        f"{mean([3.0, 3.4]):.4f} +- {stdev([3.0, 3.4]):.4f}",
        "1.0000",
    ]
    assert [row[3] for row in texts] == ["-"] * 3


def test_a_mean_is_of_runs_that_can_be_compared_with_known_settings_and_one_of_each_seed() -> None:
    def rows(seeds: list[int], comparable: list[list[int]], records: list[RunRecord] = RECORDS) -> list[list[str]]:
        found = seed_table(records, [Difference("seed", "seed", seeds)], comparable)
        return [
            [cell.text for cell in cells[:-2]] for block in found if isinstance(block, Table) for cells in block.rows
        ]

    apart = [[0, 1], [2, 3, 5]]  # run 4 has no loss
    assert rows([0, 1, 0, 1, 2, 2], apart) == [
        ["A", "2 of 3", f"{mean([2.0, 2.2]):.4f} +- {stdev([2.0, 2.2]):.4f}"],
        ["B", "3 of 3", f"{mean([3.0, 3.4, 1.0]):.4f} +- {stdev([3.0, 3.4, 1.0]):.4f}"],
    ]
    lost = [*RECORDS[:2], *(replace(one, config={}) for one in RECORDS[2:])]
    assert rows([0, 1, 0, 1, 0, 1], ALL, lost) == [["2 of 2", f"{mean([2.0, 2.2]):.4f} +- {stdev([2.0, 2.2]):.4f}"]]
    assert rows([0, 0, 1, 1, 1, 1], ALL) == [["2 of 2", f"{mean([2.2, 1.0]):.4f} +- {stdev([2.2, 1.0]):.4f}"]]
    assert rows([0, 0, 1, 1, 0, 2], [[0, 1], [2, 3], [5]]) == []  # a seed each
    assert seed_table(RECORDS, [Difference("sweep.round", "round", [0, 1, 2, 3, 4, 5])], ALL) == []


def test_a_mean_of_fewer_runs_than_completed_says_so() -> None:
    """A run that was killed behind its last checkpoint has no tokens/s of its own."""
    records = [record(0), replace(record(1), summary={"status": "completed", "validation_loss": 2.2}), record(3)]
    (table,) = seed_table(records, [Difference("seed", "seed", [0, 1, 2])], [[0, 1, 2]])
    assert isinstance(table, Table)
    losses, spread = [2.0, 2.2, 3.4], stdev([100.0, 103.0])
    assert [cell.text for cell in table.rows[0]] == [
        "3 of 3", f"{mean(losses):.4f} +- {stdev(losses):.4f}", "-", f"102 +- {spread:,.0f} (2 of 3)",
    ]  # fmt: skip


def test_seeds_that_are_one_result_are_told() -> None:
    def with_losses(index: int, *losses: float) -> RunRecord:
        rows = [{"step": step, "segment": 0, "loss": loss} for step, loss in enumerate(losses, start=1)]
        return replace(record(index), rows=to_columns(rows, []))

    alike = [with_losses(0, 3.0, 2.5), with_losses(1, 3.0, 2.5), with_losses(2, 3.0, 2.4)]
    found, table = seed_table(alike, [Difference("seed", "seed", [0, 1, 2])], ALL)
    assert found == Text(
        "0, 1 have different seeds and the same losses at every step: they are one result, and a spread over them says "
        "nothing; does a data source or optimiser of your own use its seed?",
        tone="bad",
    )
    assert isinstance(table, Table)
    again = [Difference("seed", "seed", [0, 0, 1])]  # one seed twice
    assert [type(block) for block in seed_table(alike, again, ALL)] == [Table]
    other = [Difference("seed", "seed", [0, 1, 2]), Difference("optim.lr", "lr", [1.0, 2.0, 1.0])]
    assert [type(block) for block in seed_table(alike, other, ALL)] == [Table]
    assert [type(block) for block in seed_table(RECORDS, [RATES, SEEDS], ALL)] == [Table]  # no rows


def test_runs_that_differ_in_more_have_no_such_table() -> None:
    assert seed_table(RECORDS[::2], [Difference("optim.lr", "lr", [1e-4, 1e-3, 1e-2])], ALL) == []


def test_a_wide_setting_has_a_logarithmic_axis_and_a_line_through_its_means() -> None:
    (chart,) = against_charts([RATES, SEEDS], {LOSS: ("nats", LOSSES)}, RUNS)
    means, *dots = chart.traces
    assert (chart.layout["xaxis"]["type"], chart.layout["xaxis"]["ticktext"]) == ("log", ["0.0001", "0.001", "0.01"])
    assert [(dot["x"], dot["y"]) for dot in dots] == [
        ([1e-4], [2.0]), ([1e-4], [2.2]), ([1e-3], [3.0]), ([1e-3], [3.4]), ([1e-2], [1.0]),
    ]  # fmt: skip
    assert [(dot["name"], dot["legendgroup"]) for dot in dots][-1] == ("f", "5")  # e has no loss
    assert (means["x"], means["y"]) == ([1e-4, 1e-3, 1e-2], pytest.approx([2.1, 3.2, 1.0]))
    chosen = Difference("optim.lr", "lr", [1.1e-3, 1e-3, 3e-3, 4e-3, 5e-3, 9e-3])  # 0.001 and 0.0011 would overlap
    assert "tickvals" not in against_charts([chosen], {LOSS: ("nats", LOSSES)}, RUNS)[0].layout["xaxis"]
    wide = replace(chosen, values=[*chosen.values[:5], 0.02])
    assert against_charts([wide], {LOSS: ("nats", LOSSES)}, RUNS)[0].layout["xaxis"]["dtick"] == "D2"
    near = Difference("model.width", "width", [32, 64, 96, 32, 64, 96])
    assert against_charts([near], {LOSS: ("nats", LOSSES)}, RUNS)[0].layout["xaxis"]["type"] == "linear"


def test_a_setting_in_words_has_its_values_in_their_order() -> None:
    words = Difference("rule", "rule", ["muon", "gd", "muon", "gd", "muon", "gd"])
    (chart,) = against_charts([words], {"NIAH recall": ("share", LOSSES)}, RUNS)
    assert (chart.title, chart.layout["xaxis"]["type"]) == ("NIAH recall against rule", "category")
    assert (chart.traces[0]["x"], chart.traces[0]["y"]) == (["muon", "gd"], pytest.approx([2.5, 2.2]))
    two = Difference("rule", "rule", ["muon", "gd"])
    assert against_charts([two], {LOSS: ("nats", [1.0, 2.0])}, RUNS) == []  # a run for each value: a table


def test_a_diverged_run_stays_out_of_the_means_and_of_the_range() -> None:
    losses = [2.0, 2.2, 3.0, 3.4, 2.8, 80_000.0]
    (chart,) = against_charts([RATES], {LOSS: ("nats", losses)}, RUNS)
    assert chart.traces[0]["y"] == pytest.approx([2.1, 3.2, 2.8])
    assert chart.layout["yaxis"]["range"] == pytest.approx([2.0 - 0.06 * 1.4, 3.4 + 0.06 * 1.4])
    assert chart.note.endswith(" 1 run above: 8e+04 at most.")
    assert outliers([1.3, 1.4, 2.6]) == (2.8, [])


def test_a_probe_level_of_one_s_own_is_among_the_facts() -> None:
    probes = {"recall": {"verdict": "PASSED"}, "mine_level.echo": {"verdict": "FAILED: 1 %"}}
    own = replace(RECORDS[0], summary={"status": "completed", "niah": probes})
    (section,) = run_sections(own, "", "", 10)
    facts = next(block for block in section.blocks if isinstance(block, Facts))
    texts = {name: cell.text for name, cell in facts.pairs}
    assert (texts["NIAH recall"], texts["NIAH mine_level.echo"]) == ("PASSED", "FAILED: 1 %")


def test_names_with_numbers_stand_in_the_order_of_the_numbers() -> None:
    chunks = Difference("chunk_size", "chunk_size", ["c16", "c8", "c32", "c64"])
    labels = list(chunks.values)
    _, parallel, *_ = comparison_charts(Field(RECORDS[:4], labels, None), [chunks], 100)
    assert isinstance(parallel, Chart)
    places = {trace["name"]: trace["y"][0] for trace in parallel.traces}
    assert sorted(places, key=lambda name: places[name]) == ["c8", "c16", "c32", "c64"]
