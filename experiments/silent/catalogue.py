"""All failures, in the order of the table."""

from __future__ import annotations

from experiments.silent import (
    contracts,
    data,
    invented,
    invented_eighth,
    invented_fifth,
    invented_fourth,
    invented_seventh,
    invented_sixth,
    invented_third,
    learning,
    machine,
    memory,
    own_parts,
    process,
)

INVENTED = (
    invented,
    invented_third,
    invented_fourth,
    invented_fifth,
    invented_sixth,
    invented_seventh,
    invented_eighth,
)
PARTS = (learning, memory, data, machine, process, contracts, own_parts, *INVENTED)
CATALOGUE = tuple(one for part in PARTS for one in part.FAILURES)
