"""A run that is killed (SIGKILL) at random moments and resumed each time, against the undisturbed run.

python experiments/robustness/kills.py [KILLS]

Every start is a process of its own, forked from this one after its imports, so that most kills strike the run itself
and not the imports. The run saves every second step and meets a fault, so that kills strike rollbacks as well.
KILLS is 100 by default. Writes kills.json and RESULTS.md beside this file, in a few minutes.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from common import TEXT, compare, counts, small, start, table, write_result

from atlas.checkpoint.manager import CheckpointManager
from atlas.config import RunConfig
from atlas.config.arguments import run_command

EVERY = 2
LIFE_SECONDS = 1.0  # after its start event a run lives for a random time up to this
STRUCK_EARLY = 0.1  # share of the kills that do not wait for the start event
START_SECONDS = 60.0  # patience with a start


def newest_step(folder: Path) -> int:
    steps = [manifest.step for manifest in CheckpointManager(folder / "checkpoints", every=1, keep=2).list()]
    return max(steps, default=-1)


def disturb(config: RunConfig, folder: Path, kills: int, draw: random.Random) -> Counter[str]:
    """Kill and restart until `kills` have struck, then let it end."""
    tally: Counter[str] = Counter()
    while tally["killed"] < kills:
        events = _size(folder / "events.jsonl")
        process = start(config, folder)
        if draw.random() > STRUCK_EARLY:
            _wait_for_growth(folder / "events.jsonl", events)
        time.sleep(draw.uniform(0.0, LIFE_SECONDS))
        saved = newest_step(folder)
        os.kill(process, signal.SIGKILL)
        _, ended = os.waitpid(process, 0)
        if not os.WIFSIGNALED(ended):
            status = os.waitstatus_to_exitcode(ended)
            sys.exit(f"a start ended by itself with status {status} after {tally['killed']} kills")
        tally["killed"] += 1
        tally["of these, before the first checkpoint"] += saved < 0
    _, ended = os.waitpid(start(config, folder), 0)
    tally[f"last start ended with status {os.waitstatus_to_exitcode(ended)}"] += 1
    return tally


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _wait_for_growth(path: Path, size: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while _size(path) <= size and time.monotonic() < deadline:
        time.sleep(0.005)


def main(arguments: Sequence[str]) -> int:
    (kills,) = counts(arguments, kills=100)
    torch.set_num_threads(1)
    steps = 30 * kills
    settings = [
        f"train.steps={steps}",
        f"checkpoint.every={EVERY}",
        "telemetry.every=1",
        f"train.validation_every={steps}",
        "train.validation_batches=1",
        f"debug.inject=nan_loss@{steps // 2}",
    ]
    config = small(*settings, f'data.paths=["{TEXT}"]', data="data=text")
    with tempfile.TemporaryDirectory() as scratch:
        folder, whole = Path(scratch) / "disturbed", Path(scratch) / "whole"
        folder.mkdir()
        whole.mkdir()
        tally = disturb(replace(config, resume="auto"), folder, kills, random.Random(0))
        _, ended = os.waitpid(start(config, whole), 0)
        tally[f"undisturbed run ended with status {os.waitstatus_to_exitcode(ended)}"] += 1
        found = compare(folder, whole)
    rows = [[name, count] for name, count in (*tally.items(), *found.items())]
    title = f"{kills} kills of a run of {steps} steps that saves every {EVERY}"
    write_result("kills", title, table(["what", "result"], rows), {"tally": tally, **found})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
