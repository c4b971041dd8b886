import errno
import resource
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from atlas.telemetry.jsonl import read_jsonl
from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.rows import without_clock
from atlas.telemetry.sinks import JsonlSink, RunInfo, Sink, TelemetryError


class Recorder(Sink):
    """Writes down what it is given; fails in the method named `broken`."""

    def __init__(self, broken: str = "", notice: str | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.notice = notice
        self.broken = broken

    def _note(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        if name == self.broken:
            raise ConnectionError("the server is gone")

    def open(self, info: RunInfo) -> str | None:
        self._note("open", info.steps)
        return self.notice

    def progress(self, step: int, values: Mapping[str, Any]) -> None:
        self._note("progress", step)

    def row(self, row: Mapping[str, Any]) -> None:
        self._note("row", row["step"])

    def event(self, event: Mapping[str, Any]) -> None:
        self._note("event", event["kind"])

    def close(self, status: str, summary: Mapping[str, Any], table: Sequence[tuple[str, str]]) -> None:
        self._note("close", status)


def started(folder: Path, *mirrors: Sink, every: int = 10, steps: int = 25, **info: Any) -> TelemetryLogger:
    logger = TelemetryLogger([JsonlSink(), *mirrors], every=every)
    logger.open(RunInfo(folder=folder, steps=steps, **info))
    return logger


def steps_in(folder: Path) -> list[int]:
    return [row["step"] for row in read_jsonl(folder / "metrics.jsonl")]


class Taking(Sink):
    """Takes what it is given apart, as loggers of the user's do."""

    def row(self, row: Mapping[str, Any]) -> None:
        assert isinstance(row, dict)
        row.pop("step")

    def event(self, event: Mapping[str, Any]) -> None:
        assert isinstance(event, dict)
        event.clear()


def test_a_sink_that_takes_its_row_apart_leaves_the_others_theirs(tmp_path: Path) -> None:
    other = Recorder()
    logger = started(tmp_path, Taking(), other, every=1, steps=1)
    logger.log_step(1, {"loss": 0.5, "segment": 0})
    logger.event("notice", 1, message="x")
    assert other.calls[-2:] == [("event", "notice"), ("row", 1)]


def test_rows_at_the_cadence_and_for_the_last_step(tmp_path: Path) -> None:
    logger = started(tmp_path)
    for step in range(1, 26):
        logger.log_step(step, {"loss": step / 2, "segment": 0})
    logger.close("completed")
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"], row["grad_norm"]) for row in rows] == [
        (10, 5.0, None),
        (20, 10.0, None),
        (25, 12.5, None),
    ]


def test_a_run_shorter_than_the_cadence_has_rows_too(tmp_path: Path) -> None:
    logger = started(tmp_path, every=100, steps=150)
    for step in range(1, 151):
        logger.log_step(step, {"loss": 1.0})
    logger.close("completed")
    assert steps_in(tmp_path) == [*range(10, 101, 10), 150]


def test_values_that_are_kept_have_a_row_between_the_others(tmp_path: Path) -> None:
    logger = started(tmp_path)
    for step in range(1, 12):
        logger.log_step(step, {"loss": 1.0})
        if step % 7 == 0:
            logger.log_step(step, {"validation/loss": 2.0}, keep=True)
    logger.close("completed")
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(row["step"], row.get("validation/loss")) for row in rows] == [(7, 2.0), (10, None), (11, None)]


