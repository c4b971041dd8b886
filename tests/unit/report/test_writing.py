from __future__ import annotations

import json
import os
import re
import shutil
import socket
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest

from atlas.config import ConfigError
from atlas.config.lock import RunLock
from atlas.report.__main__ import USAGE, main
from atlas.report.comparison_charts import Field
from atlas.report.document import Chart, Document
from atlas.report.run_record import read_run
from atlas.report.terminal import comparison_lines
from atlas.report.writing import write_report
from tests.unit.report.conftest import MakeRun, event, row

GOLDEN = Path(__file__).parent / "golden_report.md"
CELL = {"task": "single", "haystack": "noise", "length": 64, "depth": 0.5, "accuracy": 0.75, "control": None}
RECALL = {"level": "recall", "outcome": "passed", "verdict": "PASSED", "cells": [CELL, CELL | {"length": 128}]}


def test_the_report_of_recorded_runs_is_the_golden_one(sweep: Path) -> None:
    """Change golden_report.md only if you mean to change what reports say."""
    assert write_report([sweep]) == sweep / "report"
    assert (sweep / "report" / "report.md").read_text() == GOLDEN.read_text()


@pytest.mark.parametrize("where", ["step", "segment", "loss", "time", "event", "from_step", "summary", "config"])
@pytest.mark.parametrize("large", [10**30, 10**400], ids=["more than 64 bits", "more than a float"])
def test_numbers_that_are_too_large_are_left_out(make_run: MakeRun, where: str, large: int) -> None:
    rows = [row(1, loss=3.0), row(2, loss=2.0), row(3, loss=1.5)]
    events = [event("start", 0), event("rollback", 1, segment=1, from_step=2, reason="a spike")]
    summary = {"status": "completed", "step": 3, "steps": 3}
    if where in rows[1]:
        rows[1][where] = large
    elif where == "summary":
        summary |= dict.fromkeys(("validation_loss", "step", "tokens_per_second"), large)
    elif where != "config":
        events[1]["step" if where == "event" else where] = large
    runs = [make_run(name, rows, events, summary) for name in ("run", "other")]
    if where == "config":
        (runs[0] / "config.yaml").write_text(f"seed: {large}\n")
    text = (write_report(runs, runs[0] / "report") / "report.md").read_text()
    assert "# 2 runs" in text


def test_a_run_may_have_a_name_of_digits_that_are_no_number(sweep: Path) -> None:
    (sweep / "2").rename(sweep / "²")
    assert "| ² |" in (write_report([sweep]) / "report.md").read_text()


def test_the_page_stands_alone(sweep: Path) -> None:
    folder = write_report([sweep])
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "plotly.min.js", "report.md"]
    page = (folder / "index.html").read_text()
    assert "Best run: 0 lr=0.002 source=stdlib, validation loss 2.1000 nats/byte, NIAH recall 25.0%." in page
    assert "ValueError: no &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert(1)" not in page
    assert "running or killed (last row at 2027-01-15 08:00:01 UTC)" in page


def test_one_run_is_reported_beside_its_files(rolled_back: Path) -> None:
    shutil.copyfile(GOLDEN, rolled_back / "niah.png")
    folder = write_report([rolled_back])
    assert folder == rolled_back / "report"
    text = (folder / "report.md").read_text()
    assert text.startswith("# run 0\n\n1 run: 1 completed. Newest row: 2027-01-15 08:00:10 UTC.\n")
    assert "## Comparison" not in text
    assert "niah.png" not in text  # without niah.json nothing says what it shows


