"""Two processes under `torchrun --max-restarts`, killed (SIGKILL) at random moments, against an undisturbed run of two.

python experiments/robustness/ranks.py [KILLS]

torchrun starts the processes anew after each kill, without anybody's help. The run saves every second step and meets
a fault, so that kills strike rollbacks as well. Writes ranks.json and RESULTS.md beside this file; a kill (30 of them)
takes about a quarter of a minute.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common import SMALL, TEXT, compare, counts, table, write_result

from atlas.config.arguments import run_command
from atlas.telemetry.run_files import RunFiles

PROCESSES = 2
STEPS_A_KILL = 20
LIFE_SECONDS = 2.0  # after its start event a run lives for a random time up to this
START_SECONDS = 600.0  # patience with a start, on a busy machine


def command(settings: list[str], folder: Path, restarts: int) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
    resumed = [f"hydra.run.dir={folder}", "resume=auto"]
    return [*launcher, f"--max-restarts={restarts}", "-m", "atlas.train", *SMALL, *settings, *resumed]


def disturb(torchrun: subprocess.Popen[bytes], folder: Path, kills: int, draw: random.Random) -> Counter[str]:
    """Kill a random rank a random time after each start."""
    tally: Counter[str] = Counter()
    for number in range(kills):
        _wait_for_starts(folder, number + 1, torchrun)
        time.sleep(draw.uniform(0.0, LIFE_SECONDS))
        rank = draw.randrange(PROCESSES)
        os.kill(_process_of(torchrun.pid, rank), signal.SIGKILL)
        tally[f"kills of rank {rank}"] += 1
    return tally


def _wait_for_starts(folder: Path, count: int, torchrun: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not (folder / "events.jsonl").exists() or len(RunFiles(folder).of_kind("start")) < count:
        if torchrun.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"start {count} does not come: torchrun has status {torchrun.poll()}")
        time.sleep(0.02)


def _process_of(torchrun: int, rank: int) -> int:
    """The process of a rank, a child of torchrun."""
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text(encoding="ascii").split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    sys.exit(f"rank {rank} has no process")


def main(arguments: Sequence[str]) -> int:
    (kills,) = counts(arguments, kills=30)
    steps = STEPS_A_KILL * kills
    settings = [f"train.steps={steps}", "checkpoint.every=2", "telemetry.every=1", f"train.validation_every={steps}"]
    settings += ["train.validation_batches=1", "data=text", f'data.paths=["{TEXT}"]']
    settings += [f"debug.inject=nan_loss@{steps // 2}"]
    with tempfile.TemporaryDirectory() as scratch:
        folder, whole = Path(scratch) / "disturbed", Path(scratch) / "whole"
        torchrun = subprocess.Popen(command(settings, folder, kills), stdout=subprocess.DEVNULL)
        tally = disturb(torchrun, folder, kills, random.Random(0))
        tally[f"torchrun ended with status {torchrun.wait()}"] += 1
        undisturbed = subprocess.run(command(settings, whole, 0), stdout=subprocess.DEVNULL)
        tally[f"undisturbed run ended with status {undisturbed.returncode}"] += 1
        found = compare(folder, whole)
    rows = [[name, count] for name, count in (*tally.items(), *found.items())]
    title = f"{kills} kills of a random rank of {PROCESSES} under torchrun, a run of {steps} steps that saves every 2"
    write_result("ranks", title, table(["what", "result"], rows), {"tally": tally, **found})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
