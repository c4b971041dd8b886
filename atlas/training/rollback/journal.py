"""The journal of the last rollback. It is written before any checkpoint is retired, so that a kill loses nothing.

The checkpoint that a rollback restores is older than the rollback: it does not hold the new segment, the count and the
change. Until the next checkpoint is saved, a resume reads them here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from atlas.config.atomic import sync_folder, write_atomically
from atlas.training.state import TrainState

JOURNAL_FILE = "rollback.json"


@dataclass(frozen=True)
class JournalEntry:
    """The last rollback: the step it restored, and the settings since then."""

    step: int
    segment: int
    rollbacks: int
    skipped: int
    lr_scale: float
    restarted: bool  # carried memory was cleared: batches were left out after it

    @classmethod
    def of(cls, state: TrainState, restarted: bool) -> JournalEntry:
        return cls(state.step, state.segment, state.rollbacks, state.skipped, state.optimizer.scale, restarted)

    def apply(self, state: TrainState) -> None:
        """Update a state that was restored from a checkpoint of an earlier segment."""
        state.segment, state.rollbacks, state.skipped = self.segment, self.rollbacks, self.skipped
        state.optimizer.scale = self.lr_scale
        if self.restarted:
            state.carried = []

    def write(self, root: Path) -> None:
        """Replace the file as a whole. Raises OSError."""
        write_atomically(root / JOURNAL_FILE, json.dumps(asdict(self)) + "\n", durable=True)
        sync_folder(root)


def read_journal(root: Path) -> JournalEntry | None:
    """The last rollback of the run with checkpoints in `root`, or None. Raises ValueError and OSError."""
    try:
        content = json.loads((root / JOURNAL_FILE).read_bytes())
    except FileNotFoundError:
        return None
    try:
        return JournalEntry(**content)
    except TypeError as error:
        raise ValueError(str(error)) from error
