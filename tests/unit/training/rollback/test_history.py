from __future__ import annotations

import random
from math import exp, inf, nan

import pytest

from atlas.config import RollbackConfig
from atlas.training.rollback.decision import Verdict, decide
from atlas.training.rollback.history import READINGS, History, Reading, Suspicion


def feed(history: History, perplexities: list[float], *, first: int = 1, every: int = 10) -> list[bool]:
    steps = range(first * every, (first + len(perplexities)) * every, every)
    return [history.add_perplexity(step, value).bad for step, value in zip(steps, perplexities, strict=True)]


def settled(**settings: float) -> History:
    """A history whose readings stand at 10."""
    history = History(RollbackConfig(**{"warmup": 20, "watch_every": 10, "ema": 0.0, **settings}))  # type: ignore[arg-type]
    assert feed(history, [10.0] * 5) == [False] * 5
    return history


def test_a_suspicious_loss_stands_out_from_its_own_recent_values() -> None:
    draw = random.Random(0)
    suspicion = Suspicion()
    assert not any(suspicion.update(3.0 + draw.gauss(0, 0.1)) for _ in range(500))
    assert suspicion.update(3.2) is False
    assert [suspicion.update(6.0) for _ in range(10)] == [True] * 10  # a spike does not teach it its level
    assert suspicion.update(nan) is True


def test_nothing_is_suspicious_before_there_is_something_to_compare_with() -> None:
    suspicion = Suspicion()
    assert not any(suspicion.update(loss) for loss in [5.0] * 19 + [50.0])


def test_the_threshold_counts_from_the_moving_average() -> None:
    assert settled().add_perplexity(60, 10.49).bad is False
    reading = settled().add_perplexity(60, 10.51)
    assert (reading.bad, reading.delta) == (True, pytest.approx(0.051))
    assert reading.reason == "perplexity 10.51 is 5.1% above its moving average 10 (limit 5.0%)"


def test_the_limit_is_four_times_the_spread_of_the_runs_own_deltas() -> None:
    history = History(RollbackConfig(warmup=10, watch_every=10, ema=0.0))
    feed(history, [10.0, 10.2, 10.0, 10.2, 10.0, 10.2, 10.0])
    deltas = [0.02, -0.2 / 10.2] * 3
    deviation = (deltas[0] - deltas[1]) / 2  # of every delta from the median, which lies in the middle
    assert history.spread() == pytest.approx(1.4826 * deviation)
    limit = 4 * 1.4826 * deviation
    assert limit > 0.11
    assert history.add_perplexity(80, 10.0 * (1 + limit - 1e-4)).bad is False
    history = History(RollbackConfig(warmup=10, watch_every=10, ema=0.0))
    feed(history, [10.0, 10.2, 10.0, 10.2, 10.0, 10.2, 10.0])
    assert history.add_perplexity(80, 10.0 * (1 + limit + 1e-4)).bad is True


def test_bad_readings_move_neither_the_average_nor_the_spread() -> None:
    history = settled()
    assert feed(history, [20.0, 30.0, 40.0], first=6) == [True] * 3
    assert (history.tracker.average, history.spread()) == (10.0, 0.0)
    assert history.healthy is False
    history.accept()
    assert history.healthy is True
    assert history.add_perplexity(90, 41.0).bad is False


def test_what_the_validation_has_shown_to_be_chance_clears_no_collapsed_probe() -> None:
    history = settled()
    history.add_probe(50, "memory", passed=True, reason="")
    history.suspicious, _ = True, history.add_perplexity(60, 20.0)
    history.add_probe(60, "memory", passed=False, reason="FAILED")
    history.clear()
    assert [one.kind for one in history.readings if one.bad] == ["niah"]
    assert (history.suspicious, history.healthy, history.tracker.average) == (False, False, 20.0)
    decision = decide(history.readings, 0, RollbackConfig(triggers=["niah"]))
    assert decision is not None
    assert (decision.verdict, decision.before_step) == (Verdict.restore, 51)


