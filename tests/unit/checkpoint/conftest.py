from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas.checkpoint.manager import CheckpointManager


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def manager(root: Path) -> Iterator[CheckpointManager]:
    manager = CheckpointManager(root, keep=2, config_hash="abc", versions={"torch": "2"})
    yield manager
    manager.close()
