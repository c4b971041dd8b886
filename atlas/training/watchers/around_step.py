"""What is compared around a step: the model between two steps, and a step that is taken a second time."""

from __future__ import annotations

from typing import Any

from atlas.data.batch import Batch
from atlas.telemetry.logger import TelemetryLogger
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.step_result import StepResult
from atlas.training.watchers.made_anew import Fresh, can_be_made_twice, made_anew, saved
from atlas.training.watchers.side_effects import Left, changed, left

EVERY = 10  # steps between two comparisons of what is between two steps
REHEARSED = 20  # step of a start that is taken a second time: by then no moment is 0


class AroundStep:
    """`fresh` makes model and optimiser as the start did; None: no step is taken twice. `compares`: the model between
    two steps."""

    def __init__(self, state: TrainState, telemetry: TelemetryLogger, fresh: Fresh | None, *, compares: bool) -> None:
        self._state, self._telemetry, self._fresh, self._compares = state, telemetry, fresh, compares
        self._saved: dict[str, Any] | None = None  # before the step that is rehearsed
        self._left: Left | None = None  # by the step before

    def rehearses(self, step: int) -> bool:
        """Whether the step is taken a second time, from what is saved before it: once a start."""
        rehearsed = self._state.record.facts.first_step + REHEARSED
        return self._fresh is not None and step == rehearsed and can_be_made_twice(self._state)

    def before(self, step: int) -> None:
        """Right before a step."""
        self._saved = saved(self._state) if self.rehearses(step) else None

    def after(self, batch: Batch, step: TrainStep, result: StepResult) -> None:
        """Right after a step."""
        due = self._compares and self._state.step % EVERY == 0 and self._state.record.side_effects is None
        self._left = left(self._place, self._state.model) if due else None
        if self._saved is not None and result.finite:
            self._rehearse(self._saved, batch, step, result)
        self._saved = None

    def before_next(self) -> None:
        """After all that is measured behind a step."""
        if self._left is not None and (names := changed(self._left, left(self._place, self._state.model))):
            self._state.record.side_effects = self._state.step, names
        self._left = None

    def _rehearse(self, before: dict[str, Any], batch: Batch, step: TrainStep, result: StepResult) -> None:
        assert self._fresh is not None
        record = self._state.record
        try:
            record.unsaved, record.recomputed = made_anew(self._state, before, self._fresh, step, batch, result)
        except Exception as error:  # what a part of the user's raises is no reason to end a run
            told = f"{type(error).__name__}: {error}"
            message = f"the step cannot be taken a second time, so unsaved and recomputed say nothing: {told}"
            self._telemetry.event("notice", self._state.step, message=message)

    @property
    def _place(self) -> tuple[int, int]:
        return self._state.segment, self._state.step