def test_a_probed_checkpoint_is_shown_as_grid_and_picture(rolled_back: Path) -> None:
    probed = {"checkpoint": "step-00000010", "lasting": 0.5, "settings": {"samples": 4}, "control": []}
    probed |= {"results": [RECALL]}
    (rolled_back / "niah.json").write_text(json.dumps(probed))
    (rolled_back / "niah.png").write_bytes(b"picture")
    folder = write_report([rolled_back])
    text = (folder / "report.md").read_text()
    source = "python -m atlas.niah with lasting=0.5 on step-00000010, niah.samples=4"
    assert f"| recall | PASSED |\n\n{source}\n\n![needles found, 0](niah-0.png)" in text
    assert "| 50% | 75.0% | 75.0% | - | - |" in text
    assert (folder / "niah-0.png").read_bytes() == b"picture"
    assert "trained without a memory" not in text
    beside = RECALL | {"cells": [CELL | {"without": 0.125}]}
    probed |= {"results": [beside], "earlier": [{"checkpoint": "step-00000005", "results": [RECALL]}]}
    (rolled_back / "niah.json").write_text(json.dumps(probed))
    text = (write_report([rolled_back]) / "report.md").read_text()
    assert "| depth | 64 tokens, memory on | 64 tokens, memory off | 64 tokens, trained without a memory |" in text
    assert "| 50% | 75.0% | - | 12.5% |" in text
    assert "### Earlier probes\n\n| level | verdict | command |\n| --- | --- | --- |\n" in text
    assert "| recall | PASSED | python -m atlas.niah on step-00000005 |" in text


def test_a_newer_probing_without_a_grid_stands_before_the_grid_of_an_earlier_one(rolled_back: Path) -> None:
    memory = {"level": "memory", "outcome": "passed", "verdict": "PASSED: cosine 0.99", "cells": []}
    newest = {"checkpoint": "step-00000020", "control": ["runs/other/checkpoints/step-1"], "results": [memory]}
    earlier = [{"checkpoint": "step-00000010", "results": [RECALL]}]
    (rolled_back / "niah.png").write_bytes(b"picture")
    (rolled_back / "niah.json").write_text(json.dumps(newest))
    assert "niah-0.png" not in (write_report([rolled_back]) / "report.md").read_text()  # of nothing that is known
    (rolled_back / "niah.json").write_text(json.dumps(newest | {"earlier": earlier}))
    text = (write_report([rolled_back]) / "report.md").read_text()
    places = [
        "| memory | PASSED: cosine 0.99 |",
        "python -m atlas.niah on step-00000020, control=runs/other/checkpoints/step-1",
        "| recall | PASSED |",
    ]
    places += ["python -m atlas.niah on step-00000010", "niah-0.png", "| 50% | 75.0% | 75.0% | - | - |"]
    assert sorted(places, key=text.index) == places


def test_the_picture_of_a_run_whose_name_is_no_utf8_has_one_that_is(rolled_back: Path) -> None:
    run = rolled_back.rename(rolled_back.with_name("\udcff"))
    (run / "niah.json").write_text(json.dumps({"checkpoint": "step-00000010", "results": [RECALL]}))
    (run / "niah.png").write_bytes(b"picture")
    assert (write_report([run]) / "niah-\ufffd.png").read_bytes() == b"picture"


def test_a_decision_comes_first(sweep: Path) -> None:
    (sweep / "decision.json").write_text('{"outcome": "STOP", "reason": "too slow", "passed": false}')
    (sweep / "decision.md").write_text("# Chunk sizes\n\n| set | speed |\n|---|--:|\n| A | 1 |\n")
    folder = write_report([sweep])
    assert (
        "\n\n## Decision\n\nSTOP: too slow\n\n### Chunk sizes\n\n| set | speed |" in (folder / "report.md").read_text()
    )
    page = (folder / "index.html").read_text()
    assert '<p class="bad">STOP: too slow</p>' in page
    assert page.index("<td>A</td>") < page.index("Best run")


def test_a_folder_that_somebody_else_made_is_reported_as_far_as_it_can_be_read(make_run: MakeRun) -> None:
    deep = {"reason": "\x1b[2J[x](javascript:alert(1))", "status": "failed"}
    run = make_run("\x1b]0;owned\x07", summary=deep)
    for name in ("metrics.jsonl", "events.jsonl", "niah.json"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    (run / "config.yaml").write_text(f"a0: &a0 [x]\n{bomb}", encoding="utf-8")
    text = (write_report([run]) / "report.md").read_text(encoding="utf-8")
    assert "# run \ufffd]0;owned\ufffd\n" in text
    assert "failed: \ufffd[2J[x]\\(javascript:alert(1))" in text
    assert "metrics.jsonl cannot be read (not a regular file)" in text
    assert "niah.json cannot be read (OSError)" in text
    assert "config.yaml must be plain YAML (it holds an alias" in text


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "summary.json", "niah.json", "config.yaml"])
def test_nesting_without_end_is_a_damaged_file(rolled_back: Path, name: str) -> None:
    (rolled_back / name).write_text("[" * 50_000 + "\n" + "[" * 50_000 + "\n", encoding="utf-8")
    assert f"{name}" in (write_report([rolled_back]) / "report.md").read_text(encoding="utf-8")


