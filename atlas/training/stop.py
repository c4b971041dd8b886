"""A request to end the run: a signal makes it, and the trainer checks it where the run can be saved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from atlas.training.errors import StopRequested

if TYPE_CHECKING:
    from torch import nn


class StopRequest:
    """`by`: what asked the run to end, such as SIGTERM; empty if nothing did. `since`: monotonic clock, seconds."""

    def __init__(self) -> None:
        self.by, self.since = "", 0.0

    def make(self, by: str) -> None:
        self.by, self.since = by, time.monotonic()

    def check(self, *_: object) -> None:
        """Raise `StopRequested` if the run is to end."""
        if self.by:
            raise StopRequested(f"stopped by {self.by}")

    @contextmanager
    def checked_by(self, model: nn.Module) -> Iterator[None]:
        """Check before every forward pass of the model, so that a probe or validation stops between two passes."""
        hook = model.register_forward_pre_hook(self.check)
        try:
            yield
        finally:
            hook.remove()
