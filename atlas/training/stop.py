"""A request to end the run: a signal makes it, and the trainer checks it where the run can be saved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from atlas.parallel.ranks import ALONE, Ranks
from atlas.training.errors import StopRequested

if TYPE_CHECKING:
    from torch import nn


class StopRequest:
    """`by`: what asked this process to end the run, such as SIGTERM; empty if nothing did. `since`: monotonic clock,
    seconds. A signal to any rank stops all of them at the same place."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.by, self.since = "", 0.0

    def make(self, by: str) -> None:
        self.by, self.since = by, time.monotonic()

    def check(self) -> None:
        """Raise `StopRequested` on every rank if one is to end."""
        for by in self.ranks.gather(self.by):
            if by:
                raise StopRequested(f"stopped by {by}")

    def check_here(self, *_: object) -> None:
        """The same for this rank alone, where the others come to know of it."""
        if self.by and self.ranks.free_to_raise:
            raise StopRequested(f"stopped by {self.by}")

    @contextmanager
    def checked_by(self, model: nn.Module) -> Iterator[None]:
        """Check before every forward pass of the model, so that a probe or validation stops between two passes."""
        hook = model.register_forward_pre_hook(self.check_here)
        try:
            yield
        finally:
            hook.remove()
