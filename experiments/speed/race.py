"""Contestants timed in turn: A B C, B C A, ... so that whatever else the machine does meets them all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]


def race(
    steps: Mapping[str, Step], rounds: int, device: torch.device, turn_seconds: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of a step in `rounds` turns of every contestant, called before; entry i is round i.

    A turn is a single step, or the mean of as many as it takes to last for `turn_seconds`.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            seconds[name].append(_turn(steps[name], device, turn_seconds))
    return seconds


def _turn(step: Step, device: torch.device, least: float) -> float:
    taken = [seconds_of(step, device)]
    while sum(taken) < least:
        taken.append(seconds_of(step, device))
    return sum(taken) / len(taken)


def seconds_of(step: Step, device: torch.device) -> float:
    """One call: wall clock on the CPU, events of the stream on CUDA."""
    if device.type != "cuda":
        began = time.perf_counter()
        step()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000
