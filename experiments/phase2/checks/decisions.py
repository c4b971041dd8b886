"""G2-1 and G2-2: decisions made from a sweep, as the gate sees them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas.config import require
from experiments.phase2.checks.arguments import override_group
from experiments.phase2.checks.finding import Finding, Outcome, failed
from experiments.phase2.decisions.recorded import read_sweep

DECISION_FILE = "decision.json"
EXPERIMENTS = {"chunk_sizes": "chunk_size_lock", "probe_frequency": "niah_frequency"}
# Groups of the user's overrides that a protocol's sweep is run with; the rest it settles itself.
HEEDED = ("model", "ablation", "data", "optim", "device", "seed")
MUST_AGREE = ("model", "device")  # groups in which finished evidence may not differ, but for what is
VARIED = ("model.memory.use_global", "model.memory.qk_projection")  # varied by a sweep itself, or
FREE = ("device.threads", "device.kernels")  # told by the device's name


def sweep_overrides(protocol: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """What the protocol's sweep is started with."""
    return (f"experiment={EXPERIMENTS[protocol]}", *(text for text in overrides if override_group(text) in HEEDED))


def judge_decision(protocol: str, decision: Mapping[str, Any] | None, told: str = "") -> Finding:
    """`decision` is what `experiments.phase2.decide` wrote, None if it refused to: `told` says why."""
    if decision is None:
        return failed(told or "no decision was made")
    numbers = {key: decision.get(key) for key in ("protocol", "outcome", "headline", "passed")}
    if decision.get("protocol") != protocol:
        return failed(f"a decision on {decision.get('protocol')}, not on {protocol}", numbers=numbers)
    detail, reason = str(decision.get("headline", "")), str(decision.get("reason", ""))
    word, chosen = decision.get("outcome"), decision.get("passed") is True
    if word in (Outcome.decided, Outcome.locked) and chosen:
        return Finding(Outcome(word), detail, (reason,), numbers)
    return Finding(Outcome.stop if word == Outcome.stop else Outcome.failed, detail, (reason,), numbers)


def require_same_origin(
    key: str, sweep: Path, protocol: str, device: str, versions: Mapping[str, str], settings: Mapping[str, Any]
) -> None:
    """Raise `ConfigError` unless the finished sweep at `key` is evidence for this machine and this configuration.

    `settings` are those of the gate, by flat keys. Whether its runs may be compared, `decide.py` says.
    """
    found = read_sweep(sweep)
    wanted = EXPERIMENTS[protocol]
    allowed = f"a sweep of experiment={wanted}, not of {found.experiment or 'none'}"
    require(found.experiment == wanted, key, sweep, allowed)
    for run in found.runs:
        here = f"measured on this device, {device}; job {run.job} ran on {run.summary['device']}"
        require(run.summary["device"] == device, key, sweep, here)
        other = [
            f"{name} {number} instead of {versions.get(name)}"
            for name, number in run.summary["versions"].items()
            if versions.get(name) != number
        ]
        require(not other, key, sweep, f"measured with the versions installed; job {run.job}: {', '.join(other)}")
        differing = [
            f"{name}={value} instead of {settings.get(name)}"
            for name, value in run.settings.items()
            if _must_agree(name) and str(value) != str(settings.get(name))
        ]
        require(not differing, key, sweep, f"measured with this configuration; job {run.job}: {', '.join(differing)}")


def _must_agree(name: str) -> bool:
    return _named(name, MUST_AGREE) and not _named(name, (*VARIED, *FREE))


def _named(name: str, groups: Sequence[str]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)
