"""The text of `--help`, made from the files of `conf/`: an option's line is the first comment of its file.

Hydra's own help does not explain the groups and takes seconds.
"""

from __future__ import annotations

import re
from textwrap import fill

from atlas.config import WATCHERS
from atlas.config.composition import GROUPS, options
from atlas.config.files import CONF_DIR

FAULTS = ("bad_batch", "lr_burst", "weights", "gradient", "nan_loss", "nan_gradient", "nan_memory")
_TEXT = """\
atlas trains a language model whose memory learns at test time.

python -m atlas.train [GROUP=OPTION ...] [KEY=VALUE ...]        (installed: atlas-train ...)

Examples
  python -m atlas.train                                           the default run
  python -m atlas.train niah.every=1000 train.steps=2000          single settings
  python -m atlas.train model=attention_only data=stdlib          options of groups
  python -m atlas.train data=text 'data.paths=["**/*.md"]'        your own text
  python -m atlas.train -m chunk_size=c8,c16,c32 seed=0,1         a sweep: every combination

Groups (* is the default)
{groups}

resume=PATH continues the run in that folder, resume=auto the one in hydra.run.dir, if there is one;
init_from=PATH takes weights only. As PATH, latest is the newest run in outputs/runs.
debug.inject=KIND@STEP[:SIZE][:always] rehearses a fault; KIND is one of
{faults}.
debug.profile=FIRST:LAST shows where the time of these steps goes.

telemetry.samples=N continues N validation texts after each validation; telemetry.every=N is how often a row is written.
watch.NAME=warn|abort|rollback|off says what follows where a watcher finds something; NAME is one of
{watchers}.

A sweep ends with a table of its jobs and a report in its folder. sweep.resume=DIR runs what did not complete in it,
latest is the newest; sweep.seeds=N repeats every combination with N seeds; sweep.fail_fast=true starts no job after
one that failed.
hydra/sweeper=optuna 'optim.lr=tag(log,interval(1e-4,1e-2))' lets Optuna choose hydra.sweeper.trials jobs in turn.
hydra/launcher=joblib runs jobs at the same time (hydra.launcher.n_jobs), hydra/launcher=slurm on a cluster; timings of
jobs that ran beside others are no evidence.

With a trained run: python -m atlas.generate continues a text, niah probes the memory, evaluate measures perplexity
and bits per byte, export writes a folder for the library transformers, harness runs the lm-evaluation-harness on it,
report makes a page; prepare makes a token store of text. Each has its own --help.

--plan prints parameters, operations, memory and time of the run and starts nothing.
--cfg job prints the configuration with every key, -m runs a sweep, --hydra-help shows Hydra's own flags.
A run writes outputs/runs/<time>/, a sweep outputs/sweeps/<time>/<job>/; hydra.run.dir=PATH chooses the folder."""


def help_text() -> str:
    return _TEXT.format(
        groups="\n".join(_describe(group, purpose) for group, purpose in GROUPS.items()),
        faults=", ".join(FAULTS),
        watchers=fill(", ".join(WATCHERS), 118),
    )


def _describe(group: str, purpose: str) -> str:
    config = (CONF_DIR / "config.yaml").read_text(encoding="utf-8")
    default = re.search(rf"^  - {group}: (\w+)$", config, re.MULTILINE)
    lines, width = [f"{group}: {purpose}"], max(15, *map(len, options(group)))
    for option in options(group):
        text = (CONF_DIR / group / f"{option}.yaml").read_text(encoding="utf-8")
        first = next(line for line in text.splitlines() if not line.startswith(("# @", "# python")))
        if group == "experiment":  # the first sentence of several lines
            first = re.split(r"[.:](?: |$)|(?<=\?) ", first)[0]
        mark = "*" if default and default[1] == option else " "
        lines.append(f"  {mark} {option:<{width}} {first.removeprefix('# ')}")
    return "\n".join(lines)
