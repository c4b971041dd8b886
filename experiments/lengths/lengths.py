"""Perplexity at 1, 2, 4 and 10 times the trained length.

python experiments/lengths/lengths.py RUN [KEY=VALUE ...]

RUN is a finished run or one of its checkpoints.

  rows=16     stretches of text, each of ten trained lengths
  seed=0      of their places in the validation text

Writes lengths.json and RESULTS.md beside this file, in some minutes on one core with a tiny model. Exit status: 0 the
rule of README.md holds, 1 it does not, 2 refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atlas.config import RunConfig, require
from atlas.config.arguments import read_settings, run_command, split_arguments
from atlas.data.corpus import stdlib_corpus
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.probes.lengths import Length, by_length, loss_by_stretch
from atlas.runs.build import build_data
from atlas.runs.environment import git_revision, versions
from atlas.runs.load import load_checkpointed

HERE = Path(__file__).parent
USAGE = "python experiments/lengths/lengths.py RUN [rows=16] [seed=0]"
FACTORS = (1, 2, 4, 10)
ALLOWED = 0.10  # perplexity above that in pieces
STDLIB_SHARE = 0.1  # held out, for a run on data without text
AS_TRAINED = "as trained"


@dataclass
class LengthSettings:
    rows: int = 16  # stretches of text of ten trained lengths
    seed: int = 0  # of their places

    def __post_init__(self) -> None:
        require(self.rows >= 1, "rows", self.rows, ">= 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2**63)")


def readings(plan: ChunkPlan) -> dict[str, tuple[ChunkPlan, MemoryMode]]:
    """The ways in which the text is read."""
    each_token = plan._replace(local=(1,) * len(plan.local))
    return {
        AS_TRAINED: (plan, MemoryMode.learn),
        "no resets": (plan._replace(shard=None), MemoryMode.learn),
        "chunk 1": (each_token, MemoryMode.learn),
        "chunk 1, no resets": (each_token._replace(shard=None), MemoryMode.learn),
        "memory frozen": (plan, MemoryMode.frozen),
        "memory off": (plan, MemoryMode.off),
    }


def text_rows(config: RunConfig, settings: LengthSettings) -> Tensor:
    """Held-out text: [rows, 10 T + 1]. Raises `ConfigError` where there is too little."""
    corpus = build_data(config).corpus or stdlib_corpus(STDLIB_SHARE)
    length = FACTORS[-1] * config.train.sequence + 1
    text = corpus.validation
    allowed = f"of a run with at least {length} bytes of validation text; there are {len(text)}"
    require(len(text) >= length, "RUN", corpus.source, allowed)
    starts = np.random.default_rng(settings.seed).integers(0, len(text) - length + 1, (settings.rows, 1))
    return torch.from_numpy(text[starts + np.arange(length)].astype(np.int64))


def table(found: dict[str, list[Length]], trained_length: int) -> str:
    head = "| reading | " + " | ".join(f"{factor * trained_length} tokens ({factor}x)" for factor in FACTORS) + " |"
    lines = [head, "|---" * (len(FACTORS) + 1) + "|"]
    for name, lengths in found.items():
        cells = [f"{one.perplexity:.3f} ({one.change:+.1%})" for one in lengths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def holds(found: dict[str, list[Length]]) -> bool:
    """The rule of README.md."""
    last = found[AS_TRAINED][-1]
    return isfinite(last.perplexity) and last.change <= ALLOWED


def measure(path: str, settings: LengthSettings) -> tuple[dict[str, list[Length]], dict[str, Any]]:
    model, config, manifest = load_checkpointed(path)
    rows, trained_length = text_rows(config, settings), config.train.sequence
    found: dict[str, list[Length]] = {}
    stretches: dict[str, Any] = {}
    for name, (plan, mode) in readings(model.plan).items():
        losses = loss_by_stretch(model, rows, trained_length, plan=plan, mode=mode)
        found[name] = by_length(losses, FACTORS)
        stretches[name] = [asdict(one) for one in losses]
        print(f"{name}: {', '.join(f'{one.factor}x {one.perplexity:.3f}' for one in found[name])}", flush=True)
    record = {
        "step": manifest.step,
        "trained_length": trained_length,
        "settings": asdict(settings),
        "stretches": stretches,
        "git": git_revision(),
        "versions": versions(),
    }
    return found, record


def write(found: dict[str, list[Length]], record: dict[str, Any], folder: Path) -> str:
    """lengths.json and RESULTS.md in `folder`; returns the verdict."""
    lengths = {name: [asdict(one) | {"change": one.change} for one in each] for name, each in found.items()}
    (folder / "lengths.json").write_text(json.dumps({"lengths": lengths, **record}, indent=1) + "\n", encoding="utf-8")
    verdict = "holds" if holds(found) else "does NOT hold"
    last = found[AS_TRAINED][-1]
    text = [
        "# Lengths: results",
        "",
        "Written by the command; do not edit.",
        "",
        f"`{USAGE}` on a run of {record['step']} steps, revision {record['git'] or 'unknown'}.",
        f"Perplexity per byte of {record['settings']['rows']} stretches of validation text; in brackets its change",
        "against the same text in pieces of the trained length, read in the same way, each from the initial state.",
        "",
        table(found, record["trained_length"]),
        "",
        f"The rule {verdict}: {last.change:+.1%} at 10 times the trained length, allowed {ALLOWED:+.0%}.",
        "",
    ]
    (folder / "RESULTS.md").write_text("\n".join(text), encoding="utf-8")
    return text[-2]


def main(arguments: Sequence[str], folder: Path = HERE) -> int:
    return run_command(lambda given: _main(given, folder), arguments, __doc__ or "")


def _main(arguments: Sequence[str], folder: Path) -> int:
    path, overrides = split_arguments(arguments, USAGE)
    settings = read_settings(LengthSettings, overrides)
    found, record = measure(path, settings)
    print(f"\n{table(found, record['trained_length'])}\n\n{write(found, record, folder)}")
    return 0 if holds(found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
