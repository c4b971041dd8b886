"""Carrying out a decision of the rollback rule: restore a checkpoint, change the training, retire later checkpoints."""

from __future__ import annotations

from typing import Any

from atlas.checkpoint.folder import CheckpointError
from atlas.checkpoint.manager import CheckpointManager
from atlas.checkpoint.manifest import Manifest
from atlas.config import RollbackAction, RollbackConfig
from atlas.telemetry.logger import TelemetryLogger
from atlas.training.errors import AbortError
from atlas.training.rollback.decision import Decision, Verdict
from atlas.training.rollback.journal import JournalEntry
from atlas.training.state import TrainState


class Recovery:
    def __init__(
        self,
        settings: RollbackConfig,
        state: TrainState,
        checkpoints: CheckpointManager,
        telemetry: TelemetryLogger,
    ) -> None:
        self.settings, self.state, self.checkpoints, self.telemetry = settings, state, checkpoints, telemetry

    def carry_out(self, decision: Decision, *, finite: bool) -> bool:
        """Returns whether the state was rolled back; `finite`: whether loss and gradient of the last step were.

        Raises `AbortError` where the limit is reached, no checkpoint is sound, or the step is not finite and no
        rollback is configured for it.
        """
        state = self.state
        self.telemetry.event("spike", state.step, trigger=decision.trigger, message=decision.reason)
        if decision.verdict is Verdict.record:
            if not finite:
                raise AbortError(f"{decision.reason}; no rollback is configured for it")
            state.history.accept()
            return False
        if decision.verdict is Verdict.abort:
            limit = f"rollback.limit={self.settings.limit}"
            raise AbortError(f"{decision.reason}, after {state.rollbacks} rollbacks ({limit})")
        # Count, batches left out and learning rate are kept, or the run would repeat this rollback for ever.
        reached, segment, rollbacks, skipped = state.step, state.segment, state.rollbacks, state.skipped
        scale = state.optimizer.scale
        payload, manifest = state.ranks.from_first(lambda: self._load(decision))
        state.restore(payload)
        state.keep_own_rows()
        state.require_same_weights(f"after the rollback to step {state.step}")
        state.segment, state.rollbacks, state.skipped = segment + 1, rollbacks + 1, skipped
        state.optimizer.scale = scale
        change = self._change_training(reached)
        state.ranks.from_first(lambda: self._write(decision, manifest.step))
        self.telemetry.event(
            "rollback",
            manifest.step,
            trigger=decision.trigger,
            reason=decision.reason,
            from_step=reached,
            segment=state.segment,
            rollbacks=state.rollbacks,
            change=change,
        )
        return True

    def _load(self, decision: Decision) -> tuple[dict[str, Any], Manifest]:
        try:
            found = self.checkpoints.rollback(decision.before_step)
        except CheckpointError as error:
            raise AbortError(f"{decision.reason}, and no rollback is possible: {error}") from error
        for folder, reason in self.checkpoints.skipped:
            self.telemetry.event("warning", self.state.step, message=f"{folder.name} was passed over: {reason}")
        return found

    def _write(self, decision: Decision, step: int) -> None:
        """In this order: a kill at any moment leaves either the run before the rollback or the run after it."""
        restarted = self.settings.action is RollbackAction.skip
        try:
            JournalEntry.of(self.state, restarted).write(self.checkpoints.root)
            self.checkpoints.retire(step)
        except (OSError, CheckpointError) as error:
            raise AbortError(f"{decision.reason}, and the rollback could not be written: {error}") from error

    def _change_training(self, reached: int) -> str:
        """Lower the learning rate or leave batches out: the same input would give the same spike."""
        state = self.state
        if self.settings.action is RollbackAction.lower_lr:
            state.optimizer.scale *= self.settings.lr_factor
            return f"learning rate times {state.optimizer.scale:g}"
        left_out = reached + 1 - state.step  # up to the batch that a failing step was trained on
        state.skipped += left_out
        state.carried = []  # the next batches do not continue where the memory stopped
        return f"{left_out} batches left out"
