"""What a run measures of its model between two steps: validation, use of the memory, probes, samples, reset shock.

Only the calibration, before step 1, changes training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from atlas.config import RunConfig
from atlas.data.source import DataSource
from atlas.models.language_model import AtlasModel
from atlas.telemetry.logger import TelemetryLogger
from atlas.training.calibration import Calibrator
from atlas.training.clocks import Clocks
from atlas.training.evaluation import Evaluator
from atlas.training.samples import Sampler
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.stop import StopRequest
from atlas.training.watchers.observations import MemoryUse
from atlas.training.watchers.watchers import Watchers


class Probe(Protocol):
    """A measurement of the model that does not change training."""

    def run(self, model: AtlasModel, step: int) -> Sequence[ProbeResult]: ...


class ProbeResult(Protocol):
    @property
    def step(self) -> int: ...

    @property
    def metrics(self) -> Mapping[str, float | None]: ...

    @property
    def level(self) -> str: ...

    def describe(self) -> dict[str, Any]: ...

    def record(self) -> dict[str, Any]: ...


class Measurements:
    """Each method measures the current step, on rank 0 or on all, and records it. The last results are attributes."""

    def __init__(
        self,
        config: RunConfig,
        state: TrainState,
        data: DataSource,
        step: TrainStep,
        evaluator: Evaluator,
        telemetry: TelemetryLogger,
        probe: Probe | None,
        watchers: Watchers,
        clocks: Clocks,
        stop: StopRequest,
    ) -> None:
        self.config, self.state, self.evaluator, self.telemetry = config, state, evaluator, telemetry
        self.probe, self.watchers, self.clocks, self.stop, self.ranks = probe, watchers, clocks, stop, step.ranks
        self.calibrator = Calibrator(config.calibration, data, step, state.model, seed=config.seed)
        samples, sample_tokens = config.telemetry.samples, config.telemetry.sample_tokens
        self.sampler = Sampler(data, step, samples, sample_tokens) if samples else None
        self.validation: tuple[int, float] | None = None  # step and loss of the last one
        self.probe_results: list[ProbeResult] = []
        self.memory_use: MemoryUse | None = None

    def forget_undone(self) -> None:
        """After a rollback: what was measured at later steps."""
        step = self.state.step
        self.validation = self.validation if self.validation and self.validation[0] <= step else None
        self.memory_use = self.memory_use if self.memory_use and self.memory_use.step <= step else None
        self.probe_results = [result for result in self.probe_results if result.step <= step]

    @contextmanager
    def _on_whole_model(self, clock: str) -> Iterator[AtlasModel]:
        """The time counts for `clock`; a signal stops the measurement between two forward passes."""
        with self.clocks.measure(clock), self.state.whole_model() as model, self.stop.checked_by(model):
            yield model

    def validate(self) -> None:
        """The loss of the weights, of their average (`train.ema`), and at the end of Stage 2 that at chunk 1."""
        state, average = self.state, self.state.average
        with self.clocks.measure("validation"):
            with state.whole_model() as model, self.stop.checked_by(model):
                losses = {"validation/loss": self.evaluator.validation_loss(model)}
                if self.config.stage2.enabled and state.step == self.config.train.steps:
                    losses["validation/loss_chunk1"] = self.evaluator.validation_loss(
                        model, state.model.plan.each_token
                    )
            if average is not None:
                with average.applied(state.model), state.whole_model() as model, self.stop.checked_by(model):
                    losses["validation/loss_ema"] = self.evaluator.validation_loss(model)
        if self.watchers.model_has_modes:
            with self._on_whole_model("watchers") as model:
                self.watchers.see_mode_gap(self.evaluator.mode_gap(model))
        self.validation = state.step, losses["validation/loss"]
        self.telemetry.log_step(state.step, losses, keep=True)
        self.watchers.see_validation(*self.validation)
        if state.early_stop is not None:
            state.early_stop.see(*self.validation)

    def measure_memory_use(self) -> None:
        """The loss of the watched rows with the memory on, off and frozen."""
        if self.config.model.memory.enabled:
            with self._on_whole_model("watch") as model:
                self.memory_use = self.evaluator.memory_use(model, self.state.step)
            self.telemetry.log_step(self.state.step, self.memory_use.metrics, keep=True)
            self.watchers.see_memory_use(self.memory_use)

    def run_probe(self) -> None:
        """After all other numbers of the step, whose row its events write."""
        if self.probe is None:
            return
        probe, state = self.probe, self.state
        with self._on_whole_model("probe") as model:
            self.probe_results = self.ranks.from_first(lambda: list(probe.run(model, state.step)))
        for result in self.probe_results:
            self.telemetry.log_step(state.step, result.metrics)
        outcomes = [result.describe() for result in self.probe_results]
        self.watchers.see_probes(state.step, outcomes)
        for outcome in outcomes:
            self.telemetry.event("probe", state.step, **outcome)
            if "niah" in self.config.rollback.triggers:
                state.history.add_probe(state.step, outcome["level"], outcome["passed"], outcome["verdict"])

    def sample(self) -> None:
        """Continue validation text. After the probe, whose numbers are in the row that the first event writes."""
        sampler = self.sampler
        if sampler is None:
            return
        with self._on_whole_model("samples") as model:
            samples = self.ranks.from_first(lambda: sampler.samples(model))
        for sample in samples:
            self.telemetry.event("sample", self.state.step, **sample._asdict())

    def calibrate(self) -> None:
        """Set W_init of the local memories to their mean carried state."""
        state = self.state
        with self._on_whole_model("calibration") as model:
            found = self.ranks.from_first(lambda: self.calibrator.calibrate(model, self.config.train.sequence))
            weights = self.ranks.from_first(model.state_dict)
            if state.slices is not None:
                state.slices.load(weights)
            elif not self.ranks.first:
                model.load_state_dict(weights)
        attempt = f"W_init calibrated on {found['tokens']} tokens (attempt {found['attempts']}): "
        self._report_reset("calibration", found, attempt)

    def measure_reset(self) -> None:
        """The jump of the loss where the local memories are reset."""
        with self._on_whole_model("calibration") as model:
            found = self.ranks.from_first(lambda: self.calibrator.measure(model))
        self._report_reset("reset_shock", found, "")

    def _report_reset(self, kind: str, found: dict[str, Any], prefix: str) -> None:
        message = prefix + found.pop("message")
        self.telemetry.event(kind, self.state.step, **found, message=message)
        if found["passed"] is False:
            self.telemetry.event("warning", self.state.step, message=message)
