"""Watchers of weights and optimiser: whether a step moves what it should."""

from __future__ import annotations

from itertools import pairwise
from math import inf
from statistics import fmean, median

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import DESCENTS, EVERY, Record

UNMOVED = 0.5  # of all elements; the default run has below 0.01
SHOWN = 3  # names
LOST = 0.5  # of the parameters
OUTGROWN = 20.0  # times the largest gradient: the moment is a mean of squares, so it is below 1 if none was larger
SMALL = 0.5  # of all elements: in matrices of millions gradients are 1e-5 and more, the usual epsilon is 1e-8

GRADIENT_JUMP = 100.0  # times the median norm of the ENOUGH steps before; calm runs reach 46, broken ones 3,500
JUMP = 8.0  # times the usual change of the norm of all weights in a step
LEAST = 0.005  # of the norm; a calm run changes it by less in a step
ENOUGH = 20  # steps
FALLEN = 0.6  # of the way from a uniform guess to the bigram: so far comes who knows how frequent symbols are
DOWNHILL = 0.01  # cosine of a step with minus its gradient, the mean over DESCENTS steps; usual are 0.09 to 0.2


def frozen_weights(record: Record) -> Finding | None:
    """In two measurements in a row: whole parameters that did not move, or the half of all elements."""
    if not record.twice or record.settled < 0:  # in a warm-up updates may be less than the weights' last digit
        return None
    before, now = record.twice
    unused = record.facts.unused
    names = sorted(n for n in {*before.unmoved} & {*now.unmoved} if not any(part in n for part in unused))
    share = min(before.unmoved_share, now.unmoved_share)
    if not names and share <= UNMOVED:
        return None
    steps = f"steps {before.step} and {now.step}"
    seen = f"{steps} moved {1 - share:.1%} of all weights each, at most"
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        seen = f"{steps} moved no element of {', '.join(names[:SHOWN])}{more}"
    return Finding(
        "frozen_weights",
        record.step,
        share,
        seen,
        "these weights have no gradient, updates that rounding loses, or an optimiser that leaves steps out",
        "a higher optim.lr, weights in float32, requires_grad of these parameters, and an optimiser that moves them at "
        "every step",
    )


def gradients(record: Record) -> Finding | None:
    """Gradients that are left when a step begins."""
    if not record.twice or not all(one.kept_gradients for one in record.twice):
        return None
    return Finding(
        "gradients",
        record.step,
        None,
        "a step begins with the gradients of the steps before it",
        "their sum, not the gradient of its batch, decides where it goes",
        "a zero_grad() that clears the gradients in an optimiser of your own",
    )


def gradient_jump(record: Record) -> Finding | None:
    """One of the steps since the last look had a gradient far larger than is usual of the ENOUGH steps before it.

    Not than the largest of them: where it breaks down, a jump comes soon after the last one.
    """
    norms = list(record.norms)
    for at in range(max(len(norms) - EVERY, ENOUGH), len(norms)):
        usual, step = median(norms[at - ENOUGH : at]), record.step - (len(norms) - 1 - at)
        if 0 < GRADIENT_JUMP * usual < norms[at]:  # after batches without a target gradients are 0
            return _gradient_jump(record, step, norms[at], usual)
    return None


def _gradient_jump(record: Record, step: int, norm: float, usual: float) -> Finding:
    return Finding(
        "gradient_jump",
        record.step,
        norm,
        f"the gradient of step {step} has a norm of {norm:.3g}; the median of the {ENOUGH} steps before is {usual:.3g}",
        "clipping bounds its length, not its direction, and float32 may have no digit of it right",
        "a look at the rows of that batch, model.memory.curvature_max and curvature_max_local where they are off, a "
        "lower optim.lr, or watch.gradient_jump=rollback",
        {"usual": usual},
        since=step - 1,
    )


def optimizer_state(record: Record) -> Finding | None:
    """An optimiser that has moments after a step of this start, and had none when the run was resumed."""
    if record.kept_moments is None:
        return None
    restored, after = record.kept_moments
    if restored >= LOST * after or after == 0:
        return None
    return Finding(
        "optimizer_state",
        record.step,
        restored,
        f"at step {record.facts.first_step} only {restored:.0%} of the parameters had moments in the optimiser",
        "its state was lost: the next steps are as large as the first ones of a run, without a warm-up",
        "another checkpoint, or init_from=RUN with a warm-up",
    )


def epsilon(record: Record) -> Finding | None:
    """In two measurements in a row so large that half of all elements move less than half as far as they should."""
    if not record.twice:
        return None
    share = min(one.below_epsilon for one in record.twice)
    if share <= SMALL:
        return None
    return Finding(
        "epsilon",
        record.step,
        share,
        f"{share:.0%} of the weights have gradients smaller than the optimiser's epsilon",
        "their steps are a small part of optim.lr",
        "a smaller eps in the optimiser, as 1e-8",
    )


def second_moment(record: Record) -> Finding | None:
    """A moment of gradients that no step has had for a while. `betas` of 0.95 forget a gradient in 100 steps."""
    if not record.measured or not record.norms:
        return None
    *before, newest = record.measured
    largest = min(max(record.norms), record.facts.clip or inf)
    if newest.step != record.step or newest.second_moment <= OUTGROWN * largest:
        return None
    return Finding(
        "second_moment",
        record.step,
        newest.second_moment,
        f"the optimiser's second moment is that of gradients with a norm of {newest.second_moment:.3g}; the largest of "
        f"the last {len(record.norms)} that it was given has {largest:.3g}",
        "it divides every step, so the weights hardly move",
        "watch.second_moment=rollback, init_from=RUN (a new optimiser), and a look at what scales gradients",
        since=max((one.step - 1 for one in before), default=0),
    )


def weights_jump(record: Record) -> Finding | None:
    """A step that changed the norm of all weights far more than others did: noise of any direction adds to it."""
    norms = record.weight_norms
    if len(norms) < ENOUGH:
        return None
    changes = [abs(after - before) / before if before else 0.0 for before, after in pairwise(norms)]
    largest = max(changes)
    if largest <= LEAST or largest <= JUMP * median(changes):
        return None
    return Finding(
        "weights_jump",
        record.step,
        largest,
        f"a step changed the norm of all weights by {largest:.2%}, where {median(changes):.2%} is usual",
        "something else than the gradient has changed them: memory that is damaged, or an optimiser that is",
        "a look at optimisers and hooks of your own; resume=RUN/checkpoints/step-N goes back to before that step",
    )


def updates(record: Record) -> Finding | None:
    """Steps that do not go down the gradient, while the loss has not fallen far. Weight decay and momentum turn a step,
    but not so far; an average of the weights that is put in after a step may."""
    if len(record.descents) < DESCENTS or fmean(record.descents) >= DOWNHILL or not record.losses:
        return None
    way = record.on_the_way(record.losses[-1])
    if way is not None and way > FALLEN:
        return None
    return Finding(
        "updates",
        record.step,
        fmean(record.descents),
        f"the cosine between steps and the direction in which the loss falls is {fmean(record.descents):.3f}",
        "the steps do not follow the gradient, whatever the loss does",
        "to look at an optimiser or a hook of yours: its sign, its state, and which gradient it takes",
    )
