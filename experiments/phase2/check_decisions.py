"""G2-1 and G2-2: the decisions made from the two sweeps. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atlas.config import require
from atlas.config.keys import lies_in
from experiments.phase2.decide import PROTOCOLS
from experiments.phase2.decision import DecisionOutcome, ProtocolDecision
from experiments.phase2.finding import CheckOutcome, Finding, failed
from experiments.phase2.quiet import Quiet
from experiments.phase2.sweeps import read_sweep

# A finished sweep is evidence only if these groups are those of the configuration on trial.
MUST_AGREE = ("model", "device")
VARIED = ("model.memory.use_global", "model.memory.qk_projection")  # not these: a sweep varies them itself
FREE = ("device.threads", "device.kernels")  # nor these: they are part of the device's name


def judge_decision(protocol: str, decision: ProtocolDecision | str, quiet: Quiet | None) -> Finding:
    """`decision` is a text where none could be made: the reason. Then `quiet` may be None."""
    if isinstance(decision, str):
        return failed(decision)
    assert quiet is not None
    numbers = {
        "protocol": protocol,
        "outcome": decision.outcome.value,
        "headline": decision.headline,
        "passed": decision.passed,
        "machine": asdict(quiet),
    }
    if quiet.trouble:
        return failed(quiet.trouble, quiet.sentence, f"Not counted: {decision.line}", numbers=numbers)
    outcome = CheckOutcome(decision.outcome.value)
    if not decision.passed and decision.outcome is not DecisionOutcome.stop:
        outcome = CheckOutcome.failed
    return Finding(outcome, decision.headline, (decision.reason, quiet.sentence), numbers)


def require_same_origin(
    key: str, sweep: Path, protocol: str, device: str, versions: Mapping[str, str], settings: Mapping[str, Any]
) -> None:
    """Raise `ConfigError` unless the finished sweep at `key` is evidence for this machine and this configuration.

    `settings` are those on trial, by flat keys. Whether the sweep's runs may be compared is for the rule to say.
    """
    found = read_sweep(sweep)
    wanted = next(one.experiments[0] for one in PROTOCOLS if one.name == protocol)
    allowed = f"a sweep of experiment={wanted}, not of {found.experiment or 'none'}"
    require(found.experiment == wanted, key, sweep, allowed)
    for job in found.jobs:
        here = f"measured on this device, {device}; job {job.job} ran on {job.summary['device']}"
        require(job.summary["device"] == device, key, sweep, here)
        other = _differing(job.summary["versions"], versions)
        require(not other, key, sweep, f"measured with the versions installed; job {job.job}: {', '.join(other)}")
        own = {name: value for name, value in job.settings.items() if _must_agree(name)}
        differing = _differing(own, settings, "=")
        require(not differing, key, sweep, f"measured with this configuration; job {job.job}: {', '.join(differing)}")


def _must_agree(name: str) -> bool:
    return lies_in(name, MUST_AGREE) and not lies_in(name, (*VARIED, *FREE))


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any], sign: str = " ") -> list[str]:
    return [
        f"{name}{sign}{value} instead of {wanted.get(name)}"
        for name, value in found.items()
        if str(value) != str(wanted.get(name))
    ]
