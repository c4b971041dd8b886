"""The baselines of the closing table, from finished runs.

python -m experiments.baselines SWEEP [SWEEP ...]

Takes the completed runs of `model=attention_only` and `model=transformer` in the sweeps, groups those that differ in
the seed only, and writes atlas/runs/baselines.json. Exit status: 0 written, 2 refused.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from atlas.config import ConfigError, RunConfig
from atlas.config.arguments import run_command
from atlas.config.atomic import write_atomically
from atlas.config.composition import compose, load_config
from atlas.config.keys import flat
from atlas.runs.baselines import FILE, Baseline, recipe
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.run_files import CONFIG_FILE

MODELS = ("attention_only", "transformer")


def model_of(config: RunConfig) -> str | None:
    own = flat(asdict(config.model))
    return next((name for name in MODELS if own == flat(asdict(compose([f"model={name}"]).model))), None)


def main(sweeps: list[str]) -> int:
    groups: dict[tuple[str, str, str], list[tuple[RunConfig, RunSummary]]] = defaultdict(list)
    for folder in sorted({path.parent for sweep in sweeps for path in Path(sweep).glob(f"*/{CONFIG_FILE}")}):
        summary, config = read_summary(folder), load_config(folder / CONFIG_FILE)
        model = model_of(config)
        if summary is not None and summary.status == "completed" and model is not None:
            groups[model, summary.data_digest, json.dumps(recipe(config))].append((config, summary))
    if not groups:
        raise ConfigError(f"SWEEP={' '.join(sweeps)}: must hold completed runs of {' or '.join(MODELS)}")
    found = []
    for (model, digest, settings), runs in groups.items():
        first = runs[0][1]
        losses = [summary.validation_loss for _, summary in runs if summary.validation_loss is not None]
        found.append(Baseline(model, first.parameters, losses, first.git, digest, json.loads(settings)))
    write_atomically(FILE, json.dumps([asdict(one) for one in found], indent=1) + "\n")
    for one in found:
        print(one)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
