"""When to roll back, and how far: a pure function of the recorded history. No clock, no disk, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atlas.config import RollbackConfig
from atlas.training.history import Reading


@dataclass(frozen=True)
class Decision:
    """Restore the newest healthy checkpoint of a step before `before_step`, or abort where the limit is reached."""

    trigger: str
    reason: str
    before_step: int  # the first step that is not known to be good
    abort: bool


def decide(history: Sequence[Reading], rollbacks: int, settings: RollbackConfig) -> Decision | None:
    """What the newest reading asks for, given the rollbacks already done; None: go on."""
    if not history:
        return None
    newest = history[-1]
    if not newest.bad or newest.kind not in settings.triggers:
        return None
    if newest.kind == "perplexity" and bad_streak(history) < settings.patience:
        return None
    return Decision(newest.kind, newest.reason, last_good_step(history) + 1, rollbacks >= settings.limit)


def bad_streak(history: Sequence[Reading]) -> int:
    """How many of the newest perplexity readings in a row are bad."""
    streak = 0
    for reading in reversed([reading for reading in history if reading.kind == "perplexity"]):
        if not reading.bad:
            break
        streak += 1
    return streak


def last_good_step(history: Sequence[Reading]) -> int:
    """Step of the newest good perplexity reading; 0 if there is none."""
    good = (reading.step for reading in reversed(history) if reading.kind == "perplexity" and not reading.bad)
    return next(good, 0)
