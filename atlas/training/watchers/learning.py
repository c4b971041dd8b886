"""Watchers of the loss: whether the model learns, and whether it learns too well."""

from __future__ import annotations

from math import isfinite, sqrt
from statistics import fmean, median, variance

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import BLOCK, LOW_RATE, RECENT, Record

# The default run is below a uniform guess after 20 steps and below the bigram after 100.
KNOWS = 0.1  # of the way from a uniform guess to the bigram: a model without training is at 0 and below
PLATEAU_STEPS = 200  # at full learning rate before a loss above a uniform guess counts
WAY, WAY_STEPS = 0.25, 100  # of that way, and steps at full learning rate: to know how frequent symbols are is 0.6
FALL = 0.005  # of the loss, from one quarter of the run to the next
POWER_LAW = 0.03  # the same of a loss that follows a power law, which a plateau misses
ERRORS = 3.0  # by so many standard errors: with one row a step the losses vary by 0.7 nats
QUARTERS_FROM = 400  # steps of training before quarters of it are compared
SHORT_FALL = 0.02  # of the loss, from the first quarter of a short run to its last
SHORT_FROM = 100  # steps
READINGS = 5  # of the watched perplexity in a mean: its readings vary by 10 % within 10 steps early in training
RISE = 0.1  # nats above the lowest such mean, in two means in a row; also 5 % of it
RISE_SHARE = 0.05
# Fewer watched tokens wander further: 128 by up to 0.29 nats in 10,000 calm steps, while 4,096 rise by 0.03.
RISE_TOKENS = 1024
AT_ONCE = 2.0  # times so far above, one mean is enough
CLIPPED = 10.0  # times the limit: the default run, clipped at nearly every step, has 1 to 4
CLIPPED_FROM = 100  # steps at full learning rate: gradients are large before
LOW_STEPS = 0.5  # of the steps of the run: cosine and linear schedules have 0.3 at most, drops at a half 0.5
LOW_SHARE = 0.25  # of the bigram's loss; the default run reaches 0.54 after 1000 steps
PASSES = 5.0  # of the text
KNOWN = 0.8  # of the loss of new text: calm runs of few passes have 0.87 and more
LOW_UNTIL = 500  # steps; a longer run may have learned a repetitive text
BY_HEART_SHARE = 0.1  # the same of the training loss alone,
BY_HEART_UNTIL = 200  # and so early that no text of more than a few batches is known by heart


def first_loss(record: Record) -> Finding | None:
    """Of the first BLOCK steps. At a sound start embeddings have norm 1 and the stream the root of the width: no logit
    is larger than that root, and no loss larger than twice that above a uniform guess."""
    facts = record.facts
    if facts.first_step or not record.losses or record.step >= 2 * BLOCK:
        return None
    limit, way = facts.uniform + 2 * sqrt(facts.width), record.on_the_way(record.losses[0])
    if record.losses[0] <= limit:
        knows_nothing = facts.given_weights and record.of_text and way is not None and way < KNOWS
        return _unknowing(record, record.losses[0]) if knows_nothing else None
    return Finding(
        "first_loss",
        record.step,
        record.losses[0],
        f"the loss of the first {BLOCK} steps is {record.losses[0]:.3g} nats, a sound start has at most {limit:.3g}",
        "the first steps go into undoing the start, and may undo more",
        "smaller initial weights, the embedding first, or the weights that init_from took",
    )


def _unknowing(record: Record, loss: float) -> Finding:
    return Finding(
        "first_loss",
        record.step,
        loss,
        f"the loss of the first {BLOCK} steps after init_from is {loss:.3f} nats, and that of a uniform guess "
        f"{record.facts.uniform:.3f}",
        "the weights that were taken know nothing of this text, or were not kept",
        "a base of the same tokenizer and kind of text, and a look at code of yours that initialises weights",
    )


def plateau(record: Record) -> Finding | None:
    facts, blocks, steps = record.facts, record.losses, len(record.losses) * BLOCK
    if not blocks:
        return None
    newest = fmean(blocks[-10:])
    if record.settled >= PLATEAU_STEPS and steps >= PLATEAU_STEPS and newest > facts.uniform:
        seen = f"the loss is {newest:.3f} nats after {record.step} steps, above a uniform guess ({facts.uniform:.3f})"
        return _plateau(record, newest, seen)
    if facts.baseline is None or newest <= facts.baseline:
        return None
    way = record.on_the_way(newest)
    if record.settled >= WAY_STEPS and steps >= WAY_STEPS and way is not None and way < WAY:
        seen = (
            f"the loss is {newest:.3f} nats after {record.step} steps, {max(way, 0):.0%} of the way from a uniform "
            f"guess ({facts.uniform:.3f}) to that of the {facts.baseline_name} ({facts.baseline:.3f})"
        )
        return _plateau(record, newest, seen)
    quarter = len(blocks) // 4
    above = f"and above that of the {facts.baseline_name} ({facts.baseline:.3f})"
    if steps >= QUARTERS_FROM and record.settled >= QUARTERS_FROM:
        before, now = fmean(blocks[-2 * quarter : -quarter]), fmean(blocks[-quarter:])
        error = sqrt((variance(blocks[-2 * quarter : -quarter]) + variance(blocks[-quarter:])) / quarter)
        missed = now - before * (1 - POWER_LAW)
        if now > max(before * (1 - FALL), facts.baseline) and missed > ERRORS * error:
            seen = f"the loss has not fallen for {2 * quarter * BLOCK} steps: {before:.3f}, now {now:.3f} nats, {above}"
            return _plateau(record, now, seen)
    elif record.ended and steps >= SHORT_FROM:
        first, last = fmean(blocks[:quarter]), fmean(blocks[-quarter:])
        if last > max(first * (1 - SHORT_FALL), facts.baseline):
            seen = f"the loss has not fallen in {record.step} steps: {first:.3f}, now {last:.3f} nats, {above}"
            return _plateau(record, last, seen)
    return None


