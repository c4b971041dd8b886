"""decision.json: a decision with all that it was made from, so that anyone can make it again. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.phase2.decisions.decision import Decision, Provenance
from experiments.phase2.decisions.protocols import PROTOCOLS, Protocol
from experiments.phase2.decisions.recorded import Sweep, readable

DECISION_FILE = "decision.json"


@dataclass(frozen=True)
class Record:
    """The evidence with where it comes from. The decision is made from it whenever it is asked for."""

    protocol: Protocol
    provenance: Provenance
    evidence: Sequence[Any]

    @property
    def decision(self) -> Decision:
        return self.protocol.decide(self.evidence)


def make_record(sweep: Sweep, protocol: Protocol) -> Record:
    """Raises `ConfigError` for a sweep that is no sound evidence."""
    with readable(sweep.folder):
        return _make_record(sweep, protocol)


def _make_record(sweep: Sweep, protocol: Protocol) -> Record:
    evidence = protocol.gather(sweep)
    first, last = sweep.runs[0], sweep.runs[-1]
    began = first.times("start")[0]
    provenance = Provenance(
        measured=f"{datetime.fromtimestamp(began, UTC):%Y-%m-%d %H:%M} UTC",
        command=sweep.command,
        sweep=sweep.folder.name,
        runs=len(sweep.runs),
        minutes=round((last.times("end")[-1] - began) / 60, 1),
        device=first.summary["device"],
        versions=dict(first.summary["versions"]),
        git=first.summary["git"],
    )
    return Record(protocol, provenance, evidence)


def record_text(record: Record) -> str:
    """The record as JSON, a line for each run."""
    decision = record.decision
    head = {
        "protocol": record.protocol.name,
        "outcome": str(decision.outcome),
        "headline": decision.headline,
        "reason": decision.reason,
        "passed": decision.passed,
        "rule": record.protocol.rule,
        "provenance": asdict(record.provenance),
    }
    runs = ",\n  ".join(json.dumps(asdict(run)) for run in record.evidence)
    opened = json.dumps(head, indent=1).removesuffix("\n}")
    return f'{opened},\n "evidence": [\n  {runs}\n ]\n}}\n'


def read_record(path: Path) -> Record:
    """Read what `record_text` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    protocol = PROTOCOLS[found["protocol"]]
    evidence = [protocol.run(**run) for run in found["evidence"]]
    return Record(protocol, Provenance(**found["provenance"]), evidence)
