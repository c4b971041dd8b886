"""Stage 2 in the training loop: before each step, model and clip get the values that the schedule has for it."""

from __future__ import annotations

from atlas.config import RunConfig
from atlas.models.plan import ChunkPlan
from atlas.training.state import TrainState
from atlas.training.step import TrainStep


class Stage2:
    """Changes nothing in a run without `stage2.enabled`."""

    def __init__(self, config: RunConfig, state: TrainState, step: TrainStep) -> None:
        self.config, self.state, self.step = config, state, step
        self.metrics: dict[str, float] = {}  # of the newest step: the longest chunk, the limit of the gradient norm

    def begin(self, step: int) -> None:
        """Training, the watch, validation and probes of this step read with its chunks."""
        if self.config.stage2.enabled:
            plan, limit = ChunkPlan.at_step(self.config, step), self.config.stage2.limit(step)
            self.state.model.plan, self.step.clip = plan, limit
            self.metrics = {"stage2/chunk": max(plan.local), "stage2/clip": limit}
