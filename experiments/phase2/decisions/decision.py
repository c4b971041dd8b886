"""A decision: the outcome of a written rule on recorded runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    decided = "DECIDED"
    locked = "LOCKED"
    stop = "STOP"


@dataclass(frozen=True)
class Decision:
    """What a protocol came to. `headline` fits behind the outcome in one line, `reason` holds the numbers."""

    outcome: Outcome
    headline: str
    reason: str
    passed: bool

    @property
    def line(self) -> str:
        return f"{self.outcome} ({self.headline})"


@dataclass(frozen=True)
class Table:
    """Evidence for the reader; `note` says what its columns are."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


@dataclass(frozen=True)
class Provenance:
    """Where the evidence comes from, the same for all of its runs."""

    measured: str  # start of the first run, UTC
    command: str
    sweep: str  # name of its folder
    runs: int
    minutes: float  # from the start of the first run to the end of the last
    device: str
    versions: dict[str, str]
    git: str
