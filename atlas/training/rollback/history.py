"""The health of a run: its readings, and the averages they are compared with. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isfinite, sqrt
from statistics import median
from typing import Any

from atlas.config import RollbackConfig
from atlas.telemetry.perplexity import PPLDeltaTracker

READINGS = 1000  # kept: far more than any decision needs


@dataclass(frozen=True)
class Reading:
    """One reading of the run's health. `kind`: perplexity, non_finite, gate, niah, watch; `bad`: out of line."""

    kind: str
    step: int
    bad: bool
    value: float = 0.0  # perplexity, or what the kind measures
    delta: float = 0.0  # of a perplexity: ratio above its moving average
    reason: str = ""
    suspicious: bool = False  # the step's training loss is out of line: no evidence of health
    passed_step: int | None = None  # step at which a collapsed NIAH level last passed, or a watcher saw nothing yet


class Suspicion:
    """Whether a training loss is out of line with its recent values: a cheap reason to take a reading.

    A suspicious loss enters mean and variance as if it were half way to the limit, so that a spike does not become the
    new level.
    """

    DEVIATIONS = 4.0
    EMA = 0.95
    FIRST = 20  # losses before any can be suspicious

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def update(self, loss: float) -> bool:
        """Add the next loss (nats). True: more than DEVIATIONS standard deviations above the mean, or not finite."""
        if not isfinite(loss):
            return True
        above, limit = loss - self.mean, self.DEVIATIONS * sqrt(self.variance) + 1e-3
        suspicious = self.count >= self.FIRST and above > limit
        if suspicious:
            above = limit / 2
        weight = max(1 - self.EMA, 1 / (self.count + 1))
        self.count += 1
        self.mean += weight * above
        self.variance = (1 - weight) * (self.variance + weight * above**2)
        return suspicious


