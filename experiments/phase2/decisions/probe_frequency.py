"""How often may the probes run? (P2-T2, protocol 4.2). The written rule as a pure function of recorded runs."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.config import require
from experiments.phase2.decisions.decision import Decision, Outcome
from experiments.phase2.decisions.probe_runs import FREQUENCIES, Overhead, ProbeRun, costs, overhead_at, probed

OVERHEAD_MAX = 0.01
PROBES_MIN = 3  # of all runs together
RULE = (
    f"Frequencies: a probe every {', '.join(map(str, FREQUENCIES))} steps. Overhead = probe seconds / (probe seconds"
    " + training seconds) from the clocks inside the runs. Where no run has that very frequency it is derived: with"
    " p seconds a probe and s seconds a step, p / (p + n s) at every n steps. It is checked against runs without"
    " probes of as many steps: what a run with probes takes longer by the wall clock, divided among its probes,"
    f" takes the place of p. Both must be below {OVERHEAD_MAX:.0%}. Of the frequencies that pass the most frequent"
    f" is chosen; if none does, {FREQUENCIES[-1]} and flagged."
)


def decide(evidence: Sequence[ProbeRun]) -> Decision:
    """Raises `ConfigError` where the runs are too few to decide."""
    _require_enough(evidence)
    overheads = [overhead_at(every, evidence) for every in FREQUENCIES]
    passing = [overhead for overhead in overheads if overhead.decisive < OVERHEAD_MAX]
    chosen = passing[0] if passing else overheads[-1]
    headline = f"{chosen.every} steps, {chosen.share:.1%} overhead"
    reason = " ".join([_found(evidence), *map(_line, overheads), _verdict(chosen, bool(passing))])
    if passing:
        return Decision(Outcome.locked, headline, reason, True)
    return Decision(Outcome.locked, f"{headline}, flagged: >= {OVERHEAD_MAX:.0%}", reason, False)


def _require_enough(evidence: Sequence[ProbeRun]) -> None:
    with_probes, plain = probed(evidence), [run for run in evidence if run.every is None]
    require(len(with_probes) > 0, "runs with probes", 0, "at least one")
    rounds = {run.round for run in plain}
    for run in with_probes:
        allowed = "a run without probes (niah.enabled=false) of the same round beside it"
        require(run.round in rounds, f"job {run.job} round", run.round, allowed)
        require(run.probes > 0, f"job {run.job} niah.every", run.every, f"<= {run.steps}, the steps of the run")
    probes = sum(run.probes for run in with_probes)
    require(probes >= PROBES_MIN, "probes", probes, f">= {PROBES_MIN} in all runs together")


def _found(evidence: Sequence[ProbeRun]) -> str:
    with_probes = probed(evidence)
    found = costs(with_probes, [run for run in evidence if run.every is None])
    rounds = len({run.round for run in with_probes})
    return (
        f"Measured in {len(with_probes)} runs with probes in {rounds} rounds: {found.probes} probes of"
        f" {found.probe_seconds:.2f} s and {found.steps:,} steps of {found.step_seconds:.3f} s; by the wall clock a"
        f" probe made its run {found.wall_probe_seconds:.2f} s longer."
    )


def _line(overhead: Overhead) -> str:
    how = "measured" if overhead.measured else "derived"
    return f"Every {overhead.every} steps: {overhead.share:.2%} ({how}), {overhead.wall:.2%} by the wall clock."


def _verdict(chosen: Overhead, passed: bool) -> str:
    if passed:
        return f"{chosen.every} is the most frequent below {OVERHEAD_MAX:.0%}."
    return f"None is below {OVERHEAD_MAX:.0%}: {chosen.every} is the least frequent."
