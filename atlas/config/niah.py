"""Settings of the needle-in-a-haystack probes."""

from __future__ import annotations

from dataclasses import dataclass, field

from atlas.config.errors import require
from atlas.config.levels import LEVELS

NIAH_TASKS = ("single", "multi_key", "multi_query", "text", "multi_key_text", "mqar", "ruler")
MOST = 10_000  # needles of a cell, keys in a haystack, trained lengths: more would end a run at its last step
LONGEST = 2**24  # tokens of a haystack
JUDGED_TASK = "multi_key"  # several needles, the right one asked for: a single one is found without its key


@dataclass
class NIAHConfig:
    """Needle-in-a-haystack probes. `samples` is needles per cell of the recall grid, per layer at the key levels."""

    enabled: bool = True
    every: int = 1000  # steps; the last step is always probed
    levels: list[str] = field(default_factory=lambda: list(LEVELS))
    haystack: int = 100  # keys (accumulator) or tokens (memory) written after the needle
    accumulator_degree: int = 2  # of the features that accumulator keys pass or fail on; 1 = the keys themselves
    threshold: float = 0.8
    lengths: list[int] = field(default_factory=list)  # tokens; empty: the trained length times `length_factors`
    length_factors: list[int] = field(default_factory=lambda: [1])
    depths: list[float] = field(default_factory=lambda: [0.0, 0.5, 0.85])  # of the needle, 0 = the start; by model
    tasks: list[str] = field(default_factory=lambda: ["single", "text"])  # shown by `atlas.niah` beside `multi_key`
    all_depths: bool = False  # every task over all depths; otherwise only `multi_key`, the rest at the first depth
    distractors: int = 3  # other needles of the tasks multi_key, multi_key_text and multi_query
    frozen: bool = False  # a second control: a memory that reads and never writes
    samples: int = 24  # at three depths a standard error of 2 points where 97 % are found
    seed: int = 1234

    def __post_init__(self) -> None:
        require(self.every >= 1, "niah.every", self.every, ">= 1 (niah=off switches the probes off)")
        require(len(self.levels) > 0, "niah.levels", self.levels, "at least one (niah=off switches the probes off)")
        for level in self.levels:
            allowed = f"some of {list(LEVELS)}, or dotted names of functions of your own"
            require(level in LEVELS or "." in level, "niah.levels", self.levels, allowed)
        require(1 <= self.haystack <= MOST, "niah.haystack", self.haystack, f"in [1, {MOST}]")
        require(self.accumulator_degree in (1, 2), "niah.accumulator_degree", self.accumulator_degree, "1 or 2")
        require(0 < self.threshold <= 1, "niah.threshold", self.threshold, "in (0, 1]")
        fits = all(1 <= length <= LONGEST for length in self.lengths)
        require(fits, "niah.lengths", self.lengths, f"in [1, {LONGEST}]")
        factors = self.length_factors
        fits = len(factors) > 0 and min(factors) >= 1 and max(factors) <= MOST
        require(fits, "niah.length_factors", factors, f"at least one, each in [1, {MOST}]")
        require(len(self.depths) > 0, "niah.depths", self.depths, "at least one")
        require(all(0 <= d <= 1 for d in self.depths), "niah.depths", self.depths, "in [0, 1]")
        known = all(task in NIAH_TASKS for task in self.tasks)
        require(known, "niah.tasks", self.tasks, f"some of {list(NIAH_TASKS)}")
        require(1 <= self.distractors <= 100, "niah.distractors", self.distractors, "in [1, 100]")
        require(1 <= self.samples <= MOST, "niah.samples", self.samples, f"in [1, {MOST}]")
        require(0 <= self.seed < 2**63, "niah.seed", self.seed, "in [0, 2**63)")
