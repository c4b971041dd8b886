"""What a run has seen of its own health: readings, and the averages that they are judged by. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isfinite, sqrt
from typing import Any

from atlas.config import RollbackConfig
from atlas.telemetry.perplexity import PPLDeltaTracker

READINGS = 1000  # readings kept: far more than any decision looks back


@dataclass(frozen=True)
class Reading:
    """One look at the run. `kind`: perplexity, non_finite, gate or niah; `bad`: it speaks against the run."""

    kind: str
    step: int
    bad: bool
    value: float = 0.0  # perplexity, or what the kind measures
    delta: float = 0.0  # of a perplexity: ratio above its moving average
    reason: str = ""


class Suspicion:
    """Whether a training loss is out of line with its own recent values: cheap, and only a reason to look closer."""

    DEVIATIONS = 4.0
    EMA = 0.95
    FIRST = 20  # values before it can suspect anything

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def update(self, loss: float) -> bool:
        """Take the next loss (nats); True if it is more than DEVIATIONS standard deviations above the mean."""
        if not isfinite(loss):
            return True
        above = loss - self.mean
        suspicious = self.count >= self.FIRST and above > self.DEVIATIONS * sqrt(self.variance) + 1e-3
        weight = max(1 - self.EMA, 1 / (self.count + 1))
        self.count += 1
        self.mean += weight * above
        self.variance = (1 - weight) * (self.variance + weight * above**2)
        return suspicious


class History:
    """The record that `decide` judges, with what is needed to continue it."""

    def __init__(self, settings: RollbackConfig) -> None:
        self.settings = settings
        self.readings: list[Reading] = []
        self.suspicion = Suspicion()
        self.tracker = PPLDeltaTracker(
            threshold=settings.threshold,
            ema=settings.ema,
            warmup=-(-settings.warmup // settings.watch_every),
            patience=settings.patience,
        )

    @property
    def delta(self) -> float | None:
        """ppl_delta: the newest reading's ratio above the moving average."""
        return next((reading.delta for reading in reversed(self.readings) if reading.kind == "perplexity"), None)

    def add(self, reading: Reading) -> None:
        self.readings = [*self.readings[-(READINGS - 1) :], reading]

    def add_perplexity(self, step: int, perplexity: float) -> Reading:
        """Record a reading of the watched perplexity; bad if above the threshold after the warm-up."""
        calm_average = self.tracker.average
        delta, _ = self.tracker.update(perplexity)
        bad = not isfinite(perplexity) or (calm_average > 0 and self.tracker.suspected > 0)
        reason = (
            f"perplexity {perplexity:.4g} is {delta:.1%} above its moving average {calm_average:.4g}" if bad else ""
        )
        reading = Reading("perplexity", step, bad, perplexity, delta, reason)
        self.add(reading)
        return reading

    def accept(self) -> None:
        """Go on from the level of the last reading, where a spike is not rolled back."""
        self.tracker.accept()
        self.readings = [replace(reading, bad=False) for reading in self.readings]

    def needs_reading(self, step: int, loss: float) -> bool:
        """Whether to read the watched perplexity at this step; call it at every step with its training loss."""
        suspicious = self.suspicion.update(loss)
        newest = next((reading for reading in reversed(self.readings) if reading.kind == "perplexity"), None)
        return suspicious or step % self.settings.watch_every == 0 or (newest is not None and newest.bad)

    def state_dict(self) -> dict[str, Any]:
        suspicion = self.suspicion
        return {
            "readings": [asdict(reading) for reading in self.readings],
            "suspicion": [suspicion.count, suspicion.mean, suspicion.variance],
            "tracker": self.tracker.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.readings = [Reading(**reading) for reading in state["readings"]]
        self.suspicion.count, self.suspicion.mean, self.suspicion.variance = state["suspicion"]
        self.tracker.load_state_dict(state["tracker"])
