"""What is measured of a contestant, and the file that keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from atlas.config import ConfigError


@dataclass(frozen=True)
class Record:
    """Loss in nats per byte of validation text; shares of needles by haystack and length in tokens."""

    name: str
    seed: int
    steps: int
    parameters: int
    loss: float
    recall: dict[str, dict[str, float]]
    recall_off: float | None  # in noise of the trained length with the memory switched off; None without a memory
    needles: int  # of a haystack and length
    polarised_peak: float | None  # share of gates below 0.1 or above 0.9 where the loss on them is last at its peak
    polarised_end: float | None
    git: str = ""  # revision
    losses: list[float] = field(default_factory=list)  # of training, at every tenth of the steps
    size: str = "tiny"
    # As `recall`, by the best reader that ignores the key: the same for all contestants. Empty in records before it.
    key_blind: dict[str, dict[str, float]] = field(default_factory=dict)


def read_record(file: Path) -> Record:
    """Raises `ConfigError` for a file that holds no record."""
    try:
        return Record(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: must be a whole record, or removed to measure it again ({error})") from error


class Job(NamedTuple):
    """A contestant that is trained and measured once."""

    name: str
    size: str
    seed: int
    steps: int
    samples: int  # needles at each depth

    def file(self, runs: Path) -> Path:
        name = self.name.replace(" ", "_")
        return runs / f"{name}-{self.size}-seed{self.seed}-{self.steps}steps-{self.samples}samples.json"

    def record(self, runs: Path) -> Record | None:
        """None where nothing is measured yet. Raises `ConfigError` for a file that holds something else."""
        file = self.file(runs)
        if not file.is_file():
            return None
        found = read_record(file)
        if (found.name, found.size, found.seed, found.steps) != self[:4]:
            holds = f"{found.name}, {found.size}, seed {found.seed}, {found.steps} steps"
            raise ConfigError(f"{file}: must be the record that its name says; it is of {holds}")
        return found
