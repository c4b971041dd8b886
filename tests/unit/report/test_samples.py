"""Continuations over training."""

from __future__ import annotations

from atlas.report.document import Document, Section, Table
from atlas.report.page import to_page
from atlas.report.recall_grid import probe_history
from atlas.report.run_record import read_run
from atlas.report.samples import sample_blocks
from atlas.report.writing import write_report
from tests.unit.report.conftest import MakeRun, Row, event, row


def test_samples_are_a_table_for_each_prompt_newest_first(make_run: MakeRun) -> None:
    events = [event("sample", step, prompt="def f\n", text=f"(x):\n\t{step}") for step in (0, 10, 20)]
    events += [event("rollback", 10, from_step=20, segment=1), event("sample", 20, prompt="def f\n", text="<b>")]
    run = make_run("run", [row(1, loss=2.0)], [*events, event("sample", 20, prompt="", text="free")])
    record = read_run(run, "run")
    after, free = sample_blocks(record)
    assert isinstance(after, Table)
    assert isinstance(free, Table)
    assert (after.title, free.title, list(free.head)) == ("After def f\\n", "After no prompt", ["step", "continuation"])
    assert [[cell.text for cell in cells] for cells in after.rows] == [
        ["20", "<b>", ""],
        ["20", "(x):\n\t20", "undone by a rollback"],
        ["10", "(x):\n\t10", ""],
        ["0", "(x):\n\t0", ""],
    ]
    page = to_page(Document("", "", [Section("", "a", [after])]))
    assert '<td class="code">(x):\n    10</td>' in page  # lines and indents as they are
    assert "## Samples\n\n### After def f\\\\n\n" in (write_report([run]) / "report.md").read_text()


def test_a_run_that_was_killed_after_a_rollback_tells_of_the_steps_that_count(make_run: MakeRun) -> None:
    rows = [row(step, loss=6 - step / 50) for step in range(10, 101, 10)]
    found = [event("probe", step, level="recall", outcome="failed", accuracy=step / 100) for step in (40, 100)]
    events = [event("start", 0), *found, event("rollback", 50, from_step=100, segment=1)]
    record = read_run(make_run("run", rows, events, {"status": "running", "step": 0, "steps": 200}), "run")
    assert (record.place, record.step, record.probe("recall")["accuracy"]) == ((1, 50), 50, 0.4)
    text = (write_report([record.folder]) / "report.md").read_text()
    assert "- steps: 50 of 200\n- tokens: 3,200\n- segments: 1 rollback, now in segment 1\n" in text
    assert "| 40 | recall | failed | 0.400 | - | - | - |  |" in text
    assert "| 100 | recall | failed | 1.000 | - | - | - | undone by a rollback |" in text


def test_what_a_resumed_run_makes_again_is_shown_once(make_run: MakeRun) -> None:
    def results(*steps: int) -> list[Row]:
        kinds = {"probe": {"level": "recall", "outcome": "failed"}, "sample": {"prompt": "a", "text": "b"}}
        return [event(kind, step, **more) for step in steps for kind, more in kinds.items()]

    events = [event("start", 0), *results(10, 22), event("rollback", 20, from_step=23, segment=1), *results(22, 35)]
    events += [event("start", 20), event("notice", 20, message="resumed from step-00000020"), *results(22)]
    record = read_run(make_run("run", [row(1, loss=2.0)], events), "run")
    (samples,), probes = sample_blocks(record), probe_history(record)
    assert isinstance(samples, Table)
    assert isinstance(probes, Table)
    told = [("10", ""), ("22", "undone by a rollback"), ("22", "")]
    assert [(cells[0].text, cells[-1].text) for cells in probes.rows] == told
    assert [(cells[0].text, cells[-1].text) for cells in samples.rows] == told[::-1]


def test_of_many_samples_some_are_shown_the_first_and_the_last_among_them(make_run: MakeRun) -> None:
    events = [event("sample", step, prompt="a", text=str(step)) for step in range(120)]
    (table,) = sample_blocks(read_run(make_run("run", [], events), "run"))
    assert isinstance(table, Table)
    steps = [cells[0].text for cells in table.rows]
    assert (steps[0], steps[1], steps[-1], len(steps)) == ("119", "116", "0", 41)
    assert table.note == "One of 3 is shown, of 120."


def test_what_the_watchers_saw_stands_above_the_results(make_run: MakeRun) -> None:
    told = [event("watch", 7, watch="memory_unused", message="the loss is the same with the memory off")] * 2
    text = (write_report([make_run("run", [row(1, loss=2.0)], told)]) / "report.md").read_text()
    said = "memory_unused: the loss is the same with the memory off"
    assert text.index(f"watch: {said}") < text.index("- status:")
    assert text.count(f"watch: {said}\n") == 1
    assert f"| 7 | watch | {said} |" in text
