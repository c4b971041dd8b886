"""The peak memory that `--plan` predicts, against that of a run of three steps, each in a process of its own.

python -m experiments.plan [cases=tiny,muon,set_a,transformer,atlas_43m]

Writes a table to the console; the runs are removed. Exit status 1: a prediction is more than 15 % away.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas.config import require
from atlas.config.arguments import names, read_settings, run_command
from atlas.telemetry.run_files import RunFiles

LARGEST_ERROR = 0.15
COMMON = ["logger=none", "train.steps=3", "train.validation_batches=1", "device=cpu", "device.threads=1"]
CASES = {
    "tiny": [],  # with its probes and calibration
    "muon": ["model.memory.rule=muon", "train.batch_size=2"],
    "set_a": ["model=small", "chunk_size=set_a", "train.batch_size=4", "niah=off", "calibration=off"],
    "transformer": ["model=transformer", "train.batch_size=64", "niah=off"],
    "atlas_43m": [
        "model=atlas_43m", "model.vocabulary=32000", "data=stdlib", "train.batch_size=1", "train.sequence=2048",
        "niah=off", "calibration=off", "rollback=off", "train.steps=1",
    ],
}  # fmt: skip


@dataclass
class PlanSettings:
    cases: str = ",".join(CASES)

    def __post_init__(self) -> None:
        chosen = names(self.cases)
        require(bool(chosen) and set(chosen) <= set(CASES), "cases", self.cases, f"some of {', '.join(CASES)}")


def predicted(settings: Sequence[str]) -> int:
    """Bytes, from the line that a user reads."""
    command = [sys.executable, "-m", "atlas.train", "--plan", *settings]
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"^peak memory\s+([\d,]+) MiB", shown, re.MULTILINE)
    assert found is not None, shown
    return int(found[1].replace(",", "")) * 2**20


def measured(settings: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "atlas.train", *settings, f"hydra.run.dir={folder}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak: int = RunFiles(Path(folder, "run")).summary["peak_memory_bytes"]
        return peak


def main(arguments: Sequence[str]) -> int:
    worst = 0.0
    print("| case | predicted | measured | error |\n| --- | --- | --- | --- |", flush=True)
    for case in names(read_settings(PlanSettings, arguments).cases):
        settings = [*COMMON, *CASES[case]]
        expected, found = predicted(settings), measured(settings)
        error = expected / found - 1
        worst = max(worst, abs(error))
        print(f"| {case} | {expected / 2**20:.0f} MiB | {found / 2**20:.0f} MiB | {error:+.1%} |", flush=True)
    return int(worst > LARGEST_ERROR)


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
