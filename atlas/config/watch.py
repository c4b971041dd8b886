"""What a run notices by itself: the registry of watchers, and what each does about a finding.

The judges are in `atlas/training/watchers/`.
"""

# ruff: noqa: RUF009 (`_watcher` returns a field: its texts stand beside the setting)

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import Any

from atlas.config.choices import Choices
from atlas.config.errors import require


class WatchAction(StrEnum):
    warn = "warn"  # told once
    abort = "abort"  # told, saved, and the run ends with status failed
    rollback = "rollback"  # told, and the run goes back as after a spike
    off = "off"


@dataclass(frozen=True)
class WatcherEntry:
    name: str
    default: WatchAction
    sees: str  # in one line
    undone: bool  # a rollback can undo it


def _watcher(sees: str, *, undone: bool = False, default: WatchAction = WatchAction.warn) -> Any:
    return field(default=default, metadata={"sees": sees, "undone": undone})


@dataclass
class WatchConfig(Choices, prefix="watch."):
    """`watch.<name>`: what follows when the watcher of this name finds something."""

    first_loss: WatchAction = _watcher(
        "a first loss far above what a sound start can have, or weights of init_from that know nothing"
    )
    plateau: WatchAction = _watcher("the loss never falls, or stays near a uniform guess or above the bigram's")
    divergence: WatchAction = _watcher(
        "the watched perplexity rises over hundreds of steps, without a spike", undone=True
    )
    frozen_weights: WatchAction = _watcher("weights that no step moves: no gradient, or updates lost to rounding")
    clipping: WatchAction = _watcher("every gradient is clipped to a small part of itself")
    gradients: WatchAction = _watcher("steps that add their gradients to those of earlier steps")
    gradient_jump: WatchAction = _watcher("a step whose gradient is far larger than usual", undone=True)
    optimizer_state: WatchAction = _watcher("a resumed run has lost the moments of its optimiser")
    epsilon: WatchAction = _watcher("an optimiser whose epsilon is larger than most gradients")
    second_moment: WatchAction = _watcher(
        "a second moment far larger than the gradients: one that was too large still divides every step", undone=True
    )
    updates: WatchAction = _watcher("steps that do not go down the gradient")
    side_effects: WatchAction = _watcher("a validation, metric or checkpoint that changes the model")
    weights_jump: WatchAction = _watcher("weights that change in one step as in no other")
    learning_rate: WatchAction = _watcher(
        "a learning rate that is low for most of the run: a schedule that has ended too early"
    )
    loss_too_low: WatchAction = _watcher("a loss that is far too low too early: answers leak")
    by_heart: WatchAction = _watcher("a text that was read several times and is known by heart")
    labels: WatchAction = _watcher("targets that are not the next token")
    leaks: WatchAction = _watcher("outputs that depend on other rows of the batch, or on tokens after them")
    noise: WatchAction = _watcher("outputs that differ from one reading of a text to the next, in evaluation")
    modes: WatchAction = _watcher("a loss that is far higher in evaluation than in training mode")
    restored: WatchAction = _watcher("a resumed run whose weights give another loss, or that validates on other rows")
    unsaved: WatchAction = _watcher("a part of the model or the optimiser that is in no checkpoint")
    recomputed: WatchAction = _watcher("a step whose loss or gradients are not those of its batch")
    head: WatchAction = _watcher("losses that are not the cross entropies of the logits that generation reads")
    reach: WatchAction = _watcher(
        "attention or memory that reaches less far back than it should, or attention without order"
    )
    parts: WatchAction = _watcher("a text that is read in parts gives other outputs than read at once")
    slopes: WatchAction = _watcher("gradients that are not the slope of the loss, in a part of the model")
    validation_loss: WatchAction = _watcher("a validation loss that is no number", undone=True)
    past_best: WatchAction = _watcher("a validation loss that ends far above its lowest one")
    last_steps: WatchAction = _watcher("damage in the last steps, too late for a rollback to be decided")
    memory_unused: WatchAction = _watcher(
        "the loss is the same with the memory switched off or, from step 500 on, writing nothing"
    )
    writes: WatchAction = _watcher("a memory whose writes lead away from what it is given, or make the loss worse")
    rates_low: WatchAction = _watcher("a memory whose inner rates are near 0 writes nothing", undone=True)
    rates_high: WatchAction = _watcher("inner rates near the range where float32 gradients are wrong", undone=True)
    gates: WatchAction = _watcher(
        "gates of a layer that are all open, all shut, or the same for every token", undone=True
    )
    forgets: WatchAction = _watcher("a memory that forgets what it writes within some tens of tokens")
    norm_bound: WatchAction = _watcher("a memory whose weights are always at their norm bound", undone=True)
    queries: WatchAction = _watcher("different queries that have become one", undone=True)
    pairs: WatchAction = _watcher("different keys or values that have become one", undone=True)
    resets: WatchAction = _watcher("local memories that are never reset, or at every chunk")
    global_memory: WatchAction = _watcher("a global memory that is never written, or never read after a write")
    key_blind: WatchAction = _watcher("recall that is no better than a reader who ignores the key")
    repeated_batch: WatchAction = _watcher("the same batches again and again")
    data_again: WatchAction = _watcher("a resumed run that reads its first batches again")
    same_rows: WatchAction = _watcher("rows of a batch that are the same, or processes that train on the same rows")
    text_part: WatchAction = _watcher("rows that all come from one part of the text: it is read in order")
    rows_again: WatchAction = _watcher("rows that come again before a quarter of the text is read")
    other_text: WatchAction = _watcher("a text that stands in none of the files that data.paths names")
    mixed_parts: WatchAction = _watcher("rows of training that are of the validation text, or the other way round")
    validation_seen: WatchAction = _watcher("validation rows that training reads as well, of a source without `corpus`")
    carried_rows: WatchAction = _watcher("rows that are said to go on, and begin with another text")
    one_symbol: WatchAction = _watcher("text that is one repeated symbol")
    padding: WatchAction = _watcher("most targets of text rows are padding, or padding that counts in the loss")
    masked_symbol: WatchAction = _watcher("a symbol of the text that never counts as a target")
    noise_rows: WatchAction = _watcher("training rows as hard as noise, where the validation rows are not")
    slowdown: WatchAction = _watcher("steps that take four times as long as at the start")
    memory_grows: WatchAction = _watcher("memory of the process or its device that grows step by step")
    clock: WatchAction = _watcher("a wall clock that jumps")
    files: WatchAction = _watcher("files of the run that somebody deleted, and an edited config.yaml")

    def check_rollbacks(self) -> None:
        for entry in WATCHERS.values():
            action = getattr(self, entry.name)
            sensible = entry.undone or action is not WatchAction.rollback
            require(sensible, f"watch.{entry.name}", action, "warn, abort or off: a rollback cannot undo it")


WATCHERS = {
    one.name: WatcherEntry(one.name, one.default, one.metadata["sees"], one.metadata["undone"])
    for one in fields(WatchConfig)
    if one.default is not MISSING
}


def watcher_table() -> list[str]:
    """The registry as the table of docs/watchers.md."""
    lines = ["| `watch.` | what it notices | default |", "|---|---|---|"]
    return [*lines, *(f"| `{one.name}` | {one.sees} | {one.default} |" for one in WATCHERS.values())]
