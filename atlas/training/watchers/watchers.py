"""`Watchers`: records what the run sees, lets the judges look at it, and tells each finding once.

Rank 0 records and judges; what follows from a finding is decided by all ranks together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite, log
from pathlib import Path
from typing import Any

from torch import Tensor

from atlas.config import Fusion, RunConfig, WatchAction
from atlas.data.batch import Batch
from atlas.data.bigram import BIGRAM
from atlas.data.corpus import Corpus
from atlas.data.needles import Tokens
from atlas.models.language_model import AtlasModel
from atlas.telemetry.jsonl import JsonlError
from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.run_files import CHECKPOINTS, CONFIG_FILE, RunFiles
from atlas.training.memory_norms import Catch
from atlas.training.state import TrainState
from atlas.training.step import StepResult, TrainStep
from atlas.training.watch.history import Reading
from atlas.training.watchers import JUDGES
from atlas.training.watchers.apart import standing
from atlas.training.watchers.finding import Finding
from atlas.training.watchers.frozen_file import FrozenFile
from atlas.training.watchers.held_out import HeldOut
from atlas.training.watchers.learning import has_risen
from atlas.training.watchers.made_anew import Fresh, can_be_made_twice, made_anew, saved
from atlas.training.watchers.measuring import (
    SEARCHED,
    batch_facts,
    continued_share,
    digest,
    due,
    measure,
    memory_sizes,
    places,
    row_digests,
    second_moments,
    share_with_moments,
)
from atlas.training.watchers.own_files import lettered, stand_in, texts_of
from atlas.training.watchers.record import (
    DESCENTS,
    FIRST_BATCHES,
    PLACES,
    READINGS,
    Facts,
    MemoryUse,
    ModelFacts,
    Probed,
    Restored,
)
from atlas.training.watchers.side_effects import Left, changed, left

LOOKS = 100  # at most, for rows in the training text
EVERY = 10  # steps between two looks at the record
HELD = 80  # steps of a start, of which each tenth is searched for in the validation text
REHEARSED = 20  # step of a start that is taken a second time: by then no moment is 0


def facts_of(config: RunConfig, baseline: float | None, first_step: int, text: int = 0, name: str = BIGRAM) -> Facts:
    """What is known before step 1. `text`: tokens of the training text, 0 where there is none; `name`: of the
    baseline."""
    memory, chunks = config.model.memory, config.chunk_size
    additive = config.model.fusion is Fusion.additive
    unused = {  # the global W_init only where a row begins; the sharpness by polarisation alone
        ".global_memory.": config.train.carry_memory,
        ".log_sharpness": additive and config.train.gate.polarisation_peak == 0,
    }
    warmup = config.optim.get("warmup", 0)
    return Facts(
        steps=config.train.steps,
        warmup=warmup if isinstance(warmup, int) else 0,
        uniform=log(config.model.vocabulary),
        width=config.model.width,
        head_width=config.model.width // config.model.heads,
        baseline=baseline if baseline is not None and isfinite(baseline) else None,
        baseline_name=name,
        clip=0.0 if config.stage2.enabled else config.train.gradient_clip,  # there the limit changes
        memory=memory.enabled,
        has_global=memory.enabled and memory.use_global,
        gated=memory.enabled and not additive,
        carries=config.train.carry_memory,
        sequence=config.train.sequence,
        shard=chunks.shard,
        global_size=chunks.global_size,
        largest_local=max(chunks.local),
        tokens=config.train.batch_size * config.train.sequence,
        watched=min(config.rollback.watch_rows, config.train.batch_size) * config.train.sequence,
        text=text,
        first_step=first_step,
        given_weights=config.init_from is not None,
        unused=tuple(part for part, holds in unused.items() if holds),
    )


class Watchers:
    """`told`: names of the watchers that have told something, in this start or an earlier one."""

    def __init__(self, config: RunConfig, state: TrainState, telemetry: TelemetryLogger) -> None:
        self.settings, self.state, self.telemetry = config.watch, state, telemetry
        self.told: set[str] = set()
        self.places: list[Path] = []  # of files that must stay
        self._settings_file: FrozenFile | None = None
        paths = config.data.get("paths")
        self._given_patterns = [str(one) for one in paths] if isinstance(paths, list) else []
        self._actions = {name: getattr(config.watch, name) for name in JUDGES}
        self._restored_moments: float | None = None
        self._clock: float | None = None
        self._fresh: Fresh | None = None
        self._patterns: list[str] = []  # of the files of the text, until it is looked for there
        self._saved: dict[str, Any] | None = None  # before the step that is rehearsed
        self._left: Left | None = None  # by the step before, where what is between two steps is compared
        self._held_out: Tokens | None = None  # the text of validation
        self._rows_held_out: HeldOut | None = None  # where there is no such text
        self._has_text = False
        self._text: Tokens | None = None  # of training, where it is searched for the first rows
        self._looks = 0
        self._batch: Batch | None = None  # of the step before, where memories are carried
        self._shares_rows = config.parallel.context > 1  # processes that hold parts of the same rows

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
        self._fresh, text = fresh, None if corpus is None else corpus.train
        self._has_text = text is not None
        self._patterns = self._given_patterns if text is not None and text.itemsize == 1 else []
        if corpus is not None and 0 < corpus.train.nbytes <= SEARCHED - corpus.validation.nbytes:
            self._text, self._held_out = corpus.train, corpus.validation
        with suppress(OSError, JsonlError):
            self.told |= {str(event.get("watch")) for event in RunFiles(folder).of_kind("watch")}
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
        record.add_lr(result.lr / (self.state.optimizer.scale * self.state.optimizer.burst))
        record.add_digest(sum(digests))
        of_text_rows = ~batch.recall & (batch.weights > 0).any(1)
        record.add_row_losses(loss for loss, text in zip(result.rows, of_text_rows.tolist(), strict=True) if text)
        if record.facts.text:
            record.add_rows(row_digests(batch.inputs[of_text_rows]))
        if self._rows_held_out is not None:
            self._rows_held_out.see(batch)
            record.validation_seen = self._rows_held_out.share
        if record.facts.carries:
            share, self._batch = continued_share(self._batch, batch), batch
            record.continued.extend(() if share is None else (share,))
        if self.state.step % EVERY == 0:
            record.batches.append(batch_facts(batch))
            record.tails.append(record.batches[-1].counted_tails)
            record.masked.update(record.batches[-1].masked)
            record.counted |= record.batches[-1].counted
            if self._text is not None and len(record.places) < PLACES and self._looks < LOOKS:
                record.places += places(self._text, batch)
                self._looks += 1
            if self._text is not None and self._held_out is not None and record.step <= record.facts.first_step + HELD:
                record.training_held_out += standing(batch, self._held_out, but_not_in=self._text)[0]
            record.add_memory(memory_sizes(next(self.state.model.parameters()).device))
            self._look_into_files()
        offset = time.time() - time.monotonic()
        if self._clock is not None:
            record.clock_jump = max(record.clock_jump, offset - self._clock, key=abs)
        self._clock = offset
        if self._restored_moments is not None and result.finite:
            record.kept_moments = self._restored_moments, share_with_moments(self.state.optimizer)
            self._restored_moments = None

    def _look_into_files(self) -> None:
        """Once a start."""
        if self._patterns and self._text is not None:
            pieces, texts = lettered(self._text), texts_of(self._patterns, len(self._text))
            self.state.record.in_files = (stand_in(texts, pieces), len(pieces)) if texts else None
        self._patterns = []

    def rehearses(self, step: int) -> bool:
        """Whether this process takes the step a second time, from what is saved before it: once a start."""
        wanted = {self._actions[name] for name in ("unsaved", "recomputed")} != {WatchAction.off}
        wanted = wanted and self.on and self._fresh is not None
        return wanted and step == self.state.record.facts.first_step + REHEARSED and can_be_made_twice(self.state)

    def leave(self, batch: Batch, step: TrainStep, result: StepResult) -> None:
        """Right after a step."""
        compares = self.on and self.state.step % EVERY == 0 and self.state.record.side_effects is None
        self._left = left(self._place, self.state.model) if compares else None
        if self._saved is not None:
            if result.finite:
                self._rehearse(batch, step, result)
            self._saved = None

    def prepare(self, step: int) -> None:
        """Right before a step."""
        self._saved = saved(self.state) if self.rehearses(step) else None

    def _rehearse(self, batch: Batch, step: TrainStep, result: StepResult) -> None:
        assert self._saved is not None
        assert self._fresh is not None
        record = self.state.record
        try:
            record.unsaved, record.recomputed = made_anew(self.state, self._saved, self._fresh, step, batch, result)
        except Exception as error:  # what a part of the user's raises is no reason to end a run
            told = f"{type(error).__name__}: {error}"
            message = f"the step cannot be taken a second time, so unsaved and recomputed say nothing: {told}"
            self.telemetry.event("notice", self.state.step, message=message)

    def come_back(self) -> None:
        """After all that is measured behind a step."""
        if self._left is not None and (names := changed(self._left, left(self._place, self.state.model))):
            self.state.record.side_effects = self.state.step, names
        self._left = None

    @property
    def _place(self) -> tuple[int, int]:
        return self.state.segment, self.state.step

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
        if self._text is not None:
            self.state.record.validation_known = standing(batches[0].to("cpu"), self._text)
        if not self._has_text and self._actions["validation_seen"] is not WatchAction.off:
            held_out = HeldOut([batch.to("cpu") for batch in batches])
            self._rows_held_out = held_out if held_out.compares else None

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

    def judge(self) -> list[tuple[Finding, WatchAction]]:
        """What is new, told by rank 0, and what is to follow: the same on all ranks."""
        return self.state.ranks.from_first(self._judge)

    def _judge(self) -> list[tuple[Finding, WatchAction]]:
        new = []
        for name, judge in JUDGES.items():
            action = self._actions[name]
            if action is WatchAction.off or name in self.told:
                continue
            found = judge(self.state.record)
            if found is not None:
                self.told.add(name)
                self.telemetry.event("watch", self.state.step, **found.record(), action=action.value)
                new.append((found, action))
        return new


def _before(series: Sequence[tuple[int, float]], step: int) -> list[tuple[int, float]]:
    """Without what an interrupted start has measured at this step already."""
    return [one for one in series if one[0] < step]


def as_reading(found: Finding) -> Reading:
    """For the rollback rule: it goes back to before the last step known to be good."""
    return Reading("watch", found.step, True, reason=found.message, passed_step=found.since)
