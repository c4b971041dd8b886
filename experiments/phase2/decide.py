"""Decide from a sweep: `python -m experiments.phase2.decide SWEEP ... [protocol=NAME] [document=FILE]`.

SWEEP is the folder that `python -m atlas.train experiment=NAME` wrote, NAME one of chunk_size_lock (beside it, if there
is one, chunk_size_learning), niah_frequency and rollback_threshold. The written rule of its protocol is applied to the
recorded runs; decision.json and decision.md go into the folder. Where no set of chunk sizes is fast enough, the rule
investigates why: a minute of measuring, on the device of the runs, which should do nothing else meanwhile.
SWEEP may also be a decision.json, such as experiments/phase2/data/chunk_sizes.json: the rule is then applied again to
the evidence in it, and no file is written. All this takes seconds.
protocol=chunk_sizes|probe_frequency|rollback_threshold names the protocol where the sweep was not started by its
experiment. document=FILE puts the decisions into one document as well, and their evidence into data/ beside it.
Exit status: 0 every decision passed its criterion; 1 one is STOP or flagged; 2 refused: the runs are no sound evidence.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas.config import require
from atlas.config.arguments import read_settings, run_command
from experiments.phase2 import chunk_learning, chunk_sizes, chunk_tables, probe_frequency, rollback_threshold
from experiments.phase2.chunk_learning import LearningRun
from experiments.phase2.chunk_runs import ChunkRun
from experiments.phase2.decision import DecisionRecord, Protocol, make_record, protocol_of, read_record, write_document
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

    def __post_init__(self) -> None:
        folder = Path(self.document).parent
        require(folder.is_dir(), "document", self.document, f"a file in a folder that exists; {folder} does not")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(_decide, arguments, f"{USAGE}\n\n{__doc__}")


def _decide(arguments: Sequence[str]) -> int:
    paths = [Path(argument) for argument in arguments if "=" not in argument]
    require(len(paths) > 0, "SWEEP", "", f"at least one folder of a sweep: {USAGE}")
    choices = read_settings(Choices, [argument for argument in arguments if "=" in argument])
    records = [read_record(path, PROTOCOLS) for path in paths if path.suffix == ".json"]
    for record in records:
        its = record.protocol.name
        require(choices.protocol in ("", its), "protocol", choices.protocol, f"{its}, that of the file, or left out")
    for record in records:
        print(f"{record.markdown()}\n")
    for folder, record in decide_sweeps([path for path in paths if path.suffix != ".json"], choices.protocol).items():
        print(f"{record.markdown()}\n\nfiles  {folder / 'decision.json'}\n       {folder / 'decision.md'}\n")
        records.append(record)
    if choices.document:
        write_document(Path(choices.document), records, PROTOCOLS)
        print(f"written to {choices.document}")
    for record in records:
        print(f"{record.protocol.title}: {record.decision.line}")
    return 0 if all(record.decision.passed for record in records) else 1


def decide_sweeps(folders: Sequence[Path], protocol: str = "") -> dict[Path, DecisionRecord]:
    """Apply the rules and write decision.json and decision.md into the folder of each protocol's first sweep.

    Raises `ConfigError` for a sweep that cannot be decided, before anything is written.
    """
    sweeps = [read_sweep(folder) for folder in folders]
    of = [protocol_of(sweep, protocol, PROTOCOLS) for sweep in sweeps]
    records = {}
    for one in dict.fromkeys(of):
        own = [sweep for sweep, its in zip(sweeps, of, strict=True) if its is one]
        own.sort(key=lambda sweep: sweep.experiment in one.experiments[1:])
        records[own[0].folder] = make_record(own, one)
    texts = {folder: (record.json(), record.markdown()) for folder, record in records.items()}
    for folder, (data, section) in texts.items():
        (folder / "decision.json").write_text(data, encoding="utf-8")
        (folder / "decision.md").write_text(section + "\n", encoding="utf-8")
    return records


if __name__ == "__main__":
    sys.exit(main())
