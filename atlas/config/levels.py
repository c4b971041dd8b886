"""The levels of the needle-in-a-haystack probes: a new level is an entry of `LEVELS` and a file in `probes/`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """What an accuracy is: the name on an axis."""

    cosine = "cosine"
    share = "share found"

    @property
    def form(self) -> str:
        """How a table writes a number of it."""
        return ".1%" if self is Unit.share else ".3f"

    @property
    def meaning(self) -> str:
        return "share of needles" if self is Unit.share else "cosine with the value"

    def text(self, value: float | None) -> str:
        """In a sentence."""
        if value is None:
            return "not measured"
        return f"{value:.1%}" if self is Unit.share else f"cosine {value:.2f}"


@dataclass(frozen=True)
class Level:
    """`probe` is the path of a function from `atlas.probes.subject.Subject` to a `NIAHResult` of this name."""

    name: str  # in settings, metrics (niah/NAME/accuracy) and files
    unit: Unit
    probe: str
    compared: bool = True  # an axis of the comparison of runs
    grid: bool = False  # its cells are a grid of depths and lengths, drawn as heat maps
    meaning: str = ""  # what it measures, in one line

    @property
    def label(self) -> str:
        """Its line in a chart."""
        return f"{self.name}, {self.unit}"

    @property
    def title(self) -> str:
        """Its column in a table."""
        return f"NIAH {self.name}"


LEVELS = {  # the last says most about the trained model; a run measures all of them unless niah.levels names some
    level.name: level
    for level in (
        Level(
            "accumulator",
            Unit.cosine,
            "atlas.probes.accumulator.probe_accumulator",
            compared=False,
            meaning="the Q-K accumulator returns a stored pair after many other keys; an untrained model passes",
        ),
        Level(
            "memory",
            Unit.cosine,
            "atlas.probes.memory_level.probe_memory",
            meaning="the memory's rule stores a pair and keeps it while more is written; an untrained default model"
            " passes, with gd, momentum, muon or omega; with atlas it is near the threshold",
        ),
        Level(
            "recall",
            Unit.share,
            "atlas.probes.recall.probe_recall",
            grid=True,
            meaning="the whole model finds the right one of several needles beyond the reach of attention",
        ),
    )
}


def level_of(name: str) -> Level:
    """The level of this name. One of your own is the dotted name of its function, and its accuracy is a share."""
    return LEVELS.get(name) or Level(name, Unit.share, name, compared=False)


RECALL = LEVELS["recall"]  # the only one that probes the whole trained model; also reported as niah/accuracy
