"""The training loop: train a step, watch, log, roll back if needed, else validate, probe and save where due."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import log
from typing import Any, Protocol

from atlas.checkpoint.manager import CheckpointManager
from atlas.config import CheckpointLayout, GateAction, RunConfig, WatchAction
from atlas.data.source import DataSource
from atlas.kernels import gpu
from atlas.models.language_model import AtlasModel
from atlas.telemetry.logger import TelemetryLogger
from atlas.training.batch_ahead import BatchAhead
from atlas.training.clocks import Clocks
from atlas.training.errors import AbortError, StopRequested, WatchError
from atlas.training.evaluation import Evaluator
from atlas.training.memory_norms import catching, memory_norms
from atlas.training.own_metrics import own_metrics
from atlas.training.profile import StepProfile, parse_profile
from atlas.training.regions import region
from atlas.training.samples import Sampler
from atlas.training.saving import Saver
from atlas.training.stage2 import Stage2
from atlas.training.state import TrainState
from atlas.training.step import StepResult, TrainStep, step_metrics
from atlas.training.stop import StopRequest
from atlas.training.update_ratio import copied, update_ratios
from atlas.training.w_init import Calibrator
from atlas.training.watch.faults import FaultInjector
from atlas.training.watch.gate_monitor import GateStatistics, over_ranks
from atlas.training.watch.history import Reading
from atlas.training.watch.recovery import Recovery
from atlas.training.watch.rollback import decide
from atlas.training.watchers import watchers
from atlas.training.watchers.measuring import moved_elements
from atlas.training.watchers.record import MemoryUse
from atlas.training.watchers.watchers import Watchers, as_reading


class Probe(Protocol):
    """A measurement of the model that does not change training."""

    def due(self, step: int) -> bool: ...

    def run(self, model: AtlasModel, step: int) -> Sequence[ProbeResult]: ...


class ProbeResult(Protocol):
    @property
    def metrics(self) -> Mapping[str, float | None]: ...

    @property
    def level(self) -> str: ...

    def describe(self) -> dict[str, Any]: ...

    def record(self) -> dict[str, Any]: ...


class Trainer:
    """Trains a state to the last step of its configuration. The attributes below are read when the run ends."""

    def __init__(
        self,
        config: RunConfig,
        state: TrainState,
        data: DataSource,
        step: TrainStep,
        evaluator: Evaluator,
        telemetry: TelemetryLogger,
        checkpoints: CheckpointManager,
        probe: Probe | None,
        faults: FaultInjector,
        clocks: Clocks,
    ) -> None:
        self.config, self.state, self.data, self.step, self.evaluator = config, state, data, step, evaluator
        self.telemetry, self.checkpoints, self.probe = telemetry, checkpoints, probe
        self.ranks, self.faults, self.clocks = step.ranks, faults, clocks
        self.recovery = Recovery(config.rollback, state, checkpoints, telemetry)
        self.watchers = Watchers(config, state, telemetry)
        self.stage2 = Stage2(config, state, step)
        sharded = config.checkpoint.layout is CheckpointLayout.sharded
        self.saver = Saver(state, checkpoints, telemetry, config.train.steps, sharded=sharded)
        self.calibrator = Calibrator(config.calibration, data, step, state.model, seed=config.seed)
        self.batches = BatchAhead(data, step.device, step.rows)
        samples, sample_tokens = config.telemetry.samples, config.telemetry.sample_tokens
        self.sampler = Sampler(data, step, samples, sample_tokens) if samples else None
        profiled = parse_profile(config.debug.profile, config.train.steps) if config.debug.profile else None
        here = checkpoints.root.parent, step.device, telemetry
        self.profile = StepProfile(profiled, *here) if profiled and self.ranks.first else None
        self.stop = StopRequest(self.ranks)
        self.measured = True  # whether validation and probe of the current step are done
        self.last: StepResult | None = None
        self.gates: GateStatistics | None = None  # of the last step
        self.norms: dict[str, float | None] = {}  # of the last step, if it is logged
        self.validation: tuple[int, float] | None = None  # step and loss of the last validation
        self.probe_results: list[ProbeResult] = []
        self.memory_use: MemoryUse | None = None  # of the last measurement
        self.speed = 0.0  # of the last step, tokens/s
        self.trained_tokens = 0  # by this process, those of rolled-back steps included

    def run(self) -> None:
        """Train to the last step. Raises `AbortError` where a safeguard stops the run, `StopRequested` for a signal."""
        state = self.state
        self.stage2.begin(state.step)
        try:
            if state.step == 0 and not self.ranks.from_first(lambda: bool(self.checkpoints.list())):
                if self.config.calibration.enabled:
                    self._calibrate()
                self._save()  # a rollback may be needed before the first regular checkpoint
                if problem := self._rehearse():
                    raise AbortError(problem)
            self._heed()
            if state.unfinished is not None:
                self._finish_step(state.unfinished)
            while state.step < self.config.train.steps and not state.stop_reason:
                self.ranks.step = state.step + 1
                self.stop.check()
                self.saver.collect()
                with self.profile.around(state.step + 1) if self.profile else nullcontext():
                    result = self._train_step()
                    self._watch(result)
                    self._log(result)
                    self._check_gates(result)
                    if self.watchers.tests(state.step):
                        with self.clocks.measure("watchers"), state.whole_model() as model:
                            self.watchers.see_leaks(self.evaluator.leaks(model))
                    if state.step % watchers.EVERY == 0 and not self._validates:
                        self._heed()
                    if not self._rolled_back(finite=result.finite):
                        self._measure_and_save()
            if state.stop_reason:
                self._end_early()
            if self.config.calibration.measure:
                self._measure_reset()
            if problem := self._rehearse():
                self.telemetry.event("warning", state.step, message=f"{problem}: a resumed run would be another one")
        except StopRequested:
            self._save_stopped()
            raise
        finally:
            if self.profile:
                self.profile.close()
            self.batches.close()
            self.saver.collect(wait=True)

    def _train_step(self) -> StepResult:
        state = self.state
        self.stage2.begin(state.step + 1)
        if self.faults.begins(state):
            self.telemetry.event("notice", state.step, message=f"injects {self.config.debug.inject}")
        due = self.telemetry.due(state.step + 1)
        logged = due and self.ranks.first
        measured = self.watchers.measures(state.step + 1)
        caught = logged or (measured and self.ranks.first)
        self.step.looks_for_gradients = measured
        self.watchers.see_files(self.checkpoints.take_removed())
        with self.clocks.measure("norms"):
            before = copied(state.model, self.ranks) if logged or measured or (due and state.slices) else {}
        with self.clocks.measure("train"), catching(state.model) if caught else nullcontext() as catch:
            began = time.perf_counter()
            with region("data"):
                batch = self.batches.take(state.step + 1 + state.skipped)
            batch = self.faults.strike(state, batch, self.step.rows.start if self.step.rows else 0)
            result = self.step(state, batch, watched=catch is not None)
            tokens = batch.inputs.numel() * self.step.groups
            seconds = time.perf_counter() - began - result.gate_seconds
            self.speed = tokens / seconds
        self.clocks.move(result.gate_seconds, "train", "gates")
        for lost in gpu.news():
            self.telemetry.event("warning", state.step, message=lost)
        with self.clocks.measure("norms"):
            norms = memory_norms(state.model, catch) if catch else {}
            self.norms = norms | update_ratios(before, state.model, self.ranks) if due else {}
            if due and (own := self.config.telemetry.metrics):
                with state.whole_model() as model:
                    self.norms |= own_metrics(own if logged else [], model, state.step)
        with self.clocks.measure("watchers"):
            self.watchers.see_step(result, batch, seconds)
            if measured and result.finite:
                moved = moved_elements(before, state.model, self.ranks)
                if catch:
                    self.watchers.see_model(state.model, catch, moved, norms, self.step.found_gradients)
        with self.clocks.measure("gates"):
            self.gates = over_ranks(result.gates, self.ranks)
        if state.average is not None and result.finite:
            state.average.update(state.model, state.step)
        self.last = result
        self.trained_tokens += tokens
        return self.last

    def _watch(self, result: StepResult) -> None:
        """Add a reading to the history where one is due: of a step that is not finite, or of the watched perplexity."""
        state, history = self.state, self.state.history
        if not result.finite:
            reason = f"loss {result.loss:.4g}, gradient norm {result.gradient_norm:.4g} at step {state.step + 1}"
            history.add(Reading("non_finite", state.step + 1, True, reason=reason))
            return
        with self.clocks.measure("watch"):
            last = state.step == self.config.train.steps  # damage of this step shows in no later loss
            if history.needs_reading(state.step, result.loss) or last:
                with state.whole_model() as model:
                    reading = history.add_perplexity(state.step, self.evaluator.watched_perplexity(model))
                if state.step % self.config.rollback.watch_every == 0:
                    self.watchers.see_reading(state.step, log(reading.value))

    def _log(self, result: StepResult) -> None:
        with self.clocks.measure("telemetry"):
            values = {**step_metrics(self.state, result, self.gates), "tokens_per_second": round(self.speed, 1)}
            self.telemetry.log_step(self.state.step + (not result.finite), values | self.stage2.metrics | self.norms)

    def _check_gates(self, result: StepResult) -> None:
        """Gates that have died are a reading, an abort or a warning, as the configuration says."""
        state = self.state
        complaint = state.monitor.check(state.step, self.gates) if result.finite else None
        if complaint is None:
            return
        if "gate" in self.config.rollback.triggers:
            state.history.add(Reading("gate", state.step, True, reason=complaint))
        elif self.config.train.gate.monitor is GateAction.abort:
            raise AbortError(complaint)
        else:
            self.telemetry.event("warning", state.step, message=complaint)

    @property
    def _validates(self) -> bool:
        """Whether this step does. What the watchers tell writes its row, so they look after it."""
        return self.state.step % self.config.train.validation_every == 0 or self.state.step == self.config.train.steps

    def _heed(self) -> None:
        """Let the watchers look, and do what their settings say about what is new."""
        state = self.state
        with self.clocks.measure("watchers"):
            found = self.watchers.judge()
        for finding, action in found:
            if action is WatchAction.rollback:
                state.history.add(as_reading(finding))
        for finding, action in found:
            if action is WatchAction.abort:
                if state.step not in self.ranks.from_first(lambda: [one.step for one in self.checkpoints.list()]):
                    self._save()
                raise WatchError(finding.message)

    def _rolled_back(self, *, finite: bool) -> bool:
        """Decide by the history. True: the state is that of an earlier step."""
        decision = decide(self.state.history.readings, self.state.rollbacks, self.config.rollback)
        if decision is None:
            return False
        self.saver.collect(wait=True)
        with self.clocks.measure("rollback"):
            return self.recovery.carry_out(decision, finite=finite)

    def _measure_and_save(self) -> None:
        """Validation, probe and checkpoint after a step that was not rolled back, each where it is due."""
        state, settings, validates = self.state, self.config.train, self._validates
        self.measured = False
        if validates:
            with self.clocks.measure("validation"):
                losses = self._validate()
            self.validation = state.step, losses["validation/loss"]
            self.telemetry.log_step(state.step, losses, keep=True)
            self.watchers.see_validation(*self.validation)
            if state.early_stop is not None and state.step < settings.steps:
                state.early_stop.see(*self.validation)
        last = state.step == settings.steps
        if last or state.step % self.config.niah.every == 0:
            self._measure_memory_use()
        if self.probe is not None and self.probe.due(state.step):
            self._run_probe(self.probe)  # after all other numbers of the step: its events write the row
        if validates and self.sampler is not None:
            self._sample(self.sampler)
        if last:
            self._settle()
        if validates:
            self._heed()
        self.measured = True
        if not self._rolled_back(finite=True) and self.checkpoints.due(state.step):  # a probe may have failed
            self._save()

    def _measure_memory_use(self) -> None:
        """The loss of the watched rows with the memory on, off and frozen."""
        if self.config.model.memory.enabled:
            state = self.state
            with self.clocks.measure("watch"), state.whole_model() as model, self.stop.checked_by(model):
                self.memory_use = self.evaluator.memory_use(model, state.step)
            self.telemetry.log_step(self.state.step, self.memory_use.metrics, keep=True)
            self.watchers.see_memory_use(self.memory_use)

    def _settle(self) -> None:
        """At the last step: a bad reading that the validation loss confirms is damage, and any other one is chance."""
        history = self.state.history
        suspicion = history.open_suspicion
        if suspicion and self.watchers.validation_has_risen:
            self.watchers.see_end(suspicion)
        else:
            history.clear()
            self.watchers.see_end("")

    def _validate(self) -> dict[str, float]:
        """Of the weights, and with `train.ema` of their average."""
        state, average = self.state, self.state.average
        with state.whole_model() as model, self.stop.checked_by(model):
            losses = {"validation/loss": self.evaluator.validation_loss(model)}
            if state.step == self.config.train.steps and (plan := self.stage2.inference):
                losses["validation/loss_chunk1"] = self.evaluator.validation_loss(model, plan)
        if average is not None:
            with average.applied(state.model), state.whole_model() as model, self.stop.checked_by(model):
                losses["validation/loss_ema"] = self.evaluator.validation_loss(model)
        return losses

    def _end_early(self) -> None:
        """Tell why, and do what the last step does and this one has not done."""
        state = self.state
        self.telemetry.event("notice", state.step, message=state.stop_reason)
        if self.probe is not None and not self.probe.due(state.step):
            self._run_probe(self.probe)
        self._measure_memory_use()
        self._settle()
        self._heed()
        if not self.checkpoints.due(state.step):
            self._save()

    def _run_probe(self, probe: Probe) -> None:
        state = self.state
        with self.clocks.measure("probe"), state.whole_model() as model, self.stop.checked_by(model):
            self.probe_results = self.ranks.from_first(lambda: list(probe.run(model, state.step)))
        for result in self.probe_results:
            self.telemetry.log_step(state.step, result.metrics)
        self.watchers.see_probes(state.step, [result.describe() for result in self.probe_results])
        for result in self.probe_results:  # after all metrics: an event writes the row
            outcome = result.describe()
            self.telemetry.event("probe", state.step, **outcome)
            if "niah" in self.config.rollback.triggers:
                state.history.add_probe(state.step, result.level, outcome["passed"], outcome["verdict"])

    def _sample(self, sampler: Sampler) -> None:
        """After the probe, whose numbers are in the same row: an event writes it."""
        state = self.state
        with self.clocks.measure("samples"), state.whole_model() as model, self.stop.checked_by(model):
            samples = self.ranks.from_first(lambda: sampler.samples(model))
        for sample in samples:
            self.telemetry.event("sample", state.step, **sample._asdict())

    def _calibrate(self) -> None:
        """Set W_init of the local memories to their mean carried state."""
        state = self.state
        with self.clocks.measure("calibration"), state.whole_model() as model, self.stop.checked_by(model):
            found = self.ranks.from_first(lambda: self.calibrator.calibrate(model, self.config.train.sequence))
            weights = self.ranks.from_first(model.state_dict)
            if state.slices is not None:
                state.slices.load(weights)
            elif not self.ranks.first:
                model.load_state_dict(weights)
        self._report_reset(
            "calibration", found, f"W_init calibrated on {found['tokens']} tokens (attempt {found['attempts']}): "
        )

    def _measure_reset(self) -> None:
        with self.clocks.measure("calibration"), self.state.whole_model() as model, self.stop.checked_by(model):
            found = self.ranks.from_first(lambda: self.calibrator.measure(model))
        self._report_reset("reset_shock", found, "")

    def _report_reset(self, kind: str, found: dict[str, Any], prefix: str) -> None:
        message = prefix + found.pop("message")
        self.telemetry.event(kind, self.state.step, **found, message=message)
        if found["passed"] is False:
            self.telemetry.event("warning", self.state.step, message=message)

    def _save(self) -> None:
        state = self.state
        self.telemetry.flush(now=True)
        step, loss = self.validation or (None, None)
        health = {
            "validation_loss": loss if step == state.step else None,
            "loss": self.last.loss if self.last else None,
            "healthy": state.history.healthy,
        }
        with self.clocks.measure("checkpoint"):
            self.saver.save(health)

    def _rehearse(self) -> str:
        with self.clocks.measure("checkpoint"):
            return self.saver.rehearse()

    def _save_stopped(self) -> None:
        """Save the step reached, so that the next start continues as if this one had not been stopped."""
        if self.measured:
            self.telemetry.flush()
        unfinished = {"row": self.telemetry.hold_row(), "measured": self.measured}
        if self.config.checkpoint.on_stop:
            with self.clocks.measure("checkpoint"):
                self.saver.save_stopped(unfinished)

    def _finish_step(self, unfinished: dict[str, Any]) -> None:
        """Finish the step during which a signal stopped the run."""
        self.state.unfinished = None
        self.telemetry.take_up_row(self.state.step, **unfinished["row"])
        if not unfinished["measured"]:
            self._measure_and_save()
