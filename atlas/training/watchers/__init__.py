"""Watchers: pure functions of the numbers that a run records. Each returns what it found, or None."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from atlas.config.watch import WATCHERS
from atlas.training.watchers import (
    batches,
    learning,
    machine,
    memory,
    memory_limits,
    model,
    symbols,
    text,
    validation,
    weights,
)
from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import Record
from atlas.training.watchers.side_effects import side_effects

Judge = Callable[[Record], Finding | None]

_JUDGES: Mapping[str, Judge] = {
    judge.__name__: judge
    for judge in (
        learning.first_loss,
        learning.plateau,
        learning.divergence,
        weights.frozen_weights,
        learning.clipping,
        weights.gradients,
        weights.gradient_jump,
        weights.optimizer_state,
        weights.epsilon,
        weights.second_moment,
        weights.weights_jump,
        weights.updates,
        side_effects,
        learning.learning_rate,
        learning.loss_too_low,
        learning.by_heart,
        batches.labels,
        model.leaks,
        model.noise,
        model.modes,
        model.restored,
        model.unsaved,
        model.recomputed,
        model.head,
        model.reach,
        model.parts,
        model.slopes,
        validation.validation_loss,
        validation.past_best,
        validation.last_steps,
        memory.memory_unused,
        memory.writes,
        memory.resets,
        memory.global_memory,
        memory.key_blind,
        batches.repeated_batch,
        batches.data_again,
        batches.same_rows,
        text.text_part,
        text.rows_again,
        text.other_text,
        text.mixed_parts,
        text.validation_seen,
        batches.carried_rows,
        symbols.one_symbol,
        symbols.padding,
        symbols.masked_symbol,
        symbols.noise_rows,
        machine.slowdown,
        machine.clock,
        machine.memory_grows,
        machine.files,
    )
} | {judge.watch: judge for judge in memory_limits.LIMITS}
JUDGES = {name: _JUDGES[name] for name in WATCHERS}
