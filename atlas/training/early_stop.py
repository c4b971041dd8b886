"""When a run ends before its last step: the validation loss has not fallen for `train.patience` validations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any


@dataclass
class EarlyStop:
    """`patience` validations in a row without a new lowest loss end the run."""

    patience: int
    last_step: int | None = None  # of the run: there it ends anyway
    lowest: float | None = None
    step: int = 0  # of the lowest
    waited: int = 0  # validations since
    seen: int = 0  # step of the last validation

    def see(self, step: int, loss: float) -> None:
        """A validation that a resumed run repeats, since a signal interrupted its step, counts once."""
        if step == self.seen:
            return
        self.seen = step
        if loss < (inf if self.lowest is None else self.lowest):
            self.lowest, self.step, self.waited = loss, step, 0
        else:
            self.waited += 1

    @property
    def reason(self) -> str:
        """Why the run ends here; "" where it goes on."""
        if self.waited < self.patience or self.seen == self.last_step:
            return ""
        lowest = "none is a number" if self.lowest is None else f"lowest {self.lowest:.4f} at step {self.step}"
        return f"early stop: {self.waited} validations without a lower loss ({lowest}; train.patience={self.patience})"

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("patience", "last_step")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lowest, self.step, self.waited = state["lowest"], state["step"], state["waited"]
        self.seen = state.get("seen", 0)  # older checkpoints lack it
