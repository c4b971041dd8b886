"""Decisions by written rules: decision.json, decision.md and the document. Imports no torch.

A decision.json holds the evidence it was made from, so that anyone can make the decision again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from atlas.config import require
from experiments.phase2.sweeps import RecordedSweep, readable

DATA = "data"  # folder of the evidence, beside the document
HEAD = """\
# Phase 2 decisions

Written by `python -m experiments.phase2.decide` from recorded runs; do not edit. `make decisions` measures all again.
The evidence is in [data](data), how to read it in [README.md](README.md)."""


class DecisionOutcome(StrEnum):
    decided = "DECIDED"
    locked = "LOCKED"
    stop = "STOP"


@dataclass(frozen=True)
class ProtocolDecision:
    """What a rule came to. `headline` stands behind the outcome in one line, `reason` holds the numbers."""

    outcome: DecisionOutcome
    headline: str
    reason: str
    passed: bool

    @property
    def line(self) -> str:
        return f"{self.outcome} ({self.headline})"


@dataclass(frozen=True)
class EvidenceTable:
    """`note` says what the columns are."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


@dataclass(frozen=True)
class Protocol:
    """A written rule. `evidence` is the dataclass of one job; `gather`, `decide` and `tables` take sequences of it."""

    name: str
    experiment: str  # the sweep that measures it
    title: str
    rule: str
    evidence: Callable[..., Any]
    gather: Callable[[RecordedSweep], Sequence[Any]]
    decide: Callable[[Sequence[Any]], ProtocolDecision]
    tables: Callable[[Sequence[Any]], Sequence[EvidenceTable]]


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


@dataclass(frozen=True)
class DecisionRecord:
    """Evidence with its provenance. The decision is computed from the evidence each time it is asked for."""

    protocol: Protocol
    provenance: Provenance
    evidence: Sequence[Any]

    @property
    def decision(self) -> ProtocolDecision:
        return self.protocol.decide(self.evidence)

    def json(self) -> str:
        """The text of decision.json, a line for each run."""
        decision = self.decision
        head = {
            "protocol": self.protocol.name,
            "outcome": str(decision.outcome),
            "headline": decision.headline,
            "reason": decision.reason,
            "passed": decision.passed,
            "rule": self.protocol.rule,
            "provenance": asdict(self.provenance),
        }
        runs = ",\n  ".join(json.dumps(asdict(run)) for run in self.evidence)
        opened = json.dumps(head, indent=1).removesuffix("\n}")
        return f'{opened},\n "evidence": [\n  {runs}\n ]\n}}\n'

    def markdown(self) -> str:
        """The text of decision.md: a section of the second level."""
        decision, source = self.decision, self.provenance
        parts = [f"## {self.protocol.title}: {decision.line}", decision.reason]
        for table in self.protocol.tables(self.evidence):
            lines = [table.head, ["---"] * len(table.head), *table.rows]
            rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
            parts += [f"### {table.title}", rows, table.note]
        versions = ", ".join(f"{name} {number}" for name, number in source.versions.items())
        changed = " (with changes that were not committed)" if source.git.endswith("+changes") else ""
        where = (
            f"{source.runs} runs one after the other on {source.device}, {source.measured}, {source.minutes:g} minutes"
            f" in all. Revision {source.git.removesuffix('+changes') or 'unknown'}{changed}; {versions}."
        )
        commands = f"    {source.command}\n    python -m experiments.phase2.decide outputs/sweeps/<time>"
        parts += ["### Rule, written before it ran", self.protocol.rule]
        parts += ["### Where the numbers come from", where, commands]
        return "\n\n".join(parts)


def make_record(sweep: RecordedSweep, protocol: Protocol) -> DecisionRecord:
    """Raises `ConfigError` for a sweep that is no sound evidence."""
    with readable(sweep.folder):
        evidence = protocol.gather(sweep)
        first, last = sweep.jobs[0], sweep.jobs[-1]
        began = first.times("start")[0]
        provenance = Provenance(
            measured=f"{datetime.fromtimestamp(began, UTC):%Y-%m-%d %H:%M} UTC",
            command=sweep.command,
            sweep=sweep.folder.name,
            runs=len(sweep.jobs),
            minutes=round((last.times("end")[-1] - began) / 60, 1),
            device=first.summary["device"],
            versions=dict(first.summary["versions"]),
            git=first.summary["git"],
        )
        return DecisionRecord(protocol, provenance, evidence)


def read_record(path: Path, protocol: Protocol) -> DecisionRecord:
    """Read what `DecisionRecord.json` gave."""
    found = json.loads(path.read_text(encoding="utf-8"))
    evidence = [protocol.evidence(**run) for run in found["evidence"]]
    return DecisionRecord(protocol, Provenance(**found["provenance"]), evidence)


def protocol_of(sweep: RecordedSweep, chosen: str, protocols: Sequence[Protocol]) -> Protocol:
    """The one `chosen` by name or, with "", the one whose experiment the sweep ran. Raises `ConfigError`."""
    names = [protocol.name for protocol in protocols]
    require(chosen in ("", *names), "protocol", chosen, f"one of {', '.join(names)}")
    experiments = " or ".join(protocol.experiment for protocol in protocols)
    allowed = f"{experiments}, or name the protocol: protocol={'|'.join(names)}"
    found = [one for one in protocols if one.name == chosen or (not chosen and one.experiment == sweep.experiment)]
    require(len(found) == 1, "experiment", sweep.experiment or "none", allowed)
    return found[0]


def write_document(path: Path, records: Sequence[DecisionRecord], protocols: Sequence[Protocol]) -> None:
    """Copy the evidence of `records` beside the document, then write the document from all evidence that lies there.

    So a protocol that was measured again replaces its own section and leaves the others.
    """
    data = path.parent / DATA
    data.mkdir(exist_ok=True)
    for record in records:
        (data / f"{record.protocol.name}.json").write_text(record.json(), encoding="utf-8")
    path.write_text(document(data, protocols), encoding="utf-8")


def document(data: Path, protocols: Sequence[Protocol]) -> str:
    """The decisions whose evidence lies in `data`, in the order of the protocols."""
    known = [(data / f"{protocol.name}.json", protocol) for protocol in protocols]
    sections = [read_record(path, protocol).markdown() for path, protocol in known if path.is_file()]
    return "\n\n".join([HEAD, *sections]) + "\n"
