"""Wall-clock time of a run, by activity."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from atlas.training.regions import region


class Clocks:
    """Wall-clock seconds per activity; activities do not overlap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            with region(activity):
                yield
        finally:
            self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - began

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count a part of the time of one activity as that of another."""
        self.seconds[source] = self.seconds.get(source, 0.0) - seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds

    def share(self, activity: str) -> float:
        """Time of `activity` / (time of `activity` + time of training)."""
        spent = self.seconds.get(activity, 0.0)
        return spent / max(spent + self.seconds.get("train", 0.0), 1e-9)
