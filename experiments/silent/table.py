"""silent.json and RESULTS.md: what each run did about its failure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from atlas.runs.environment import git_revision, versions
from experiments.silent.failure import Facts, Failure, Finding, new, of_machine, outcome

HERE = Path(__file__).parent
NOT_NOTICED = "NOT NOTICED"
QUIET = ("told", "table", "notice")  # of a calm run: no alarms
LONGEST = 160  # characters of a message in the table


@dataclass(frozen=True)
class Caused:
    """A failure that was caused with one seed, and its calm twin."""

    failure: Failure
    seed: int
    broken: Facts
    calm: Facts
    seconds: float
    git: str = ""  # the revision that made the run

    @cached_property
    def outcome(self) -> tuple[str, int | None, str]:
        return outcome(self.broken, self.calm, self.failure.says)

    def record(self) -> dict[str, Any]:
        """As plain data. Of the lines of reports those remain that count."""
        told = new(self.broken, self.calm, self.failure.says)
        broken = [finding for finding in self.broken.findings if finding.kind != "told" or finding in told]
        calm = [finding for finding in self.calm.findings if finding.kind != "told"]
        facts = {"broken": replace(self.broken, findings=broken), "calm": replace(self.calm, findings=calm)}
        did, delay, message = self.outcome
        said = {"did": did, "delay_steps": delay, "message": message}
        named = {"failure": self.failure.name, "kind": self.failure.kind, "seed": self.seed, "seconds": self.seconds}
        named["git"] = self.git
        return named | said | {name: asdict(part) for name, part in facts.items()}

    @property
    def noticed(self) -> bool:
        return self.outcome[0] != NOT_NOTICED

    @property
    def false_alarms(self) -> list[str]:
        """What the calm run told, without the kinds that are no alarm: reports, notices, probes of so small a model."""
        told = [f for f in self.calm.findings if f.kind not in QUIET and not of_machine(f)]
        rightly = self.failure.rightly
        return [f"{f.kind}: {f.message}" for f in told if not (rightly and re.match(rightly, f.message))]


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
    lines += [
        "",
        f"{noticed} of {len(names)} failures are noticed or told, with every seed that ran. False alarms: {alarms}.",
    ]
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


def read_results(catalogue: Sequence[Failure], *, older: bool = False) -> list[Caused]:
    """The runs in silent.json that were made with this revision; with `older` those of earlier ones too."""
    try:
        content = json.loads((HERE / "silent.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    known = {failure.name: failure for failure in catalogue}
    return [
        Caused(
            known[run["failure"]], run["seed"], _facts(run["broken"]), _facts(run["calm"]), run["seconds"], run["git"]
        )
        for run in content["runs"]
        if run["failure"] in known and (older or run["git"] == revision())
    ]


def _facts(record: dict[str, Any]) -> Facts:
    return Facts(**{**record, "findings": [Finding(**finding) for finding in record["findings"]]})


def revision() -> str:
    """Without the mark of changes: the results themselves are files of the checkout."""
    return git_revision().removesuffix("+changes")


def revisions_of(runs: Iterable[str]) -> str:
    """How many runs each revision made."""
    counts = Counter(runs)
    parts = [f"{git or 'unknown'}" + (f" ({count} runs)" if len(counts) > 1 else "") for git, count in counts.items()]
    return f"revision {', '.join(parts)}"


def write_results(found: Sequence[Caused], catalogue: Sequence[Failure]) -> None:
    """In the order of the catalogue. Failures that have not run yet are missing."""
    order = [failure.name for failure in catalogue]
    ordered = sorted(found, key=lambda one: (order.index(one.failure.name), one.seed))
    content = {"versions": versions(), "runs": [one.record() for one in ordered]}
    (HERE / "silent.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    ran, seeds = len({one.failure.name for one in found}), ", ".join(sorted({str(one.seed) for one in found}))
    parts = [
        "# Silent failures: results",
        "",
        f"Written by `python -m experiments.silent`, {revisions_of(one.git for one in ordered)}; do not edit.",
        f"{ran} of the {len(catalogue)} failures of the catalogue ran, with the seeds {seeds}.",
        "The message is that of the first seed which has one.",
        "",
        text_of(ordered),
        "",
    ]
    (HERE / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")
