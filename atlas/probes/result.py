"""The result of a probe: passed, failed or not measured, with its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from math import isfinite
from typing import Any

from atlas.config import RECALL, level_of


class Outcome(StrEnum):
    passed = "passed"
    failed = "failed"
    not_measured = "not_measured"


NOT_ASKED = "NOT MEASURED: left out by niah.levels"


@dataclass(frozen=True)
class ProbeCell:
    """One measurement of a level: a mean over `samples` needles. What was not measured is None, with the reason."""

    task: str  # what was asked: a recall task, a memory, or the features of the accumulator
    haystack: str  # what the needle was buried under: random keys, noise, text
    length: int  # tokens of the sequence, or keys written after the needle
    depth: float | None = None  # place of the needle in the haystack, 0 = its start
    span: str = ""  # recall: whether needle and question share a shard
    accuracy: float | None = None
    control: float | None = None  # the same with the memory off
    frozen: float | None = None  # the same with a memory that only reads
    without: float | None = None  # recall: the same by a model trained without a memory
    likelihood: float | None = None  # mean probability of the whole answer
    chance: float = 0.0  # of a guess that has read nothing
    key_blind: Mapping[str, float] = field(default_factory=dict)  # recall: the same by readers that ignore the key
    expected: float | None = None  # accumulator: what the algebra predicts
    samples: int = 0
    reason: str = ""  # why it was not measured


@dataclass(frozen=True)
class NIAHResult:
    """Result of one level at one step. Only `judge` makes one, so that an unmeasured level never passes."""

    step: int
    level: str
    outcome: Outcome
    reason: str  # why it failed or was not measured; "" where it passed
    accuracy: float | None  # share of needles found, or cosine with the value
    control: float | None  # the same without the memory
    chance: float
    threshold: float
    key_blind: float | None = None  # recall: the same by the best reader that ignores the key
    expected: float | None = None  # accumulator: what the algebra predicts
    seconds: float = 0.0
    cells: tuple[ProbeCell, ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.outcome is Outcome.failed

    @property
    def metrics(self) -> dict[str, float | None]:
        own = {"accuracy": self.accuracy, "control": self.control, "chance": self.chance}
        metrics = {f"niah/{self.level}/{name}": value for name, value in own.items()}
        if self.level == RECALL.name:
            metrics |= {f"niah/{self.level}/key_blind": self.key_blind, "niah/accuracy": self.accuracy}
        return metrics

    @property
    def verdict(self) -> str:
        """One line for the closing table."""
        word = self.outcome.value.replace("_", " ").upper()
        if self.accuracy is None:
            return f"{word}: {self.reason}"
        text = level_of(self.level).unit.text
        numbers = f"{text(self.accuracy)} with memory, {text(self.control)} without"
        blind = "" if self.key_blind is None else f"key-blind {text(self.key_blind)}, "
        wanted = f"chance {text(self.chance)}, {blind}wanted >= {text(self.threshold)}"
        return f"{word}: {numbers} ({wanted})" + (f"; {self.reason}" if self.reason else "")

    def describe(self) -> dict[str, Any]:
        """For an event and the summary: the verdict and the numbers behind it, without the step and the cells."""
        return {
            "level": self.level,
            "outcome": self.outcome.value,
            "passed": {Outcome.passed: True, Outcome.failed: False}.get(self.outcome),
            "reason": self.reason,
            "accuracy": self.accuracy,
            "control": self.control,
            "chance": self.chance,
            "key_blind": self.key_blind,
            "threshold": self.threshold,
            "expected": self.expected,
            "seconds": round(self.seconds, 3),
            "verdict": self.verdict,
        }

    def record(self) -> dict[str, Any]:
        """Everything, as values that JSON can hold."""
        cells = [asdict(cell) for cell in self.cells]
        return {"step": self.step, **self.describe(), "details": dict(self.details), "cells": cells}


def judge(
    *,
    step: int,
    level: str,
    threshold: float,
    accuracy: float | None = None,
    control: float | None = None,
    chance: float = 0.0,
    faults: Sequence[str] = (),
    missing: str = "",
    key_blind: float | None = None,
    certain: float | None = None,
    expected: float | None = None,
    cells: Sequence[ProbeCell] = (),
    details: Mapping[str, float] | None = None,
) -> NIAHResult:
    """The result of a measurement. `missing` says why there is none; `faults` are errors that the probe detected.

    A fault fails the level whatever the accuracy; a number that is missing or not finite is never a pass. Where
    `key_blind` is given, `certain`, the lower end of the accuracy's confidence interval, must be above it. A control
    at or above the threshold fails the level. Numbers may be of torch or numpy: the run's files take Python's alone.
    """
    accuracy, control, key_blind, expected = (
        None if number is None else float(number) for number in (accuracy, control, key_blind, expected)
    )
    chance = float(chance)
    if not missing and (accuracy is None or not isfinite(accuracy)):
        missing = "the outputs are not finite"
    if not missing and (control is None or not isfinite(control)):
        missing = "the control was not measured"
    if not missing and level == RECALL.name and key_blind is None:
        missing = "readers that ignore the key were not measured"
    reason, outcome = "; ".join(faults), Outcome.passed
    if faults:
        outcome = Outcome.failed
    elif missing:
        outcome, reason = Outcome.not_measured, missing
    elif accuracy is not None and accuracy < threshold:
        outcome, reason = Outcome.failed, "below the threshold"
    elif control is not None and control >= threshold:
        outcome, reason = Outcome.failed, "the control reaches the threshold too: the pair is not what was found"
    elif key_blind is not None and not (certain or 0.0) > key_blind:
        sure = f"only {certain or 0.0:.1%} are certain, and readers that ignore the key find {key_blind:.1%}"
        outcome, reason = Outcome.failed, f"{sure} (niah.samples, niah.distractors, niah.depths)"
    return NIAHResult(
        step=step,
        level=level,
        outcome=outcome,
        reason=reason,
        accuracy=None if missing else accuracy,
        control=control if control is not None and isfinite(control) else None,
        chance=chance,
        threshold=threshold,
        key_blind=key_blind,
        expected=expected,
        cells=tuple(cells),
        details={name: float(value) for name, value in (details or {}).items() if isfinite(value)},
    )
