"""What W&B holds of a run that was rolled back, read back by W&B itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import atlas


@pytest.fixture(autouse=True)
def end_the_service() -> Iterator[None]:
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.mark.slow
def test_both_segments_are_there_and_the_rollback_is_an_alert(tiny: Any, left: Any, tmp_path: Path) -> None:
    config = tiny("logger=wandb", "logger.mode=offline", "debug.inject=nan_loss@18", "telemetry.every=1")
    summary = atlas.train(config, tmp_path / "run")
    assert (summary.status, summary.rollbacks) == ("completed", 1)
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    records = [json.loads(line) for line in output.splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    rows = left(tmp_path / "run").rows
    found = [(item["segment"], item["train/step"], item.get("loss")) for item in history]
    assert found == [(row["segment"], row["step"], pytest.approx(row["loss"]) if row["loss"] else None) for row in rows]
    assert [step for number, step, _ in found if number == 0] == list(range(1, 19))
    assert [step for number, step, _ in found if number == 1] == list(range(11, 31))
    alerts = [record["alert"] for record in records if record["type"] == "alert"]
    (rollback,) = [alert["text"] for alert in alerts if alert["title"] == "rollback"]
    assert rollback.startswith(
        "step=10, trigger=non_finite, reason=loss nan, gradient norm nan at step 18, from_step=17"
    )