def test_values_of_one_step_make_one_row(tmp_path: Path) -> None:
    logger = started(tmp_path)
    logger.log_step(10, {"loss": 1.0})
    logger.log_step(10, {"niah/accuracy": 0.9})
    logger.log_step(11, {"loss": 2.0})
    logger.close("completed")
    rows = [without_clock(row) for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert [(row["step"], row["loss"], row["niah/accuracy"]) for row in rows] == [(10, 1.0, 0.9), (11, 2.0, None)]


def test_an_event_writes_itself_and_the_present_row_at_once(tmp_path: Path) -> None:
    logger = started(tmp_path)
    logger.log_step(3, {"loss": 1.0})
    assert steps_in(tmp_path) == []
    logger.event("spike", 3, ppl_delta=0.3)
    assert steps_in(tmp_path) == [3]
    (event,) = read_jsonl(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"], event["ppl_delta"]) == ("spike", 3, 0.3)
    logger.event("rollback", 3, to_step=0)
    assert steps_in(tmp_path) == [3]  # once
    logger.log_step(3, {"validation_loss": 2.0})  # late: the row comes again, complete
    logger.close("aborted")
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"], row.get("validation_loss")) for row in rows] == [(3, 1.0, None), (3, 1.0, 2.0)]


def test_flush_writes_a_due_row_before_a_checkpoint(tmp_path: Path) -> None:
    logger = started(tmp_path)
    logger.log_step(10, {"loss": 1.0})
    logger.flush()
    assert steps_in(tmp_path) == [10]
    logger.log_step(15, {"loss": 1.0})
    logger.flush()
    assert steps_in(tmp_path) == [10]
    logger.flush(now=True)
    assert steps_in(tmp_path) == [10, 15]
    logger.close("completed")
    assert steps_in(tmp_path) == [10, 15]


def test_a_resumed_run_writes_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()

    def train(logger: TelemetryLogger, first: int, last: int) -> None:
        for step in range(first, last + 1):
            logger.log_step(step, {"loss": 1 / step, "segment": 0})
            if step == 15:
                logger.flush(now=True)  # a checkpoint

    undisturbed = started(whole)
    train(undisturbed, 1, 25)
    undisturbed.close("completed")
    train(started(killed), 1, 23)  # never closed
    resumed = started(killed, start_step=15, segment=0)
    train(resumed, 16, 25)
    resumed.close("completed")
    assert [without_clock(row) for row in read_jsonl(killed / "metrics.jsonl")] == [
        without_clock(row) for row in read_jsonl(whole / "metrics.jsonl")
    ]


@pytest.mark.parametrize("method", ["open", "progress", "row", "event", "close"])
def test_a_failing_mirror_warns_once_and_the_run_goes_on(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, sound = Recorder(broken=method), Recorder()
    logger = started(tmp_path, broken, sound, every=1, steps=3)
    for step in (1, 2, 3):
        logger.log_step(step, {"loss": 1.0})
        logger.event("probe", step)
    logger.close("completed")
    warning = "Recorder failed and is switched off: ConnectionError: the server is gone"
    assert capsys.readouterr().err == f"warning: {warning}\n"
    events = read_jsonl(tmp_path / "events.jsonl")
    assert [event["message"] for event in events if event["kind"] == "warning"] == [warning]
    assert [name for name, _ in broken.calls].count(method) == 1
    assert broken.calls[-1][0] == method  # never called again
    assert [value for name, value in sound.calls if name == "row"] == [1, 2, 3]
    assert sound.calls[-1] == ("close", "completed")
    assert steps_in(tmp_path) == [1, 2, 3]


def test_all_mirrors_may_fail_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Recorder(broken="row"), Recorder(broken="event")  # the warning about the first breaks the second
    logger = started(tmp_path, first, second, every=1, steps=2)
    logger.log_step(1, {"loss": 1.0})
    logger.log_step(2, {"loss": 1.0})
    logger.close("completed")
    assert steps_in(tmp_path) == [1, 2]
    assert first.calls == [("open", 2), ("progress", 1), ("row", 1)]
    assert second.calls == [("open", 2), ("progress", 1), ("event", "warning")]
    assert capsys.readouterr().err.count("switched off") == 2


def test_what_a_sink_has_to_say_is_a_notice(tmp_path: Path) -> None:
    mirror = Recorder(notice="hello")
    logger = started(tmp_path, mirror)
    logger.close("completed")
    (event,) = read_jsonl(tmp_path / "events.jsonl")
    assert (event["kind"], event["message"]) == ("notice", "hello")
    assert mirror.calls == [("open", 25), ("event", "notice"), ("close", "completed")]


def test_an_error_of_the_run_s_own_files_is_raised(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    logger = TelemetryLogger([JsonlSink()], every=1)
    with pytest.raises(TelemetryError, match=r"cannot be opened.*events\.jsonl"):
        logger.open(RunInfo(folder=tmp_path, steps=1))


def test_a_disk_that_takes_no_more_is_told_once_and_what_waits_is_written_when_there_is_room(tmp_path: Path) -> None:
    mirror = Recorder()
    logger = started(tmp_path, mirror, every=1)
    logger.log_step(1, {"loss": 1.0})
    logger.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 20, hard))
    try:
        for step in (2, 3, 4):
            logger.log_step(step, {"loss": 1.0})
        assert steps_in(tmp_path) == [1]
        assert [value for name, value in mirror.calls if name == "row"] == [1, 2, 3]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    logger.close("completed")
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert [event["message"] for event in read_jsonl(tmp_path / "events.jsonl")] == [
        "metrics.jsonl cannot be written (File too large): its rows wait in memory until there is room",
        "metrics.jsonl can be written again: no row is lost",
    ]


def test_both_files_that_are_gone_are_told_with_the_next_row(tmp_path: Path) -> None:
    run, mirror = tmp_path / "run", Recorder()
    run.mkdir()
    logger = started(run, mirror, every=1)
    logger.log_step(1, {"loss": 1.0})
    logger.event("probe", 1)
    shutil.rmtree(run)
    logger.log_step(2, {"loss": 1.0})
    logger.flush()
    assert steps_in(run) == [1, 2]
    told = [event.get("message") for event in read_jsonl(run / "events.jsonl")]
    removed = "was removed or replaced by somebody else: it is written anew"
    assert told == [None, f"{run / 'metrics.jsonl'} {removed}", f"{run / 'events.jsonl'} {removed}"]
    assert [value for name, value in mirror.calls if name == "event"] == ["probe", "warning", "warning"]


def test_too_many_rows_that_wait_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.telemetry.jsonl.MOST_WAITING_BYTES", 100)
    logger = started(tmp_path, every=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        logger.log_step(1, {"loss": 1.0})
        message = r"metrics\.jsonl cannot be written: File too large; 0 rows wait in memory"
        with pytest.raises(TelemetryError, match=message) as caught:
            logger.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    logger.close("failed")


def test_values_that_a_row_has_already_do_not_write_it_again(tmp_path: Path) -> None:
    logger = started(tmp_path)
    for _ in range(2):  # the second time after a signal that came between
        logger.log_step(10, {"loss": 1.0, "validation/loss": 2.0})
        logger.event("sample", 10, text="a")
    logger.log_step(10, {"niah/recall/accuracy": 1.0})
    logger.close("completed")
    rows = [without_clock(row) for row in read_jsonl(tmp_path / "metrics.jsonl")]
    first = {"step": 10, "loss": 1.0, "validation/loss": 2.0}
    assert [{key: row[key] for key in first} for row in rows] == [first, first]
    assert [row.get("niah/recall/accuracy") for row in rows] == [None, 1.0]
