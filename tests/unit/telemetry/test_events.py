from pathlib import Path

import pytest

from atlas.telemetry.events import EventLog
from atlas.telemetry.jsonl import read_jsonl


def test_an_event_is_on_file_at_once_with_kind_step_and_time(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.record("rollback", 300, to_step=200, reason="spike")
    (event,) = read_jsonl(log.path)
    log.close()
    assert list(event) == ["kind", "step", "time", "to_step", "reason"]
    assert (event["kind"], event["step"], event["to_step"], event["reason"]) == ("rollback", 300, 200, "spike")
    assert 1.6e9 < event["time"] < 1e11  # seconds since 1970


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="event kind 'rolback': must be one of start"):
        log.record("rolback", 1)
    log.close()
    assert read_jsonl(log.path) == []
