"""The seven checks of the exit gate, and what a check came to. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class CheckOutcome(StrEnum):
    passed = "PASSED"
    locked = "LOCKED"  # a decision that chose one of the candidates
    decided = "DECIDED"
    out_of_reach = "DECIDED, 5x is out of reach on this device"
    stop = "STOP"  # a decision that no candidate is good enough
    failed = "FAILED"
    not_run = "NOT RUN"


PASSING = (CheckOutcome.passed, CheckOutcome.locked, CheckOutcome.decided, CheckOutcome.out_of_reach)


@dataclass(frozen=True)
class Finding:
    """`detail` is short and stands in the closing lines; `evidence` are sentences that say why."""

    outcome: CheckOutcome
    detail: str = ""
    evidence: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.outcome in PASSING

    @property
    def line(self) -> str:
        return f"{self.outcome.value} ({self.detail})" if self.detail else self.outcome.value


NOT_RUN = Finding(CheckOutcome.not_run)


@dataclass(frozen=True)
class ExitCheck:
    """`criterion` says what must hold, with the ids of the requirements."""

    id: str
    name: str
    criterion: str


CHECKS = (
    ExitCheck("G2-1", "Chunk sizes", "chunk sizes decided by protocol 4.1 (AC-P2-1)"),
    ExitCheck("G2-2", "NIAH frequency", "probes cost less than 1 % at the frequency of protocol 4.2 (AC-P2-2)"),
    ExitCheck(
        "G2-3",
        "Q-K projection norm",
        "M_persistent and norm_persistent are injected at every shard boundary (AC-P2-3), and no gradient crosses one"
        " through M_t (AC-P2-7)",
    ),
    ExitCheck(
        "G2-4", "1000 steps stable", "1000 steps of the default configuration: no crash, no OOM, no NaN (AC-P2-4)"
    ),
    ExitCheck("G2-5", "NIAH accuracy", "every NIAH level above 80 % after these steps (AC-P2-5)"),
    ExitCheck("G2-6", "Rollback test", "a forced spike is rolled back and overcome, a calm run never is (AC-P2-6)"),
    ExitCheck("G2-7", "PPL delta telemetry", "ppl_delta in metrics.jsonl"),
)


def failed(detail: str, *evidence: str, numbers: Mapping[str, Any] | None = None) -> Finding:
    return Finding(CheckOutcome.failed, detail, evidence, numbers or {})


def passed(detail: str = "", *evidence: str, numbers: Mapping[str, Any] | None = None) -> Finding:
    return Finding(CheckOutcome.passed, detail, evidence, numbers or {})
