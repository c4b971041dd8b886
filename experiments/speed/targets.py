"""What was asked for, and what was measured. Imports no torch."""

from __future__ import annotations

from typing import Any, NamedTuple

from experiments.speed.figures import (
    Ratio,
    Row,
    anchor,
    find,
    highest_ratio,
    lengths,
    quotient,
    speed_ratio,
    time_ratio,
)

SHARD_CONTEXT = 8192  # tokens, at which the sharded memory branch is judged


class Target(NamedTuple):
    what: str
    bound: float
    at_least: bool  # else: at most
    found: Ratio | float | None  # None: not measured
    highest: float | None = None  # what the first one's matrix products would permit at the machine's peak rate

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        value = self.found.value if isinstance(self.found, Ratio) else self.found
        return "reached" if (value >= self.bound if self.at_least else value <= self.bound) else "MISSED"


def targets(results: dict[str, Any]) -> list[Target]:
    """Every target, in the order of the issue that sets them."""
    return [*_whole(results), *_titans(results), *_lengths(results)]


def _whole(results: dict[str, Any]) -> list[Target]:
    def faster(what: str, bound: float, name: str, other: Row | None) -> Target:
        return _faster(results, "whole", what, bound, find(results, "whole", name), other)

    plain, descent = anchor(results, "whole"), find(results, "whole", "gd_c64")
    return [
        faster("gd c16 over the plain Transformer", 0.5, "gd_c16", plain),
        faster("gd set A over the plain Transformer", 0.25, "gd_set_a", plain),
        faster("momentum c64 over gd c64", 0.9, "momentum_c64", descent),
        faster("muon c64 over gd c64", 0.4, "muon_c64", descent),
    ]


def _faster(results: dict[str, Any], part: str, what: str, bound: float, row: Row | None, other: Row | None) -> Target:
    highest = highest_ratio(row, other, results.get(part, {}).get("peak_flops"))
    return Target(f"{what}, tokens/s", bound, True, speed_ratio(row, other), highest)


def _titans(results: dict[str, Any]) -> list[Target]:
    atlas, peer = find(results, "titans", "gd_c16"), find(results, "titans", "titans_16")
    return [
        Target("gd c16 over titans-pytorch chunk 16, tokens/s", 60, True, speed_ratio(atlas, peer)),
        Target("the same, peak memory", 0.1, False, quotient(atlas, peer, "peak_bytes")),
    ]


def _lengths(results: dict[str, Any]) -> list[Target]:
    sharded = find(results, "branch", "branch_c64", sequence=SHARD_CONTEXT)
    whole = find(results, "branch", "branch_c8_unsharded", sequence=SHARD_CONTEXT)
    what = f"memory branch at {SHARD_CONTEXT} tokens, c64 in shards over c8 without"
    return [
        _faster(results, "branch", what, 7, sharded, whole),
        _over_contexts(results),
        *_decoding(results),
    ]


def _over_contexts(results: dict[str, Any]) -> Target:
    longest, shortest, where = _ends(results, "contexts", "sequence")
    return Target(f"gd c16, context {where}, tokens/s", 0.85, True, speed_ratio(longest, shortest))


def _decoding(results: dict[str, Any]) -> list[Target]:
    longest, shortest, where = _ends(results, "decode", "context")
    what = f"decoding with gd c16, context {where}"
    return [
        Target(f"{what}, time per token", 1.1, False, time_ratio(longest, shortest)),
        Target(f"{what}, memory", 1.1, False, quotient(longest, shortest, "state_bytes")),
    ]


def _ends(results: dict[str, Any], part: str, key: str) -> tuple[Row | None, Row | None, str]:
    """gd c16 at the longest and the shortest context of a part, if there are two, and how to call the comparison."""
    known = lengths(results, part, key)
    if len(known) < 2:
        return None, None, "longest over shortest"
    longest, shortest = (find(results, part, "gd_c16", **{key: length}) for length in (known[-1], known[0]))
    return longest, shortest, f"{known[-1]} over {known[0]} tokens"
