"""Settings of the calibration of W_init, and of the reset shock that measures its effect (docs/memory.md section 7)."""

from __future__ import annotations

from dataclasses import dataclass

from atlas.config.errors import require


@dataclass
class CalibrationConfig:
    """Measuring: how much a reset of the local memories raises the loss. Calibrating: setting the state after a reset.

    Calibration is off by default: the default recipe ends with a reset shock far below the threshold without it
    (experiments/LOG.md), and whether it still learns to recall from a calibrated start has not been measured.
    """

    enabled: bool = False  # before step 1, W_init becomes the mean state of the memories over training text
    tokens: int = 16_384  # read by the first attempt; every further one reads twice as many
    attempts: int = 4
    measure: bool = True  # the reset shock on validation text, at the end of the run
    threshold: float = 0.05  # of the reset shock, relative to the loss without the reset
    horizon: int = 32  # tokens after the reset whose loss is compared
    rows: int = 64  # sequences of validation text, each with one reset

    def __post_init__(self) -> None:
        for key in ("tokens", "attempts", "horizon", "rows"):
            require(getattr(self, key) >= 1, f"calibration.{key}", getattr(self, key), ">= 1")
        require(self.threshold > 0, "calibration.threshold", self.threshold, "> 0")
