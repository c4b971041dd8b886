"""Decisions by written rules: decision.json, decision.md and the document. Imports no torch.

A decision.json holds the evidence it was made from, so that anyone can make the decision again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from atlas.config import ConfigError, require
from atlas.config.untrusted import read_json
from experiments.phase2.recorded import NotNegative, PositiveCount, read_one, require_values
from experiments.phase2.sweeps import RecordedSweep, readable

DATA = "data"  # folder of the evidence, beside the document
HEAD = """\
Written by `python -m experiments.phase2.decide` from recorded runs; do not edit. `make decisions` measures all again.
The evidence is in [data](data), how to read it in [README.md](README.md)."""


class DecisionOutcome(StrEnum):
    decided = "DECIDED"
    out_of_reach = "DECIDED, 5x is out of reach on this device"  # chosen after an investigation
    locked = "LOCKED"
    stop = "STOP"
    undecided = "NOT DECIDED"


@dataclass(frozen=True)
class ProtocolDecision:
    """What a rule came to. `headline` stands behind the outcome in one line, `reason` holds the numbers, `advice` tells
    a reader what to use."""

    outcome: DecisionOutcome
    headline: str
    reason: str
    advice: str
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
    """A written rule. `decide` and `tables` take a sequence of `kinds`, the dataclasses of the evidence."""

    name: str
    experiments: Sequence[str]  # the sweeps that measure it; the decision cannot do without the first
    title: str
    rule: str
    kinds: Sequence[type]  # one for each run
    gather: Callable[[Sequence[RecordedSweep]], Sequence[Any]]
    decide: Callable[[Sequence[Any]], ProtocolDecision]
    tables: Callable[[Sequence[Any]], Sequence[EvidenceTable]]
    investigate: Callable[[RecordedSweep], Sequence[Any]] | None = None  # more evidence, where the decision is STOP
    investigated: Sequence[type] = ()  # its kinds


@dataclass(frozen=True)
class Provenance:
    """Where the evidence of one sweep comes from, the same for all of its runs."""

    measured: str  # start of the first run, UTC
    command: str
    sweep: str  # name of its folder
    runs: PositiveCount
    minutes: NotNegative  # from the start of the first run to the end of the last
    device: str
    versions: dict[str, str]
    git: str

    @property
    def sentence(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        changed = " (with changes that were not committed)" if self.git.endswith("+changes") else ""
        return (
            f"{self.runs} runs on {self.device}, {self.measured}, {self.minutes:g} minutes in all. Revision"
            f" {self.git.removesuffix('+changes') or 'unknown'}{changed}; {versions}."
        )


@dataclass(frozen=True)
class DecisionRecord:
    """Evidence with its provenance. The decision is computed from the evidence each time it is asked for."""

    protocol: Protocol
    provenance: Sequence[Provenance]
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
            "advice": decision.advice,
            "passed": decision.passed,
            "rule": self.protocol.rule,
            "provenance": [asdict(source) for source in self.provenance],
        }
        entries = [{"kind": type(one).__name__, **asdict(one)} for one in self.evidence]
        head["sha256"] = digest(head | {"evidence": entries})
        opened, runs = json.dumps(head, indent=1).removesuffix("\n}"), ",\n  ".join(map(json.dumps, entries))
        return f'{opened},\n "evidence": [\n  {runs}\n ]\n}}\n'

    def markdown(self) -> str:
        """The text of decision.md: a section of the second level."""
        decision = self.decision
        parts = [f"## {self.protocol.title}: {decision.line}", decision.reason]
        for table in self.protocol.tables(self.evidence):
            lines = [table.head, ["---"] * len(table.head), *table.rows]
            rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
            parts += [f"### {table.title}", rows, table.note]
        parts += ["### Rule, written before it ran", self.protocol.rule, "### Where the numbers come from"]
        parts += [source.sentence for source in self.provenance]
        decide = " ".join(["python -m experiments.phase2.decide", *["outputs/sweeps/<time>"] * len(self.provenance)])
        parts.append("\n".join(f"    {command}" for command in (*(one.command for one in self.provenance), decide)))
        return "\n\n".join(parts)


def make_record(sweeps: Sequence[RecordedSweep], protocol: Protocol) -> DecisionRecord:
    """`sweeps` of the protocol's experiments, the first one first. Raises `ConfigError` where they are no evidence."""
    folder, experiments = sweeps[0].folder, [sweep.experiment for sweep in sweeps]
    first, *others = protocol.experiments
    require(experiments[0] not in others, "SWEEP", folder, f"beside a sweep of experiment={first}")
    once = len(set(experiments)) == len(experiments) <= len(protocol.experiments)
    require(once, "SWEEP", " ".join(experiments), f"at most one sweep of {', '.join(protocol.experiments)} each")
    with readable(folder):
        evidence = protocol.gather(sweeps)
        record = DecisionRecord(protocol, [_provenance(sweep) for sweep in sweeps], evidence)
        _require_sound(record)
        stop = record.decision.outcome is DecisionOutcome.stop
    if protocol.investigate is None or not stop:
        return record
    record = replace(record, evidence=[*evidence, *protocol.investigate(sweeps[0])])
    _require_sound(record)
    return record