def test_a_second_report_replaces_the_first(rolled_back: Path) -> None:
    folder = write_report([rolled_back])
    before = (folder / "index.html").read_text()
    write_report([rolled_back])
    assert (folder / "index.html").read_text() == before


def test_a_target_that_is_no_folder_is_refused(rolled_back: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^target=.*/file: must be a folder that can be written \(.*\)$"):
        write_report([rolled_back], tmp_path / "file")


def test_the_command_line(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(sweep / "0"), str(sweep / "1"), f"target={tmp_path / 'out'}"]) == 0
    head, first, second, *rest = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == (
        "run status health lr validation nats/byte training nats/byte NIAH recall tokens/s peak memory rollbacks "
        "steps made"
    )
    assert " ".join(first.split()) == "0 (best) completed 1 spike 0.002 2.1000 2.0000 25.0% 1,234 1.00 GiB 1 10"
    assert " ".join(second.split()) == "1 aborted - 0.01 - 2.5000 - - - 0 2"
    assert rest == ["", *(str(tmp_path / "out" / name) for name in ("index.html", "report.md"))]
    monkeypatch.chdir(tmp_path)
    assert main(["sweep/0", "sweep/1"]) == 0
    (reports,) = (tmp_path / "outputs" / "reports").iterdir()
    assert (reports / "index.html").is_file()
    assert main(["-h"]) == 0
    assert "python -m atlas.report DIR... [target=PATH]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "training", "last"),
    [({"train_bytes_per_token": 1.5}, {"words": [4.0, 2.0]}, "2.0000"), ({}, {}, "-")],  # {}: a run of before
)
def test_runs_of_two_tokenizers_are_compared_per_byte(
    make_run: MakeRun, size: dict[str, float], training: dict[str, list[float]], last: str
) -> None:
    rows = [row(step, loss=6.0 / step) for step in (1, 2)]
    done = {"status": "completed", "validation_loss": 4.0, "data_digest": "a"}
    runs = [make_run("bytes", rows, (), done), make_run("words", rows, (), done | {"bytes_per_token": 2.0} | size)]
    told: list[Document] = []
    text = (write_report(runs, runs[0] / "report", tell=told.append) / "report.md").read_text()
    assert "Best run: words, validation loss 2.0000 nats/byte, NIAH recall not measured." in text
    assert "- validation loss: 4.0000 nats per token, perplexity 54.60" in text
    assert f"| words (best) | completed | - | 2.0000 | {last} |" in text
    charts = {block.title: block for block in told[0].sections[0].blocks if isinstance(block, Chart)}
    chart = charts["Training loss of all runs"]
    assert {trace["name"]: trace["y"] for trace in chart.traces} == {"bytes": [6.0, 3.0]} | training
    assert chart.layout["yaxis"]["title"]["text"] == "nats per byte"


def test_twelve_runs_have_twelve_colours_on_light_and_on_dark(make_run: MakeRun) -> None:
    records = [read_run(make_run(str(number)), str(number)) for number in range(13)]
    colours = [Field(records[:12], [], None).colour(index) for index in range(12)]
    script = (files("atlas.report") / "assets" / "page.js").read_text()
    found = re.findall(r"(?:light|dark): \{.*?\}", script, re.DOTALL)
    themes = [dict(re.findall(r"(\w+): \"(#\w{6})\"", theme)) for theme in found]
    assert [len({theme[colour.removeprefix("@")] for colour in colours}) for theme in themes] == [12, 12]
    assert Field(records, [], None).colour(0) == "@muted"  # more than twelve: by their losses


