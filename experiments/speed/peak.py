"""Peak memory of one contestant, in a process of its own: a process's highest mark never comes down again.

python -m experiments.speed.peak NAME MODEL BATCH SEQUENCE DEVICE THREADS     prints start_bytes and peak_bytes as JSON

On the CPU the peak is that of the whole process, and `start_bytes` what it held with torch and atlas imported, before
the model. On CUDA both are of torch's allocator, so `start_bytes` is 0.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from atlas.runs.allocator import keep_freed_memory
from atlas.runs.environment import PeakMemory
from experiments.speed.contestants import Shape, TrainingStep

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2  # the second one holds the optimiser's state as well
SAFE_SHARE = 0.9  # of the memory that is free


class Peak(NamedTuple):
    start_bytes: int | None  # None where the system does not tell it
    peak_bytes: int


def peak_of(name: str, shape: Shape, device: torch.device) -> Peak | str:
    """Measured in a child process; why it could not be, where it could not."""
    threads = str(torch.get_num_threads())
    words = [name, shape.model, str(shape.batch), str(shape.sequence), device.type, threads]
    command = [sys.executable, "-m", "experiments.speed.peak", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"its process ended with status {done.returncode}: {last}"
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


_short_peak = cache(peak_of)  # several shapes are forecast from one


def lack_of_memory(name: str, shape: Shape, short: Shape, device: torch.device) -> str | None:
    """Why a step should not be tried on the CPU: a forecast from a `short` one, in proportion to the tokens.

    On CUDA a step that does not fit fails cleanly, and no forecast is needed.
    """
    if device.type == "cuda" or short.tokens >= shape.tokens:
        return None
    free, peak = _free_bytes(), _short_peak(name, short, device)
    if isinstance(peak, str):
        return peak
    if free is None or peak.start_bytes is None:
        return None
    needed = peak.start_bytes + (peak.peak_bytes - peak.start_bytes) * shape.tokens / short.tokens
    if needed <= SAFE_SHARE * free:
        return None
    return f"a step would need about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB were free"


def _free_bytes() -> int | None:
    """Memory that can still be had; None where the system does not tell."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", path.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _offer_to_be_killed_first() -> None:
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000", encoding="ascii")


def main(words: list[str]) -> None:
    name, model, batch, sequence, kind, threads = words
    device = torch.device(kind)
    keep_freed_memory()
    torch.set_num_threads(int(threads))
    _offer_to_be_killed_first()
    memory = PeakMemory(device)
    start = memory.read()
    step = TrainingStep(name, Shape(model, int(batch), int(sequence)), device)
    for _ in range(STEPS):
        step()
    peak = memory.read()
    assert peak is not None, "the system does not tell a process's peak memory"
    print(json.dumps(Peak(start, peak)._asdict()))


if __name__ == "__main__":
    main(sys.argv[1:])
