"""What the exit gate reports: the closing lines, gate.json and gate.md. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas.config.atomic import write_atomically
from atlas.telemetry.jsonl import plain
from experiments.phase2.finding import CHECKS, NOT_RUN, ExitCheck, Finding

JSON_FILE, MARKDOWN_FILE = "gate.json", "gate.md"


@dataclass
class ExitReport:
    """Findings and seconds by the id of their check; a check without a finding was not run."""

    origin: Mapping[str, Any]  # command, configuration hash, versions, device, git
    findings: dict[str, Finding] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: str = ""  # what ran when the gate was stopped; "" = it ended by itself

    def of(self, check: ExitCheck) -> Finding:
        return self.findings.get(check.id, NOT_RUN)

    @property
    def passed(self) -> int:
        """How many checks passed."""
        return sum(self.of(check).passed for check in CHECKS)

    @property
    def complete(self) -> bool:
        return self.passed == len(CHECKS)

    @property
    def summary(self) -> str:
        return f"PHASE 2 SUMMARY: {self.passed}/{len(CHECKS)} checkpoints passed"

    def lines(self) -> list[str]:
        """The end of the output. Below a check that did not pass stand the reasons."""
        lines = ["PHASE 2: Training Infrastructure", "=" * 60]
        for check in CHECKS:
            finding = self.of(check)
            lines.append(f"[{check.id}] {check.name}... {finding.line}")
            lines += [] if finding.passed else [f"       {sentence}" for sentence in finding.evidence]
        if self.interrupted:
            lines.append(f"The gate was {self.interrupted}.")
        return [*lines, "", self.summary]

    def write(self, folder: Path) -> None:
        """Replace both files as a whole; numbers that are not finite become null."""
        text = json.dumps(plain(self._record()), indent=1, allow_nan=False) + "\n"
        for name, content in ((JSON_FILE, text), (MARKDOWN_FILE, self._markdown())):
            write_atomically(folder / name, content)

    def _record(self) -> dict[str, Any]:
        checks = []
        for check in CHECKS:
            finding, seconds = self.of(check), self.seconds.get(check.id)
            checks.append(
                {
                    **vars(check),
                    "outcome": finding.outcome.value,
                    "passed": finding.passed,
                    "detail": finding.detail,
                    "evidence": finding.evidence,
                    "seconds": None if seconds is None else round(seconds, 1),
                    "numbers": finding.numbers,
                }
            )
        head = {"passed": self.complete, "summary": self.summary, "interrupted": self.interrupted}
        return {**head, **self.origin, "checks": checks}

    def _markdown(self) -> str:
        lines = [f"# {self.summary}", "", *(f"- {key}: {_in_one_line(value)}" for key, value in self.origin.items())]
        if self.interrupted:
            lines += ["", f"The gate was {self.interrupted}; a check that says NOT RUN had not ended."]
        lines += ["", "| check | outcome | seconds |", "|---|---|---|"]
        for check in CHECKS:
            seconds = f"{self.seconds[check.id]:.0f}" if check.id in self.seconds else "-"
            outcome = _in_one_line(self.of(check).line).replace("|", "\\|")
            lines.append(f"| {check.id} {check.name} | {outcome} | {seconds} |")
        for check in CHECKS:
            finding = self.of(check)
            if finding is not NOT_RUN:
                reasons = filter(None, (finding.detail, *finding.evidence))
                lines += ["", f"**{check.id}** {check.criterion}", "", *(f"- {_in_one_line(line)}" for line in reasons)]
        return "\n".join(lines) + "\n"


def _in_one_line(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value).replace("\n", " ")
