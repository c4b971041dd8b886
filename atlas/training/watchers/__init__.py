"""Watchers: pure functions of the numbers that a run records. Each returns what it found, or None."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from atlas.config.watch import WATCHERS
from atlas.training.watchers import data, learning, machine, memory, model, weights
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
        data.labels,
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
        learning.validation_loss,
        learning.past_best,
        learning.last_steps,
        memory.memory_unused,
        memory.writes,
        memory.resets,
        memory.global_memory,
        memory.key_blind,
        data.repeated_batch,
        data.data_again,
        data.same_rows,
        data.text_part,
        data.rows_again,
        data.other_text,
        data.mixed_parts,
        data.validation_seen,
        data.carried_rows,
        data.one_symbol,
        data.padding,
        data.masked_symbol,
        data.noise_rows,
        machine.slowdown,
        machine.clock,
        machine.memory_grows,
        machine.files,
    )
} | {judge.watch: judge for judge in memory.LIMITS}
JUDGES = {name: _JUDGES[name] for name in WATCHERS}
