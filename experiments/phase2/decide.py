"""Decide from a sweep: `python -m experiments.phase2.decide SWEEP ... [protocol=NAME] [document=FILE]`.

SWEEP is the folder that `python -m atlas.train experiment=NAME` wrote, NAME one of chunk_size_lock (beside it, if there
is one, chunk_size_learning), niah_frequency and rollback_threshold. The written rule of its protocol is applied to the
recorded runs; decision.json and decision.md go into the folder. Where no set of chunk sizes is fast enough, the rule
investigates why: a minute of measuring, on the device of the runs; where that does other work meanwhile, it is STOP.
SWEEP may also be a decision.json, such as experiments/phase2/data/chunk_sizes.json: the rule is then applied again to
the evidence in it, and no file is written. All this takes seconds.
protocol=chunk_sizes|probe_frequency|rollback_threshold names the protocol where the sweep was not started by its
experiment. document=FILE.md puts the decisions into one document as well, and their evidence into data/ beside it,
all or nothing. A decision.json that was changed by hand is refused: it holds the SHA-256 of its content.
Exit status: 0 every decision passed its criterion; 1 one is STOP, NOT DECIDED or flagged; 2 refused: the runs are no
sound evidence.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas.config import ConfigError, require
from atlas.config.arguments import read_settings, run_command
from atlas.config.atomic import write_together
from experiments.phase2 import chunk_learning, chunk_sizes, chunk_tables, probe_frequency, rollback_threshold
from experiments.phase2.chunk_learning import LearningRun
from experiments.phase2.chunk_runs import ChunkRun
from experiments.phase2.decision import (
    DATA,
    DecisionRecord,
    Protocol,
    document_files,
    make_record,
    protocol_of,
    read_record,
    read_records,
)
from experiments.phase2.destinations import require_document, require_room
from experiments.phase2.investigation import InvestigationMachine, SetInvestigation
from experiments.phase2.sweeps import RecordedSweep, read_sweep

USAGE = "python -m experiments.phase2.decide SWEEP ... [protocol=NAME] [document=FILE]"


def _investigate(sweep: RecordedSweep) -> Sequence[SetInvestigation | InvestigationMachine]:
    from experiments.phase2.set_measures import investigate  # imports torch

    return investigate(sweep)


PROTOCOLS = (
    Protocol(
        "chunk_sizes",
        ("chunk_size_lock", chunk_learning.EXPERIMENT),
        "Chunk sizes (P2-T1)",
        chunk_sizes.RULE,
        (ChunkRun, LearningRun),
        chunk_sizes.gather,
        chunk_sizes.decide,
        chunk_tables.tables,
        _investigate,
        (SetInvestigation, InvestigationMachine),
    ),
    Protocol(
        "probe_frequency",
        ("niah_frequency",),
        "NIAH probe frequency (P2-T2)",
        probe_frequency.RULE,
        (probe_frequency.ProbeRun,),
        probe_frequency.gather,
        probe_frequency.decide,
        probe_frequency.tables,
    ),
    Protocol(
        "rollback_threshold",
        ("rollback_threshold",),
        "Rollback threshold",
        rollback_threshold.RULE,
        (rollback_threshold.ObservedRun,),
        rollback_threshold.gather,
        rollback_threshold.decide,
        rollback_threshold.tables,
    ),
)


@dataclass(frozen=True)
class Choices:
    protocol: str = ""
    document: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(_decide, arguments, f"{USAGE}\n\n{__doc__}")


def _decide(arguments: Sequence[str]) -> int:
    paths = [Path(argument) for argument in arguments if "=" not in argument]
    require(len(paths) > 0, "SWEEP", "", f"at least one folder of a sweep: {USAGE}")
    choices = read_settings(Choices, [argument for argument in arguments if "=" in argument])
    if choices.document:
        require_document(choices.document, paths)
    records = [read_record(path, PROTOCOLS) for path in paths if path.suffix == ".json"]
    for record in records:
        its = record.protocol.name
        require(choices.protocol in ("", its), "protocol", choices.protocol, f"{its}, that of the file, or left out")
    sweeps = _read_sweeps([path for path in paths if path.suffix != ".json"], choices.protocol)
    written = [record.protocol for record in records] + list(sweeps)
    names = [protocol.name for protocol in written]
    kept: dict[str, DecisionRecord] = {}
    if choices.document:
        require(len(set(names)) == len(names), "document", choices.document, f"made of one {names[-1]} alone")
        others = [protocol for protocol in PROTOCOLS if protocol not in written]
        kept = read_records(Path(choices.document).parent / DATA, others)
    try:
        made = {own[0].folder: make_record(own, protocol) for protocol, own in sweeps.items()}
        files = _files(made)
        if choices.document:
            document = Path(choices.document)
            (document.parent / DATA).mkdir(exist_ok=True)
            files |= document_files(document, [*records, *made.values()], PROTOCOLS, kept)
        write_together(files)
    except OSError as error:
        place = error.filename or choices.document or paths[0]
        raise ConfigError(f"{place}: must be a file that can be written ({error.strerror})") from error
    for record in records:
        print(f"{record.markdown()}\n")
    for folder, record in made.items():
        print(f"{record.markdown()}\n\nfiles  {folder / 'decision.json'}\n       {folder / 'decision.md'}\n")
        records.append(record)
    if choices.document:
        print(f"written to {choices.document}")
    for record in records:
        print(f"{record.protocol.title}: {record.decision.line}")
    return 0 if all(record.decision.passed for record in records) else 1


def decide_sweeps(folders: Sequence[Path], protocol: str = "") -> dict[Path, DecisionRecord]:
    """Apply the rules and write decision.json and decision.md into the folder of each protocol's first sweep.

    Raises `ConfigError` for a sweep that cannot be decided and OSError without room, before anything is written.
    """
    records = {own[0].folder: make_record(own, its) for its, own in _read_sweeps(folders, protocol).items()}
    write_together(_files(records))
    return records


def _read_sweeps(folders: Sequence[Path], protocol: str) -> dict[Protocol, list[RecordedSweep]]:
    """By protocol, the sweep of its first experiment first. Raises `ConfigError`."""
    found: dict[Protocol, list[RecordedSweep]] = {}
    for folder in folders:
        sweep = read_sweep(folder)
        require_room(folder, "SWEEP", folder)
        found.setdefault(protocol_of(sweep, protocol, PROTOCOLS), []).append(sweep)
    for one, own in found.items():
        own.sort(key=lambda sweep: sweep.experiment in one.experiments[1:])
    return found


def _files(records: Mapping[Path, DecisionRecord]) -> dict[Path, str]:
    files: dict[Path, str] = {}
    for folder, record in records.items():
        files |= {folder / "decision.json": record.json(), folder / "decision.md": record.markdown() + "\n"}
    return files


if __name__ == "__main__":
    sys.exit(main())
