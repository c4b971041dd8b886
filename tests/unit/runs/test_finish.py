"""The end of a run is recorded, whatever fails in it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atlas.runs import finish
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.events import make_event
from atlas.telemetry.rows import make_row


def test_a_picture_that_fails_costs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a font")

    done: list[str] = []
    telemetry = SimpleNamespace(
        event=lambda kind, step, **_: done.append(f"{kind} at {step}"), close=lambda *_: done.append("closed")
    )
    trainer: Any = SimpleNamespace(telemetry=telemetry)
    monkeypatch.setattr(finish, "_send_heatmap", fail)
    monkeypatch.setattr(finish, "_keep_config", lambda *_: done.append("config kept"))
    with pytest.raises(KeyError):
        finish.close(RunSummary(str(tmp_path), status="completed", step=7), trainer)
    assert done == ["end at 7", "closed", "config kept"]
    assert "warning: KeyError('a font'); this run is completed" in capsys.readouterr().err
    written = read_summary(tmp_path)
    assert written is not None
    assert written.step == 7


def test_what_an_earlier_start_measured_at_the_last_step_stays(tmp_path: Path) -> None:
    """The run was killed after its last checkpoint: the next start takes no step."""
    use = {"memory_use/on": 1.0, "memory_use/off": 3.0, "memory_use/frozen": 2.0}
    row = make_row({"step": 20, "loss": 1.5, "loss/recall": None, "validation/loss": 2.0, **use})
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(row)}\n")
    verdict = {"level": "recall", "passed": True, "verdict": "PASSED"}
    undone = verdict | {"level": "memory", "passed": False}
    earlier = [
        make_event("probe", 20, undone),
        make_event("rollback", 5, {"segment": 1}),
        make_event("probe", 10, verdict | {"passed": False}),
        make_event("probe", 20, verdict),
        make_event("rollback", 20, {"segment": 2}),
    ]
    (tmp_path / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in earlier))
    summary = RunSummary(str(tmp_path), step=20, steps=30)
    finish._take_record(summary, tmp_path)
    assert (summary.loss, summary.validation_loss) == (1.5, 2.0)
    assert summary.memory_use == {"step": 20, "on": 1.0, "off": 3.0, "frozen": 2.0}
    assert summary.niah == {"recall": verdict}
    own = RunSummary(str(tmp_path), step=20, loss=1.0, niah={"memory": {}})
    finish._take_record(own, tmp_path)
    assert (own.niah, own.memory_use, own.loss) == ({"memory": {}}, {}, 1.0)
