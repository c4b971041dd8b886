"""A run that is stopped by signals at random steps and resumed each time, against the undisturbed run.

python experiments/robustness/stops.py [STOPS]

STOPS (10) stops by each of Ctrl-C, SIGTERM, SIGHUP and SIGUSR1, in every setting. The run saves rarely, so that only
the checkpoint of the stop can keep what was done; every start is a process of its own, and is stopped at a random
moment after it has taken a random number of steps. A fault lies in the middle, so that some stops strike a rollback.
Writes stops.json and RESULTS.md beside this file, in a few minutes.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import TEXT, compare, counts, small, start, table, write_result

from atlas.config import RunConfig
from atlas.config.arguments import run_command
from atlas.runs.signals import SIGNALS, handled_by, interrupt
from atlas.runs.summary import read_summary

SETTINGS = {
    "momentum, carried memory": ["model.memory.rule=momentum", "train.carry_memory=true"],
    "accumulation": ["train.accumulate=2"],
}
STEPS_BETWEEN = 10  # at most, and at least one
STEP_SECONDS = 0.05  # a signal strikes anywhere within some steps
PATIENCE_SECONDS = 900.0  # a machine can be busy


def stop_again_and_again(config: RunConfig, folder: Path, numbers: list[signal.Signals], draw: random.Random) -> Any:
    """Stop and restart once for each number, then let it end; returns what was found."""
    lost, statuses, longest = 0, [], 0.0
    for number in numbers:
        rows = _rows(folder)
        process = start(config, folder)
        _wait_for_rows(folder, rows + draw.randint(1, STEPS_BETWEEN), process)
        time.sleep(draw.uniform(0.0, STEP_SECONDS))
        began = time.monotonic()
        os.kill(process, number)
        _, ended = os.waitpid(process, 0)
        longest = max(longest, time.monotonic() - began)
        statuses.append(os.waitstatus_to_exitcode(ended))
        summary = read_summary(folder)
        assert summary is not None
        saved = max(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))
        lost += summary.step - saved
    _, ended = os.waitpid(start(config, folder), 0)
    return {
        "stops in good order": statuses.count(130),
        "steps lost": lost,
        "last start ended with status": os.waitstatus_to_exitcode(ended),
        "seconds to stop, at most": round(longest, 1),
    }


def _rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _wait_for_rows(folder: Path, count: int, process: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _rows(folder) < count:
        if time.monotonic() > deadline:
            sys.exit(f"a start had {_rows(folder)} rows of {count} after {PATIENCE_SECONDS:.0f} s")
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            sys.exit(f"a start ended by itself after {_rows(folder)} rows")
        time.sleep(0.005)


def measure(settings: list[str], stops: int, scratch: Path) -> dict[str, Any]:
    numbers = list(itertools.chain.from_iterable([number] * stops for number in SIGNALS))
    draw = random.Random(str(settings))
    draw.shuffle(numbers)
    steps = 3 * STEPS_BETWEEN * len(numbers)  # a busy machine stops later than it is asked to
    config = small(
        *settings,
        f"train.steps={steps}",
        "checkpoint.every=200",
        "telemetry.every=1",
        "train.validation_every=25",
        "train.validation_batches=1",
        f"debug.inject=nan_loss@{steps // 8}",
        f'data.paths=["{TEXT}"]',
        data="data=text",
    )
    folder, whole = scratch / "disturbed", scratch / "whole"
    folder.mkdir(parents=True)
    whole.mkdir()
    undisturbed = start(config, whole)
    found = stop_again_and_again(replace(config, resume="auto"), folder, numbers, draw)
    os.waitpid(undisturbed, 0)
    return {"steps": steps, "stops": len(numbers), **found, **compare(folder, whole)}


def main(arguments: Sequence[str]) -> int:
    (stops,) = counts(arguments, stops=10)
    torch.set_num_threads(1)
    for number in SIGNALS:  # a shell in the background or nohup has them ignored
        signal.signal(number, signal.SIG_DFL)
    with tempfile.TemporaryDirectory() as scratch, handled_by(interrupt):
        found = {name: measure(settings, stops, Path(scratch) / name) for name, settings in SETTINGS.items()}
    names = list(next(iter(found.values())))
    rows = [[name, *(result[name] for result in found.values())] for name in names]
    title = f"{stops} stops by each of {', '.join(number.name for number in SIGNALS)}"
    write_result("stops", title, table(["what", *found], rows), {"found": found})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
