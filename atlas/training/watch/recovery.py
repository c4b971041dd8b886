"""Carrying out a rollback: restore, change something, retire what was undone, and tell."""

from __future__ import annotations

from atlas.checkpoint.manager import CheckpointError, CheckpointManager
from atlas.config import RollbackAction, RollbackConfig
from atlas.telemetry.logger import TelemetryLogger
from atlas.training.errors import AbortError
from atlas.training.state import TrainState
from atlas.training.watch.journal import JournalEntry
from atlas.training.watch.rollback import Decision, Verdict


class Recovery:
    def __init__(
        self,
        settings: RollbackConfig,
        state: TrainState,
        checkpoints: CheckpointManager,
        telemetry: TelemetryLogger,
    ) -> None:
        self.settings, self.state, self.checkpoints, self.telemetry = settings, state, checkpoints, telemetry

    def answer(self, decision: Decision, *, finite: bool) -> bool:
        """Act on a decision. True: the run goes on as it is; False: it was rolled back.

        Raises `AbortError` where nothing can be restored: the limit is reached, no checkpoint is sound, or rollback is
        off and the step cannot be taken.
        """
        state = self.state
        self.telemetry.event("spike", state.step, trigger=decision.trigger, message=decision.reason)
        if decision.verdict is Verdict.record:
            if not finite:
                raise AbortError(f"{decision.reason}; no rollback is configured for it")
            state.history.accept()  # the new level is the level now
            return True
        if decision.verdict is Verdict.abort:
            limit = f"rollback.limit={self.settings.limit}"
            raise AbortError(f"{decision.reason}, after {state.rollbacks} rollbacks ({limit})")
        self._restore(decision)
        return False

    def _restore(self, decision: Decision) -> None:
        """Segment, count and batches left out survive the restoring, or the run would go round in circles."""
        state = self.state
        reached, segment, rollbacks, skipped = state.step, state.segment, state.rollbacks, state.skipped
        scale = state.optimizer.scale
        try:
            payload, manifest = self.checkpoints.rollback(decision.before_step)
        except CheckpointError as error:
            raise AbortError(f"{decision.reason}, and no rollback is possible: {error}") from error
        for folder, reason in self.checkpoints.skipped:
            self.telemetry.event("warning", reached, message=f"{folder.name} was passed over: {reason}")
        state.restore(payload)
        state.segment, state.rollbacks, state.skipped = segment + 1, rollbacks + 1, skipped
        state.optimizer.scale = scale
        change = self._change(reached)
        self._settle(decision, manifest.step)
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

    def _settle(self, decision: Decision, step: int) -> None:
        """Make the rollback hold on the disk: a kill at any moment leaves either the run before it or after it."""
        restarted = self.settings.action is RollbackAction.skip
        try:
            JournalEntry.of(self.state, restarted).write(self.checkpoints.root)
            self.checkpoints.retire(step)
        except (OSError, CheckpointError) as error:
            raise AbortError(f"{decision.reason}, and the rollback could not be written: {error}") from error

    def _change(self, reached: int) -> str:
        """The same input would give the same spike."""
        state = self.state
        if self.settings.action is RollbackAction.lower_lr:
            state.optimizer.scale *= self.settings.lr_factor
            return f"learning rate times {state.optimizer.scale:g}"
        left_out = reached + 1 - state.step  # up to the batch that a failing step was trained on
        state.skipped += left_out
        state.carried = []  # the next batches do not continue where the memory stopped
        return f"{left_out} batches left out"
