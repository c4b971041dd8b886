"""Weights in slices (`parallel.kind=fsdp`) and checkpoints in parts (`checkpoint.layout=sharded`), on gloo."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.checkpoint.folder import CheckpointError
from atlas.checkpoint.manager import CheckpointManager
from atlas.checkpoint.manifest import encode, read_manifest
from atlas.checkpoint.tensor_files import hashes
from atlas.checkpoint.together import save_together
from atlas.parallel.ranks import ALONE
from tests.integration.test_ranks import PROBES, Ranks, troubled

pytestmark = pytest.mark.slow
FSDP = ["parallel.kind=fsdp", "optim=muon", "optim.warmup=5", "train.steps=12", "checkpoint.every=4"]
SHARDED = "checkpoint.layout=sharded"


def test_a_run_in_slices_is_saved_watched_and_continued_by_any_number_of_processes(
    overrides: list[str], tiny: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    """Bitwise: both layouts; with and without probes; stopped and continued; loaded by 1 and 3 processes."""
    watched = [*PROBES, "niah.every=4", "train.ema=0.9", "telemetry.every=1", "debug.inject=nan_gradient@10"]
    ranks = Ranks(2, [*overrides, *FSDP], tmp_path)
    whole = ranks.add("whole", *watched)
    sharded = ranks.add("sharded", *watched, SHARDED, *troubled("SIGTERM@6"))
    ranks.add("continued", *watched, SHARDED, *troubled("SIGTERM@6"), "resume=auto", folder=sharded)
    blind = ranks.add("blind", "debug.inject=nan_gradient@10", "calibration=off", "rollback.watch_every=1000")
    ranks.add("noise", "debug.inject=weights@7", "rollback=off")
    ranks.add("muon", do="update")
    ranks.add("adamw", "optim=adamw", do="update")
    unshared = ranks.add("unshared", do="unshared")
    ended = ranks.run()
    seen = f"rank 1 does not see rank 0's folder {unshared}"
    assert ended.pop("unshared") == [
        f"refused: checkpoint.layout=sharded: must be whole: {seen}-{rank} (sharded needs a disk that all ranks share)"
        for rank in (0, 1)
    ]
    ways = {"sharded": "interrupted: stopped by SIGTERM", "muon": "same bits", "adamw": "same bits"}
    assert ended == {name: [ways.get(name, "completed")] * 2 for name in ended}
    assert left(whole).events("rollback")[0]["from_step"] == 9
    saved = left(sharded).state
    for part in ("model", "optimizer", "average"):
        assert same_state(left(whole).state[part], saved[part])
    assert same_state(weights_at_8(whole), weights_at_8(blind))  # before the fault, after which they go back elsewhere
    newest = sharded / "checkpoints" / "step-00000012"
    parts = [".metadata", "__0_0.distcp", "__1_0.distcp", "manifest.json", "state.pt"]
    assert sorted(path.name for path in newest.rglob("*") if path.is_file()) == parts
    row = left(whole).rows[-1]
    assert row["memory/layer0/global/update_norm"] > 0
    assert row["update_ratio/attention"] > 0
    assert same_state(dict(atlas.load(sharded, trust=["tests.integration.rank_group"])[0].state_dict()), saved["model"])

    three = Ranks(3, [*overrides, *FSDP, "train.batch_size=6"], tmp_path)
    loaded = three.add("loaded", do="reload", of=sharded)
    wide = ["train.batch_size=6", "train.steps=4", SHARDED, "resume=auto"]
    run = Ranks(2, [*overrides, *FSDP], tmp_path)
    elastic = run.add("elastic", *wide)
    run.add("loaded", do="reload", of=sharded)
    assert run.run() == {"elastic": ["completed"] * 2, "loaded": ["done"] * 2}
    three.add("elastic", *wide, "train.steps=6", folder=elastic)
    assert three.run() == {"loaded": ["done"] * 3, "elastic": ["completed"] * 3}
    again = torch.load(loaded, weights_only=True)
    for part in ("model", "optimizer", "position"):
        assert same_state(again[part], saved[part])
    assert atlas.train(tiny(*FSDP, *wide, "train.steps=8"), elastic).status == "completed"
    assert [event["processes"] for event in left(elastic).events("start")[:2]] == [2, 3]


def weights_at_8(run: Path) -> Any:
    """Of a checkpoint that the rollback has retired."""
    folder = run / "checkpoints"
    return CheckpointManager(folder, keep=2).load(folder / "retired-000-step-00000008")[0]["model"]


def test_a_sharded_checkpoint_that_was_changed_is_passed_over_and_executes_nothing(tmp_path: Path) -> None:
    """Also where somebody has sealed the change with a manifest of their own."""
    payload = {
        "model": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0)},
        "optimizer": [{"c": torch.ones(2)}],
    }
    checkpoints = CheckpointManager(tmp_path / "run", keep=3)
    for step in (1, 2, 3):
        save_together(checkpoints, step, payload, {"loss": 1.0}, ALONE)
    found, manifest = checkpoints.load()
    assert manifest.step == 3
    assert {key: value.tolist() for key, value in found["model"].items()} == {"a": [[0, 1, 2], [3, 4, 5]], "b": 1}
    assert found["optimizer"][0]["c"].tolist() == [1, 1]
    newest = manifest.path / "tensors"
    part = newest / "__0_0.distcp"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    assert checkpoints.load()[1].step == 2
    reason = "tensors/__0_0.distcp is damaged: its SHA-256 differs from the manifest's"
    assert [reason for _, reason in checkpoints.skipped] == [reason]

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    second = tmp_path / "run" / "step-00000002"
    (second / "tensors" / ".metadata").write_bytes(pickle.dumps(Code()))
    reseal(second)
    assert checkpoints.load()[1].step == 1
    assert not (tmp_path / "executed").exists()
    assert "tensors/.metadata is refused: it does not describe tensors only" in checkpoints.skipped[1][1]
    checkpoints.close()


def reseal(folder: Path) -> None:
    """A manifest that fits the files."""
    files = {name: list(pair) for name, pair in hashes(folder / "tensors", 0, first=True).items()}
    (folder / "manifest.json").write_bytes(encode(replace(read_manifest(folder), files=files)))


def test_a_rank_that_cannot_write_its_part_costs_one_checkpoint(
    overrides: list[str], left: Any, same_state: Any, tmp_path: Path
) -> None:
    """A full disk; then a rank that is killed in training, and one that is killed while it writes."""
    ranks = Ranks(2, [*overrides, *FSDP, SHARDED], tmp_path)
    run = ranks.add("full", *troubled("full@7 room@10"))
    gone = ranks.add("gone", *troubled("SIGKILL@6"))
    torn = ranks.add("torn", do="die_while_saving", restart=1)
    ranks.add("again", "resume=auto", folder=torn, restart=2)
    ended = ranks.run()
    assert ended["full"] == ended["again"] == ["completed"] * 2
    assert ended["torn"] == ["RankError: rank 1 is gone at step 8 (its log: train.rank1.log)", "killed"]
    assert [event["message"] for event in left(torn).events("notice")] == ["resumed from step-00000004"]
    assert same_state(left(torn).state["model"], left(run).state["model"])
    assert ended["gone"] == ["RankError: rank 1 is gone at step 6 (its log: train.rank1.log)", "killed"]
    assert json.loads((gone / "summary.json").read_text())["status"] == "failed"
    (warning,) = [event["message"] for event in left(run).events("warning")]
    assert warning.startswith(f"step 8 could not be saved in {run / 'checkpoints'}: ")
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {".lock", "step-00000000", "step-00000004", "step-00000012"}
    with pytest.raises(CheckpointError):
        CheckpointManager(tmp_path / "none", keep=2).load()
