"""All failures, in the order of the table."""

from __future__ import annotations

from experiments.silent import data, invented, learning, machine, memory, process

CATALOGUE = tuple(one for part in (learning, memory, data, machine, process, invented) for one in part.FAILURES)
