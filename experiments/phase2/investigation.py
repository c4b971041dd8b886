"""Why is no set 5 times as fast as the baseline? What is measured of each, and what must hold. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from atlas.config import require
from experiments.phase2.chunk_runs import CandidateSpeed, describe
from experiments.phase2.decision import EvidenceTable
from experiments.phase2.quiet import OTHERS_MAX, Machine
from experiments.phase2.recorded import Difference, Positive, PositiveCount, length

SHARDS = (1, 2, 4, 8)  # folded into the batch at once; always 8 shards in all
REACHED_MIN = 0.5  # of the ceiling
ROOM_MIN = 1.25  # gain of 8 sequences over 1 at once; a device that gains less is full with one
GAIN_SHARE_MIN = 0.5  # of what 8 sequences gain, 8 shards must gain at least this much
PRODUCTS_MAX = 1.5  # matrix products of 8 shards at once, over those of one
DIFFERENCE_MAX = 1e-9  # of outputs and gradients in float64, relative by their norms

RULE = (
    "If no set reaches it, every set that fits is investigated on the device of the runs. Exactness: outputs and"
    f" gradients of the model in float64 over {SHARDS[-1]} shards at once and over shard after shard differ by at most"
    f" {DIFFERENCE_MAX:g} of their norm. Scaling: {SHARDS[-1]} shards go through the local memories in calls of"
    f" {', '.join(map(str, SHARDS))} shards, beside as many sequences of one shard. All {SHARDS[-1]} at once take at"
    f" most {PRODUCTS_MAX:g} times as many matrix products as one and, where {SHARDS[-1]} sequences at once gain at"
    f" least {ROOM_MIN:g}x over one after the other, at least half of that gain. Ceiling: the matrix products of a"
    " training step, counted, at the device's measured peak, over the measured throughput of the baseline; it must be"
    " below the ratio that is wanted, and a set must reach at least half of it. Meanwhile other processes may use"
    f" {OTHERS_MAX:.0%} of the cores' time at most. If all of this holds, 5x is out of"
    " reach on the device, and the set is chosen all the same; if anything does not, the decision is STOP and names it."
)


@dataclass(frozen=True)
class SetInvestigation:
    """Speeds are tokens/s, forward and backward, of one block's local memories with the shards of `SHARDS` at once."""

    candidate: str
    flops_per_token: Positive  # of its matrix products in a training step at the configured context
    peak_flops: Positive  # per second, of one large product
    shard_speeds: Annotated[Sequence[Positive], length(len(SHARDS))]  # shards of one sequence
    row_speeds: Annotated[Sequence[Positive], length(len(SHARDS))]  # as many sequences of one shard
    products: Annotated[Sequence[PositiveCount], length(2)]  # matrix products of one shard, and of all shards at once
    output_difference: Difference
    gradient_difference: Difference

    @property
    def ceiling(self) -> float:
        """tokens/s."""
        return self.peak_flops / self.flops_per_token

    @property
    def shard_gain(self) -> float:
        return self.shard_speeds[-1] / self.shard_speeds[0]

    @property
    def row_gain(self) -> float:
        return self.row_speeds[-1] / self.row_speeds[0]


@dataclass(frozen=True)
class InvestigationMachine(Machine):
    """Of the machine while the sets were investigated."""


def failures(
    sets: Sequence[CandidateSpeed],
    found: Mapping[str, SetInvestigation],
    baseline: float,
    wanted: float,
    machine: Machine | None = None,
) -> list[str]:
    """What does not hold, of the machine and of every set in turn; `baseline` in tokens/s.

    Empty: the ratio wanted is out of reach.
    """
    if not found:
        return ["not investigated on the device of the runs"]
    missing = [speed.candidate for speed in sets if speed.candidate not in found]
    require(not missing, "investigation", ", ".join(found), f"of every set that fits; {', '.join(missing)} is missing")
    failed = [f"while the sets were investigated {machine.trouble}"] if machine and machine.trouble else []
    for speed in sets:
        name, one = speed.candidate, found[speed.candidate]
        for what, difference in (("outputs", one.output_difference), ("gradients", one.gradient_difference)):
            if not difference <= DIFFERENCE_MAX:  # NaN fails as well
                failed.append(f"{name}'s {what} differ by {difference:.1e} between shards folded and in sequence")
        failed += _scaling(one)
        if one.ceiling >= wanted * baseline:
            failed.append(f"{name} could reach {one.ceiling / baseline:.2f}x")
        if speed.tokens_per_second < REACHED_MIN * one.ceiling:
            share = speed.tokens_per_second / one.ceiling
            failed.append(f"{name} reaches {share:.0%} of its ceiling, less than half")
    return failed


def _scaling(one: SetInvestigation) -> list[str]:
    single, folded = one.products
    if folded > PRODUCTS_MAX * single:
        times = f"{folded / single:.1f} times as many matrix products as one"
        return [f"{one.candidate} runs its shards one after the other: {SHARDS[-1]} take {times}"]
    if one.row_gain >= ROOM_MIN and one.shard_gain - 1 < GAIN_SHARE_MIN * (one.row_gain - 1):
        gains = f"{one.shard_gain:.2f}x from {SHARDS[-1]} shards at once, {one.row_gain:.2f}x from as many sequences"
        return [f"{one.candidate} does not gain from more shards: {gains}"]
    return []


def table(sets: Sequence[CandidateSpeed], found: Mapping[str, SetInvestigation], baseline: float) -> EvidenceTable:
    rows = []
    for speed in sets:
        one = found[speed.candidate]
        ceiling = [f"{one.ceiling / baseline:.2f}x", f"{speed.tokens_per_second / one.ceiling:.0%}"]
        speeds = [f"{value:,.0f}" for value in one.shard_speeds]
        gains = [f"{one.shard_gain:.2f}x", f"{one.row_gain:.2f}x", f"{one.products[1] / one.products[0]:.2f}"]
        differences = [f"{one.output_difference:.1e}", f"{one.gradient_difference:.1e}"]
        rows.append([describe(speed.candidate), *ceiling, *speeds, *gains, *differences])
    together = [f"{count} at once" for count in SHARDS]
    head = ("chunks", "ceiling", "reached", *together, "gain", "of sequences", "products", "outputs", "gradients")
    note = (
        "Ceiling: times the baseline, if the set did nothing but its matrix products, all at the device's peak."
        " Reached: the part of it. Products are counted as PyTorch's operations do them; compiled kernels leave out"
        " those with zeros, so the true ceiling is somewhat higher and the part reached lower. N at once: tokens/s of"
        " one block's local memories, forward and backward, when N of 8 shards are folded into the batch; gain: of 8"
        " over 1; of sequences: the same gain with 8 sequences of one shard. Products: matrix products of 8 shards at"
        " once over those of one. Outputs, gradients: relative difference between shards folded and shards in sequence."
    )
    return EvidenceTable("Investigation", head, rows, note)
