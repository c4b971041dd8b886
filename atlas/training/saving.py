"""Saving the run: which checkpoint a rollback may need, and what happens when the disk refuses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from atlas.checkpoint.manager import CheckpointError, CheckpointManager
from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.room import when_there_is_room
from atlas.training.errors import AbortError
from atlas.training.state import TrainState
from atlas.training.watch.rollback import last_good_step

FAILED_SAVES = 3  # in a row: the run stops rather than train what it cannot keep


class Saver:
    """Saves checkpoints of one state.

    A save that fails loses nothing: older checkpoints stay and the run goes on with a warning. It is aborted where that
    would be in vain: if the first or the last checkpoint cannot be saved, or `FAILED_SAVES` in a row.
    """

    def __init__(
        self, state: TrainState, checkpoints: CheckpointManager, telemetry: TelemetryLogger, last_step: int
    ) -> None:
        self.state, self.checkpoints, self.telemetry, self.last_step = state, checkpoints, telemetry, last_step
        self.failed = 0

    def save(self, health: Mapping[str, float | bool | None]) -> None:
        """Save the state as it is. Raises `AbortError`."""
        state = self.state
        self._protect_rollback_target()
        saving = partial(self.checkpoints.save, state.step, state.payload(), health)
        try:
            saved = when_there_is_room(saving) if self._must_succeed else saving()
        except CheckpointError as error:
            self._answer(error)
            return
        self.failed = 0
        self.telemetry.event(
            "checkpoint", state.step, path=saved.path.name, bytes=saved.bytes, seconds=round(saved.seconds, 4)
        )

    def save_stopped(self, unfinished: dict[str, Any]) -> None:
        """Save for the start that goes on with the step: nothing else uses it. Nothing is to be done where this step is
        saved, or none yet. Raises `AbortError`."""
        newest = next(reversed(self.checkpoints.list()), None)
        if newest is not None and newest.step < self.state.step:
            self.state.unfinished = unfinished
            self.save({"stopped": True, "healthy": self.state.history.healthy})

    def _protect_rollback_target(self) -> None:
        """Frequent saving may not push out the checkpoint that a rollback would need.

        That is the one before the last good reading, or before the last passing of a NIAH level that is a trigger.
        """
        history = self.state.history
        good = min(last_good_step(history.readings), *history.passed.values(), sys.maxsize)
        steps = [
            manifest.step
            for manifest in self.checkpoints.list()
            if manifest.is_rollback_target and manifest.step <= good
        ]
        self.checkpoints.protect(max(steps, default=None))

    @property
    def _must_succeed(self) -> bool:
        """Whether the run ends if this one fails; then it is worth waiting for room."""
        last = self.state.step == self.last_step or self.failed + 1 == FAILED_SAVES
        return last or not self.checkpoints.list()

    def _answer(self, error: CheckpointError) -> None:
        ends, step = self._must_succeed, self.state.step
        self.failed += 1
        if ends:
            raise AbortError(f"{error} ({self.failed} failed in a row)") from error
        left = FAILED_SAVES - self.failed
        self.telemetry.event("warning", step, message=f"{error}; {left} more failures in a row stop the run")
