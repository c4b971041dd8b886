"""Decide from a sweep: `python -m experiments.phase2.decide SWEEP ... [protocol=NAME] [document=FILE]`.

SWEEP is the folder that `python -m atlas.train experiment=chunk_size_lock` or `experiment=niah_frequency` wrote. The
written rule of its protocol is applied to the recorded runs; decision.json and decision.md go into the folder.
protocol=chunk_sizes|probe_frequency names the protocol where the sweep was not started by its experiment. document=FILE
puts the decisions into one document as well, and their evidence into decisions/data beside it.
Exit status: 0 every decision passed its criterion; 1 one is STOP or flagged; 2 refused: the runs are no sound evidence.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas.config import require
from atlas.config.arguments import read_settings, run_command
from experiments.phase2.decisions.document import section, write_document
from experiments.phase2.decisions.protocols import protocol_of
from experiments.phase2.decisions.record import DECISION_FILE, Record, make_record, record_text
from experiments.phase2.decisions.recorded import read_sweep

MARKDOWN_FILE = "decision.md"
USAGE = "python -m experiments.phase2.decide SWEEP ... [protocol=NAME] [document=FILE]"


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
    return 0 if all(record.decision.passed for record in decide_sweeps(arguments)) else 1


def decide_sweeps(arguments: Sequence[str]) -> list[Record]:
    """Decide as the command line says. Raises `ConfigError`, before anything is written, for what cannot be decided."""
    folders = [Path(argument) for argument in arguments if "=" not in argument]
    require(len(folders) > 0, "SWEEP", "", f"at least one folder of a sweep: {USAGE}")
    choices = read_settings(Choices, [argument for argument in arguments if "=" in argument])
    records = []
    for folder in folders:
        sweep = read_sweep(folder)
        records.append(make_record(sweep, protocol_of(sweep, choices.protocol)))
    texts = [record_text(record) for record in records]  # decides: a refusal comes before the first file
    for folder, record, text in zip(folders, records, texts, strict=True):
        (folder / DECISION_FILE).write_text(text, encoding="utf-8")
        (folder / MARKDOWN_FILE).write_text(section(record) + "\n", encoding="utf-8")
        print(f"{section(record)}\n\nfiles  {folder / DECISION_FILE}\n       {folder / MARKDOWN_FILE}\n")
    if choices.document:
        write_document(Path(choices.document), records)
        print(f"written to {choices.document}")
    for record in records:
        print(f"{record.protocol.title}: {record.decision.line}")
    return records


if __name__ == "__main__":
    sys.exit(main())
