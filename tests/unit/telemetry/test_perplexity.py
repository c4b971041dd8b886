import json
import math
import random

import pytest

from atlas.telemetry.perplexity import PPLDeltaTracker


def feed(tracker: PPLDeltaTracker, values: list[float]) -> list[tuple[float, bool]]:
    return [tracker.update(value) for value in values]


def test_the_first_value_starts_the_average() -> None:
    tracker = PPLDeltaTracker(warmup=0)
    assert tracker.update(256.0) == (0.0, False)
    assert tracker.average == 256.0


def test_the_average_is_the_mean_until_its_weight_falls_to_the_ema_s() -> None:
    tracker = PPLDeltaTracker(ema=0.75, warmup=100)
    feed(tracker, [8.0, 4.0, 3.0, 1.0])
    assert tracker.average == pytest.approx(4.0, rel=1e-15)  # 1/4 is the weight of the fourth value, and of all later
    tracker.update(8.0)
    assert tracker.average == pytest.approx(5.0, rel=1e-15)


def test_delta_is_the_ratio_above_the_average() -> None:
    tracker = PPLDeltaTracker(warmup=0)
    feed(tracker, [10.0])
    assert tracker.update(8.0) == (pytest.approx(-0.2), False)
    assert tracker.average == 9.0
    assert tracker.update(10.8)[0] == pytest.approx(0.2)


def test_a_spike_needs_patience_and_leaves_the_average_alone() -> None:
    tracker = PPLDeltaTracker(threshold=0.05, warmup=10, patience=3)
    feed(tracker, [10.0] * 10)
    assert [spike for _, spike in feed(tracker, [11.0, 11.0])] == [False, False]
    assert tracker.update(10.2)[1] is False  # interrupted: the count starts again
    average = tracker.average
    results = feed(tracker, [20.0, 20.0, 20.0, 20.0])
    assert [spike for _, spike in results] == [False, False, True, True]
    assert tracker.average == average
    assert results[0][0] == results[3][0] == pytest.approx(20.0 / average - 1)


def test_no_spike_during_warm_up() -> None:
    tracker = PPLDeltaTracker(warmup=5, patience=1)
    assert [spike for _, spike in feed(tracker, [1.0, 2.0, 4.0, 8.0, 16.0])] == [False] * 5
    assert tracker.update(32.0)[1] is True


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_perplexity_is_a_spike_at_once_even_in_warm_up(value: float) -> None:
    tracker = PPLDeltaTracker(warmup=100)
    assert tracker.update(value) == (math.inf, True)
    feed(tracker, [10.0, 10.0])
    assert tracker.update(value) == (math.inf, True)
    assert tracker.average == 10.0
    assert tracker.update(10.0) == (0.0, False)


def test_accept_takes_the_new_level() -> None:
    tracker = PPLDeltaTracker(warmup=2, patience=1)
    feed(tracker, [10.0, 10.0])
    assert tracker.update(20.0) == (1.0, True)
    tracker.accept()
    assert tracker.update(20.0) == (0.0, False)


def test_the_state_continues_exactly_and_survives_json() -> None:
    draw = random.Random(0)
    values = [10.0 * math.exp(draw.gauss(0, 0.05)) for _ in range(200)]
    whole, first, second = (PPLDeltaTracker(warmup=20, patience=2) for _ in range(3))
    expected = feed(whole, values)
    for cut in (0, 1, 57, 199):
        first = PPLDeltaTracker(warmup=20, patience=2)
        before = feed(first, values[:cut])
        state = json.loads(json.dumps(first.state_dict()))
        second.load_state_dict(state)
        assert {type(value) for value in first.state_dict().values()} == {float}
        assert before + feed(second, values[cut:]) == expected


def test_a_falling_noisy_series_gives_no_alarm() -> None:
    draw = random.Random(1)
    tracker = PPLDeltaTracker(threshold=0.05, warmup=100, patience=3)
    series = [5 + 250 * math.exp(-step / 300) + draw.gauss(0, 0.05) for step in range(10_000)]
    assert not any(spike for _, spike in feed(tracker, series))
