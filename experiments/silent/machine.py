"""Failures of numbers and of the machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

from experiments.silent.bench import SMALL, TEXT, Bench, Ended
from experiments.silent.failure import Facts, Failure, Procedure, facts, trained, with_data

MIDDLE = 100
# A clock that jumps by a day: the system's own, as a library that is loaded before it shows it.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>
#include <stdlib.h>
int clock_gettime(clockid_t id, struct timespec *spec) {
  static int (*next)(clockid_t, struct timespec *);
  if (!next) next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = next(id, spec);
  if (id == CLOCK_REALTIME && access(getenv("JUMPED"), F_OK) == 0) spec->tv_sec -= 86400;
  return result;
}
"""
# g++ that multiplies the norm of all tokens by 1.01.
WRONG_COMPILER = r"""#!/bin/bash
given=()
for word; do
  case $word in
    */norm.cpp)
      sed 's|1.0 / std::sqrt(mean|1.01 / std::sqrt(mean|' "$word" > "$0.norm.cpp"
      given+=(-I "$(dirname "$word")" "$0.norm.cpp");;
    *) given+=("$word");;
  esac
done
exec g++ "${given[@]}"
"""


def kernel_disagrees(bench: Bench, broken: bool) -> Facts:
    """The kernels are compiled by a compiler that makes one of them wrong by 1 %, once for all seeds."""
    environment: dict[str, str] = {}
    if broken:
        place = bench.scratch.parents[1]
        place.mkdir(parents=True, exist_ok=True)
        compiler = place / "g++"
        compiler.write_text(WRONG_COMPILER, encoding="ascii")
        compiler.chmod(0o755)
        environment = {"CXX": str(compiler), "XDG_CACHE_HOME": str(place / "cache")}
    return facts(bench.start(*TEXT, environment=environment, executed=True).wait())


def two_processes(bench: Bench, *settings: str, at: int = 0) -> Facts:
    """A run of 150 steps in two processes."""
    folder = bench.scratch / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    given = [*SMALL, *TEXT, f"seed={bench.seed}", "trust=[experiments.silent]", "train.steps=150", *settings]
    command = [*launcher, "atlas.train", *given, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True)
    return facts(Ended(done.returncode, done.stdout + done.stderr, folder), at)


def rank_differs(bench: Bench, broken: bool) -> Facts:
    """Two processes; the weights of one change by themselves after every step from the middle on."""
    name = "drifting" if broken else "sound"
    optimizer = f"optim._target_=experiments.silent.wrong_optim.{name}"
    return two_processes(bench, "optim=adamw", optimizer, f"+optim.at={MIDDLE}", at=MIDDLE)


def disk_fills(bench: Bench, broken: bool) -> Facts:
    """A disk of 0.9 MB, which the first checkpoints fill, or of 64 MB."""
    disk = bench.scratch / "disk"
    disk.mkdir(parents=True)
    size = "900k" if broken else "64m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        ended = bench.run(*TEXT, "checkpoint.keep=9", folder="disk/run")
        found = facts(ended)
        shutil.copytree(ended.folder, bench.scratch / "run", ignore=shutil.ignore_patterns("checkpoints"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return found


def clock_jumps(bench: Bench, broken: bool) -> Facts:
    """The clock of the machine goes back by a day in the middle of the run."""
    bench.scratch.mkdir(parents=True, exist_ok=True)
    source, library, jumped = (bench.scratch / name for name in ("clock.c", "clock.so", "jumped"))
    source.write_text(CLOCK, encoding="ascii")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(library), "JUMPED": str(jumped)}
    running = bench.start(*TEXT, environment=environment, executed=True)
    at = running.wait_for_step(MIDDLE)
    if broken:
        jumped.touch()
    return facts(running.wait(), at)


def process_slows(bench: Bench, broken: bool) -> Facts:
    """From the middle on the process is held for the time of twelve steps after each step, by signals."""
    running = bench.start(*TEXT)
    early, began = running.wait_for_step(MIDDLE // 2), time.monotonic()
    at = running.wait_for_step(MIDDLE)
    step_seconds = (time.monotonic() - began) / (at - early)
    ended = threading.Event()

    def hold() -> None:
        while not ended.is_set():
            os.kill(running.process, signal.SIGSTOP)
            time.sleep(12 * step_seconds)
            os.kill(running.process, signal.SIGCONT)
            time.sleep(step_seconds)

    holder = threading.Thread(target=hold)
    if broken:
        holder.start()
    try:
        while not os.waitid(os.P_PID, running.process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.01)
    finally:
        ended.set()
        if broken:
            holder.join()
    return facts(running.wait(), at)


def removed(name: str, *settings: str) -> Procedure:
    """A file or folder of the run is removed in the middle of it."""

    def run(bench: Bench, broken: bool) -> Facts:
        running = bench.start(*TEXT, *settings)
        at = running.wait_for_step(MIDDLE)
        if broken:
            gone = (running.folder / name).rename(bench.scratch / "gone")  # at once: the run writes there meanwhile
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        return facts(running.wait(), at)

    return run


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str], says: str = "") -> Failure:
    run, twin = run_and_twin
    return Failure(name, "machine", what, run, twin, says)


WANDB = ("logger=wandb", "logger.mode=offline")
FAILURES = (
    _failure(
        "gradients_point_away",
        "`model.memory.rate_max=4`: float32 gradients of the memory point away from float64 ones",
        trained("model.memory.rate_max=4", "model.memory.rate_init=2"),
    ),
    Failure("kernel_disagrees", "machine", "a compiler makes the norm's kernel wrong by 1 %", kernel_disagrees),
    Failure("rank_differs", "machine", "the weights of one of two ranks change by themselves", rank_differs),
    Failure("disk_fills", "machine", "the disk is full after the first checkpoints", disk_fills),
    Failure("clock_jumps", "machine", "the clock goes back by a day", clock_jumps, says="clock|time"),
    Failure(
        "process_slows",
        "machine",
        "after each step the process is held for twelve",
        process_slows,
        says="slow|speed",
    ),
    _failure(
        "data_slow",
        f"from step {MIDDLE} on a batch takes as long as twelve steps",
        with_data("Slow", at=MIDDLE),
        says="slow|speed",
    ),
    Failure("metrics_removed", "machine", "`metrics.jsonl` is removed", removed("metrics.jsonl")),
    Failure("checkpoints_removed", "machine", "`checkpoints/` is removed", removed("checkpoints")),
    Failure("wandb_removed", "machine", "W&B's folder is removed", removed("wandb", *WANDB)),
)
