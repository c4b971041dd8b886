"""Saves in the background are reported when they have ended, and fail as the others do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.checkpoint.folder import CheckpointError
from atlas.checkpoint.manager import CheckpointManager
from atlas.runs.build import build_model, build_optimizer
from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.sinks import Sink
from atlas.training.early_stop import EarlyStop
from atlas.training.errors import AbortError
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.saving import Saver
from atlas.training.state import TrainState


class Events(Sink):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, str]] = []

    def event(self, event: Mapping[str, Any]) -> None:
        self.seen.append((event["kind"], event["step"], event.get("message", event.get("path", ""))))


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def saver(tmp_path: Path, events: Events) -> Iterator[Saver]:
    config = atlas.compose(["model.width=16", "model.feedforward=16", "model.layers=1", "niah=off", "logger=none"])
    model = build_model(config)
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    checkpoints = CheckpointManager(tmp_path / "checkpoints", keep=2)
    made = Saver(state, checkpoints, TelemetryLogger([events], every=1), 30)
    made.in_background = True
    yield made
    checkpoints.close()


def save(saver: Saver, step: int) -> None:
    saver.state.step = step
    saver.save({"healthy": True})


def test_a_regular_save_is_done_by_a_thread_and_reported_when_it_has_ended(saver: Saver, events: Events) -> None:
    save(saver, 0)  # a rollback may need it at once
    assert events.seen == [("checkpoint", 0, "step-00000000")]
    save(saver, 10)
    weight = saver.state.model.embedding.weight
    before = weight.detach().clone()
    weight.data.zero_()  # training goes on
    saver.collect(wait=True)
    saver.collect(wait=True)
    assert events.seen[1:] == [("checkpoint", 10, "step-00000010")]
    payload, _ = saver.checkpoints.load()
    assert payload["model"]["embedding.weight"].equal(before)
    save(saver, 20)
    save(saver, 30)  # reports the one before; the last step is saved at once
    assert [step for _, step, _ in events.seen] == [0, 10, 20, 30]


def test_failures_are_warnings_until_the_third_in_a_row(saver: Saver, events: Events) -> None:
    save(saver, 0)
    save(saver, 10)
    saver.collect(wait=True)
    for left in ("2 more failures in a row stop", "1 more failure stops"):
        save(saver, 10)  # a sound checkpoint is not overwritten
        saver.collect(wait=True)
        assert events.seen[-1][2].endswith(f"is not overwritten; {left} the run, and so does one at its last step")
    with pytest.raises(AbortError, match=r"is not overwritten \(3 failed in a row\)"):
        save(saver, 10)


@pytest.mark.parametrize(
    ("step", "why"), [(30, "the last checkpoint of the run"), (0, "there is no checkpoint before it")]
)
def test_a_checkpoint_that_must_succeed_says_why_its_failure_ends_the_run(
    step: int, why: str, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    if step:
        save(saver, 0)

    def full(*_: object) -> None:
        raise CheckpointError("step could not be saved: No space left on device")

    monkeypatch.setattr(saver.checkpoints, "save", full)
    monkeypatch.setattr("atlas.telemetry.room.ROOM_SECONDS", 0.0)
    with pytest.raises(AbortError) as ended:
        save(saver, step)
    assert str(ended.value) == f"step could not be saved: No space left on device ({why})"


def test_a_save_of_a_stop_is_done_at_once(saver: Saver, events: Events) -> None:
    save(saver, 0)
    saver.state.step = 7
    saver.save_stopped({"row": None, "measured": True})
    assert events.seen[-1] == ("checkpoint", 7, "step-00000007")


def test_a_small_model_is_saved_at_once(saver: Saver, events: Events) -> None:
    save(saver, 0)
    saver.in_background = False
    save(saver, 10)
    assert events.seen[-1] == ("checkpoint", 10, "step-00000010")


def test_the_checkpoint_at_which_a_run_stops_early_must_succeed(saver: Saver, events: Events) -> None:
    save(saver, 0)
    saver.state.early_stop = EarlyStop(patience=1, lowest=1.0, step=5)
    save(saver, 10)
    saver.collect(wait=True)
    saver.state.early_stop.see(10, 2.0)
    with pytest.raises(AbortError, match=r"is not overwritten \(the last checkpoint of the run\)"):
        save(saver, 10)
    save(saver, 11)  # by this thread: nobody would hear of a failure later
    assert events.seen[-1] == ("checkpoint", 11, "step-00000011")


def test_a_rollback_behind_the_start_of_the_patience_forgets_what_was_waited_for(saver: Saver) -> None:
    state = saver.state
    before = state.payload()  # of a start without train.patience
    state.early_stop = EarlyStop(patience=1)
    for step, loss in ((10, 1.0), (20, 2.0)):
        state.early_stop.see(step, loss)
    assert state.stop_reason
    state.restore(before)
    assert state.early_stop == EarlyStop(patience=1)
