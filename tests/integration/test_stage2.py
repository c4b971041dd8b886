"""Stage 2: a run goes on from a checkpoint with chunks that shrink, also through a resume and a rollback."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.config import ConfigError
from atlas.config.composition import save_config
from atlas.export import export
from atlas.runs.resume import resumed_config
from experiments.stage2.__main__ import main as experiment

# chunk 8, 7, 6, 6, 5, 4, 4, ... 1: most do not divide the shard of 32
STAGE2 = ["stage2.enabled=true", "stage2.start=8", "stage2.decay=0.9", "telemetry.every=1"]


@pytest.fixture
def stage2(tiny: Any, untrained: Path) -> Any:
    """Composes a Stage 2 that goes on from the untrained run."""
    return lambda *more: tiny(*STAGE2, f"init_from={untrained}", *more)


def chunks(rows: list[dict[str, Any]], segment: int = 0) -> dict[int, int]:
    return {row["step"]: row["stage2/chunk"] for row in rows if row["segment"] == segment}


@pytest.mark.slow
def test_the_chunks_shrink_to_one_and_the_loaded_model_has_them(
    stage2: Any, left: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    summary = atlas.train(stage2(), run)
    assert (summary.status, summary.local_chunks) == ("completed", {"first": [8], "last": [1]})
    rows = left(run).rows
    schedule = stage2().stage2
    assert chunks(rows) == {n: max(1, int(8 * 0.9 ** (n - 1))) for n in range(1, 31)}
    assert {row["step"]: row["stage2/clip"] for row in rows} == {n: schedule.limit(n) for n in range(1, 31)}
    assert rows[-1]["validation/loss"] == rows[-1]["validation/loss_chunk1"]  # the last chunk is 1
    assert "validation/loss_chunk1" not in rows[9]
    assert atlas.load(run)[0].plan.local == (1,)
    assert experiment([str(run), "samples=1", f"folder={tmp_path}"]) == 0
    record = json.loads((tmp_path / "stage2.json").read_text())
    before, after = record["models"]
    assert (before["chunks"], before["steps"], after["chunks"], after["steps"]) == ([8], 7, [1], 30)
    assert after["loss"] == after["loss_chunk1"] == rows[-1]["validation/loss"]
    assert list(record["us_per_token"]) == [str(chunk) for chunk in range(8, 0, -1)]
    change = f"validation loss at chunk 1: {before['loss_chunk1']:.4f} before, {after['loss_chunk1']:.4f} after"
    assert f"Open, without a control; {change}." in (tmp_path / "RESULTS.md").read_text()
    assert experiment([str(run), f"control={run}"]) == 2
    assert "train.steps=30 and stage2.decay=1.0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("carry", ["true", "false"])
def test_a_resume_keeps_the_schedule_bitwise(
    carry: str, stage2: Any, interrupting: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    config = stage2(f"train.carry_memory={carry}", "train.steps=14", "checkpoint.every=4")
    whole = left(Path(atlas.train(config, tmp_path / "whole").folder))
    cut = left(tmp_path / "cut")
    for at, resume in ((3, None), (10, "auto")):  # 10: before its validation, which is made up for
        stopped = replace(config, logger=interrupting(at=at), trust=["interrupting"], resume=resume)
        with pytest.raises(KeyboardInterrupt):
            atlas.train(stopped, cut.folder)
    atlas.train(replace(config, trust=["interrupting"], resume="auto"), cut.folder)
    assert cut.rows == whole.rows
    assert len(set(chunks(cut.rows).values())) == 7
    assert same_state(cut.state, whole.state)


@pytest.mark.slow
def test_a_rollback_goes_back_in_the_schedule(stage2: Any, left: Any, same_state: Any, tmp_path: Path) -> None:
    settings = ["rollback.action=lower_lr", "rollback.lr_factor=1", "train.steps=14", "checkpoint.every=5"]
    whole = left(Path(atlas.train(stage2(*settings), tmp_path / "whole").folder))
    back = left(Path(atlas.train(stage2(*settings, "debug.inject=nan_gradient@9"), tmp_path / "back").folder))
    assert [event["step"] for event in back.events("rollback")] == [5]
    assert chunks(back.rows, 1) == {step: chunk for step, chunk in chunks(whole.rows).items() if step > 5}
    assert same_state(back.state["model"], whole.state["model"])


@pytest.mark.slow
def test_a_schedule_that_does_not_fit_is_told_at_the_start(stage2: Any, left: Any, tmp_path: Path) -> None:
    config = stage2("stage2.start=16", "train.steps=1")
    atlas.train(config, tmp_path / "run")
    told = [event["message"] for event in left(tmp_path / "run").events("notice")]
    notices = config.stage2.notices(1, [8])
    assert len(notices) == 2
    assert [message for message in told if message.startswith("Stage 2 ")] == notices


def test_an_exported_model_has_the_chunks_of_its_checkpoint(tiny: Any, untrained: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="the extra hf is not installed")
    save_config(tiny(*STAGE2), untrained / "config.yaml")
    assert atlas.load(untrained)[0].plan.local == (4,)  # of step 7
    exported = export(untrained, tmp_path / "exported")
    assert json.loads((exported / "config.json").read_text())["chunk_size"]["local"] == [4]
    save_config(tiny(*STAGE2, "stage2.start=6"), untrained / "config.yaml")
    with pytest.raises(ConfigError) as refused:
        export(untrained, tmp_path / "refused")
    assert str(refused.value) == "chunk_size.local=[3]: must be positive divisors of chunk_size.shard=32; 3 is not one"
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_two_processes_train_bitwise_as_two_micro_batches(
    stage2: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    shape = ["train.steps=3", "train.batch_size=2", "calibration=off"]
    alone = left(Path(atlas.train(stage2(*shape, "train.accumulate=2"), tmp_path / "alone").folder))
    both = left(Path(atlas.train(stage2(*shape, "device.processes=2"), tmp_path / "both").folder))
    assert chunks(both.rows) == chunks(alone.rows)
    assert same_state(both.state["model"], alone.state["model"])


def test_without_a_checkpoint_there_is_no_stage_2(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        atlas.train(tiny(*STAGE2), tmp_path / "run")
    allowed = "must be the run, checkpoint or exported folder that Stage 2 goes on from, with stage2.enabled=true"
    assert str(refused.value) == f"init_from=None: {allowed}"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_does_not_change_into_stage_2(undisturbed: Any) -> None:
    given = [f"resume={undisturbed.folder}", "stage2.enabled=true"]
    folder = Path(undisturbed.folder)
    with pytest.raises(ConfigError) as refused:
        atlas.train(resumed_config(atlas.compose(given), given, folder), folder)
    told = f"stage2.enabled=True instead of False: must be as in {folder}/config.yaml to continue that run: "
    assert str(refused.value).startswith(f"{told}its schedule is one")
