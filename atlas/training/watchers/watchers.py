"""`Watchers`: records what the run sees, lets the judges look at it, and tells each finding once.

Rank 0 records and judges; what follows from a finding is decided by all ranks together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from atlas.config import RunConfig, WatchAction
from atlas.data.batch import Batch
from atlas.data.corpus import Corpus
from atlas.models.language_model import AtlasModel
from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.run_files import CHECKPOINTS, CONFIG_FILE, RunFiles
from atlas.training.memory_norms import Catch
from atlas.training.rollback.history import Reading
from atlas.training.state import TrainState
from atlas.training.step_result import StepResult
from atlas.training.watchers import JUDGES
from atlas.training.watchers.around_step import AroundStep
from atlas.training.watchers.batch_facts import batch_facts, continued_share, digest, row_digests
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.finding import Finding
from atlas.training.watchers.frozen_file import FrozenFile
from atlas.training.watchers.made_anew import Fresh
from atlas.training.watchers.measuring import due, measure, memory_sizes
from atlas.training.watchers.moments import second_moments, share_with_moments
from atlas.training.watchers.observations import MemoryUse, ModelFacts, Probed, Restored
from atlas.training.watchers.record import DESCENTS, EVERY, FIRST_BATCHES, READINGS
from atlas.training.watchers.text_search import TextSearch
from atlas.training.watchers.validation import has_risen


class Watchers:
    """`told`: watchers that have told something, in this start or an earlier one, and after how many rollbacks."""

    def __init__(self, config: RunConfig, state: TrainState, telemetry: TelemetryLogger) -> None:
        self.settings, self.state, self.telemetry = config.watch, state, telemetry
        self.told: dict[str, int] = {}
        self.places: list[Path] = []  # of files that must stay
        self._settings_file: FrozenFile | None = None
        paths = config.data.get("paths")
        self._given_patterns = [str(one) for one in paths] if isinstance(paths, list) else []
        self._actions = {name: getattr(config.watch, name) for name in JUDGES}
        self._restores = config.rollback.enabled and not config.rollback.observe
        self._restored_moments: float | None = None
        self._clock: float | None = None
        self._text = TextSearch(state.record, None, ())
        self._batch: Batch | None = None  # of the step before, where memories are carried
        self.around_step = AroundStep(state, telemetry, None, compares=False)
        self._shares_rows = config.parallel.context > 1  # processes that hold parts of the same rows
        self._groups = state.ranks.world // config.parallel.context

    @property
    def on(self) -> bool:
        """Whether this process records: rank 0, unless every watcher is off."""
        return self.state.ranks.first and self.wanted

    @property
    def wanted(self) -> bool:
        return any(action is not WatchAction.off for action in self._actions.values())

    def begin(self, facts: Facts, folder: Path, corpus: Corpus | None = None, fresh: Fresh | None = None) -> None:
        """Before the first step of this start, in the run's folder. `corpus`: of the data, where there is one;
        `fresh` makes model and optimiser as the start did."""
        self._text = TextSearch(self.state.record, corpus, self._given_patterns)
        twice = {self._actions[name] for name in ("unsaved", "recomputed")} != {WatchAction.off}
        fresh = fresh if self.on and twice else None
        self.around_step = AroundStep(self.state, self.telemetry, fresh, compares=self.on)
        for event in RunFiles(folder, strict=False).of_kind("watch"):
            name, then, before = str(event.get("watch")), event.get("action"), event.get("rollbacks")
            action = self._actions.get(name)
            # A kill, or the limit, came before the rollback that it asked for: as after a spike, it is still to come.
            pending = self._restores and action is WatchAction.rollback and before == self.state.rollbacks
            if action in (WatchAction.warn, then) and not pending:  # not where the settings now ask for more
                self.told[name] = self.state.rollbacks if before is None else int(before)  # older events have none
        self.state.record.facts, self.state.record.step = facts, facts.first_step
        places = [*self.telemetry.places(), folder / CHECKPOINTS]
        self.places = [place for place in places if place.exists()]
        self._settings_file = FrozenFile(folder / CONFIG_FILE) if self.on else None
        if self.on and facts.first_step:
            self._restored_moments = share_with_moments(self.state.optimizer)

    def measures(self, step: int) -> bool:
        """Whether this process measures the model at this step: rank 0, or each its slices."""
        here = self.on or (self.wanted and self.state.slices is not None)
        return here and (due(step) or step == self.state.record.facts.steps)

    def tests(self, step: int) -> bool:
        """Whether all processes test the model at this step: once a start, when no weight is 0 any more."""
        return self.wanted and step == self.state.record.facts.first_step + EVERY

    def see_step(self, result: StepResult, batch: Batch, seconds: float) -> None:
        """After a step, by all ranks; `batch` is what the data source gave, `seconds` what it took to make and train on
        it."""
        digests = self.state.ranks.gather(digest(batch)) if self._compares_rows else [digest(batch)]
        alike = len(set(digests)) < len(digests)
        self.state.record.same_rows = self.state.record.same_rows + 1 if alike else 0
        if not self.on:
            return
        record, of_text = self.state.record, result.text == result.text
        record.add_step(
            self.state.step,
            result.text if of_text else result.recall,
            result.gradient_norm,
            seconds,
            weights=result.weight_norm,
            of_text=of_text,
        )
        optimizer = self.state.optimizer
        record.add_lr(result.lr / (optimizer.lr * optimizer.scale * optimizer.burst))
        record.add_digest(digests[0], sum(digests))
        of_text_rows = ~batch.recall & (batch.weights > 0).any(1)
        record.add_row_losses(loss for loss, text in zip(result.rows, of_text_rows.tolist(), strict=True) if text)
        if record.facts.text:
            record.add_rows(row_digests(batch.inputs[of_text_rows]), self._groups)
        self._text.see_batch(batch)
        if record.facts.carries:
            share, self._batch = continued_share(self._batch, batch), batch
            record.continued.extend(() if share is None else (share,))
        if self.state.step % EVERY == 0:
            record.batches.append(batch_facts(batch))
            record.tails.append(record.batches[-1].counted_tails)
            record.masked.update(record.batches[-1].masked)
            record.counted |= record.batches[-1].counted
            self._text.look(batch)
            record.add_memory(memory_sizes(next(self.state.model.parameters()).device))
        offset = time.time() - time.monotonic()
        if self._clock is not None:
            record.clock_jump = max(record.clock_jump, offset - self._clock, key=abs)
        self._clock = offset
        if self._restored_moments is not None and result.finite:
            record.kept_moments = self._restored_moments, share_with_moments(self.state.optimizer)
            self._restored_moments = None

    def see_model(
        self,
        model: AtlasModel,
        catch: Catch,
        moved: Tensor,
        norms: dict[str, float | None],
        kept_gradients: bool,
    ) -> None:
        """At a step that is measured. `kept_gradients`: it has added its gradients to earlier ones."""
        found = measure(self.state.step, model, catch, moved, norms)
        below, norm = second_moments(self.state.optimizer)
        found = replace(found, kept_gradients=kept_gradients, below_epsilon=below, second_moment=norm)
        self.state.record.add_measured(found)

    def see_reading(self, step: int, loss: float) -> None:
        """A regular reading of the watched rows, in nats per token."""
        self.state.record.watched = [*_before(self.state.record.watched, step)[-(READINGS - 1) :], (step, loss)]

    def see_validation(self, step: int, loss: float) -> None:
        self.state.record.validations = [*_before(self.state.record.validations, step), (step, loss)]

    def see_probes(self, step: int, outcomes: Sequence[dict[str, object]]) -> None:
        """`outcomes`: what probes say of themselves (`NIAHResult.describe`)."""
        record = self.state.record
        record.probed = [probe for probe in record.probed if probe.step < step]
        for one in outcomes:
            level, passed, accuracy, blind, chance, control = (
                one.get(key) for key in ("level", "passed", "accuracy", "key_blind", "chance", "control")
            )
            record.probed.append(
                Probed(step, level, passed, accuracy, blind, chance or 0.0, control)  # type: ignore[arg-type]
            )

    def see_memory_use(self, use: MemoryUse) -> None:
        record = self.state.record
        record.memory_use = [*(one for one in record.memory_use if one.step < use.step), use]

    def see_validation_rows(self, batches: Sequence[Batch]) -> None:
        """The validation batches, before the first step of this start."""
        self._text.see_validation(batches, rows=self._actions["validation_seen"] is not WatchAction.off)

    def see_start(self, rows: int, loss: float) -> None:
        """Before the first step of this start: digest of the first validation batch, and loss of the watched rows."""
        record = self.state.record
        if self.state.step:
            same = record.validation_rows in (None, rows)  # older checkpoints have none
            read = [before for step, before in record.watched if step == self.state.step]
            record.restored = Restored(same, read[-1] if read else None, loss)
        record.validation_rows = rows

    @property
    def model_has_modes(self) -> bool:
        """Whether training and evaluation mode give other outputs, as far as is known."""
        facts = self.state.record.model_facts
        return facts is not None and facts.modes

    def see_mode_gap(self, gap: float) -> None:
        self.state.record.mode_gap = self.state.step, gap

    def see_model_facts(self, found: ModelFacts | str) -> None:
        if isinstance(found, ModelFacts):
            self.state.record.model_facts = found
        else:
            message = f"the model cannot be tested, so leaks, noise, head, reach, parts and slopes say nothing: {found}"
            self.telemetry.event("warning", self.state.step, message=message)

    def see_descent(self, cosine: float | None) -> None:
        """At a step that is measured."""
        if cosine is not None:
            self.state.record.descents = [*self.state.record.descents[-(DESCENTS - 1) :], cosine]

    def see_files(self, removed: Sequence[Path]) -> None:
        """Before a row may be written: a removed file is then written anew. `removed`: what a save has missed."""
        if self.on:
            missing = [place.name for place in self.places if not place.exists()]
            self.state.record.missing += [*missing, *(f"{CHECKPOINTS}/{folder.name}" for folder in removed)]
            self.places = [place for place in self.places if place.exists()]
            if self._settings_file is not None and self._settings_file.edited():
                self.state.record.edited.append(CONFIG_FILE)

    @property
    def _compares_rows(self) -> bool:
        """Whether the processes compare their rows of this step: now and then, and where a digest is kept."""
        several = self.state.ranks.world > 1 and not self._shares_rows
        step = self.state.step
        first = step <= self.state.record.facts.first_step + FIRST_BATCHES
        return several and self.wanted and (first or step % EVERY == 0)

    @property
    def validation_has_risen(self) -> bool:
        return has_risen([loss for _, loss in self.state.record.validations])

    def see_end(self, open_suspicion: str) -> None:
        self.state.record.ended, self.state.record.open_suspicion = True, open_suspicion

    def judge(self, *, starting: bool = False) -> list[tuple[Finding, WatchAction]]:
        """What is new, told by rank 0, and what is to follow: the same on all ranks.

        `starting`: before the first step of a start. What leads to a rollback waits for the look of a run that never
        stopped, which would go back from there.
        """
        return self.state.ranks.from_first(lambda: self._judge({WatchAction.rollback} if starting else set()))

    def _judge(self, waiting: Set[WatchAction]) -> list[tuple[Finding, WatchAction]]:
        new = []
        for name, judge in JUDGES.items():
            action = self._actions[name]
            if action in (WatchAction.off, *waiting) or (name in self.told and not self._comes_again(name)):
                continue
            found = judge(self.state.record)
            if found is not None:
                self.told[name] = self.state.rollbacks
                numbers = found.record() | {"rollbacks": self.state.rollbacks}
                self.telemetry.event("watch", self.state.step, **numbers, action=action.value)
                new.append((found, action))
        return new

    def _comes_again(self, name: str) -> bool:
        """Whether what it finds now is new: a rollback has undone what it told of."""
        return self._actions[name] is WatchAction.rollback and self.told[name] < self.state.rollbacks


def _before(series: Sequence[tuple[int, float]], step: int) -> list[tuple[int, float]]:
    """Without what an interrupted start has measured at this step already."""
    return [one for one in series if one[0] < step]


def as_reading(found: Finding) -> Reading:
    """For the rollback rule: it goes back to before the last step known to be good."""
    return Reading("watch", found.step, True, reason=found.message, passed_step=found.since)
