"""The rule of protocol 4.1 on tables of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from atlas.config import ConfigError
from experiments.phase2.chunk_runs import ChunkRun, measured_speeds
from experiments.phase2.chunk_sizes import decide
from experiments.phase2.chunk_tables import tables

NOTHING = "not investigated on the device of the runs"
SLOW_START = [1.0, 2.0, 3.0]  # tokens/s of the steps that are not timed


def runs(speeds: Mapping[tuple[int, str], Sequence[float]], steps: int = 50) -> list[ChunkRun]:
    """Two rounds or more: (context, candidate) -> tokens/s of each round."""
    return [
        ChunkRun(
            job=0,
            round=number,
            candidate=candidate,
            context=context,
            configured=512,
            batch_size=4096 // context,
            fits=speed > 0,
            peak_memory_bytes=2**30,
            speeds=[*SLOW_START, *[speed] * (steps - len(SLOW_START))] if speed > 0 else [],
        )
        for (context, candidate), rounds in speeds.items()
        for number, speed in enumerate(rounds)
    ]


def table(baseline: float, a: float, b: float, c: float, context: int = 512) -> dict[tuple[int, str], list[float]]:
    speeds = {"baseline": baseline, "Set A": a, "Set B": b, "Set C": c}
    return {(context, name): [speed, speed] for name, speed in speeds.items()}


@pytest.mark.parametrize(
    ("speeds", "line", "passed"),
    [
        (table(100, 600, 550, 500), "DECIDED (Set A: {8,16,32,64})", True),
        (table(100, 500, 499, 498), "DECIDED (Set A: {8,16,32,64})", True),
        (table(100, 100, 100, 700), "DECIDED (Set C: {8,32,64})", True),
        (table(100, 499, 90, 80), f"STOP (best Set A 4.99x < 5x at 512 tokens; {NOTHING})", False),
        (table(100, 50, 60, 40), f"STOP (best Set B 0.60x < 5x at 512 tokens; {NOTHING})", False),
        (table(100, 0, 510, 505), "DECIDED (Set B: {16,32,64,128})", True),
        (table(100, 0, 0, 0), "STOP (no set fits in memory)", False),
    ],
)
def test_the_fastest_set_that_fits_is_chosen_if_it_reaches_five_times_the_baseline(
    speeds: dict[tuple[int, str], list[float]], line: str, passed: bool
) -> None:
    decision = decide(runs(speeds))
    assert (decision.line, decision.passed) == (line, passed)


def test_where_no_set_fits_the_tables_say_so() -> None:
    throughput, learning = tables(runs(table(100, 0, 0, 0)))
    assert [row[-1] for row in throughput.rows] == ["1.00 GiB", *["does not fit"] * 3]
    assert learning.rows == []


def test_the_decision_is_made_at_the_configured_context() -> None:
    decision = decide(runs(table(100, 300, 200, 200) | table(50, 200, 300, 450, context=4096)))
    assert decision.line == f"STOP (best Set A 3.00x < 5x at 512 tokens; {NOTHING})"
    assert decision.reason.endswith(f"5x is reached at 4096 tokens (Set C, 9.00x). Found: {NOTHING}.")


def test_a_stop_says_how_near_the_ratio_came() -> None:
    decision = decide(runs(table(100, 300, 200, 200) | table(100, 200, 410, 200, context=1024)))
    assert decision.reason.endswith(
        "5x is reached at none of the contexts measured (512, 1024 tokens); the highest ratio is"
        f" 4.10x (Set B at 1024 tokens). Found: {NOTHING}."
    )


def test_a_set_is_compared_with_the_baseline_of_its_own_round() -> None:
    speeds = table(100, 600, 200, 200)
    speeds[512, "baseline"], speeds[512, "Set A"] = [100, 50, 100], [600, 300, 500]  # the machine was slow in round 1
    speeds[512, "Set B"] = speeds[512, "Set C"] = [200, 100, 200]
    (found,) = [speed for speed in measured_speeds(runs(speeds)) if speed.candidate == "Set A"]
    assert (found.ratios, found.ratio) == ([6.0, 6.0, 5.0], 6.0)
    assert (found.rounds, found.tokens_per_second) == ([600, 300, 500], 500)
    assert "(5.00x to 6.00x over 3 rounds)" in decide(runs(speeds)).reason


def test_a_set_that_fails_in_one_round_does_not_fit() -> None:
    speeds = table(100, 900, 600, 550)
    speeds[512, "Set A"] = [900, 0]
    decision = decide(runs(speeds))
    assert decision.line == "DECIDED (Set B: {16,32,64,128})"
    assert "Does not fit in memory at 512 tokens: Set A." in decision.reason
    row = next(row for row in tables(runs(speeds))[0].rows if row[2].startswith("Set A"))
    assert row[4:] == ["-", "-", "-", "-", "does not fit"]


def test_the_first_steps_of_a_run_are_not_timed() -> None:
    found = measured_speeds(runs(table(100, 600, 550, 500), steps=4))
    assert [speed.tokens_per_second for speed in found] == [100, 600, 550, 500]


def test_other_sets_may_stand_beside_those_of_the_protocol() -> None:
    decision = decide(runs(table(100, 600, 550, 500) | {(512, "{16}"): [800, 800]}))
    assert decision.line == "DECIDED ({16})"


@pytest.mark.parametrize("missing", ["baseline", "Set A", "Set B", "Set C"])
def test_a_missing_candidate_is_refused(missing: str) -> None:
    speeds = table(100, 600, 550, 500)
    del speeds[512, missing]
    with pytest.raises(ConfigError, match=f"at 512 tokens; {missing} is missing$"):
        decide(runs(speeds | table(100, 600, 550, 500, context=1024)))


def test_a_baseline_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^job 0 memory=exhausted: must be enough for the baseline"):
        decide(runs(table(0, 600, 550, 500)))


def test_a_baseline_that_does_not_fit_at_a_longer_context_leaves_that_context_out() -> None:
    evidence = runs(table(100, 600, 550, 500) | table(0, 600, 550, 500, context=4096))
    assert decide(evidence).passed
    assert [row[-1] for row in tables(evidence)[0].rows if row[0] == "4,096"] == ["does not fit", *["no baseline"] * 3]


@pytest.mark.parametrize(("steps", "message"), [(49, "steps of Set A=98: must be >= 100 at 512"), (3, "job 0 steps=3")])
def test_too_few_steps_are_refused(steps: int, message: str) -> None:
    evidence = runs(table(100, 600, 550, 500))
    short = [replace(run, speeds=run.speeds[:steps]) if run.candidate == "Set A" else run for run in evidence]
    with pytest.raises(ConfigError, match=f"^{message}"):
        decide(short)


def test_the_tables_show_what_was_measured() -> None:
    throughput, learning = tables(runs(table(100, 600, 550, 500)))
    assert throughput.rows[1] == [
        *("512", "8", "Set A: {8,16,32,64}", "94", "600", "600 to 600", "6.00x", "6.00x to 6.00x", "1.00 GiB")
    ]
    assert learning.rows[0] == ["Set A: {8,16,32,64}", *["not measured"] * 4]


@pytest.mark.parametrize(
    ("ratios", "chosen", "why"),
    [
        (
            {"Set A": [5.9, 6.1], "Set B": [5.8, 6.0], "Set C": [5.7, 6.1]},
            "Set C: {8,32,64}",
            "is not distinguishable by speed from Set A and Set B and has fewer memories",
        ),
        (
            {"Set A": [5.9, 6.1], "Set B": [5.8, 6.0], "Set C": [5.1, 5.2]},
            "Set A: {8,16,32,64}",
            "is not distinguishable by speed from Set B and has no more memories",
        ),
        (
            {"Set A": [5.0, 5.1], "Set B": [5.6, 5.5], "Set C": [4.7, 5.2]},  # Set C does not reach 5x
            "Set B: {16,32,64,128}",
            "is the fastest set that fits",
        ),
    ],
)
def test_of_sets_that_differ_by_less_than_their_spread_the_one_with_fewer_memories_is_chosen(
    ratios: dict[str, list[float]], chosen: str, why: str
) -> None:
    speeds = {(512, name): [100 * ratio for ratio in own] for name, own in ratios.items()}
    decision = decide(runs({(512, "baseline"): [100, 100]} | speeds))
    assert decision.line == f"DECIDED ({chosen})"
    assert decision.reason.startswith(f"{chosen} {why}: ")
