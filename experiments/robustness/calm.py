"""How often the watch raises a false alarm: calm runs, rollback as by default, no fault.

python experiments/robustness/calm.py [SEEDS [STEPS]]

Trains SEEDS (10) small runs of STEPS (1000) steps. Writes calm.json and RESULTS.md beside this file, in about a quarter
of an hour on one core.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import counts, small, table, write_result

import atlas
from atlas.config.arguments import run_command
from atlas.telemetry.run_files import RunFiles
from atlas.training.rollback.threshold import suggest_threshold


def calm(seed: int, steps: int, folder: Path) -> dict[str, Any]:
    settings = [f"seed={seed}", f"train.steps={steps}", "rollback=observe", "telemetry.every=20"]
    summary = atlas.train(small(*settings), folder)
    spikes = RunFiles(folder).of_kind("spike")
    found = suggest_threshold([row["ppl_delta"] for row in RunFiles(folder).rows if row["step"] > 100])
    return {
        "seed": seed,
        "alarms": len(spikes),
        "spikes": [spike["message"] for spike in spikes],
        "watch": summary.overhead["watch"],
        **found,
    }


def main(arguments: Sequence[str]) -> int:
    seeds, steps = counts(arguments, seeds=10, steps=1000)
    with tempfile.TemporaryDirectory() as scratch:
        found = [calm(seed, steps, Path(scratch) / str(seed)) for seed in range(seeds)]
    head = ["seed", "false alarms", "99th percentile of ppl_delta", "highest", "watch, share of training time"]
    rows = [
        [
            one["seed"],
            one["alarms"],
            f"{one['percentile_99']:+.2%}",
            f"{one['quantiles']['1.0']:+.2%}",
            f"{one['watch']:.2%}",
        ]
        for one in found
    ]
    total = sum(one["alarms"] for one in found)
    text = f"{table(head, rows)}\n\n{total} false alarms in {seeds} runs of {steps} steps."
    write_result("calm", f"Calm runs: {seeds} seeds, {steps} steps", text, {"runs": found})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
