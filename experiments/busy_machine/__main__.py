"""How training shares a busy machine: tokens/s beside other busy processes, for several spin counts.

python -m experiments.busy_machine [KEY=VALUE ...] [OVERRIDES of atlas.train]

  rounds=3                  measurements of each spin count beside each number of processes
  seconds=12                of training in a measurement
  beside=0,1,2,6            busy processes beside the training
  spins=300000,default      values of GOMP_SPINCOUNT: how long an OpenMP thread spins before it sleeps

300000 is what libgomp takes by itself, `default` is what atlas does. The spin counts take turns, each in a process of
its own. The fair share of T threads beside K busy processes on C cores is C / (T + K) of the quiet speed.
Writes results.json and RESULTS.md beside this file, and takes rounds * loads * spins * (seconds + start): about seven
minutes by default, on a machine that does nothing else. Exit status: 0 written, 2 refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from atlas.config import require
from atlas.config.arguments import run_command
from atlas.config.composition import compose
from atlas.runs.environment import git_revision, versions

HERE = Path(__file__).parent
BUSY = [sys.executable, "-c", "while True: pass"]
DEFAULTS = {"rounds": "3", "seconds": "12", "beside": "0,1,2,6", "spins": "300000,default"}
LIBRARY = "300000"


@contextmanager
def busy(count: int) -> Iterator[None]:
    others = [subprocess.Popen(BUSY) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def speed(spin: str, seconds: str, overrides: list[str]) -> float:
    """Tokens per second of the default model in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    if spin != "default":
        environment["GOMP_SPINCOUNT"] = spin
    command = [sys.executable, "-m", "experiments.busy_machine.worker", seconds, *overrides]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def row(spin: str, count: int, figures: dict[tuple[str, int], list[float]], cores: int) -> str:
    """One line of the table: beside whom, speed, its share of the quiet speed over the fair share."""
    found = figures[spin, count]
    fair = min(1.0, cores / (cores + count)) * median(figures[spin, 0])
    spread = f"{median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})"
    quiet = median(figures[spin, 0]) / median(figures[LIBRARY, 0])
    return f"| {spin} | {count} | {spread} | {quiet:.2f} | {median(found) / fair:.2f} |"


def main(arguments: list[str]) -> int:
    own = dict(argument.split("=", 1) for argument in arguments if argument.split("=")[0] in DEFAULTS)
    options = DEFAULTS | own
    for key in ("rounds", "seconds", "beside"):
        numbers = all(number.isdecimal() for number in options[key].split(","))
        require(numbers, key, options[key], f"as in {key}={DEFAULTS[key]}")
    overrides = [argument for argument in arguments if argument.split("=")[0] not in DEFAULTS]
    compose(overrides)
    spins, loads = options["spins"].split(","), [int(count) for count in options["beside"].split(",")]
    figures: dict[tuple[str, int], list[float]] = {(spin, count): [] for spin in spins for count in loads}
    load_before = os.getloadavg()[0]
    for _ in range(int(options["rounds"])):
        for count in loads:
            for spin in spins:
                with busy(count):
                    figures[spin, count].append(speed(spin, options["seconds"], overrides))
                print(f"{spin} beside {count}: {figures[spin, count][-1]:,.0f} tokens/s", flush=True)
    cores = len(os.sched_getaffinity(0))
    lines = [row(spin, count, figures, cores) for spin in spins for count in loads]
    record = {
        "command": " ".join(["python -m experiments.busy_machine", *arguments]),
        "git": git_revision(),
        "versions": versions(),
        "cores": cores,
        "load_before": load_before,
        "tokens_per_second": {f"{spin} beside {count}": found for (spin, count), found in figures.items()},
    }
    (HERE / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    head = "| spin count | busy processes beside | tokens/s | quiet, over libgomp's own | share of the fair share |"
    source = f"`{record['command']}`, revision {record['git']}, {cores} cores, load {load_before:.1f} before"
    text = ["# A busy machine: results", "", "Written by the command; do not edit.", "", source, "", head]
    (HERE / "RESULTS.md").write_text("\n".join([*text, "|---" * 5 + "|", *lines, ""]), encoding="utf-8")
    print("\n".join([head, *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
