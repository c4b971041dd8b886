"""What the tests of checkpoints share."""

from pathlib import Path
from typing import Any

import torch

from atlas.checkpoint.manager import CheckpointManager

SOUND = {"validation_loss": None}


def payload(step: int, size: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "model": {"weight": torch.randn(size, generator=generator)}, "random": generator.get_state()}


def same(found: dict[str, Any], step: int, size: int = 16) -> bool:
    expected = payload(step, size)
    return (
        found["step"] == step
        and torch.equal(found["model"]["weight"], expected["model"]["weight"])
        and torch.equal(found["random"], expected["random"])
    )


def save(manager: CheckpointManager, *steps: int, **health: float | bool | None) -> None:
    for step in steps:
        manager.save(step, payload(step), health or SOUND)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")
