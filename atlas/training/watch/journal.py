"""What of a rollback must outlive a kill: it is on the disk before any checkpoint is retired.

The checkpoint that a rollback restores was saved before it, so it knows nothing of the new segment, of the count and of
what was changed. Until the next checkpoint is saved, a resume learns it from here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from atlas.checkpoint.state_file import sync_folder
from atlas.config.atomic import write_atomically
from atlas.training.state import TrainState

JOURNAL_FILE = "rollback.json"


@dataclass(frozen=True)
class JournalEntry:
    """The newest rollback: the step it went back to, and what holds since."""

    step: int
    segment: int
    rollbacks: int
    skipped: int
    lr_scale: float
    restarted: bool  # carried memory was cleared, since the batches left out lie between it and the next ones

    @classmethod
    def of(cls, state: TrainState, restarted: bool) -> JournalEntry:
        return cls(state.step, state.segment, state.rollbacks, state.skipped, state.optimizer.scale, restarted)

    def apply(self, state: TrainState) -> None:
        """Tell a state that was restored from a checkpoint of an earlier segment."""
        state.segment, state.rollbacks, state.skipped = self.segment, self.rollbacks, self.skipped
        state.optimizer.scale = self.lr_scale
        if self.restarted:
            state.carried = []

    def write(self, root: Path) -> None:
        """Replace the file as a whole. Raises OSError."""
        write_atomically(root / JOURNAL_FILE, json.dumps(asdict(self)) + "\n", durable=True)
        sync_folder(root)


def read_journal(root: Path) -> JournalEntry | None:
    """The newest rollback of the run whose checkpoints are under `root`; None if there was none. Raises ValueError."""
    try:
        content = json.loads((root / JOURNAL_FILE).read_bytes())
    except FileNotFoundError:
        return None
    try:
        return JournalEntry(**content)
    except TypeError as error:
        raise ValueError(str(error)) from error
