"""Runs whose validation losses say nothing about each other are not compared, and every run shows its health."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas.report.comparable import apart, comparable_groups, group_name
from atlas.report.document import Document, Table, Text
from atlas.report.health import health_cell
from atlas.report.metric_columns import to_columns
from atlas.report.run_record import RunRecord, read_run
from atlas.report.terminal import comparison_lines
from atlas.report.writing import write_report
from tests.unit.report.conftest import MakeRun, event, row

TEXT = "atlas.data.text.TextData"
MINE = "mine.Data"


def record(
    target: str = TEXT,
    text: str = "",
    rows: str = "",
    start: dict[str, Any] | None = None,
    loss: float | None = 2.0,
    bytes_per_token: float = 1.0,
    **data: Any,
) -> RunRecord:
    summary = {"status": "completed", "validation_loss": loss, "data_digest": text, "validation_digest": rows}
    summary |= {"bytes_per_token": bytes_per_token}
    config = {"data._target_": target, **{f"data.{key}": value for key, value in data.items()}}
    events = [{"kind": "start", "step": 0, **(start or {})}]
    return RunRecord(Path("run"), "run", config, summary, to_columns([], []), events, {}, None, [])


STORE = {"documents": 90, "train_bytes": 5000}
OF_BYTES = record("atlas.data.tokens.TokenData", "a", start=STORE | {"validation_tokens": 600})
IN_WORDS = record("atlas.data.tokens.TokenData", "b", start=STORE | {"validation_tokens": 200}, bytes_per_token=3.0)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (record(text="a"), record(text="a"), True),
        (record(text="a"), record(text="b"), False),
        (record(text="a", rows="1"), record(text="a", rows="2"), True),  # rows of another length
        (record(text="a"), record("atlas.data.mixed.MixedData", "a", recall_share_start=0.5), True),
        (record(text="a", paths="here/a.txt"), record(text="a", paths="there/a.txt"), True),
        (record(text="a"), record("atlas.data.recall.RecallData", "a"), False),
        (OF_BYTES, IN_WORDS, True),  # two tokenizers of one text
        (OF_BYTES, record("atlas.data.tokens.TokenData", "a", start=STORE | {"validation_tokens": 601}), False),
        (record("atlas.data.tokens.TokenData", "a", documents="separate"), record(text="a", documents="packed"), False),
        (
            record("atlas.data.mixed.MixedData", "a"),
            record("atlas.data.tokens.TokenData", "a", documents="packed"),
            True,
        ),
        (record("atlas.data.blend.BlendData", "a", weights="[1]"), record("atlas.data.blend.BlendData", "b"), False),
        (record(MINE, rows="1", mask=1), record(MINE, rows="2", mask=2), False),
        (record(MINE, rows="1", mask=1), record("mine.Other", rows="1"), True),  # the same rows, another training text
        (record(MINE, stride=3), record(MINE, stride=3), True),
        (record(MINE, text="a", rows="1", path="x"), record(MINE, text="a", rows="2", path="y"), True),
    ],
)
def test_runs_are_compared_where_they_validate_on_the_same(one: RunRecord, other: RunRecord, alike: bool) -> None:
    assert comparable_groups([one, other]) == ([[0, 1]] if alike else [[0], [1]])


def test_a_run_joins_two_groups_and_one_without_a_loss_none() -> None:
    runs = [
        record(text="a", rows="1"),
        record(text="b", rows="2"),
        record(text="c", loss=None),
        record(text="b", rows="1"),
    ]
    assert comparable_groups(runs) == [[0, 1, 3]]
    assert apart(runs, [[0, 1, 3]]) == ""
    assert [group_name(place) for place in (0, 25, 26)] == ["A", "Z", "27"]


def test_groups_of_one_text_say_how_its_documents_are_read() -> None:
    start = STORE | {"validation_tokens": 600, "source": "token store"}
    runs = [record("atlas.data.tokens.TokenData", "a", start=start, documents=how) for how in ("separate", "packed")]
    assert apart(runs, comparable_groups(runs)).endswith(
        "A: run (token store, documents=separate); B: run (token store)."
    )


def run_on(make_run: MakeRun, name: str, text: str, loss: float) -> Path:
    summary = {"status": "completed", "validation_loss": loss, "data_digest": text}
    return make_run(
        f"sweep/{name}", [row(1, loss=3.0)], [event("start", 0, source=f"{text}.txt")], summary, source=text
    )


def test_no_run_is_the_best_of_different_texts(make_run: MakeRun) -> None:
    runs = [
        run_on(make_run, str(at), text, loss) for at, (text, loss) in enumerate([("a", 2.0), ("b", 1.0), ("a", 1.9)])
    ]
    told: list[Document] = []
    write_report(runs, runs[0].parent / "report", tell=told.append)
    warning = (
        "Not all runs can be compared, since their validation losses are of different texts or targets. "
        "A: 0, 2 (a.txt); B: 1 (b.txt)."
    )
    blocks = told[0].sections[0].blocks
    assert [(block.text, block.tone) for block in blocks if isinstance(block, Text)] == [
        (warning, "bad"),
        ("Best run of A: 2 source=a, validation loss 1.9000 nats/byte, NIAH recall not measured.", "good"),
    ]
    (table,) = (block for block in blocks if isinstance(block, Table) and block.title == "Runs")
    assert [[cell.text for cell in cells[:6]] for cells in table.rows] == [
        ["0", "completed", "healthy", "A", "a", "2.0000"],
        ["1", "completed", "healthy", "B", "b", "1.0000"],
        ["2 (best)", "completed", "healthy", "A", "a", "1.9000"],
    ]
    assert comparison_lines(told[0])[-1] == warning
    drawn = [block.title for block in blocks if not isinstance(block, Table | Text) and hasattr(block, "title")]
    assert "Validation loss against source" not in drawn


def test_every_run_shows_its_health(make_run: MakeRun) -> None:
    done = {"status": "completed"}
    start = event("start", 0)
    found = {
        "calm": ([start], done, "healthy"),
        "seen": ([start, event("watch", 10, watch="plateau"), event("warning", 3), event("spike", 5)], done,
                 "plateau, 1 spike, 1 warning"),
        "many": ([start, *(event("watch", 10, watch=name) for name in "abcd")], done, "a, b, +2"),
        "failed": ([start], {"status": "failed"}, "-"),
        "none": ([], done, "-"),
    }  # fmt: skip
    for name, (events, summary, health) in found.items():
        run = make_run(name, [row(1, loss=3.0)], events, summary)
        assert health_cell(read_run(run, name)).text == health


def test_damage_of_the_files_is_told(make_run: MakeRun) -> None:
    rows = [row(step, loss=3.0, lr=0.1) for step in range(1, 5)]
    rows[2]["loss"] = float("nan")
    run = make_run("run", rows, [event("start", 0), event("end", 4)], {"status": "completed"})
    (run / "events.jsonl").write_bytes((run / "events.jsonl").read_bytes()[:-7])
    text = (write_report([run]) / "report.md").read_text()
    assert "\n\nevents.jsonl: its last line is cut and left out\n\n" in text
    assert "\n\nmetrics.jsonl: the loss is no number in 1 row, the first of step 3\n\n" in text
    assert health_cell(read_run(run, "run")).text == "damaged files"


def test_a_loss_that_a_rollback_undid_is_no_damage(make_run: MakeRun) -> None:
    rows = [row(1, loss=3.0, lr=0.1), row(2, lr=0.1), row(2, 1, loss=2.9, lr=0.1)]
    back = event("rollback", 1, from_step=2, segment=1, reason="loss nan at step 2", change="")
    run = make_run("run", rows, [event("start", 0), back], {"status": "completed"})
    assert read_run(run, "run").problems == []
