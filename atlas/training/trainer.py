"""The training loop: train a step, watch, log, roll back if needed, else validate, probe and save where due."""

from __future__ import annotations

from contextlib import ExitStack
from math import log
from typing import Any

from atlas.checkpoint.manager import CheckpointManager
from atlas.config import CheckpointLayout, GateAction, RunConfig, WatchAction
from atlas.data.source import DataSource
from atlas.telemetry.logger import TelemetryLogger
from atlas.training.clocks import Clocks
from atlas.training.errors import AbortError, StopRequested, WatchError
from atlas.training.evaluation import Evaluator
from atlas.training.faults import FaultInjector
from atlas.training.measurements import Measurements, Probe
from atlas.training.observed_step import Observed, ObservedStep
from atlas.training.profile import StepProfile, parse_profile
from atlas.training.rollback.decision import decide
from atlas.training.rollback.history import Reading
from atlas.training.rollback.recovery import Recovery
from atlas.training.saving import Saver
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.step_result import StepResult, step_metrics
from atlas.training.stop import StopRequest
from atlas.training.watchers.record import EVERY
from atlas.training.watchers.watchers import Watchers, as_reading


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
        self.telemetry, self.checkpoints = telemetry, checkpoints
        self.ranks, self.clocks = step.ranks, clocks
        self.recovery = Recovery(config.rollback, state, checkpoints, telemetry)
        self.watchers = Watchers(config, state, telemetry)
        sharded = config.checkpoint.layout is CheckpointLayout.sharded
        self.saver = Saver(state, checkpoints, telemetry, config.train.steps, sharded=sharded)
        profiled = parse_profile(config.debug.profile, config.train.steps) if config.debug.profile else range(0)
        folder = checkpoints.root.parent
        self.profile = StepProfile(profiled if self.ranks.first else range(0), folder, step.device, telemetry)
        self.stop = StopRequest(self.ranks)
        self.observed_step = ObservedStep(config, state, data, step, telemetry, faults, self.watchers, clocks)
        self.measurements = Measurements(
            config, state, data, step, evaluator, telemetry, probe, self.watchers, clocks, self.stop
        )
        self.measured = True  # whether validation and probe of the current step are done
        self.last: Observed | None = None  # the last step, of this start and since a rollback
        self.trained_tokens = 0  # by this process, those of rolled-back steps included

    def run(self) -> None:
        """Train to the last step. Raises `AbortError` where a safeguard stops the run, `StopRequested` for a signal."""
        state = self.state
        self.observed_step.stage2.begin(state.step)
        try:
            self._begin()
            while state.step < self.config.train.steps and not state.stop_reason:
                self.ranks.step = state.step + 1
                self.stop.check()
                self.saver.collect()
                with self.profile.around(state.step + 1):
                    self.watchers.see_files(self.checkpoints.take_removed())
                    self.last = self.observed_step()
                    self._go_on_from(self.last)
            self._end()
        except StopRequested:
            self._save_stopped()
            raise
        finally:
            with ExitStack() as ending:  # all of it, whatever fails
                ending.callback(self.saver.collect, wait=True)
                ending.callback(self.observed_step.batches.close)
                ending.callback(self.profile.close)

    def _begin(self) -> None:
        """Before the first step of this start."""
        state = self.state
        if state.step == 0 and not self.ranks.from_first(lambda: bool(self.checkpoints.list())):
            if self.config.calibration.enabled:
                self.measurements.calibrate()
            self._save()  # a rollback may be needed before the first regular checkpoint
            if problem := self._rehearse():
                raise AbortError(problem)
        if self.watchers.wanted:
            with self.clocks.measure("watchers"), state.whole_model() as model:
                self.watchers.see_start(self.evaluator.rows_digest, log(self.evaluator.watched_perplexity(model)))
            if self.watchers.on:
                self.watchers.see_validation_rows(self.evaluator.batches)
        self._heed_watchers(starting=True)
        if state.unfinished is not None:
            self._finish_step(state.unfinished)

    def _go_on_from(self, seen: Observed) -> None:
        """Look at the step that was trained, and roll back, or measure and save what is due."""
        state = self.state
        self.trained_tokens += seen.result.tokens
        self._add_reading(seen.result)
        self._log(seen)
        self._check_gates(seen)
        if self.watchers.tests(state.step):
            with self.clocks.measure("watchers"), state.whole_model() as model:
                self.watchers.see_model_facts(self.evaluator.model_facts(model))
        if state.step % EVERY == 0 and not self._validates:
            self._heed_watchers()
        if not self._rolled_back(finite=seen.result.finite):
            self._measure_and_save()

    def _end(self) -> None:
        """After the last step."""
        state = self.state
        if state.stop_reason:
            self.telemetry.event("notice", state.step, message=state.stop_reason)
        if self.config.calibration.measure:
            self.measurements.measure_reset()
        if problem := self._rehearse():
            self.telemetry.event("warning", state.step, message=f"{problem}: a resumed run would be another one")

    def _add_reading(self, result: StepResult) -> None:
        """Add a reading to the history where one is due: a step that is not finite, or the watched perplexity."""
        state, history = self.state, self.state.history
        if not result.finite:
            reason = f"loss {result.loss:.4g}, gradient norm {result.gradient_norm:.4g} at step {state.step + 1}"
            history.add(Reading("non_finite", state.step + 1, True, reason=reason))
            return
        last = state.step == self.config.train.steps  # damage of this step shows in no later loss
        if history.needs_reading(state.step, result.loss) or last:
            self._read()

    def _read(self) -> None:
        """Add a reading of the watched perplexity to the history."""
        state = self.state
        with self.clocks.measure("watch"), state.whole_model() as model:
            reading = state.history.add_perplexity(state.step, self.evaluator.watched_perplexity(model))
        if state.step % self.config.rollback.watch_every == 0:
            self.watchers.see_reading(state.step, log(reading.value))

    def _log(self, seen: Observed) -> None:
        with self.clocks.measure("telemetry"):
            values = step_metrics(self.state, seen.result, seen.gates) | {"tokens_per_second": round(seen.speed, 1)}
            values |= self.observed_step.stage2.metrics | seen.metrics
            self.telemetry.log_step(self.state.step + (not seen.result.finite), values)

    def _check_gates(self, seen: Observed) -> None:
        """Gates that no longer vary are a reading, an abort or a warning, as the configuration says."""
        state = self.state
        complaint = state.monitor.check(state.step, seen.gates) if seen.result.finite else None
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
        """Whether a validation is due at this step. The watchers look after it, since what they tell writes the row."""
        return self.state.step % self.config.train.validation_every == 0 or self.state.step == self.config.train.steps

    def _heed_watchers(self, *, starting: bool = False) -> None:
        """Let the watchers look, and do what their settings say about what is new."""
        state = self.state
        with self.clocks.measure("watchers"):
            found = self.watchers.judge(starting=starting)
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
            undone = self.recovery.carry_out(decision, finite=finite)
        if undone:
            self.last = None
            self.measurements.forget_undone()
        return undone

    def _measure_and_save(self) -> None:
        """Validation, probe and checkpoint after a step that was not rolled back, each where it is due."""
        state, measurements, validates = self.state, self.measurements, self._validates
        self.measured = False
        if validates:
            measurements.validate()
        ends = self.saver.is_last  # known now: a validation may end the run
        if ends and not state.history.has_read(state.step):  # as at the last step, before anything is settled
            self._read()
            if self._rolled_back(finite=True):
                self.measured = True
                return
        if ends or state.step % self.config.niah.every == 0:
            measurements.measure_memory_use()
            measurements.run_probe()
        if validates:
            measurements.sample()
        if ends:
            self._settle()
        if validates:
            self._heed_watchers()
        self.measured = True
        saves = ends or state.step % self.config.checkpoint.every == 0
        if not self._rolled_back(finite=True) and saves:  # a probe may have failed
            self._save()

    def _settle(self) -> None:
        """Where the run ends: a bad reading that the validation loss confirms is damage, any other one is chance."""
        history = self.state.history
        suspicion = history.open_suspicion
        if suspicion and self.watchers.validation_has_risen:
            self.watchers.see_end(suspicion)
        else:
            history.clear()
            self.watchers.see_end("")

    def _save(self) -> None:
        state = self.state
        self.telemetry.flush(now=True)
        step, loss = self.measurements.validation or (None, None)
        health = {
            "validation_loss": loss if step == state.step else None,
            "loss": self.last.result.loss if self.last else None,
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
