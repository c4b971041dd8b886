"""The decision protocols: for each its rule, how evidence is gathered for it, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from atlas.config import require
from experiments.phase2.decisions import (
    chunk_evidence,
    chunk_sizes,
    chunk_tables,
    probe_evidence,
    probe_frequency,
    probe_tables,
)
from experiments.phase2.decisions.chunk_runs import ChunkRun
from experiments.phase2.decisions.decision import Decision, Table
from experiments.phase2.decisions.probe_runs import ProbeRun
from experiments.phase2.decisions.recorded import Sweep


@dataclass(frozen=True)
class Protocol:
    """`run` is the dataclass of one piece of evidence; `gather`, `decide` and `tables` take and give sequences of"
    " it."""

    name: str
    experiment: str  # the sweep that measures it
    title: str
    rule: str
    run: Callable[..., Any]
    gather: Callable[[Sweep], Sequence[Any]]
    decide: Callable[[Sequence[Any]], Decision]
    tables: Callable[[Sequence[Any]], Sequence[Table]]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "chunk_sizes",
            "chunk_size_lock",
            "Chunk sizes (P2-T1)",
            chunk_sizes.RULE,
            ChunkRun,
            chunk_evidence.gather,
            chunk_sizes.decide,
            chunk_tables.tables,
        ),
        Protocol(
            "probe_frequency",
            "niah_frequency",
            "NIAH probe frequency (P2-T2)",
            probe_frequency.RULE,
            ProbeRun,
            probe_evidence.gather,
            probe_frequency.decide,
            probe_tables.tables,
        ),
    )
}


def protocol_of(sweep: Sweep, chosen: str) -> Protocol:
    """The one `chosen` by name or, with "", the one whose experiment the sweep ran. Raises `ConfigError`."""
    if chosen:
        require(chosen in PROTOCOLS, "protocol", chosen, f"one of {', '.join(PROTOCOLS)}")
        return PROTOCOLS[chosen]
    found = [protocol for protocol in PROTOCOLS.values() if protocol.experiment == sweep.experiment]
    experiments = " or ".join(protocol.experiment for protocol in PROTOCOLS.values())
    allowed = f"{experiments}, or name the protocol: protocol={'|'.join(PROTOCOLS)}"
    require(len(found) == 1, "experiment", sweep.experiment or "none", allowed)
    return found[0]
