"""What the exit gate reports: the closing lines, gate.json and gate.md. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas.telemetry.jsonl import plain
from experiments.phase2.finding import CHECKS, NOT_RUN, CheckOutcome, ExitCheck, Finding

JSON_FILE, MARKDOWN_FILE = "gate.json", "gate.md"
TITLE = "PHASE 2: Training Infrastructure"
RULE = "=" * 60


@dataclass
class ExitReport:
    """Findings and seconds by the id of their check; a check without a finding was not run."""

    origin: Mapping[str, Any]  # command, configuration hash, versions, device, git
    findings: dict[str, Finding] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

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
        lines = [TITLE, RULE]
        for check in CHECKS:
            finding = self.of(check)
            lines.append(f"[{check.id}] {check.name}... {finding.line}")
            if not finding.passed:
                lines += [f"       {sentence}" for sentence in finding.evidence]
        return [*lines, "", self.summary]

    def record(self) -> dict[str, Any]:
        return {
            "passed": self.complete,
            "summary": self.summary,
            **self.origin,
            "checks": [self._record_of(check) for check in CHECKS],
        }

    def _record_of(self, check: ExitCheck) -> dict[str, Any]:
        finding = self.of(check)
        return {
            "id": check.id,
            "name": check.name,
            "criterion": check.criterion,
            "outcome": finding.outcome.value,
            "passed": finding.passed,
            "detail": finding.detail,
            "evidence": finding.evidence,
            "seconds": round(self.seconds[check.id], 1) if check.id in self.seconds else None,
            "numbers": finding.numbers,
        }

    def write(self, folder: Path) -> None:
        """Replace both files as a whole; numbers that are not finite become null."""
        text = json.dumps(plain(self.record()), indent=1, allow_nan=False) + "\n"
        for name, content in ((JSON_FILE, text), (MARKDOWN_FILE, self.document())):
            temporary = folder / f".{name}.new"
            temporary.write_text(content, encoding="utf-8")
            temporary.replace(folder / name)

    def document(self) -> str:
        head = ["| check | outcome | seconds |", "|---|---|---|"]
        rows = [f"| {check.id} {check.name} | {self._outcome(check)} | {self._seconds(check)} |" for check in CHECKS]
        parts = [f"# {self.summary}", *(f"- {key}: {_inline(value)}" for key, value in self.origin.items()), ""]
        details = [line for check in CHECKS for line in self._details(check)]
        return "\n".join([parts[0], "", *parts[1:], *head, *rows, *details]) + "\n"

    def _outcome(self, check: ExitCheck) -> str:
        return _inline(self.of(check).line).replace("|", "\\|")

    def _seconds(self, check: ExitCheck) -> str:
        return f"{self.seconds[check.id]:.0f}" if check.id in self.seconds else "-"

    def _details(self, check: ExitCheck) -> list[str]:
        finding = self.of(check)
        if finding.outcome is CheckOutcome.not_run:
            return []
        lines = [line for line in (finding.detail, *finding.evidence) if line]
        return ["", f"**{check.id}** {check.criterion}", "", *(f"- {_inline(line)}" for line in lines)]


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value).replace("\n", " ")
