"""Which injected faults are noticed, after how many steps, and how the run ends.

A bad batch does its damage over steps, so two delays are given: from the fault's first step, and from the first reading
of the watched perplexity that is over the limit. The second one is what `rollback.patience` bounds: that many readings,
`rollback.suspect_every` steps apart.

python experiments/robustness/detection.py

Takes no settings: one small run for each fault. Writes detection.json and RESULTS.md beside this file, in some minutes
on one core.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import counts, small, table, write_result

import atlas
from atlas.config import RollbackConfig
from atlas.config.arguments import run_command
from atlas.telemetry.run_files import RunFiles

STEPS, FAULT_AT = 500, 255
SETTINGS = RollbackConfig()
LIMIT = SETTINGS.threshold  # of ppl_delta; the watch's own limit is never lower
WITHIN = (SETTINGS.patience - 1) * SETTINGS.suspect_every  # steps from the first bad reading to the last one needed
FAULTS = [
    *[f"bad_batch@{FAULT_AT}:{size}" for size in (1, 5, 20)],
    *[f"lr_burst@{FAULT_AT}:{size}" for size in (3, 10, 30, 100)],
    *[f"weights@{FAULT_AT}:{size}" for size in (0.05, 0.2, 0.5, 1, 3)],
    *[f"{kind}@{FAULT_AT}" for kind in ("nan_loss", "nan_gradient", "nan_memory")],
]


def strike(fault: str, folder: Path) -> dict[str, Any]:
    """One run with the fault; `damage` is how far the watched perplexity rose above its average."""
    settings = [f"debug.inject={fault}", f"train.steps={STEPS}", "checkpoint.every=50", "telemetry.every=1"]
    summary = atlas.train(small(*settings), folder)
    run = RunFiles(folder)
    rows, spikes = run.rows, [event["step"] for event in run.of_kind("spike")]
    first = [row for row in rows if row["segment"] == 0]
    struck = [row["ppl_delta"] or 0.0 for row in first if row["step"] >= FAULT_AT]
    over = [row["step"] for row in first if row["step"] >= FAULT_AT and (row["ppl_delta"] or 0.0) > LIMIT]
    before = [row["loss"] for row in first if FAULT_AT - 50 <= row["step"] < FAULT_AT]
    return {
        "fault": fault,
        "damage": max(struck, default=None),
        "delay_steps": spikes[0] - FAULT_AT + 1 if spikes else None,
        "delay_after_first_bad_reading_steps": spikes[0] - over[0] if spikes and over else None,
        "back_to": next((event["step"] for event in run.of_kind("rollback")), None),
        "rollbacks": summary.rollbacks,
        "status": summary.status,
        "loss_before": sum(before) / len(before),
        "validation_loss_end": summary.validation_loss,
        "loss_end": sum(row["loss"] for row in rows[-50:]) / 50,
    }


def _steps(count: int | None) -> str:
    return "-" if count is None else str(count)


def main(arguments: Sequence[str]) -> int:
    counts(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = [strike(fault, Path(scratch) / str(number)) for number, fault in enumerate(FAULTS)]
    head = [
        "fault",
        "perplexity above its average",
        "noticed after, steps",
        f"after its first reading over the limit ({WITHIN} allowed)",
        "back to step",
        "loss before",
        "at the end",
    ]
    rows = [
        [
            f"`{one['fault']}`",
            "-" if one["damage"] is None else f"{one['damage']:+.1%}",
            "not noticed" if one["delay_steps"] is None else one["delay_steps"],
            _steps(one["delay_after_first_bad_reading_steps"]),
            "-" if one["back_to"] is None else one["back_to"],
            f"{one['loss_before']:.3f}",
            f"{one['loss_end']:.3f}" + ("" if one["status"] == "completed" else f" ({one['status']})"),
        ]
        for one in found
    ]
    write_result("detection", f"Detection of faults at step {FAULT_AT} of {STEPS}", table(head, rows), {"runs": found})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
