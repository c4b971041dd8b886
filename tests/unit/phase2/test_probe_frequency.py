"""The rule of protocol 4.2 on tables of runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas.config import ConfigError
from experiments.phase2.probe_frequency import ProbeRun, decide, overhead_at, tables


def round_of(number: int, probe: float, hidden: float = 0.0, every: int = 20, steps: int = 120) -> list[ProbeRun]:
    """A run with probes of `probe` seconds by its clock and `hidden` more outside of it, and one without probes.

    Steps take 0.4 s.
    """
    train, probes = steps * 0.4, steps // every
    plain = ProbeRun(2 * number + 1, number, None, steps, 0, 0.0, train, train + 3)
    wall = plain.wall_seconds + probes * (probe + hidden)
    return [ProbeRun(2 * number, number, every, steps, probes, probes * probe, train, wall), plain]


@pytest.mark.parametrize(
    ("probe", "line", "passed"),
    [
        (1.0, "LOCKED (500 steps, 0.5% overhead)", True),
        (2.03, "LOCKED (1000 steps, 0.5% overhead)", True),  # 2.03 / (2.03 + 500 * 0.4) = 1.005 %
        (4.05, "LOCKED (2000 steps, 0.5% overhead)", True),
        (9.0, "LOCKED (2000 steps, 1.1% overhead, flagged: >= 1%)", False),
    ],
)
def test_the_most_frequent_below_one_percent_is_locked(probe: float, line: str, passed: bool) -> None:
    decision = decide([*round_of(0, probe), *round_of(1, probe)])
    assert (decision.line, decision.passed) == (line, passed)


def test_what_a_probe_costs_outside_of_its_clock_counts() -> None:
    decision = decide([*round_of(0, 1.0, hidden=2.0), *round_of(1, 1.0, hidden=2.0)])
    assert decision.line == "LOCKED (1000 steps, 0.2% overhead)"
    assert "Every 500 steps: 0.50% (derived), 1.48% by the wall clock." in decision.reason


def test_the_overhead_is_derived_from_the_clocks() -> None:
    found = overhead_at(500, [*round_of(0, 1.0), *round_of(1, 3.0)])
    assert (found.measured, found.every) == (False, 500)
    assert found.share == pytest.approx(2 / (2 + 200))
    assert (found.low, found.high) == (pytest.approx(1 / 201), pytest.approx(3 / 203))
    assert found.wall == pytest.approx(2 / 202)


def test_runs_of_the_very_frequency_are_measured_and_come_before_derived_ones() -> None:
    evidence = [*round_of(0, 1.0), *round_of(1, 3.0, every=500, steps=1000)]
    found = overhead_at(500, evidence)
    assert (found.measured, found.share) == (True, pytest.approx(6 / (6 + 400)))
    assert not overhead_at(1000, evidence).measured


def test_a_run_with_probes_that_was_the_faster_one_costs_nothing_by_the_wall_clock() -> None:
    with_probes, plain = round_of(0, 1.0)
    evidence = [replace(with_probes, wall_seconds=plain.wall_seconds - 1), plain]
    assert overhead_at(1000, evidence).wall == 0
    assert decide(evidence).passed


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (round_of(0, 1.0)[1:], "runs with probes=0: must be at least one"),
        (round_of(0, 1.0)[:1], "job 0 round=0: must be a run without probes"),
        (round_of(0, 1.0, every=1000, steps=120), "job 0 niah.every=1000: must be <= 120, the steps of the run"),
        (round_of(0, 1.0, every=100, steps=200), "probes=2: must be >= 3 in all runs together"),
    ],
)
def test_too_few_runs_are_refused(evidence: list[ProbeRun], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        decide(evidence)
    assert str(error.value).startswith(message)


def test_the_tables_show_what_was_measured() -> None:
    overheads, runs = tables([*round_of(0, 1.0), *round_of(1, 1.0)])
    assert overheads.rows[1] == ["1,000 steps", "0.25%", "0.25% to 0.25%", "0.25%", "derived"]
    assert runs.rows[0] == ["0", "every 20 steps", "120", "6", "1.00", "0.400", "57.0"]
    assert runs.rows[1] == ["0", "none", "120", "0", "-", "0.400", "51.0"]
