"""What a model is trained on and asked: zoology trains one model for each length in figure 2 of arXiv 2312.04927, one
for all in figure 2 of arXiv 2402.18668.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MIXED = "mixed"


class Segment(NamedTuple):
    """Sequences of one length with equally many pairs."""

    tokens: int
    pairs: int
    part: int = 1  # of the sequences that the settings name: one in so many

    def count(self, named: int) -> int:
        return max(named // self.part, 1)

    def __str__(self) -> str:
        return f"{self.tokens}, {self.pairs}"


@dataclass(frozen=True)
class Task:
    training: tuple[Segment, ...]
    tests: tuple[Segment, ...]
    rows: int  # of a batch, all of one segment
    rates: str = "1e-4,4.6e-4,2.2e-3,1e-2"
    weight_decay: float = 0.01
    epochs_part: int = 1  # of the epochs that the settings name: one in so many
    shuffled: bool = True  # False: every epoch has the same batches, segment after segment
    random_filler: bool = False  # False: id 0
    beside: tuple[Segment, ...] = ()  # tests that are not zoology's and do not count in the accuracy of all

    @property
    def tokens(self) -> int:
        """The longest sequence of training."""
        return max(segment.tokens for segment in self.training)

    @property
    def global_chunk(self) -> int:
        """An eighth of the sequence, of many lengths the window."""
        return self.tokens // 8 if len(self.training) == 1 else 16

    def epochs(self, named: int) -> int:
        return max(named // self.epochs_part, 1)

    def steps(self, named: int) -> int:
        """Of an epoch of `named` sequences; a shuffled one leaves out a last short batch."""
        counts = [segment.count(named) for segment in self.training]
        return sum(count // self.rows if self.shuffled else -(-count // self.rows) for count in counts)


def _one_length(tokens: int, pairs: int, rows: int) -> Task:
    return Task((Segment(tokens, pairs),), (Segment(tokens, pairs),), rows)


TASKS = {
    "64": _one_length(64, 4, 512),
    "128": _one_length(128, 8, 512),
    "256": _one_length(256, 16, 256),
    "512": _one_length(512, 64, 128),
    MIXED: Task(
        training=(Segment(64, 4), Segment(128, 8, 5), Segment(256, 16, 5), Segment(256, 32, 5), Segment(256, 64, 5)),
        tests=(
            *(Segment(64, 4, 3), Segment(64, 8, 3), Segment(64, 16, 3), Segment(128, 32, 3)),
            *(Segment(256, 64, 3), Segment(512, 128, 3), Segment(1024, 256, 3)),
        ),
        rows=256,
        rates="1e-3,3.2e-3,1e-2,3.2e-2",
        weight_decay=0.1,
        epochs_part=2,
        shuffled=False,
        random_filler=True,
        beside=(Segment(512, 64, 3),),
    ),
}
