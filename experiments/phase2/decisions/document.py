"""Decisions as Markdown: outcome, rule, evidence, and how to make them again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.phase2.decisions.decision import Provenance, Table
from experiments.phase2.decisions.protocols import PROTOCOLS
from experiments.phase2.decisions.record import Record, read_record, record_text

DATA = Path("decisions", "data")  # beside the document
HEAD = """\
# Phase 2 decisions

Written by `python -m experiments.phase2.decide` from recorded runs; do not edit. `make decisions` measures all again.
The evidence is in [decisions/data](decisions/data), how to read it in [decisions](decisions/README.md)."""


def write_document(path: Path, records: Sequence[Record]) -> None:
    """Copy the evidence of `records` beside the document, and write the document from all the evidence that lies there.

    So a protocol that was measured again replaces its own section and leaves the others.
    """
    data = path.parent / DATA
    data.mkdir(parents=True, exist_ok=True)
    for record in records:
        (data / f"{record.protocol.name}.json").write_text(record_text(record), encoding="utf-8")
    path.write_text(document(data), encoding="utf-8")


def document(data: Path) -> str:
    """The decisions whose evidence lies in `data`, in the order of the protocols."""
    known = [data / f"{name}.json" for name in PROTOCOLS]
    records = [read_record(path) for path in known if path.is_file()]
    return "\n\n".join([HEAD, *[section(record) for record in records]]) + "\n"


def section(record: Record) -> str:
    """One decision, a section of the second level."""
    decision = record.decision
    parts = [f"## {record.protocol.title}: {decision.line}", decision.reason]
    parts += [text for table in record.protocol.tables(record.evidence) for text in _table(table)]
    parts += ["### Rule, written before it ran", record.protocol.rule]
    parts += ["### Where the numbers come from", *_provenance(record.provenance)]
    return "\n\n".join(parts)


def _table(table: Table) -> list[str]:
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return [f"### {table.title}", rows, table.note]


def _provenance(source: Provenance) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in source.versions.items())
    changed = " (with changes that were not committed)" if source.git.endswith("+changes") else ""
    where = (
        f"{source.runs} runs one after the other on {source.device}, {source.measured}, {source.minutes:g} minutes"
        f" in all. Revision {source.git.removesuffix('+changes') or 'unknown'}{changed}; {versions}."
    )
    return [where, f"    {source.command}\n    python -m experiments.phase2.decide outputs/sweeps/<time>"]