def test_a_perplexity_that_is_not_finite_is_bad_even_in_warm_up() -> None:
    history = History(RollbackConfig())
    reading = history.add_perplexity(20, nan)
    assert (reading.bad, reading.delta) == (True, inf)


def test_readings_are_taken_regularly_and_closer_when_something_is_suspicious() -> None:
    history = History(RollbackConfig(warmup=20, watch_every=10, suspect_every=2))
    draw = random.Random(0)
    taken = []
    for step in range(1, 61):
        loss = 3.0 + draw.gauss(0, 0.05)
        if step in (15, 35):
            loss = 9.0  # in the warm-up only regular readings count
        if history.needs_reading(step, loss):
            taken.append(step)
            history.add_perplexity(step, 20.0 if 35 <= step < 41 else 10.0)
    assert taken == [10, 20, 30, 35, 37, 39, 40, 42, 50, 60]


def test_the_deltas_of_an_observed_run_are_kept_after_the_warm_up() -> None:
    history = History(RollbackConfig(observe=True, warmup=20, watch_every=10, ema=0.0))
    feed(history, [10.0, 10.0, 11.0, 10.0])
    assert history.deltas == pytest.approx([0.1, 0.0])  # the average does not learn a bad reading
    assert settled().deltas == []


def test_a_long_history_forgets_its_beginning() -> None:
    history = History(RollbackConfig())
    for step in range(READINGS + 5):
        history.add(Reading("perplexity", step, False))
    assert (len(history.readings), history.readings[0].step) == (READINGS, 5)


def test_the_state_continues_exactly() -> None:
    draw = random.Random(3)
    losses = [3 + draw.gauss(0, 0.2) for _ in range(300)]
    values = [exp(1 + draw.gauss(0, 0.05)) for _ in losses]

    def run(history: History, start: int, stop: int) -> None:
        for step in range(start, stop):
            if history.needs_reading(step, losses[step]):
                history.add_perplexity(step, values[step])

    settings = RollbackConfig(warmup=20, watch_every=10, observe=True)
    whole, first, second = History(settings), History(settings), History(settings)
    run(whole, 0, 300)
    run(first, 0, 137)
    second.load_state_dict(first.state_dict())
    run(second, 137, 300)
    assert second.state_dict() == whole.state_dict()


def test_a_step_that_a_stop_cut_short_stays_suspicious() -> None:
    """The next start saves it, with what the run knew of it."""
    first, second = History(RollbackConfig()), History(RollbackConfig())
    for step in range(1, 40):
        first.needs_reading(step, 3.0)
    first.needs_reading(40, 9.0)
    state = first.state_dict()
    second.load_state_dict(state)
    assert (first.healthy, second.healthy) == (False, False)
    del state["suspicious"]  # of an older version
    second.load_state_dict(state)
    assert second.healthy


@pytest.mark.parametrize("noise", [0.004, 0.03])
@pytest.mark.parametrize("seed", range(3))
def test_a_calm_run_of_10000_steps_gives_no_alarm_and_a_spike_at_its_end_does(seed: int, noise: float) -> None:
    """A falling perplexity whose wandering is correlated over ten steps: 5 % at first, then as measured with 1,024
    watched tokens, and with 128."""
    draw = random.Random(seed)
    history = History(RollbackConfig())
    wander, found = 0.0, []
    for step in range(1, 10_041):
        size = 0.05 * exp(-step / 300) + noise
        wander = 0.9 * wander + size * (1 - 0.9**2) ** 0.5 * draw.gauss(0, 1)
        spike = 1.3 if step > 10_000 else 1.0
        loss = 1.2 + 4 * exp(-step / 60) + draw.gauss(0, 0.08)
        if history.needs_reading(step, loss):
            history.add_perplexity(step, (3.3 + 250 * exp(-step / 60)) * (1 + wander) * spike)
            if decide(history.readings, 0, history.settings) is not None:
                found.append(step)
                history.accept()
    assert found == [10_028]  # regular at 10,020, and two more four steps apart
