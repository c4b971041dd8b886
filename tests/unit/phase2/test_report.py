"""What the exit gate reports, word by word."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.phase2.finding import CHECKS, CheckOutcome, Finding, failed, passed
from experiments.phase2.report import ExitReport

ORIGIN = {"command": "python -m experiments.phase2.gate", "device": "cpu", "versions": {"torch": "2.13.0"}}
ALL_PASS = {
    "G2-1": Finding(CheckOutcome.decided, "Set A: {8,16,32,64}"),
    "G2-2": Finding(CheckOutcome.locked, "1000 steps, 0.3% overhead"),
    "G2-3": passed(),
    "G2-4": passed("no NaN, no OOM"),
    "G2-5": passed("87.3% > 80%"),
    "G2-6": passed(),
    "G2-7": passed(),
}
REQUIRED = """\
PHASE 2: Training Infrastructure
============================================================
[G2-1] Chunk sizes... DECIDED (Set A: {8,16,32,64})
[G2-2] NIAH frequency... LOCKED (1000 steps, 0.3% overhead)
[G2-3] Q-K projection norm... PASSED
[G2-4] 1000 steps stable... PASSED (no NaN, no OOM)
[G2-5] NIAH accuracy... PASSED (87.3% > 80%)
[G2-6] Rollback test... PASSED
[G2-7] PPL delta telemetry... PASSED

PHASE 2 SUMMARY: 7/7 checkpoints passed"""


def test_the_end_of_the_output_is_that_of_the_requirements() -> None:
    report = ExitReport(ORIGIN, dict(ALL_PASS))
    assert "\n".join(report.lines()) == REQUIRED
    assert report.complete is True


def test_what_was_not_run_or_not_passed_does_not_count() -> None:
    findings = ALL_PASS | {
        "G2-1": Finding(CheckOutcome.stop, "best Set A 2.73x < 5x", ("5x is reached at 4096 tokens.",))
    }
    del findings["G2-6"]
    report = ExitReport(ORIGIN, findings)
    lines = report.lines()
    assert lines[2:4] == ["[G2-1] Chunk sizes... STOP (best Set A 2.73x < 5x)", "       5x is reached at 4096 tokens."]
    assert "[G2-6] Rollback test... NOT RUN" in lines
    assert lines[-1] == "PHASE 2 SUMMARY: 5/7 checkpoints passed"
    assert report.complete is False
    assert ExitReport(ORIGIN).passed == 0


def test_a_gate_that_was_stopped_says_so_wherever_it_is_read(tmp_path: Path) -> None:
    report = ExitReport(ORIGIN, interrupted="stopped while [G2-4] 1000 steps stable ran")
    report.write(tmp_path)
    told = "The gate was stopped while [G2-4] 1000 steps stable ran"
    assert report.lines()[-3:] == [f"{told}.", "", "PHASE 2 SUMMARY: 0/7 checkpoints passed"]
    assert told in (tmp_path / "gate.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "gate.json").read_text())["interrupted"] == report.interrupted


def test_the_files_hold_what_was_measured(tmp_path: Path) -> None:
    findings = {"G2-4": failed("not finite\nat | 3", "seen", numbers={"loss": float("nan"), "rows": 10})}
    ExitReport(ORIGIN, findings, {"G2-4": 12.34}).write(tmp_path)
    record = json.loads((tmp_path / "gate.json").read_text(encoding="utf-8"))
    assert (record["passed"], record["summary"]) == (False, "PHASE 2 SUMMARY: 0/7 checkpoints passed")
    assert {key: record[key] for key in ORIGIN} == ORIGIN
    assert [check["outcome"] for check in record["checks"]] == [*["NOT RUN"] * 3, "FAILED", *["NOT RUN"] * 3]
    assert record["checks"][3] == {
        "id": "G2-4",
        "name": "1000 steps stable",
        "criterion": CHECKS[3].criterion,
        "outcome": "FAILED",
        "passed": False,
        "detail": "not finite\nat | 3",
        "evidence": ["seen"],
        "seconds": 12.3,
        "numbers": {"loss": None, "rows": 10},
    }
    document = (tmp_path / "gate.md").read_text(encoding="utf-8")
    assert "| G2-4 1000 steps stable | FAILED (not finite at \\| 3) | 12 |" in document
    assert "| G2-5 NIAH accuracy | NOT RUN | - |" in document
    assert "- versions: torch 2.13.0" in document
