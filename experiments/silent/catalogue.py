"""All failures, in the order of the table."""

from __future__ import annotations

from experiments.silent import (
    data,
    invented,
    invented_fifth,
    invented_fourth,
    invented_third,
    learning,
    machine,
    memory,
    process,
)

PARTS = (learning, memory, data, machine, process, invented, invented_third, invented_fourth, invented_fifth)
CATALOGUE = tuple(one for part in PARTS for one in part.FAILURES)
