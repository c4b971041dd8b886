"""What Stage 2 was worth: validation loss and keyed recall at chunk 1 before and after it, and a token's time by chunk.

python -m experiments.stage2 RUN [control=RUN] [KEY=VALUE ...]

RUN is a finished run of experiment=stage2; what it started from (init_from) is the model before.

  control=RUN                   the same start and steps with stage2.decay=1
  samples=32                    needles at each depth
  folder=experiments/stage2     where stage2.json and RESULTS.md go

Writes stage2.json and RESULTS.md, in minutes on one core with a tiny model. Exit status: 0 written, 2 refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from atlas.config import RECALL, RunConfig, require
from atlas.config.arguments import read_settings, run_command, split_arguments
from atlas.data.source import DataSource
from atlas.runs.build import build_data, build_probe
from atlas.runs.environment import git_revision, versions
from atlas.runs.load import load_checkpointed
from atlas.telemetry.run_files import RunFiles
from atlas.training.evaluation import Evaluator
from atlas.training.step import TrainStep

HERE = Path(__file__).parent
LEAST_GAIN = 0.01  # nats; three seeds of the default run lie 0.027 apart
USAGE = "python -m experiments.stage2 RUN [control=RUN] [samples=32]"


@dataclass
class Settings:
    control: str = ""
    samples: int = 32  # needles at each depth
    folder: str = str(HERE)  # of stage2.json and RESULTS.md

    def __post_init__(self) -> None:
        require(self.samples >= 1, "samples", self.samples, ">= 1")
        require(Path(self.folder).is_dir(), "folder", self.folder, "a folder that exists")


@dataclass(frozen=True)
class Model:
    """Losses in nats per target."""

    name: str
    chunks: tuple[int, ...]  # of its last step
    loss: float
    loss_chunk1: float
    recall_chunk1: float | None
    control_chunk1: float | None  # recall with the memory off
    key_blind: float | None  # recall of the best reader that ignores the key
    steps: int


def stage2_run(key: str, path: str) -> RunConfig:
    """The configuration of a run. Raises `ConfigError` unless it is a Stage 2."""
    _, config, _ = load_checkpointed(path)
    require(config.stage2.enabled, key, path, "a run of experiment=stage2")
    return config


def measured(name: str, path: str, config: RunConfig, data: DataSource, samples: int) -> Model:
    """The model of a run or checkpoint on validation batches and needles of the run with `config`."""
    model, _, manifest = load_checkpointed(path)
    step = TrainStep(config.train, torch.device("cpu"), torch.float32)
    evaluator = Evaluator(data, step, config.train.validation_batches, watch_rows=1)
    loss, plan = evaluator.validation_loss(model), model.plan
    model.plan = plan.each_token
    loss_chunk1 = evaluator.validation_loss(model)
    niah = replace(config.niah, enabled=True, levels=[RECALL.name], tasks=[], samples=samples)
    (found,) = build_probe(replace(config, niah=niah), data).run(model, manifest.step)
    probed = found.accuracy, found.control, found.key_blind
    return Model(name, plan.local, loss, loss_chunk1, *probed, manifest.step)


def costs(run: RunFiles) -> dict[int, float]:
    """Microseconds of a training token by chunk: medians over the rows of metrics.jsonl."""
    by_chunk: dict[int, list[float]] = {}
    for row in run.rows:
        if row.get("tokens_per_second") and row.get("stage2/chunk"):
            by_chunk.setdefault(row["stage2/chunk"], []).append(1e6 / row["tokens_per_second"])
    return {chunk: median(times) for chunk, times in by_chunk.items()}


def verdict(before: Model, after: Model, control: Model | None) -> str:
    """The rule of README.md."""
    change = f"validation loss at chunk 1: {before.loss_chunk1:.4f} before, {after.loss_chunk1:.4f} after"
    if control is None:
        return f"Open, without a control; {change}."
    gain = min(before.loss_chunk1, control.loss_chunk1) - after.loss_chunk1
    pays = "pays" if gain >= LEAST_GAIN else "does NOT pay"
    return f"Stage 2 {pays}; {change}, {control.loss_chunk1:.4f} of the control. One seed."


def document(models: Sequence[Model], cost: dict[int, float], said: str, source: str) -> str:
    def share(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.1%}"

    lines = ["# Stage 2: results", "", "Written by the command; do not edit.", "", source, "", said, ""]
    head = "chunks | loss at these chunks | loss at chunk 1 | recall at chunk 1 | memory off | key-blind"
    lines += [f"| model | steps | {head} |", "|---" * 8 + "|"]
    for one in models:
        recall = " | ".join(map(share, (one.recall_chunk1, one.control_chunk1, one.key_blind)))
        chunks = ", ".join(map(str, one.chunks))
        lines.append(f"| {one.name} | {one.steps} | {chunks} | {one.loss:.4f} | {one.loss_chunk1:.4f} | {recall} |")
    lines += [
        "",
        "Times depend on what else the machine did.",
        "",
        "| largest chunk | µs per training token |",
        "|---|---|",
    ]
    lines += [f"| {chunk} | {time:.1f} |" for chunk, time in cost.items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(_measure, arguments, __doc__ or "")


def _measure(arguments: Sequence[str]) -> int:
    path, given = split_arguments([one for one in arguments if not one.startswith(("control=", "folder="))], USAGE)
    settings = read_settings(Settings, [*given, *(one for one in arguments if one.startswith(("control=", "folder=")))])
    config = stage2_run("RUN", path)
    if settings.control:
        other = stage2_run("control", settings.control)
        wanted = config.init_from, config.train.steps, 1.0
        same = (other.init_from, other.train.steps, other.stage2.decay) == wanted
        allowed = "a run with init_from={}, train.steps={} and stage2.decay={}".format(*wanted)
        require(same, "control", settings.control, allowed)
    data = build_data(config)
    before = measured("before", str(config.init_from), config, data, settings.samples)
    after = measured("after", path, config, data, settings.samples)
    control = measured("control", settings.control, config, data, settings.samples) if settings.control else None
    models, cost = [before, *([control] if control else []), after], costs(RunFiles(Path(path)))
    said, schedule = verdict(before, after, control), asdict(config.stage2)
    setting = ", ".join(f"{key}={value}" for key, value in schedule.items())
    trained = f"{config.train.steps} steps of {config.train.batch_size} sequences"
    source = f"`{USAGE}`, revision {git_revision() or 'unknown'}; {trained}, {setting}."
    text = document(models, cost, said, source)
    record: dict[str, Any] = {"models": [asdict(one) for one in models], "us_per_token": cost, "schedule": schedule}
    record |= {"git": git_revision(), "versions": versions()}
    (Path(settings.folder) / "stage2.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (Path(settings.folder) / "RESULTS.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
