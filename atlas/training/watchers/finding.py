"""What a watcher has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """`value` is the number that was out of line; `numbers` are those beside it. `since`: the last step known good."""

    watch: str
    step: int
    value: float | None
    seen: str  # with the number
    why: str  # it matters
    hint: str  # what to try
    numbers: dict[str, float] = field(default_factory=dict)
    since: int | None = None

    @property
    def message(self) -> str:
        return f"{self.seen}: {self.why}; try {self.hint} (watch.{self.watch})"

    def record(self) -> dict[str, Any]:
        """The fields of its event, but for the step."""
        texts = {"seen": self.seen, "why": self.why, "hint": self.hint}
        return {"watch": self.watch, "value": self.value, "message": self.message, **texts, "numbers": self.numbers}
