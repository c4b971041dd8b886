"""What W&B holds of a sweep, read back by W&B itself: runs that can be told apart, grouped and compared."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas.train import main


@pytest.fixture(autouse=True)
def end_the_service() -> Iterator[None]:
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def records(folder: Path) -> list[dict[str, Any]]:
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return [json.loads(line) for line in output.splitlines()]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


@pytest.mark.slow
def test_the_runs_of_a_sweep_can_be_compared(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "chunks"
    sizes = ["logger=wandb", "logger.mode=offline", "train.steps=4", "checkpoint.every=2", "calibration=off"]
    probes = ["niah.enabled=true", "niah.every=4", "niah.levels=[memory,accumulator]"]
    own = [text for text in overrides if text.partition("=")[0] not in ("logger", "train.steps", "checkpoint.every")]
    swept = ["chunk_size.local=[8],[16]", "seed=0,1"]
    arguments = [*own, *sizes, *probes, *swept, "logger.tags=[phase2]", f"hydra.sweep.dir={sweep}"]
    monkeypatch.setattr(sys, "argv", ["atlas-train", "-m", *arguments])
    assert main() == 0
    found = [records(sweep / str(number)) for number in range(4)]
    runs = [of_type(each, "run")[0] for each in found]
    assert len({run["run_id"] for run in runs}) == 4
    assert [run["run_id"] for run in runs] == [(sweep / str(n) / "wandb_id").read_text().strip() for n in range(4)]
    assert {(run["run_group"], run["job_type"]) for run in runs} == {("chunks", "sweep")}
    wanted = [(chunk, seed) for chunk in (8, 16) for seed in (0, 1)]
    assert [run["display_name"] for run in runs] == [
        f"chunk_size.local=[{chunk}] seed={seed}" for chunk, seed in wanted
    ]
    assert [run["tags"] for run in runs] == [["phase2", f"chunk_size.local=[{c}]", f"seed={s}"] for c, s in wanted]
    configs = [run["config"]["update"] for run in runs]
    assert [(config["chunk_size"]["local"], config["seed"]) for config in configs] == [([c], s) for c, s in wanted]
    assert [config["swept"] for config in configs] == [{"chunk_size.local": f"[{c}]", "seed": s} for c, s in wanted]
    for number, each in enumerate(found):
        compare_summary(each, json.loads((sweep / str(number) / "summary.json").read_text(encoding="utf-8")))


def compare_summary(found: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """What decides is in W&B's summary, with the numbers of summary.json."""
    shown = {key: value for record in of_type(found, "summary") for key, value in record["update"].items()}
    names = ["loss", "validation_loss", "tokens_per_second", "peak_memory_bytes", "rollbacks", "status"]
    assert {name: shown[name] for name in names} == {name: pytest.approx(summary[name]) for name in names}
    assert shown["overhead/probe"] == pytest.approx(summary["overhead"]["probe"])
    for level in ("memory", "accumulator"):
        assert shown[f"niah/{level}/accuracy"] == pytest.approx(summary["niah"][level]["accuracy"])
        assert shown[f"niah/{level}/chance"] == pytest.approx(summary["niah"][level]["chance"])