class History:
    """The readings that `decide` judges, and what is needed to add more.

    The perplexity of a healthy run fluctuates: early in training, on fixed rows, it rises by 10 % and falls back within
    ten steps, however many rows are read. So a reading is bad if it is above `threshold` and above `DEVIATIONS` times
    the spread of the run's recent deltas. The readings that confirm it are `suspect_every` steps apart.

    The spread is that of the newer half of the deltas, so the descent at the start soon leaves it. Of few readings it
    is too small by chance: of ten it is below 0.4 of the standard deviation once in 20 times, of 50 never. Of 32 pairs
    of rows of 64 tokens, watched in 10,000 calm steps, ten deltas gave 17 a false alarm; the newer half gives it to 2.
    """

    DEVIATIONS = 4.0
    FEWEST, MOST = 10, 100  # good readings that the spread is computed from

    def __init__(self, settings: RollbackConfig) -> None:
        self.settings = settings
        self.readings: list[Reading] = []
        self.deltas: list[float] = []  # of all perplexity readings after the warm-up, with `observe`
        self.suspicion = Suspicion()
        self.suspicious = False  # of the training loss of the newest step
        self.passed: dict[str, int] = {}  # step at which each NIAH level last passed
        self.tracker = PPLDeltaTracker(
            threshold=settings.threshold,
            ema=settings.ema,
            warmup=-(-settings.warmup // settings.watch_every),
            patience=settings.patience,
        )

    @property
    def delta(self) -> float | None:
        """ppl_delta: the newest reading's ratio above the moving average."""
        newest = self._newest_perplexity()
        return None if newest is None else newest.delta

    @property
    def healthy(self) -> bool:
        """Whether the newest reading is not bad and the newest training loss not suspicious."""
        return not self.suspicious and not (self.readings and self.readings[-1].bad)

    def add(self, reading: Reading) -> None:
        self.readings = [*self.readings[-(READINGS - 1) :], reading]

    def add_perplexity(self, step: int, perplexity: float) -> Reading:
        """Add a reading of the watched perplexity: bad if above the limit after the warm-up, or not finite."""
        calm_average, limit = self.tracker.average, max(self.settings.threshold, self.DEVIATIONS * self.spread())
        self.tracker.threshold = limit
        delta, spike = self.tracker.update(perplexity)
        if step <= self.settings.warmup:
            self.tracker.accept()  # the average of a steep descent hides spikes
        bad = spike or self.tracker.suspected > 0
        reason = f"perplexity {perplexity:.4g} is {delta:.1%} above its moving average {calm_average:.4g}"
        reason = f"{reason} (limit {limit:.1%})" if bad else ""
        reading = Reading("perplexity", step, bad, perplexity, delta, reason, self.suspicious)
        self.add(reading)
        if self.settings.observe and step > self.settings.warmup and isfinite(delta):
            self.deltas.append(delta)
        return reading

    def add_probe(self, step: int, level: str, passed: bool | None, reason: str) -> None:
        """Record the outcome of a NIAH level; None: not measured. One that passed before and fails now has collapsed.

        A level that never passed is not learned yet, so there is nothing to go back to.
        """
        if passed:
            self.passed[level] = step
        elif passed is False and level in self.passed:
            since = self.passed[level]
            text = f"niah {level} has collapsed: passed at step {since}, now {reason}"
            self.add(Reading("niah", step, True, reason=text, passed_step=since))

    def spread(self) -> float:
        """1.4826 * median absolute deviation of the newer good deltas: the standard deviation if they are normal."""
        good = [reading.delta for reading in self.readings if reading.kind == "perplexity" and not reading.bad]
        newest = good[1:][-min(max(len(good) // 2, self.FEWEST), self.MOST) :]  # the first one has no average before it
        if len(newest) < 2:
            return 0.0
        middle = median(newest)
        return 1.4826 * median(abs(delta - middle) for delta in newest)

    def accept(self) -> None:
        """Take the level of the last reading as normal, for a spike that is not rolled back."""
        self.tracker.accept()
        self.readings = [replace(reading, bad=False) for reading in self.readings]

    @property
    def open_suspicion(self) -> str:
        """What the newest perplexity reading says against the run; "" where it is good."""
        newest = self._newest_perplexity()
        return newest.reason if newest is not None and newest.bad else ""

    def clear(self) -> None:
        """Drop what losses and perplexity made suspect: the validation has shown that it was chance. Of what a probe or
        a watcher has found it says nothing."""
        self.tracker.accept()
        self.readings = [replace(one, bad=one.bad and one.kind != "perplexity") for one in self.readings]
        self.suspicious = False

    def needs_reading(self, step: int, loss: float) -> bool:
        """Whether to read the watched perplexity at this step. To be called at every step with its training loss."""
        self.suspicious = self.suspicion.update(loss)
        if step % self.settings.watch_every == 0:
            return True
        newest = self._newest_perplexity()
        if step <= self.settings.warmup or newest is None:  # during the warm-up, regular readings only
            return False
        return (self.suspicious or newest.bad) and step - newest.step >= self.settings.suspect_every

    def has_read(self, step: int) -> bool:
        """Whether the perplexity was read at this step."""
        newest = self._newest_perplexity()
        return newest is not None and newest.step == step

    def _newest_perplexity(self) -> Reading | None:
        return next((reading for reading in reversed(self.readings) if reading.kind == "perplexity"), None)

    def state_dict(self) -> dict[str, Any]:
        suspicion = self.suspicion
        return {
            "readings": [asdict(reading) for reading in self.readings],
            "deltas": list(self.deltas),
            "suspicion": [suspicion.count, suspicion.mean, suspicion.variance],
            "suspicious": self.suspicious,
            "tracker": self.tracker.state_dict(),
            "passed": dict(self.passed),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.readings = [Reading(**reading) for reading in state["readings"]]
        self.deltas = list(state["deltas"])
        self.suspicion.count, self.suspicion.mean, self.suspicion.variance = state["suspicion"]
        self.suspicious = bool(state.get("suspicious", False))  # older checkpoints have none
        self.tracker.load_state_dict(state["tracker"])
        self.passed = dict(state.get("passed", {}))  # checkpoints of version 0.1 have none
