"""Failures of learning."""

from __future__ import annotations

import os
import signal

from experiments.silent.bench import STEPS, TEXT, Bench
from experiments.silent.failure import Facts, Failure, Procedure, facts, trained, with_data, with_model, with_optimizer

MIDDLE = 120  # training is past its warm-up, and the watch has its average


def stopped_and_resumed(bench: Bench, *settings: str) -> Facts:
    """A run that is stopped in the middle and resumed."""
    given = (*TEXT, "trust=[experiments.silent]", *settings)
    first = bench.start(*given)
    stopped = first.wait_for_step(MIDDLE)
    os.kill(first.process, signal.SIGINT)
    first.wait()
    return facts(bench.run(*given, "resume=auto"), stopped)


def resumed_without_moments(bench: Bench, broken: bool) -> Facts:
    """With an optimiser that keeps its moments or forgets them."""
    name = "forgetful" if broken else "sound"
    return stopped_and_resumed(bench, "optim=adamw", f"optim._target_=experiments.silent.wrong_optim.{name}")


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str], says: str = "") -> Failure:
    run, twin = run_and_twin
    return Failure(name, "learning", what, run, twin, says)


FAILURES = (
    _failure("lr_far_too_low", "`optim.lr=1e-9`: nothing is learnt", trained("optim.lr=1e-9")),
    _failure("lr_far_too_high", "`optim.lr=0.3`: a plateau from the start", trained("optim.lr=0.3")),
    _failure(
        "slow_divergence",
        f"the learning rate grows by 2 % a step from step {MIDDLE} on, in {2 * STEPS} steps",
        with_optimizer("growing", at=MIDDLE, steps=2 * STEPS),
    ),
    _failure("frozen", "the matrices of all blocks have `requires_grad=False`", with_optimizer("frozen")),
    _failure(
        "no_gradient", "a detach by mistake: no gradient reaches the memory", with_optimizer("without_gradient", at=0)
    ),
    _failure(
        "lost_to_rounding",
        "weights are rounded to bfloat16 after each step of `optim.lr=1e-5`",
        with_optimizer("rounded", "optim.lr=1e-5"),
    ),
    _failure(
        "wrong_backward",
        "a backward pass of the user's own misses a factor: half of the gradient of the feed-forward layers",
        with_model("wrong_backward"),
    ),
    _failure(
        "buckets_swapped",
        "gradients are taken out of their bucket in another order than they were put in",
        with_optimizer("buckets_swapped"),
    ),
    _failure(
        "dropout_stays",
        "a dropout that does not ask for the mode drops in validation and generation too",
        with_model("dropout_stays"),
    ),
    _failure(
        "positions_from_the_call",
        "positions are counted from the start of a call: right in training, wrong in generation",
        with_model("positions_from_the_call"),
    ),
    _failure("always_clipped", "`train.gradient_clip=1e-4`", trained("train.gradient_clip=1e-4")),
    _failure(
        "accumulates_wrongly",
        "gradients are never set to zero: each step takes the sum of all so far",
        with_optimizer("summing"),
    ),
    Failure(
        "optimiser_state_lost",
        "learning",
        f"stopped after step {MIDDLE} and resumed: the optimiser forgets its moments",
        resumed_without_moments,
    ),
    _failure("large_start", "the embedding starts 20 times as large", with_optimizer("large_start")),
    _failure(
        "weights_corrupted_at_the_end",
        f"noise of half of their spread on all weights after step {STEPS - 2} of {STEPS}",
        trained(f"debug.inject=weights@{STEPS - 1}:0.5", at=STEPS - 2),
    ),
    _failure(
        "weights_corrupted",
        f"noise of a fifth of their spread on all weights after step {MIDDLE}",
        with_optimizer("corrupting", "+optim.share=0.2", at=MIDDLE),
    ),
    _failure("answers_leak", "the target is the token that is read", with_data("Leaking")),
    _failure("validation_not_a_number", "the weight of one validation target is not a number", with_data("Unmeasured")),
)
