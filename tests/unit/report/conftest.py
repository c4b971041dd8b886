"""Run folders as a run leaves them, of a few made-up rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from atlas.telemetry.rows import make_row

Row = dict[str, Any]
BEGUN = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
CONFIG = """\
model: {width: 32, layers: 2}
optim: {lr: %s}
rollback: {threshold: 0.05}
data: {source: %s}
seed: 0
"""


def row(step: int, segment: int = 0, **values: float | None) -> Row:
    return make_row({"step": step, "segment": segment, "tokens": 64 * step, **values, "time": BEGUN + step})


def event(kind: str, step: int, **fields: Any) -> Row:
    return {"kind": kind, "step": step, "time": BEGUN + step, **fields}


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder below `tmp_path` and returns it. `summary=None` leaves the summary out."""

    def make(
        name: str,
        rows: Sequence[Row] = (),
        events: Sequence[Row] = (),
        summary: Mapping[str, Any] | None = None,
        lr: float = 0.002,
        source: str = "stdlib",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(CONFIG % (lr, json.dumps(source)))
        _write_lines(folder / "metrics.jsonl", rows)
        _write_lines(folder / "events.jsonl", events)
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))


@pytest.fixture
def rolled_back(make_run: MakeRun) -> Path:
    """Ten steps, a spike at 8 that goes back to 5, in the sweep's job 0."""
    rows = [row(step, loss=3 - 0.1 * step, ppl_delta=0.01) for step in range(1, 9)]
    rows[-1] |= {"loss": 40.0, "ppl_delta": 0.5}
    rows += [row(step, 1, loss=3 - 0.1 * step, ppl_delta=-0.01) for step in range(6, 11)]
    rows[-1] |= {
        "validation/loss": 2.1,
        "memory/layer0/local0/weight_norm": 1.5,
        "memory/layer1/local0/weight_norm": 2.5,
    }
    events = [
        event("start", 0, parameters=45000),
        event("spike", 8, message="perplexity is 50.0% above its moving average (limit 16.6%)"),
        event("rollback", 5, from_step=8, segment=1, reason="perplexity is too high", change="4 batches left out"),
        event(
            "probe",
            10,
            level="recall",
            outcome="failed",
            accuracy=0.25,
            control=0.0,
            key_blind=0.4,
            threshold=0.8,
            verdict="FAILED",
        ),
        event("end", 10, status="completed", reason=""),
    ]
    summary = {
        "status": "completed", "reason": "", "step": 10, "steps": 10, "tokens": 640, "loss": 2.0,
        "validation_loss": 2.1, "baseline_loss": 2.5, "tokens_per_second": 1234.5,
        "peak_memory_bytes": 2**30, "parameters": 45000,
        "overhead": {"probe": 0.01, "watch": 0.0}, "device": "cpu", "git": "abc", "versions": {"atlas": "0.1"},
        "niah": {"recall": {"accuracy": 0.25, "verdict": "FAILED", "threshold": 0.8}},
    }  # fmt: skip
    return make_run("sweep/0", rows, events, summary)


@pytest.fixture
def sweep(rolled_back: Path, make_run: MakeRun) -> Path:
    """Four jobs: completed after a rollback, aborted, running, and failed before it began."""
    aborted = {"status": "aborted", "reason": "loss nan at step 3 | after 3 rollbacks", "step": 2, "steps": 10}
    make_run("sweep/1", [row(1, loss=3.0), row(2, loss=2.5)], [event("start", 0)], aborted, lr=0.01)
    running = make_run("sweep/2", [row(1, loss=3.0)], [event("start", 0)], {"status": "running", "steps": 10}, lr=0.02)
    with (running / "metrics.jsonl").open("a") as file:
        file.write('{"step":2,"lo')
    hostile = "<script>alert(1)</script>"
    failed = {"status": "failed", "reason": f"ValueError: no {hostile}", "step": 0, "steps": 0}
    folder = make_run("sweep/10", summary=failed, source=hostile)
    (folder / "metrics.jsonl").unlink()
    (folder / "events.jsonl").unlink()
    return rolled_back.parent
