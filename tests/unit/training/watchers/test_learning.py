"""Watchers of the loss, on made-up losses: what they find, and calm twins that they must not tell of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from math import cos, nan, pi

import pytest

from atlas.training.watchers import JUDGES
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.record import BLOCK, Record
from atlas.training.watchers.validation import has_risen

UNIFORM, BIGRAM = 5.545, 2.32


def made(losses: Sequence[float], norms: Sequence[float] = (), **facts: float) -> Record:
    """A record of these losses, one a step."""
    record = Record(Facts(**{"steps": 10_000, "uniform": UNIFORM, "baseline": BIGRAM, "clip": 1.0, **facts}))  # type: ignore[arg-type]
    for step, loss in enumerate(losses, start=1):
        record.add_step(step, loss, norms[step - 1] if norms else 2.0, 0.1)
    return record


def learning(steps: int, final: float = 1.2) -> list[float]:
    """A power law from 5.5 nats, as a calm run has."""
    return [final + (5.5 - final) * (1 + step / 20) ** -0.7 for step in range(steps)]


def told(name: str, record: Record) -> str | None:
    found = JUDGES[name](record)
    return None if found is None else found.seen


def test_a_start_with_weights_too_large_is_told() -> None:
    seen = "the loss of the first 10 steps is 60 nats, a sound start has at most 28.2"
    assert told("first_loss", made([60.0] * 12, width=128)) == seen
    assert told("first_loss", made([60.0] * 9, width=128)) is None
    assert told("first_loss", made([8.0] * 12, width=128)) is None
    assert told("first_loss", made([60.0] * 12, width=128, first_step=100)) is None


def test_weights_of_init_from_that_know_nothing_are_told() -> None:
    seen = "the loss of the first 10 steps after init_from is 5.400 nats, and that of a uniform guess 5.545"
    assert told("first_loss", made([5.4] * 12, given_weights=True)) == seen
    assert told("first_loss", made([4.9] * 12, given_weights=True)) is None  # a text of another kind
    assert told("first_loss", made([5.4] * 12)) is None
    assert told("first_loss", made([5.4] * 12, given_weights=True, baseline=5.5)) is None  # noise
    recall = made([5.4] * 12, given_weights=True)
    recall.of_text = False
    assert told("first_loss", recall) is None  # the base has learned text


def test_a_loss_above_a_uniform_guess_is_told_200_steps_after_the_warm_up() -> None:
    seen = "the loss is 6.260 nats after 300 steps, above a uniform guess (5.545)"
    assert told("plateau", made([6.26] * 300, warmup=100, baseline=5.5)) == seen
    assert told("plateau", made([6.26] * 299, warmup=100, baseline=5.5)) is None
    assert told("plateau", made(learning(300), warmup=100)) is None


def test_a_loss_near_a_uniform_guess_is_told_100_steps_after_the_warm_up() -> None:
    way = "8% of the way from a uniform guess (5.545) to that of the bigram baseline (2.320)"
    seen = f"the loss is 5.300 nats after 200 steps, {way}"
    assert told("plateau", made([5.3] * 200, warmup=100)) == seen
    assert told("plateau", made([5.3] * 199, warmup=100)) is None
    assert told("plateau", made([4.7] * 200, warmup=100)) is None  # more than the frequencies of few symbols
    assert told("plateau", made([6.0] * 200, warmup=100)) == seen.replace("5.300", "6.000").replace("8%", "0%")
    assert told("plateau", made(learning(200), warmup=100)) is None


def test_a_loss_that_stays_above_the_bigram_is_told() -> None:
    seen = "the loss has not fallen for 200 steps: 3.100, now 3.100 nats, and above that of the bigram baseline (2.320)"
    assert told("plateau", made([3.1] * 400)) == seen
    assert told("plateau", made([2.2] * 400)) is None  # learned what it can
    assert told("plateau", made([4.0 * (1 + step) ** -0.06 for step in range(1000)], baseline=0.5)) is None


@pytest.mark.parametrize("deviation", [0.1, 0.35, 0.7])
def test_noise_of_small_batches_hides_a_plateau_for_a_while_and_makes_none(deviation: float) -> None:
    """Of losses that fall as a power law, judged as a run judges them, and of losses that do not fall."""
    for seed in range(5):
        draw = random.Random(seed)
        falling, flat, found = made([]), made([]), False
        for step in range(1, 3001):
            noise = draw.gauss(0, deviation)
            for record, loss in ((falling, 1.2 + 4.35 * (1 + step / 20) ** -0.42), (flat, 3.1)):
                record.add_step(step, loss + noise, 2.0, 0.1)
            if step % 10 == 0:
                assert told("plateau", falling) is None
                found = found or told("plateau", flat) is not None
        assert found


def test_a_quarter_below_the_bigram_is_no_plateau() -> None:
    assert told("plateau", made([*[2.3] * 600, *[2.25] * 100, *[2.33] * 100])) is None
    assert told("plateau", made([*[2.35] * 600, *[2.33] * 100, *[2.36] * 100])) is not None


def test_a_short_run_is_judged_at_its_end() -> None:
    record = made([4.5, 4.52] * 60)
    assert told("plateau", record) is None
    record.ended = True
    seen = "the loss has not fallen in 120 steps: 4.510, now 4.510 nats, and above that of the bigram baseline (2.320)"
    assert told("plateau", record) == seen
    for steps in (5, 90):
        short = made([4.5] * steps)
        short.ended = True
        assert told("plateau", short) is None


def test_a_rise_of_the_watched_rows_is_told_with_the_last_good_step() -> None:
    record = made([])
    losses = [2.0, 1.6, 1.5, 1.4, 1.4, *[1.4] * 5, *[1.55] * 10]
    record.watched = [(20 * place, loss) for place, loss in enumerate(losses, start=1)]
    found = JUDGES["divergence"](record)
    assert found is not None
    assert found.seen == "the loss of the watched validation rows has risen from 1.400 nats at step 160 to 1.550"
    assert (found.value, found.since) == (pytest.approx(0.15), 160)


def test_a_rise_twice_as_large_is_told_after_one_mean() -> None:
    record = made([])
    record.watched = [(20 * place, loss) for place, loss in enumerate([1.4] * 10 + [1.61] * 5, start=1)]
    seen = "the loss of the watched validation rows has risen from 1.400 nats at step 100 to 1.610"
    assert told("divergence", record) == seen


@pytest.mark.parametrize(
    "losses",
    [
        [2.0, 1.6, 1.5, 1.4, 1.4, *[1.4] * 5, *[1.55] * 5],  # a spike that may fall back
        [2.0, 1.6, 1.5, 1.4, 1.4, *[1.4] * 5, *[1.48] * 10],  # within the noise of a run that has learned
        [5.0 * 0.95**place for place in range(50)],
        [1.4] * 14,
        [1.4] * 10 + [nan] * 10,  # the rollback's
    ],
)
def test_no_divergence(losses: list[float]) -> None:
    record = made([])
    record.watched = [(20 * place, loss) for place, loss in enumerate(losses, start=1)]
    assert told("divergence", record) is None


def test_few_watched_tokens_wander_further_before_it_is_divergence() -> None:
    record = made([], watched=128)
    rise = [(20 * place, loss) for place, loss in enumerate([1.4] * 10 + [1.65] * 10 + [1.7] * 10, start=1)]
    record.watched = rise[:20]
    assert told("divergence", record) is None
    record.watched = rise
    seen = "the loss of the watched validation rows has risen from 1.400 nats at step 100 to 1.700"
    assert told("divergence", record) == seen


def test_clipping_to_a_small_part_is_told() -> None:
    steps = 210
    seen = (
        "each of the last 100 gradients was clipped; their norm is 12, 12 times train.gradient_clip=1"  # usual: 1 to 4
    )
    assert told("clipping", made(learning(steps), [12.0] * steps, warmup=100)) == seen
    assert told("clipping", made(learning(steps), [4.0] * steps, warmup=100)) is None
    assert told("clipping", made(learning(steps), [12.0] * (steps - 1) + [0.9], warmup=100)) is None
    assert told("clipping", made(learning(190), [12.0] * 190, warmup=100)) is None
    assert told("clipping", made(learning(steps), [12.0] * steps, warmup=100, clip=0.0)) is None


def test_a_loss_that_falls_too_fast_is_told() -> None:
    leaking = made([5.5 * 0.9**step for step in range(60)])
    leaking.watched = [(20, 1.0), (60, 0.1)]
    assert told("loss_too_low", leaking) == (
        "the training loss is 0.036 nats after 60 steps, that of the bigram baseline 2.320 "
        "(watched rows: 0.100 at step 60)"
    )
    by_heart = made([5.5 * 0.9**step for step in range(60)])
    by_heart.watched = [(60, 6.0)]
    assert told("loss_too_low", by_heart) is not None
    calm = made(learning(500, final=1.0))
    calm.watched = [(500, 1.2)]
    assert told("loss_too_low", calm) is None
    leaking.of_text = False  # recall
    assert told("loss_too_low", leaking) is None
    known_text = made([0.1] * 600)  # a small text may be known by heart after so many steps
    known_text.watched = [(600, 0.1)]
    assert told("loss_too_low", known_text) is None


def test_a_validation_loss_that_is_no_number_is_told_with_the_last_good_step() -> None:
    record = made([])
    record.validations = [(100, 2.0), (200, nan)]
    found = JUDGES["validation_loss"](record)
    assert found is not None
    assert (found.seen, found.since) == ("the validation loss at step 200 is nan", 100)
    record.validations.append((300, 1.9))
    assert told("validation_loss", record) is None


def test_an_open_suspicion_is_told_at_the_end_only() -> None:
    record = made([])
    record.open_suspicion = "perplexity 9 is 40% above its moving average 6"
    assert told("last_steps", record) is None
    record.ended = True
    assert told("last_steps", record) == "at the last step perplexity 9 is 40% above its moving average 6"


@pytest.mark.parametrize(("last", "tells"), [(2.2, True), (2.09, False), (1.9, False)])
def test_a_run_that_ends_far_above_its_best_validation_is_told_at_the_end(last: float, tells: bool) -> None:
    record = made(learning(300))
    record.validations = [(100, 2.5), (200, 2.0), (300, last)]
    assert told("past_best", record) is None
    record.ended = True
    seen = f"the validation loss ends at {last:.3f} nats; at step 200 it was 2.000"
    assert told("past_best", record) == (seen if tells else None)
    record.open_suspicion = "perplexity 9 is 40% above its moving average 6"
    assert told("past_best", record) is None
    record.open_suspicion, record.of_text = "", False
    assert told("past_best", record) is None


def test_a_step_that_is_not_finite_is_left_to_the_rollback() -> None:
    record = made([2.0] * (BLOCK - 1) + [nan] * 5)
    assert record.losses == []
    record.add_step(BLOCK, 2.0, 1.0, 0.1)
    assert record.losses == [2.0]


def test_a_record_goes_on_as_it_was_saved() -> None:
    record = made(learning(123))
    record.watched, record.validations = [(20, 3.0)], [(100, 2.0)]
    other = Record(record.facts)
    other.load_state_dict(record.state_dict())
    for one in (record, other):
        one.add_step(124, 1.5, 3.0, 0.1)
    assert other.state_dict() == record.state_dict()


@pytest.mark.parametrize(
    ("text", "loss", "seen"),
    [
        (10_000, 1.5, "the text was read 40 times: its loss is 1.500 nats, that of the watched rows 2.000"),
        (10_000, 1.65, None),
        (100_000, 1.5, None),  # read four times
        (0, 1.5, None),  # a source without a text
    ],
)
def test_a_text_that_is_known_by_heart_is_told(text: int, loss: float, seen: str | None) -> None:
    record = made([loss] * 400)
    record.facts = replace(record.facts, tokens=1000, text=text)
    record.watched = [(step, 2.0) for step in range(20, 401, 20)]
    assert told("by_heart", record) == seen


def test_a_schedule_that_ends_too_early_is_told() -> None:
    def seen(*rates: float) -> str | None:
        record = Record(Facts(steps=len(rates)))
        for rate in rates:
            record.add_lr(rate)
        again = Record(record.facts)
        again.load_state_dict(record.state_dict())
        return told("learning_rate", again)

    early = "the learning rate of the last 60 of 100 steps is below 0.2 of its highest"
    assert seen(*[2e-3] * 40, *[2e-4] * 60) == early
    assert seen(*[2e-3] * 50, *[2e-4] * 50) is None  # a drop at half of the run
    assert seen(*[2e-3 * (1 + cos(pi * step / 100)) / 2 for step in range(100)]) is None
    assert seen(*[2e-5 * step for step in range(100)]) is None  # warm-up


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0], True),
        ([2.0, 1.9], False),
        ([2.0, 2.03], False),
        ([2.0, 2.05], True),
        ([2.0, 1.0, 1.2, 1.5], False),  # it has risen by 0.2 before
        ([2.0, 1.0, 1.2, 1.7], True),
        ([2.0, 1.0, 1.2, 1.0], False),
        ([2.0, float("nan")], True),
        ([2.0, 1.0, 1.2, float("nan")], True),
    ],
)
def test_a_validation_loss_has_risen(losses: list[float], expected: bool) -> None:
    assert has_risen(losses) is expected
