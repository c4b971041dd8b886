from __future__ import annotations

import pytest

from atlas.config import ConfigError
from atlas.config.help import help_text
from atlas.training.faults import KINDS, Fault, parse_fault


@pytest.mark.parametrize(
    ("text", "fault", "steps"),
    [
        ("bad_batch@7", Fault("bad_batch", 7, 20.0, False), 20),
        ("bad_batch@7:3", Fault("bad_batch", 7, 3.0, False), 3),
        ("lr_burst@100:12.5", Fault("lr_burst", 100, 12.5, False), 5),
        ("gradient@7:1e+30", Fault("gradient", 7, 1e30, False), 1),
        ("weights@1:0.5:always", Fault("weights", 1, 0.5, True), 1),
        ("gradient@7", Fault("gradient", 7, 1000.0, False), 1),
        ("nan_loss@100:always", Fault("nan_loss", 100, 1.0, True), 1),
        ("nan_gradient@5", Fault("nan_gradient", 5, 1.0, False), 1),
        ("nan_memory@5", Fault("nan_memory", 5, 1.0, False), 1),
    ],
)
def test_what_can_be_injected(text: str, fault: Fault, steps: int) -> None:
    assert parse_fault(text, last_step=100) == fault
    assert fault.steps == steps


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("nan_los@7", "must be KIND@STEP[:SIZE][:always] with KIND one of bad_batch, lr_burst, weights, gradient, "),
        ("nan_loss", "must be KIND@STEP[:SIZE][:always]"),
        ("weights@7:1.2.3", "must be KIND@STEP[:SIZE][:always] with STEP a whole number and SIZE a number"),
        ("weights@7:-1", "must be KIND@STEP[:SIZE][:always] with STEP"),
        ("lr_burst@5:1e-3", "must be KIND@STEP[:SIZE][:always] with STEP"),
        ("weights@7:1e999", "must be of a size > 0"),
        ("nan_loss@0", "must be at a step of the run, 1 to train.steps=100"),
        ("nan_loss@101", "must be at a step of the run, 1 to train.steps=100"),
        ("nan_loss@7:2", "must be without a size: nan_loss the loss weights of the batch become NaN"),
        ("weights@7:0", "must be of a size > 0"),
        ("bad_batch@7:1.5", "must be of a size that is a whole number of steps, >= 1"),
        ("bad_batch@7:0.5", "must be of a size that is a whole number of steps, >= 1"),
    ],
)
def test_what_would_not_strike_is_refused(text: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_fault(text, last_step=100)
    assert str(refusal.value).startswith(f"debug.inject={text}: {allowed}")


def test_a_fault_of_the_memory_needs_one() -> None:
    with pytest.raises(ConfigError, match=r"^debug\.inject=nan_memory@5: must be one of .*: the model has no memory$"):
        parse_fault("nan_memory@5", last_step=100, has_memory=False)
    assert parse_fault("nan_loss@5", last_step=100, has_memory=False).kind == "nan_loss"


def test_help_names_every_kind() -> None:
    assert ", ".join(KINDS) in help_text()
