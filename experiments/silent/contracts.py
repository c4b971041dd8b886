"""Failures of what holds in every sound run, whatever fails: one for each watcher that knows no failure by name."""

from __future__ import annotations

from experiments.silent.failure import Failure, Procedure, trained

TRUST = "trust=[experiments.silent]"
SOURCE = "data._target_=experiments.silent.wrong_data."
METRIC = "telemetry.metrics=[experiments.silent.wrong_metric."


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str]) -> Failure:
    run, twin = run_and_twin
    return Failure(name, "contract", what, run, twin)


FAILURES = (
    _failure(
        "metric_quantises",
        "a metric rounds the weights to eight bits to measure them, and does not put them back",
        trained(f"{METRIC}quantised_stays]", TRUST, calm=(f"{METRIC}quantised]", TRUST)),
    ),
)
