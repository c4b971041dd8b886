"""silent.json and RESULTS.md: what each run did about its failure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from atlas.runs.environment import git_revision, versions
from experiments.silent.failure import Facts, Failure, of_machine, outcome

HERE = Path(__file__).parent
NOT_NOTICED = "NOT NOTICED"
QUIET = ("told", "table", "start line", "notice")  # of a calm run: no alarms
LONGEST = 160  # characters of a message in the table


@dataclass(frozen=True)
class Caused:
    """A failure that was caused with one seed, and its calm twin."""

    failure: Failure
    seed: int
    broken: Facts
    calm: Facts
    seconds: float

    @cached_property
    def outcome(self) -> tuple[str, int | None, str]:
        return outcome(self.broken, self.calm, self.failure.says)

    @property
    def noticed(self) -> bool:
        return self.outcome[0] != NOT_NOTICED

    @property
    def false_alarms(self) -> list[str]:
        """What the calm run told, without the kinds that are no alarm: reports, notices, probes of so small a model."""
        return [f"{f.kind}: {f.message}" for f in self.calm.findings if f.kind not in QUIET and not of_machine(f)]


def text_of(found: Sequence[Caused]) -> str:
    """The table, and the counts below it."""
    head = (
        "failure",
        "what is caused",
        "what the run does about it",
        "delay, steps",
        "false alarms of calm twins",
        "what it says",
    )
    lines = [_line(head), _line(["---"] * len(head))]
    kind, noticed, names = "", 0, list(dict.fromkeys(one.failure.name for one in found))
    for name in names:
        ones = [one for one in found if one.failure.name == name]
        if ones[0].failure.kind != kind:
            kind = ones[0].failure.kind
            lines.append(_line([f"**{kind}**", *[""] * (len(head) - 1)]))
        noticed += all(one.noticed for one in ones)
        lines.append(_line(_cells(ones)))
    missed = [name for name in names if not all(one.noticed for one in found if one.failure.name == name)]
    alarms = sum(len(one.false_alarms) for one in found)
    lines += ["", f"{noticed} of {len(names)} failures are noticed or told, with every seed. False alarms: {alarms}."]
    slowed = sum(of_machine(finding) for one in found for finding in one.calm.findings)
    if slowed:
        lines += ["", f"{slowed} calm runs tell that the machine was slow, which is true where others use it too."]
    if missed:
        lines += ["", f"Not noticed, or not with every seed: {', '.join(missed)}."]
    return "\n".join(lines)


def _cells(ones: Sequence[Caused]) -> list[str]:
    did = Counter(one.outcome[0].partition(" at step ")[0] for one in ones)
    words = [name if len(did) == 1 else f"{name} ({count} of {len(ones)})" for name, count in did.items()]
    delays = [str(one.outcome[1]) for one in ones if one.outcome[1] is not None]
    message = next((one.outcome[2] for one in ones if one.noticed), "")
    message = message if len(message) <= LONGEST else message[: LONGEST - 1] + "…"
    first = ones[0].failure
    alarms = str(sum(len(one.false_alarms) for one in ones))
    return [
        f"`{first.name}`",
        first.what,
        "; ".join(words),
        ", ".join(delays) or "-",
        alarms,
        message.replace("|", "/"),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _record(one: Caused) -> dict[str, Any]:
    did, delay, message = one.outcome
    facts = {"broken": one.broken.record(), "calm": one.calm.record()}
    for part in facts.values():  # reports are long, and told lines are in the message
        part["findings"] = [finding for finding in part["findings"] if finding["kind"] != "told"]
    named = {"failure": one.failure.name, "kind": one.failure.kind, "seed": one.seed, "seconds": one.seconds}
    return named | {"did": did, "delay_steps": delay, "message": message, **facts}


def write_results(found: Sequence[Caused], catalogue: int) -> None:
    """`catalogue`: the number of failures in it; those that have not run yet are missing."""
    content = {"git": git_revision(), "versions": versions(), "runs": [_record(one) for one in found]}
    (HERE / "silent.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    seeds, ran = len({one.seed for one in found}), len({one.failure.name for one in found})
    parts = [
        "# Silent failures: results",
        "",
        f"Written by `python -m experiments.silent`, revision {content['git'] or 'unknown'}; do not edit.",
        f"{ran} of the {catalogue} failures of the catalogue ran, each with {seeds} seeds.",
        "The message is that of the first seed which has one.",
        "",
        text_of(found),
        "",
    ]
    (HERE / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")