def _require_sound(record: DecisionRecord) -> None:
    """Raise `ConfigError` for values that no run measures, and for sources that do not belong together."""
    for index, one in enumerate(record.evidence):
        job = getattr(one, "job", None)
        require_values(one, f"evidence[{index}]." if job is None else f"job {job} ")
    require(len(record.provenance) > 0, "provenance", "[]", "at least one sweep")
    revisions = list(dict.fromkeys(source.git or "unknown" for source in record.provenance))
    require(len(revisions) == 1, "revision", ", ".join(revisions), "one for all sweeps of a decision")
    counted = sum(isinstance(one, tuple(record.protocol.kinds)) for one in record.evidence)
    told = sum(source.runs for source in record.provenance)
    require(counted == told, "runs", counted, f"{told}, as the provenance says: one is missing or doubled")


def _provenance(sweep: RecordedSweep) -> Provenance:
    first = sweep.jobs[0]
    began = min(job.times("start")[0] for job in sweep.jobs)
    ended = max(job.times("end")[-1] for job in sweep.jobs)
    return Provenance(
        measured=f"{datetime.fromtimestamp(began, UTC):%Y-%m-%d %H:%M} UTC",
        command=sweep.command,
        sweep=sweep.folder.name,
        runs=len(sweep.jobs),
        minutes=round((ended - began) / 60, 1),
        device=first.summary["device"],
        versions=dict(first.summary["versions"]),
        git=first.summary["git"],
    )


def read_record(path: Path, protocols: Sequence[Protocol]) -> DecisionRecord:
    """Read what `DecisionRecord.json` gave. Raises `ConfigError` naming the file, the key and the value."""
    try:
        return _read_record(read_json(path), protocols)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{path}: must be a decision.json that can be read ({reason})") from error


def _read_record(found: Any, protocols: Sequence[Protocol]) -> DecisionRecord:
    known = {protocol.name: protocol for protocol in protocols}
    name = found["protocol"]
    require(name in known, "protocol", name, f"one of {', '.join(known)}")
    given, expected = found.pop("sha256", "missing"), digest(found)
    allowed = (
        "the sum of what the file holds: it was changed after decide wrote it, or written by an older decide. Restore"
        " it, or make it again from its sweeps with python -m experiments.phase2.decide"
    )
    require(given == expected, "sha256", given, allowed)
    protocol = known[name]
    evidence: list[Any] = []
    kinds = {kind.__name__: kind for kind in (*protocol.kinds, *protocol.investigated)}
    for index, one in enumerate(found["evidence"]):
        kind = one.pop("kind")
        require(kind in kinds, f"evidence[{index}].kind", kind, f"one of {', '.join(kinds)}")
        evidence.append(read_one(kinds[kind], one, f"evidence[{index}]"))
    sources = [read_one(Provenance, one, f"provenance[{index}]") for index, one in enumerate(found["provenance"])]
    record = DecisionRecord(protocol, sources, evidence)
    _require_sound(record)
    record.markdown()  # the rule refuses what does not suffice
    return record


def digest(content: dict[str, Any]) -> str:
    """SHA-256 of JSON content, however it is written down."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def protocol_of(sweep: RecordedSweep, chosen: str, protocols: Sequence[Protocol]) -> Protocol:
    """The one `chosen` by name or, with "", the one that the sweep's experiment measures. Raises `ConfigError`."""
    names = [protocol.name for protocol in protocols]
    require(chosen in ("", *names), "protocol", chosen, f"one of {', '.join(names)}")
    experiments = [experiment for protocol in protocols for experiment in protocol.experiments]
    allowed = f"{' or '.join(experiments)}, or name the protocol: protocol={'|'.join(names)}"
    found = [one for one in protocols if one.name == chosen or (not chosen and sweep.experiment in one.experiments)]
    require(len(found) == 1, "experiment", sweep.experiment or "none", allowed)
    return found[0]


def document_files(
    path: Path, records: Sequence[DecisionRecord], protocols: Sequence[Protocol], kept: Mapping[str, DecisionRecord]
) -> dict[Path, str]:
    """What to write: the document, and beside it the evidence of `records`; `kept` is evidence that lies there.

    So a protocol that was measured again replaces its own section and leaves the others.
    """
    data = path.parent / DATA
    found = dict(kept) | {record.protocol.name: record for record in records}
    evidence = {data / f"{record.protocol.name}.json": record.json() for record in records}
    return evidence | {path: document(found, protocols)}


def read_records(data: Path, protocols: Sequence[Protocol]) -> dict[str, DecisionRecord]:
    """The evidence that lies in `data`, by the name of its protocol. Raises `ConfigError`."""
    files = {protocol: data / f"{protocol.name}.json" for protocol in protocols}
    return {one.name: read_record(path, [one]) for one, path in files.items() if path.exists()}


def document(records: Mapping[str, DecisionRecord], protocols: Sequence[Protocol]) -> str:
    """What to use, and the decisions in the order of the protocols; `records` by the name of their protocol."""
    advice, sources, sections = [], [], []
    for protocol in protocols:
        if protocol.name in records:
            record = records[protocol.name]
            advice.append(record.decision.advice)
            sources += [
                f"{one.measured[:10]} on {one.device}, revision {one.git or 'unknown'}" for one in record.provenance
            ]
            sections.append(record.markdown())
        else:
            advice.append(f"{protocol.title}: not measured, so the default stands.")
            command = f"    python -m atlas.train experiment={protocol.experiments[0]}"
            sections.append("\n\n".join([f"## {protocol.title}: not measured", protocol.rule, command]))
    measured = f"Measured: {'; '.join(dict.fromkeys(sources))}."
    return "\n\n".join(["# Phase 2 decisions", " ".join([*advice, measured]), HEAD, *sections]) + "\n"
