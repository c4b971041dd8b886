"""`PPLDeltaTracker`: how far the perplexity is above its moving average, and whether that is a spike."""

from __future__ import annotations

import math


class PPLDeltaTracker:
    """Watches a series of perplexities, one `update` per reading.

    delta = (perplexity - average) / average. A spike is `patience` consecutive deltas above `threshold` after `warmup`
    values, or at any time a perplexity that is not finite. While a spike is suspected the average is not updated, or it
    would follow the spike. The average is the plain mean of the first n values until 1/n falls to `1 - ema`, so that
    the high first value of a training run soon loses its weight.

    In a run, `History.add_perplexity` sets `threshold` anew before each reading, and takes the first delta above it as
    bad already; `decide` counts the bad readings in a row.
    """

    def __init__(self, *, threshold: float = 0.05, ema: float = 0.98, warmup: int = 100, patience: int = 3) -> None:
        self.threshold = threshold
        self.ema = ema
        self.warmup = warmup
        self.patience = patience
        self.average = 0.0
        self._count = 0  # values in the average
        self._suspected = 0  # consecutive values above the threshold
        self._last = 0.0

    def update(self, perplexity: float) -> tuple[float, bool]:
        """Take the next value; returns (delta as a ratio, spike). A non-finite value gives (inf, True)."""
        if not math.isfinite(perplexity):
            return math.inf, True
        self._last = perplexity
        if self._count == 0:
            self._absorb(perplexity)
            return 0.0, False
        delta = (perplexity - self.average) / self.average
        if self._count >= self.warmup and delta > self.threshold:
            self._suspected += 1
            return delta, self._suspected >= self.patience
        self._suspected = 0
        self._absorb(perplexity)
        return delta, False

    @property
    def suspected(self) -> int:
        """Consecutive values above the threshold so far."""
        return self._suspected

    def accept(self) -> None:
        """Take the last finite value as the new average, for a caller that continues after a spike."""
        self.average = self._last
        self._suspected = 0

    def _absorb(self, perplexity: float) -> None:
        self._count += 1
        weight = max(1 - self.ema, 1 / self._count)
        self.average += weight * (perplexity - self.average)

    def state_dict(self) -> dict[str, float]:
        """The state of the tracker, without its settings."""
        return {
            "average": self.average,
            "count": float(self._count),
            "suspected": float(self._suspected),
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from `state_dict()` of another tracker."""
        self.average = state["average"]
        self._count = int(state["count"])
        self._suspected = int(state["suspected"])
        self._last = state["last"]
