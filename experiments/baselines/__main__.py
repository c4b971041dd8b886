"""The baselines of the closing table, from finished runs and from records of the field.

python -m experiments.baselines [SWEEP ...] [field=FOLDER]

Takes the completed runs of `model=attention_only` and `model=transformer` in the sweeps, groups those that differ in
the seed only, and the records in FOLDER of models that are no option: attention with the memory's convolution, and an
LSTM. Writes them into atlas/runs/baselines.json in the place of those of the same models; others stay. Exit status: 0
written, 2 refused.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from atlas.config import ConfigError, RunConfig
from atlas.config.arguments import run_command
from atlas.config.atomic import write_atomically
from atlas.config.composition import compose, load_config
from atlas.config.keys import flat
from atlas.runs.baselines import FILE, Baseline, recipe
from atlas.runs.build import build_data
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.run_files import CONFIG_FILE
from experiments.field.contestants import CONVOLVED, LSTM, configuration
from experiments.field.record import read_record

MODELS = ("attention_only", "transformer")
OF_FIELD = {
    CONVOLVED[0]: ("attention_only", "with the memory's convolution"),
    CONVOLVED[1]: ("transformer", "with the memory's convolution"),
    LSTM: ("transformer", "with an LSTM in the place of attention"),
}


def model_of(config: RunConfig) -> str | None:
    own = flat(asdict(config.model))
    return next((name for name in MODELS if own == flat(asdict(compose([f"model={name}"]).model))), None)


def of_sweeps(sweeps: list[str]) -> Iterator[Baseline]:
    groups: dict[tuple[str, str, str], list[tuple[RunConfig, RunSummary]]] = defaultdict(list)
    for folder in sorted({path.parent for sweep in sweeps for path in Path(sweep).glob(f"*/{CONFIG_FILE}")}):
        summary, config = read_summary(folder), load_config(folder / CONFIG_FILE)
        model = model_of(config)
        if summary is not None and summary.status == "completed" and model is not None:
            groups[model, summary.data_digest, json.dumps(recipe(config))].append((config, summary))
    for (model, digest, settings), runs in groups.items():
        first = runs[0][1]
        losses = [summary.validation_loss for _, summary in runs if summary.validation_loss is not None]
        yield Baseline(model, first.parameters, losses, first.git, digest, json.loads(settings))


def of_field(folder: str) -> Iterator[Baseline]:
    """The recipe and the text are those of today, as for every contestant that the command of the field would train."""
    records = [read_record(path) for path in sorted(Path(folder).glob("*-seed*.json"))]
    for name, (model, about) in OF_FIELD.items():
        for steps in sorted({one.steps for one in records if one.name == name}):
            group = [one for one in records if (one.name, one.steps) == (name, steps)]
            config = configuration(name, group[0].size, steps=steps)
            corpus = build_data(config).corpus
            digest = corpus.digest if corpus else ""
            losses = [one.loss for one in group]
            yield Baseline(model, group[0].parameters, losses, group[0].git, digest, recipe(config), about)


def main(arguments: list[str]) -> int:
    fields = [argument.partition("=")[2] for argument in arguments if argument.startswith("field=")]
    sweeps = [argument for argument in arguments if not argument.startswith("field=")]
    found = [*of_sweeps(sweeps), *(one for folder in fields for one in of_field(folder))]
    if not found:
        given = f"SWEEP={' '.join(arguments)}"
        raise ConfigError(f"{given}: must hold completed runs of {' or '.join(MODELS)}, or records of the field")
    named = {(one.model, one.about) for one in found}
    known = [Baseline(**one) for one in json.loads(FILE.read_text(encoding="utf-8"))]
    kept = [one for one in known if (one.model, one.about) not in named]
    write_atomically(FILE, json.dumps([asdict(one) for one in (*kept, *found)], indent=1) + "\n")
    for one in found:
        print(one)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
