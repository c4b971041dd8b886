"""What each part of the memory is worth: a table over sweeps, with every run probed anew on many needles.

python -m experiments.ablations SWEEP [SWEEP ...] [KEY=VALUE ...]

  samples=64                       needles at each depth
  folder=experiments/ablations     where ablations.json and RESULTS.md go
  trust=MODULE                     a module of your own that the runs' components come from

The settings of the first job are the reference; every other row names what it changes. Runs of one seed are compared
with each other: the same data, the same needles, and the run trained without a memory as second control. Writes
ablations.json and RESULTS.md, and niah.json and niah.png of each run again, in minutes for each run. Exit status: 0
written, 2 refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from atlas.config import require
from atlas.config.arguments import names, read_settings, run_command
from atlas.data.batch import Batch
from atlas.niah import probe_run
from atlas.runs.build import build_data, load_checkpointed
from atlas.runs.environment import git_revision, versions
from atlas.telemetry.run_files import RunFiles
from atlas.training.losses import language_loss
from experiments.ablations.table import Run, document
from experiments.finished_runs import changes, jobs, read_run

HERE = Path(__file__).parent
ANSWER_BATCHES = 32


@dataclass
class Settings:
    samples: int = 64  # needles at each depth
    folder: str = str(HERE)  # of ablations.json and RESULTS.md
    trust: str = ""  # modules of your own that the runs' components come from

    def __post_init__(self) -> None:
        require(self.samples >= 1, "samples", self.samples, ">= 1")
        require(Path(self.folder).is_dir(), "folder", self.folder, "a folder that exists")


def recall_of(folder: Path, samples: int, control: Path | None, trust: str) -> dict[str, Any]:
    """Accuracy on `samples` keyed needles a depth: with the memory, with it off, by the run trained without one."""
    arguments = [str(folder), "niah.levels=[recall]", "niah.tasks=[]", f"niah.samples={samples}", f"trust={trust}"]
    (result,) = probe_run(arguments + ([f"control={control}"] if control else []))
    without = [cell.without for cell in result.cells if cell.without is not None]
    return {
        "recall": result.accuracy,
        "control": result.control,
        "without": sum(without) / len(without) if without else None,
        "chance": result.chance,
        "needles": sum(cell.samples for cell in result.cells),
        "reason": result.reason,
    }


@torch.no_grad()
def answer_loss(folder: Path, trust: str) -> float:
    """Nats per answer byte of recall rows of the run's own kind that it has not seen."""
    model, config, _ = load_checkpointed(folder, names(trust))
    data = build_data(config)
    losses = []
    for step in range(config.train.steps + 1, config.train.steps + 1 + ANSWER_BATCHES):
        batch = data.batch(step)
        rows = Batch(*(column[batch.recall] for column in vars(batch).values()))
        losses.append(language_loss(model(rows.inputs).logits, rows).recall.item())
    return mean(losses)


def polarised_at_peak(folder: Path, settings: dict[str, Any]) -> float | None:
    """Share of polarised gates in the last row written while the loss on them was at its peak; None without one."""
    last = settings["train.gate.polarisation_hold"] * settings["train.steps"]
    rows = [row for row in RunFiles(folder).rows if row["step"] <= last and "gate/polarised" in row]
    return rows[-1]["gate/polarised"] if rows else None


def collect(folders: Sequence[Path], samples: int, trust: str) -> list[Run]:
    read = {folder: read_run(folder, trust) for folder in folders}
    reference = next(iter(read.values()))[0]
    memory_free = {
        settings["seed"]: folder for folder, (settings, _) in read.items() if not settings["model.memory.enabled"]
    }
    runs = []
    for folder, (settings, summary) in read.items():
        changed = changes(settings, reference)
        control = memory_free.get(settings["seed"]) if settings["model.memory.enabled"] else None
        found = recall_of(folder, samples, control, trust) if settings["model.memory.enabled"] else {}
        found["polarised_peak"] = polarised_at_peak(folder, settings)
        if share := settings.get("data.recall_share_end"):
            found |= {"answer_loss": answer_loss(folder, trust), "recall_share": share}
        runs.append(Run.of(changed, settings, summary, found))
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(measure, arguments, __doc__ or "")


def measure(arguments: Sequence[str]) -> int:
    """Probe, and write the table. Raises `ConfigError` for arguments that cannot be used."""
    sweeps = [argument for argument in arguments if "=" not in argument]
    require(bool(sweeps), "SWEEP", "", "one or more folders of sweeps")
    settings = read_settings(Settings, [argument for argument in arguments if "=" in argument])
    runs = collect(jobs(sweeps, settings.trust), settings.samples, settings.trust)
    record = {"runs": [asdict(run) for run in runs], "git": git_revision(), "versions": versions()}
    folder = Path(settings.folder)
    (folder / "ablations.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "RESULTS.md").write_text(document(runs, record), encoding="utf-8")
    print(f"\nwritten to {folder / 'RESULTS.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