def test_a_narrow_terminal_gets_the_settings_and_the_losses(sweep: Path) -> None:
    told: list[Document] = []
    write_report([sweep / "0", sweep / "1"], tell=told.append)
    assert comparison_lines(told[0], width=50) == [
        "run       status        lr  validation nats/byte",
        "0 (best)  completed  0.002                2.1000",
        "1         aborted     0.01                     -",
    ]
    assert comparison_lines(told[0], width=61)[0] == "run       status     health      lr  validation nats/byte"
    assert comparison_lines(told[0], width=10)[0] == "run       status     validation nats/byte"


def test_one_file_needs_no_other(rolled_back: Path, tmp_path: Path) -> None:
    assert main([str(rolled_back), f"target={tmp_path / 'out'}", "one_file=true"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "report.md"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "plotly.js v" in page
    assert "<script defer" not in page


def test_a_report_is_written_again_until_the_run_has_ended(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run", [row(1, loss=3.0)], summary={"status": "running"})
    pages = []

    def sleep(seconds: float) -> None:
        pages.append((seconds, (run / "report" / "index.html").read_text()))
        (run / "summary.json").write_text(json.dumps({"status": "completed"}))

    monkeypatch.setattr("atlas.report.__main__.time", SimpleNamespace(sleep=sleep))  # other threads sleep on
    assert main([str(run), "watch=7"]) == 0
    ((seconds, page),) = pages
    refresh = '<html lang="en" data-refresh="7">'
    assert (seconds, refresh in page) == (7, True)
    last = (run / "report" / "index.html").read_text()
    assert (refresh in last, "completed" in last) == (False, True)
    capsys.readouterr()
    assert main([str(run), "watch=7"]) == 0
    assert (len(pages), capsys.readouterr().out.splitlines()[-1]) == (1, "no run goes on: written once")


def test_a_report_follows_a_sweep_between_two_of_its_jobs(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_run("sweep/0", [row(1, loss=3.0)], summary={"status": "completed"}).parent
    lock, pages = RunLock(sweep), []

    def sleep(seconds: float) -> None:
        pages.append((sweep / "report" / "index.html").read_text())
        lock.release()

    monkeypatch.setattr("atlas.report.__main__.time", SimpleNamespace(sleep=sleep))
    assert main([str(sweep), "watch=7"]) == 0
    assert [' data-refresh="7"' in page for page in (*pages, (sweep / "report" / "index.html").read_text())] == [
        True,
        False,
    ]


def test_the_page_of_one_run_has_its_settings(rolled_back: Path) -> None:
    text = (write_report([rolled_back]) / "report.md").read_text()
    assert "## Settings" in text
    assert "| optim.lr | 0.002 |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DIR=: must be at least one folder of a run or a sweep"),
        (["nowhere"], "/nowhere: must be a folder that exists"),
        (["sweep", "title=x"], f"title=x: must be left out: {USAGE}"),
        (["sweep", "one_file=yes"], "one_file=yes: must be true or false"),
        (["sweep", "watch=0"], "watch=0: must be seconds in [1, 86400]"),
        (["sweep", "target="], "target=: must be one folder"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    arguments: list[str], message: str, sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweep.parent)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert (told.count("\n"), told.startswith("atlas: ")) == (1, True)
    assert told.endswith(f"{message}\n")


def test_jobs_that_left_nothing_are_named(sweep: Path) -> None:
    record = json.loads((sweep / "sweep.json").read_text()) if (sweep / "sweep.json").exists() else {}
    jobs = [{"folder": str(number), "overrides": ["train.steps=10", f"seed={number}"]} for number in range(6)]
    (sweep / "sweep.json").write_text(json.dumps({**record, "jobs": jobs}))
    text = (write_report([sweep]) / "report.md").read_text()
    assert "Jobs of sweep that left nothing: 3 (seed=3), 4 (seed=4), 5 (seed=5)" in text


def test_a_run_that_was_killed_is_called_so(make_run: MakeRun) -> None:
    run = make_run("run", [row(1, loss=3.0)], summary={"status": "running", "steps": 10})
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / ".lock").write_text(f"process 1 on {socket.gethostname()}")
    text = (write_report([run]) / "report.md").read_text()
    assert text.startswith("# run run\n\n1 run: 1 killed.")
    assert "killed (last row at 2027-01-15 08:00:01 UTC)" in text
    assert "1 of 10" in text
