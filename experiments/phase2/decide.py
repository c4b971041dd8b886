"""Decide from a sweep: `python -m experiments.phase2.decide SWEEP ... [protocol=NAME] [document=FILE]`.

SWEEP is the folder that `python -m atlas.train experiment=chunk_size_lock` or `experiment=niah_frequency` wrote. The
written rule of its protocol is applied to the recorded runs; decision.json and decision.md go into the folder.
protocol=chunk_sizes|probe_frequency names the protocol where the sweep was not started by its experiment. document=FILE
puts the decisions into one document as well, and their evidence into data/ beside it.
Exit status: 0 every decision passed its criterion; 1 one is STOP or flagged; 2 refused: the runs are no sound evidence.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas.config import require
from atlas.config.arguments import read_settings, run_command
from experiments.phase2 import chunk_sizes, chunk_tables, probe_frequency
from experiments.phase2.decision import DecisionRecord, Protocol, make_record, protocol_of, write_document
from experiments.phase2.sweeps import read_sweep

USAGE = "python -m experiments.phase2.decide SWEEP ... [protocol=NAME] [document=FILE]"
PROTOCOLS = (
    Protocol(
        "chunk_sizes",
        "chunk_size_lock",
        "Chunk sizes (P2-T1)",
        chunk_sizes.RULE,
        chunk_sizes.ChunkRun,
        chunk_sizes.gather,
        chunk_sizes.decide,
        chunk_tables.tables,
    ),
    Protocol(
        "probe_frequency",
        "niah_frequency",
        "NIAH probe frequency (P2-T2)",
        probe_frequency.RULE,
        probe_frequency.ProbeRun,
        probe_frequency.gather,
        probe_frequency.decide,
        probe_frequency.tables,
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
    folders = [Path(argument) for argument in arguments if "=" not in argument]
    require(len(folders) > 0, "SWEEP", "", f"at least one folder of a sweep: {USAGE}")
    choices = read_settings(Choices, [argument for argument in arguments if "=" in argument])
    records = decide_sweeps(folders, choices.protocol)
    for folder, record in zip(folders, records, strict=True):
        print(f"{record.markdown()}\n\nfiles  {folder / 'decision.json'}\n       {folder / 'decision.md'}\n")
    if choices.document:
        write_document(Path(choices.document), records, PROTOCOLS)
        print(f"written to {choices.document}")
    for record in records:
        print(f"{record.protocol.title}: {record.decision.line}")
    return 0 if all(record.decision.passed for record in records) else 1


def decide_sweeps(folders: Sequence[Path], protocol: str = "") -> list[DecisionRecord]:
    """Apply the rules and write decision.json and decision.md into each folder.

    Raises `ConfigError` for a sweep that cannot be decided, before anything is written.
    """
    sweeps = [read_sweep(folder) for folder in folders]
    records = [make_record(sweep, protocol_of(sweep, protocol, PROTOCOLS)) for sweep in sweeps]
    texts = [(record.json(), record.markdown()) for record in records]  # a refusal comes before the first file
    for folder, (data, section) in zip(folders, texts, strict=True):
        (folder / "decision.json").write_text(data, encoding="utf-8")
        (folder / "decision.md").write_text(section + "\n", encoding="utf-8")
    return records


if __name__ == "__main__":
    sys.exit(main())
