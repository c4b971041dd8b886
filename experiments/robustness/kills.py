"""Runs that are killed (SIGKILL) at random moments and resumed each time, against the undisturbed runs.

python experiments/robustness/kills.py [KILLS]

Every start is a process of its own, forked from this one after its imports, so that most kills strike the run itself
and not the imports. A run saves every second step and meets a fault, so that kills strike rollbacks as well.
KILLS is 1000 by default: a third of them in each setting, in runs of 50 kills at most. Writes kills.json and RESULTS.md
beside this file; a kill takes about a second.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import TEXT, compare, counts, small, start, table, write_result

from atlas.checkpoint.manager import CheckpointManager
from atlas.config import RunConfig
from atlas.config.arguments import run_command
from atlas.kernels.library import library

EVERY = 2
SETTINGS = {
    "gd": [],
    "momentum, carried memory": ["model.memory.rule=momentum", "train.carry_memory=true"],
    "accumulation": ["train.accumulate=2"],
}
KILLS_A_RUN = 50  # longer runs have longer files, which every start reads
STEPS_A_KILL = 30
LIFE_SECONDS = 0.4  # after its start event a run lives for a random time up to this
STRUCK_EARLY = 0.1  # share of the kills that do not wait for the start event
START_SECONDS = 60.0  # patience with a start


def newest_step(folder: Path) -> int:
    steps = [manifest.step for manifest in CheckpointManager(folder / "checkpoints", keep=2).list()]
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
    tally["runs that ended with status 0"] += ended == 0
    return tally


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _wait_for_growth(path: Path, size: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while _size(path) <= size and time.monotonic() < deadline:
        time.sleep(0.005)


def measure(settings: list[str], kills: int, seed: int, scratch: Path) -> tuple[Counter[str], dict[str, Any]]:
    """One run with so many kills, and the same run without."""
    steps = STEPS_A_KILL * kills
    settings = [
        *settings,
        f"seed={seed}",
        f"train.steps={steps}",
        "train.batch_size=4",
        f"checkpoint.every={EVERY}",
        "telemetry.every=1",
        f"train.validation_every={steps}",
        "train.validation_batches=1",
        f"debug.inject=nan_loss@{steps // 2}",
    ]
    config = small(*settings, f'data.paths=["{TEXT}"]', data="data=text")
    folder, whole = scratch / "disturbed", scratch / "whole"
    folder.mkdir(parents=True)
    whole.mkdir()
    tally = disturb(replace(config, resume="auto"), folder, kills, random.Random(seed))
    _, ended = os.waitpid(start(config, whole), 0)
    tally["undisturbed runs that ended with another status than 0"] += ended != 0
    return tally, compare(folder, whole)


def measure_all(settings: list[str], kills: int, scratch: Path) -> dict[str, Any]:
    """Runs until `kills` have struck: counts are sums, and what is true is true of each run."""
    tally: Counter[str] = Counter()
    found: list[dict[str, Any]] = []
    for seed, first in enumerate(range(0, kills, KILLS_A_RUN)):
        place = scratch / str(seed)
        of_run, compared = measure(settings, min(KILLS_A_RUN, kills - first), seed, place)
        tally += of_run
        found.append(compared)
        shutil.rmtree(place)
        print(f"{settings}, run {seed}: {dict(of_run)} {compared}", flush=True)
    names = found[0]
    together = {name: (all if type(names[name]) is bool else sum)(one[name] for one in found) for name in names}
    return {"runs": len(found), **tally, **together}


def main(arguments: Sequence[str]) -> int:
    (kills,) = counts(arguments, kills=1000)
    torch.set_num_threads(1)
    library()  # loaded once, and not by every start
    shares = [kills // len(SETTINGS) + (at < kills % len(SETTINGS)) for at in range(len(SETTINGS))]
    with tempfile.TemporaryDirectory() as scratch:
        each = zip(SETTINGS.items(), shares, strict=True)
        found = {
            name: measure_all(settings, share, Path(scratch) / name) for (name, settings), share in each if share > 0
        }
    names = dict.fromkeys(name for one in found.values() for name in one)
    rows = [[name, *(one.get(name, 0) for one in found.values())] for name in names]
    title = f"{kills} kills of runs that save every {EVERY} steps"
    write_result("kills", title, table(["what", *found], rows), {"found": found})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
