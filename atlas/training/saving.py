"""Saving the run: which checkpoint a rollback may need, and what happens when a save fails."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from atlas.checkpoint.folder import CheckpointError
from atlas.checkpoint.manager import CheckpointManager, SavedCheckpoint
from atlas.checkpoint.together import save_together
from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.room import when_there_is_room
from atlas.training.errors import AbortError
from atlas.training.rollback.decision import last_good_step
from atlas.training.state import TrainState

FAILED_SAVES = 3  # in a row stop the run
BACKGROUND_BYTES = 2**25  # of weights: a smaller checkpoint is written sooner than a thread is worth


class Saver:
    """Saves checkpoints of one state. A large one is written by a thread while training goes on.

    After a failed save the older checkpoints are intact, and the run continues with a warning. It is aborted if the
    first or the last checkpoint cannot be saved, or after `FAILED_SAVES` failures in a row.
    """

    def __init__(
        self,
        state: TrainState,
        checkpoints: CheckpointManager,
        telemetry: TelemetryLogger,
        last_step: int,
        *,
        sharded: bool = False,
    ) -> None:
        self.state, self.checkpoints, self.telemetry, self.last_step = state, checkpoints, telemetry, last_step
        weights = sum(parameter.nbytes for parameter in state.model.parameters())
        self.in_background = weights >= BACKGROUND_BYTES
        self.sharded = sharded  # every rank writes its part, see checkpoint/tensor_files.py
        self.failed = 0  # saves in a row

    def save(self, health: Mapping[str, float | bool | None]) -> None:
        """Save the state. Raises `AbortError`."""
        ranks = self.state.ranks
        payload = self.state.payload(whole=not self.sharded)
        self.state.require_same_weights(f"at step {self.state.step}")  # unlike machines may drift apart
        if self.sharded:
            self._save_together(payload, health)
        else:
            ranks.from_first(lambda: self._save(payload, health))

    def save_alone(self, health: Mapping[str, float | bool | None]) -> None:
        """Save what this rank has without the others, if that is the whole state. Raises `AbortError`. By one rank."""
        if (payload := self.state.payload_alone()) is not None:
            self._save(payload, health)

    def _save_together(self, payload: dict[str, Any], health: Mapping[str, float | bool | None]) -> None:
        """Every rank writes its part, and all of them see whether each could."""
        state, ranks = self.state, self.state.ranks
        ranks.from_first(self._protect_rollback_target)
        must_succeed = ranks.from_first(self._must_succeed)
        try:
            saved = save_together(self.checkpoints, state.step, payload, health, ranks)
        except CheckpointError as error:
            self._failed(error, must_succeed)
        else:
            self._report(saved)

    def _save(self, payload: dict[str, Any], health: Mapping[str, float | bool | None]) -> None:
        self.collect(wait=True)
        self._protect_rollback_target()
        must_succeed = self._must_succeed()
        step = self.state.step
        try:
            if must_succeed:
                self._report(when_there_is_room(lambda: self.checkpoints.save(step, payload, health)))
            elif self.in_background and not health.get("stopped"):
                self.checkpoints.begin_save(step, payload, health)
            else:
                self._report(self.checkpoints.save(step, payload, health))
        except CheckpointError as error:
            self._failed(error, must_succeed)

    def _must_succeed(self) -> bool:
        last_try = self.failed + 1 == FAILED_SAVES
        return self.is_last or last_try or not self.checkpoints.list()

    @property
    def is_last(self) -> bool:
        """Whether the run ends here: at its last step, or early (`train.patience`)."""
        return self.state.step == self.last_step or bool(self.state.stop_reason)

    def _failed(self, error: CheckpointError, must_succeed: bool) -> None:
        self.failed += 1
        if must_succeed:
            raise AbortError(f"{error} ({self._why_it_ends()})") from error
        self._warn(error)

    def _why_it_ends(self) -> str:
        if self.failed >= FAILED_SAVES:
            return f"{self.failed} failed in a row"
        return "the last checkpoint of the run" if self.is_last else "there is no checkpoint before it"

    def rehearse(self) -> str:
        """Load the checkpoint of the step reached and continue from it; returns what goes wrong, "" if nothing does.

        A hash says that the bytes are those that were written, not that a run can go on from them. Not tried with
        several ranks: each holds rows or slices of its own.
        """
        if self.state.ranks.world > 1:
            return ""
        name = f"step-{self.state.step:08d}"
        try:
            payload, manifest = self.checkpoints.load()
            if manifest.step != self.state.step:
                skipped = self.checkpoints.skipped
                return "; ".join(f"{folder.name} was saved and is passed over: {why}" for folder, why in skipped)
            self.state.restore(payload)
        except Exception as error:  # of a part that somebody else wrote, such as an optimiser of the user's
            return f"{name} was saved and cannot be loaded: {type(error).__name__}: {error}"
        unlike = self.state.unlike(payload)
        return f"{name} was saved, and loading it does not bring back {unlike}" if unlike else ""

    def collect(self, *, wait: bool = False) -> None:
        """Report a save in the background that has ended since; `wait` for it."""
        try:
            saved = self.checkpoints.collect(wait=wait)
        except CheckpointError as error:
            self.failed += 1
            self._warn(error)
        else:
            if saved is not None:
                self._report(saved)

    def _report(self, saved: SavedCheckpoint) -> None:
        self.failed = 0
        seconds = round(saved.seconds, 4)
        self.telemetry.event("checkpoint", saved.step, path=saved.path.name, bytes=saved.bytes, seconds=seconds)

    def _warn(self, error: CheckpointError) -> None:
        left = FAILED_SAVES - self.failed
        more = f"{left} more failures in a row stop" if left > 1 else "1 more failure stops"
        message = f"{error}; {more} the run, and so does one at its last step"
        self.telemetry.event("warning", self.state.step, message=message)

    def save_stopped(self, unfinished: dict[str, Any]) -> None:
        """Save a step that the next start finishes, with its `unfinished` part. Raises `AbortError`.

        Does nothing if this step is saved already, or no step is.
        """
        steps = self.state.ranks.from_first(lambda: [manifest.step for manifest in self.checkpoints.list()])
        if steps and steps[-1] < self.state.step:
            self.state.unfinished = unfinished
            self.save({"stopped": True, "healthy": self.state.history.healthy})

    def _protect_rollback_target(self) -> None:
        """Keep the checkpoint that a rollback would need, however often the run is saved.

        It is the newest one before the last good reading, and before the last pass of a NIAH level that is a trigger.
        """
        history = self.state.history
        good = min(last_good_step(history.readings), *history.passed.values(), sys.maxsize)
        steps = [
            manifest.step
            for manifest in self.checkpoints.list()
            if manifest.is_rollback_target and manifest.step <= good
        ]
        self.checkpoints.protect(max(steps, default=None))
