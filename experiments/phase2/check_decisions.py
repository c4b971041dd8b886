"""G2-1 and G2-2: the decisions made from the two sweeps. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas.config import require
from atlas.config.keys import lies_in
from experiments.phase2 import chunk_runs, probe_frequency
from experiments.phase2.chunk_runs import BASELINE, candidate_of
from experiments.phase2.decide import PROTOCOLS
from experiments.phase2.decision import DecisionOutcome, ProtocolDecision
from experiments.phase2.finding import CheckOutcome, Finding, failed
from experiments.phase2.quiet import Quiet
from experiments.phase2.sweeps import IRRELEVANT, RecordedJob, read_sweep

# A finished sweep is evidence only if its settings are those that the gate would measure with, but for these: how the
# command was started and where it writes, and what is part of the device's name.
FREE = (*IRRELEVANT, "checkpoint", "trust", "device.threads", "device.kernels")


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
        "machine": quiet.numbers,
    }
    if quiet.trouble:
        return failed(quiet.trouble, quiet.sentence, f"Not counted: {decision.line}", numbers=numbers)
    outcome = CheckOutcome(decision.outcome.value)
    if not decision.passed and decision.outcome is not DecisionOutcome.stop:
        outcome = CheckOutcome.failed
    return Finding(outcome, decision.headline, (decision.reason, quiet.sentence), numbers)


def require_same_origin(
    key: str,
    sweep: Path,
    protocol: str,
    device: str,
    versions: Mapping[str, str],
    git: str,
    settings: Mapping[str, Any],
) -> None:
    """Raise `ConfigError` unless the finished sweep at `key` is evidence for this machine and this configuration.

    `settings` by flat keys are those that the gate would start the sweep with. Whether the sweep's runs may be
    compared with each other is for the rule to say.
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
        revision = f"measured at this revision, {git or 'unknown'}; job {job.job} ran {job.summary['git'] or 'unknown'}"
        require(job.summary["git"] == git, key, sweep, revision)
        free = (*FREE, *_varied(protocol, job))
        differing = _differing(_without(free, job.settings), _without(free, settings), "=")
        require(not differing, key, sweep, f"measured with this configuration; job {job.job}: {', '.join(differing)}")


def _without(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not lies_in(name, names)}


def _varied(protocol: str, job: RecordedJob) -> tuple[str, ...]:
    """What the sweep varies itself. Only the baseline is of another structure than the sets of chunk sizes."""
    if protocol == "probe_frequency":
        return (*probe_frequency.VARIED, "train.steps")  # a longer sweep is evidence as well
    return (*chunk_runs.CONTEXT, *(chunk_runs.STRUCTURE if candidate_of(job) == BASELINE else ("chunk_size.local",)))


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any], sign: str = " ") -> list[str]:
    return [
        f"{name}{sign}{found.get(name)} instead of {wanted.get(name)}"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