def _plateau(record: Record, value: float, seen: str) -> Finding:
    return Finding(
        "plateau",
        record.step,
        value,
        seen,
        "the model has learned next to nothing",
        "another optim.lr, ten times as high and ten times as low, and a loss of your own on logits, not probabilities",
    )


def divergence(record: Record) -> Finding | None:
    """Fixed rows, so the rise is not one of the text."""
    readings = record.watched
    if len(readings) < 3 * READINGS or not all(isfinite(loss) for _, loss in readings[-2 * READINGS :]):
        return None
    means = [fmean(loss for _, loss in readings[i : i + READINGS]) for i in range(len(readings) - 2 * READINGS + 1)]
    lowest = min(means[:-1])
    last_good = readings[means.index(lowest) + READINGS - 1][0]
    newest = [fmean(loss for _, loss in readings[-2 * READINGS : -READINGS])]
    newest.append(fmean(loss for _, loss in readings[-READINGS:]))
    tokens = min(record.facts.watched, RISE_TOKENS) or RISE_TOKENS
    limit = max(RISE * sqrt(RISE_TOKENS / tokens), RISE_SHARE * lowest)
    if min(newest) < lowest + limit and newest[-1] < lowest + AT_ONCE * limit:
        return None
    return Finding(
        "divergence",
        record.step,
        newest[-1] - lowest,
        f"the loss of the watched validation rows has risen from {lowest:.3f} nats at step {last_good} to "
        f"{newest[-1]:.3f}",
        "the run diverges slowly, or learns its text by heart",
        "a lower optim.lr, a longer text, or train.patience; watch.divergence=rollback goes back",
        {"lowest": lowest, "newest": newest[-1]},
        since=last_good,
    )


def clipping(record: Record) -> Finding | None:
    limit, norms = record.facts.clip, record.norms
    if not limit or record.settled < CLIPPED_FROM or len(norms) < RECENT or min(norms) <= limit:
        return None
    usual = median(norms)
    if usual < CLIPPED * limit:
        return None
    return Finding(
        "clipping",
        record.step,
        usual / limit,
        f"each of the last {RECENT} gradients was clipped; their norm is {usual:.3g}, {usual / limit:.0f} times "
        f"train.gradient_clip={limit:g}",
        "the limit, not the gradient, decides how far a step goes",
        "a higher train.gradient_clip, or a lower optim.lr if the norms grow",
    )


def learning_rate(record: Record) -> Finding | None:
    """Most of the steps of the run at a low learning rate, after a high one."""
    if record.low_steps <= LOW_STEPS * record.facts.steps:
        return None
    return Finding(
        "learning_rate",
        record.step,
        record.low_steps,
        f"the learning rate of the last {record.low_steps} of {record.facts.steps} steps is below {LOW_RATE:g} of its "
        "highest",
        "most of the run learns slowly: the schedule has ended too early",
        "a schedule over train.steps that goes on once a step, whatever the accumulation and the processes",
    )


def loss_too_low(record: Record) -> Finding | None:
    """Low on the validation rows as well; or so early in training that nothing can be known by heart."""
    baseline, blocks = record.facts.baseline, record.losses
    if baseline is None or len(blocks) < 2 or not record.watched or not record.of_text:  # recall may be learned fast
        return None
    name = record.facts.baseline_name
    newest, (read_at, watched) = fmean(blocks[-2:]), record.watched[-1]
    both = max(newest, watched) < LOW_SHARE * baseline and record.step <= LOW_UNTIL
    by_heart = newest < BY_HEART_SHARE * baseline and record.step <= BY_HEART_UNTIL
    if not (both or by_heart):
        return None
    return Finding(
        "loss_too_low",
        record.step,
        newest,
        f"the training loss is {newest:.3f} nats after {record.step} steps, that of the {name} {baseline:.3f} "
        f"(watched rows: {watched:.3f} at step {read_at})",
        "so fast no text is learned: the inputs may hold the answers, or one batch comes again and again",
        "to look at a batch of the data source, and at the causality of a model of your own",
        {"watched": watched, "baseline": baseline},
    )


def by_heart(record: Record) -> Finding | None:
    """A text that was read several times, and is much easier by now than one that was not read."""
    facts, readings = record.facts, record.watched
    passes = record.step * facts.tokens / facts.text if facts.text else 0.0
    if passes < PASSES or len(readings) < READINGS or not record.of_text:
        return None
    blocks = record.losses[-max((record.step - readings[-READINGS][0]) // BLOCK, 1) :]
    if not blocks:
        return None
    new, known = fmean(loss for _, loss in readings[-READINGS:]), fmean(blocks)
    if not known < KNOWN * new:
        return None
    return Finding(
        "by_heart",
        record.step,
        known / new,
        f"the text was read {passes:.0f} times: its loss is {known:.3f} nats, that of the watched rows {new:.3f}",
        "the model learns its text by heart",
        "more text, fewer steps, or train.patience",
        {"training": known, "watched": new, "passes": passes},
    )
