"""Failures of what holds in every sound run, whatever fails: one for each watcher that knows no failure by name."""

from __future__ import annotations

from experiments.silent.bench import TEXT
from experiments.silent.failure import Failure, Procedure, trained

TRUST = "trust=[experiments.silent]"
SOURCE = "data._target_=experiments.silent."
METRIC = "telemetry.metrics=[experiments.silent.wrong_metric."


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str]) -> Failure:
    run, twin = run_and_twin
    return Failure(name, "contract", what, run, twin)


def _beside(cause: str, calm: str = "wrong_optim.sound", *more: str) -> tuple[Procedure, str]:
    """A run with the user's part `cause`, beside one with the same part as it should be."""
    target = "optim._target_=experiments.silent."
    return trained(f"{target}{cause}", calm=(f"{target}{calm}",), shared=("optim=adamw", TRUST, *TEXT, *more))


FAILURES = (
    _failure(
        "metric_quantises",
        "a metric rounds the weights to eight bits to measure them, and does not put them back",
        trained(f"{METRIC}quantised_stays]", TRUST, calm=(f"{METRIC}quantised]", TRUST)),
    ),
    _failure(
        "smoothing_not_saved",
        "an optimiser keeps an average of the gradients beside its state: a resumed run begins with zeros",
        _beside("wrong_state.smoothing_not_saved", "wrong_state.smoothing_saved"),
    ),
    _failure(
        "projection_not_saved",
        "a random projection is no part of the state: each start draws another",
        _beside("wrong_state.projection_not_saved", "wrong_state.projection_saved"),
    ),
    _failure(
        "gradients_overwritten",
        "each forward pass sets gradients to zero: of four micro-batches the last one alone counts",
        _beside("wrong_limits.gradients_overwritten", "wrong_optim.sound", "train.accumulate=4"),
    ),
    _failure(
        "logits_scaled_for_the_loss",
        "the loss halves the logits, in training and validation; generation does not",
        _beside("wrong_limits.logits_scaled_for_the_loss"),
    ),
    _failure(
        "temperature_in_training",
        "the loss of training has a temperature of 3, that of validation none",
        _beside("wrong_limits.temperature_in_training"),
    ),
    _failure(
        "positions_ignored",
        "attention does not turn queries and keys by their positions",
        _beside("wrong_limits.positions_ignored"),
    ),
    _failure(
        "validated_on_training",
        "validation rows are drawn from the training text",
        trained(
            f"{SOURCE}wrong_limits.ValidatedOnTraining", calm=(f"{SOURCE}wrong_data.Sound",), shared=(*TEXT, TRUST)
        ),
    ),
    _failure(
        "trained_on_all",
        "training rows are drawn from the whole text, that of validation included",
        trained(f"{SOURCE}wrong_limits.TrainedOnAll", calm=(f"{SOURCE}wrong_data.Sound",), shared=(*TEXT, TRUST)),
    ),
    _failure(
        "first_batches_only",
        "a limit of 12 batches, for trying things out, was left in",
        trained(f"{SOURCE}wrong_limits.FirstBatches", calm=(f"{SOURCE}wrong_data.Sound",), shared=(*TEXT, TRUST)),
    ),
)
