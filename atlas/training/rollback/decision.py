"""When to roll back, and how far: a pure function of the readings, the rollbacks so far and the settings.

Which reading is bad is said where it is added (`history.py`). No clock, no disk, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from atlas.config import RollbackConfig
from atlas.training.rollback.history import Reading


class Verdict(StrEnum):
    restore = "restore"  # the newest healthy checkpoint of a step before `before_step`
    abort = "abort"  # would restore, but the limit is reached
    record = "record"  # log and continue: rollback is off or observes, or the kind is no trigger


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    trigger: str
    reason: str
    before_step: int  # the first step not known to be good


def decide(history: Sequence[Reading], rollbacks: int, settings: RollbackConfig) -> Decision | None:
    """The decision on the newest reading, after `rollbacks` earlier ones; None: continue."""
    newest = history[-1] if history else None
    if newest is None or not newest.bad:
        return None
    if newest.kind == "perplexity" and isfinite(newest.value) and bad_streak(history) < settings.patience:
        return None
    verdict = Verdict.abort if rollbacks >= settings.limit else Verdict.restore
    if not settings.enabled or settings.observe or newest.kind not in (*settings.triggers, "watch"):
        verdict = Verdict.record
    good = last_good_step(history) if newest.passed_step is None else newest.passed_step
    return Decision(verdict, newest.kind, newest.reason, good + 1)


def bad_streak(history: Sequence[Reading]) -> int:
    """Number of bad perplexity readings in a row, up to the newest one."""
    streak = 0
    for reading in reversed([reading for reading in history if reading.kind == "perplexity"]):
        if not reading.bad:
            break
        streak += 1
    return streak


def last_good_step(history: Sequence[Reading]) -> int:
    """Step of the newest perplexity reading that is neither bad nor suspicious; 0 if there is none."""
    perplexities = [reading for reading in history if reading.kind == "perplexity"]
    return next((reading.step for reading in reversed(perplexities) if not (reading.bad or reading.suspicious)), 0)
