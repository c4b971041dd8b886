"""How far a training is, and the file from which it goes on, bitwise."""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from atlas.config import ConfigError
from atlas.config.atomic import write_atomically
from atlas.training.state import TrainState

DIGEST = hashlib.sha256().digest_size  # bytes


@dataclass
class Progress:
    accuracy: list[float] = field(default_factory=list)  # after each epoch, the mean of zoology's tests
    by_test: list[list[float]] = field(default_factory=list)  # after each epoch, of every test
    finite: bool = True  # False: training ended at a loss or gradient that is not finite
    revisions: list[str] = field(default_factory=list)  # that trained it

    def trained_by(self, revision: str) -> None:
        if revision not in self.revisions:
            self.revisions.append(revision)

    def save(self, file: Path, state: TrainState, order: np.random.Generator) -> None:
        """Replace `file`, its SHA-256 first. `order`: draws the batches of an epoch."""
        content = io.BytesIO()
        torch.save({"state": state.payload(), "order": order.bit_generator.state, "progress": asdict(self)}, content)
        write_atomically(file, hashlib.sha256(content.getvalue()).digest() + content.getvalue())

    @classmethod
    def read(cls, file: Path, state: TrainState, order: np.random.Generator) -> Progress:
        """Nothing done where there is no `file`; otherwise `state` and `order` are as they were saved.

        Raises `ConfigError` for a damaged file.
        """
        if not file.is_file():
            return cls()
        whole = file.read_bytes()
        content = whole[DIGEST:]
        if hashlib.sha256(content).digest() != whole[:DIGEST]:
            raise ConfigError(f"{file}: must be as a training left it; remove it to train this model from the start")
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        state.restore(saved["state"])
        order.bit_generator.state = saved["order"]
        return cls(**saved["progress"])
