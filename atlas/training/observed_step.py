"""A training step of a run, and what is observed around it: speed, norms of memories and update, the watchers' look.

Nothing that is observed changes the step.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import NamedTuple

from atlas.config import RunConfig
from atlas.data.batch import Batch
from atlas.data.source import DataSource
from atlas.kernels import gpu
from atlas.telemetry.logger import TelemetryLogger
from atlas.training.batch_ahead import BatchAhead
from atlas.training.clocks import Clocks
from atlas.training.faults import FaultInjector
from atlas.training.gate_monitor import GateStatistics, over_ranks
from atlas.training.memory_norms import catching, memory_norms
from atlas.training.own_metrics import own_metrics
from atlas.training.regions import region
from atlas.training.stage2 import Stage2
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.step_result import StepResult
from atlas.training.update_ratio import copied, update_ratios
from atlas.training.watchers.measuring import descent, moved_elements
from atlas.training.watchers.watchers import Watchers


class Observed(NamedTuple):
    """Of one step."""

    result: StepResult
    gates: GateStatistics | None  # over all ranks; None without a gate
    metrics: dict[str, float | None]  # of memories and update, and own ones; empty where the step is not logged
    speed: float  # tokens/s


class ObservedStep:
    """Takes the next batch, trains on it, and observes."""

    def __init__(
        self,
        config: RunConfig,
        state: TrainState,
        data: DataSource,
        step: TrainStep,
        telemetry: TelemetryLogger,
        faults: FaultInjector,
        watchers: Watchers,
        clocks: Clocks,
    ) -> None:
        self.config, self.state, self.step, self.ranks = config, state, step, step.ranks
        self.telemetry, self.faults, self.watchers, self.clocks = telemetry, faults, watchers, clocks
        self.batches = BatchAhead(data, step.device, step.rows)
        self.stage2 = Stage2(config, state, step)
        self._told: set[str] = set()  # warnings

    def __call__(self) -> Observed:
        state, number = self.state, self.state.step + 1
        with self.clocks.measure("watchers"):
            self.watchers.around_step.before_next()
        self.stage2.begin(number)
        if self.faults.begins(state):
            self.telemetry.event("notice", state.step, message=f"injects {self.config.debug.inject}")
        due, measured = self.telemetry.due(number), self.watchers.measures(number)
        logged = due and self.ranks.first
        hooked = self.ranks.first and (due or measured)
        with self.clocks.measure("norms"):
            before = copied(state.model, self.ranks) if logged or measured or (due and state.slices) else {}
        copies = measured or self.watchers.around_step.rehearses(number)
        with self.clocks.measure("watchers"):
            self.watchers.around_step.before(number)
        with self.clocks.measure("train"), catching(state.model) if hooked else nullcontext() as catch:
            began = time.perf_counter()
            batch = self._batch()
            result = self.step(state, batch, hooked=hooked, copy_gradients=copies)
            seconds = time.perf_counter() - began - result.gate_seconds
        self.clocks.move(result.gate_seconds, "train", "gates")
        with self.clocks.measure("watchers"):
            self.watchers.around_step.after(batch, self.step, result)
        for lost in gpu.news():
            self.telemetry.event("warning", state.step, message=lost)
        with self.clocks.measure("norms"):
            norms = memory_norms(catch) if catch else {}
            metrics: dict[str, float | None] = {}
            if due:
                metrics = norms | update_ratios(before, state.model, self.ranks) | self._own_metrics(logged)
        with self.clocks.measure("watchers"):
            self.watchers.see_step(result, batch, seconds)
            if measured and result.finite:
                moved = moved_elements(before, state.model, self.ranks)
                self.watchers.see_descent(descent(before, self.step.gradients, state.model, self.ranks))
                if catch:
                    self.watchers.see_model(state.model, catch, moved, norms, self.step.kept_gradients)
        with self.clocks.measure("gates"):
            gates = over_ranks(result.gates, batch.inputs.numel(), self.ranks)
        if state.average is not None and result.finite:
            state.average.update(state.model, state.step)
        return Observed(result, gates, metrics, result.tokens / seconds)

    def _batch(self) -> Batch:
        """The next one, with a rehearsed fault where one is due."""
        with region("data"):
            batch = self.batches.take(self.state.step + 1 + self.state.skipped)
        return self.faults.strike(self.state, batch, self.step.rows.start if self.step.rows else 0)

    def _own_metrics(self, logged: bool) -> dict[str, float | None]:
        """Every rank takes part where the model lies in slices."""
        own = self.config.telemetry.metrics
        if not own:
            return {}
        with self.state.whole_model() as model:
            return own_metrics(own if logged else [], model, self.state.step, self._warn_once)

    def _warn_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self.telemetry.event("warning", self.state.step, message=message)
