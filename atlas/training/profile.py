"""`debug.profile=FIRST:LAST`: where the time of these steps goes, as a trace, as a text file and on the console."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from atlas.config import require
from atlas.telemetry.logger import TelemetryLogger
from atlas.training.regions import PREFIX, Region, region

TRACE_FILE, TABLE_FILE = "trace.json.gz", "profile.txt"
STEP = "step"  # contains all others
TRAIN = "train"  # contains INSIDE
INSIDE = ("data", "forward", "backward", "optimizer")
OPERATORS = 12  # shown, those that take the most time


def parse_profile(text: str, last_step: int) -> range:
    """The steps of `FIRST:LAST`, both included. Raises `ConfigError`."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    allowed = f"FIRST:LAST, steps of the run with 1 <= FIRST <= LAST <= train.steps={last_step}"
    require(1 <= first <= last <= last_step, "debug.profile", text, allowed)
    return range(first, last + 1)


class StepProfile:
    """Records `steps` of a run in `folder`, which may be none; those before the start of a resumed run are not
    repeated."""

    def __init__(self, steps: range, folder: Path, device: torch.device, telemetry: TelemetryLogger) -> None:
        self.steps, self.folder, self.device, self.telemetry = steps, folder, device, telemetry
        self._profiler: profile | None = None
        self._taken: list[int] = []

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Around all that the trainer does for a step."""
        if step not in self.steps:
            yield
            return
        if self._profiler is None:
            on_gpu = self.device.type == "cuda"
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
            self._profiler = profile(activities=activities)
            self._profiler.start()
            Region.waits = on_gpu
        with region(STEP):
            yield
        self._taken.append(step)
        if step == self.steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what was recorded, also where the run ends in the middle. Where it cannot be written, warn of it."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        Region.waits = False
        profiler.stop()
        if not self._taken:
            return
        head = f"steps {self._taken[0]} to {self._taken[-1]} ({TRACE_FILE} opens in ui.perfetto.dev)"
        table = "\n".join([head, *time_table(profiler.key_averages(), len(self._taken))])
        try:
            profiler.export_chrome_trace(str(self.folder / TRACE_FILE))
            (self.folder / TABLE_FILE).write_text(table + "\n", encoding="utf-8")
        except OSError as error:
            message = f"the profile could not be written to {self.folder}: {error.strerror}"
            self.telemetry.event("warning", self._taken[-1], message=message)
            return
        self.telemetry.event("profile", self._taken[-1], message=table, file=TRACE_FILE)


def time_table(averages: Sequence[Any], steps: int) -> list[str]:
    """Where a step's time goes, in milliseconds and in shares: its parts, then the operators that took the most.

    `averages`: of PyTorch's profiler, over `steps` steps.
    """
    spans = {event.key.removeprefix(PREFIX): event for event in averages if event.key.startswith(PREFIX)}
    took = {name: event.cpu_time_total / 1000 / steps for name, event in spans.items()}
    whole = took[STEP]
    parts = {name: took[name] for name in INSIDE if name in took}
    parts["rest of training"] = took.get(TRAIN, 0.0) - sum(parts.values())
    parts |= {
        name: took[name] for name in sorted(took, key=lambda name: -took[name]) if name not in (STEP, TRAIN, *parts)
    }
    parts["not in a part"] = whole - sum(parts.values())
    lines = [f"  {'part of a step':<40}{'ms':>10}{'share':>8}"]
    lines += [f"  {name:<40}{ms:>10.2f}{ms / whole:>8.1%}" for name, ms in parts.items()]
    lines.append(f"  {'whole step':<40}{whole:>10.2f}{1:>8.1%}")
    own = [(_own(event) / 1000 / steps, event) for event in averages if not event.key.startswith(PREFIX)]
    lines.append(f"  {'operator':<40}{'ms':>10}{'share':>8}{'calls':>8}")
    for ms, event in sorted(own, key=lambda pair: -pair[0])[:OPERATORS]:
        lines.append(f"  {event.key[:39]:<40}{ms:>10.2f}{ms / whole:>8.1%}{event.count / steps:>8.0f}")
    return lines


def _own(event: Any) -> float:
    """Microseconds of an operator without those that it calls: of the device where it has any, else of the host."""
    on_device: float = event.self_device_time_total
    return on_device or float(event.self_cpu_time_total)
