"""What TensorBoard reads of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.sinks import RunInfo
from atlas.telemetry.tensorboard import TensorBoardSink

pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read(folder).Scalars(name)]


def test_rows_are_curves_without_the_steps_that_a_rollback_undid(tmp_path: Path) -> None:
    logger = TelemetryLogger([TensorBoardSink(flush_seconds=30)], every=1)
    logger.open(RunInfo(tmp_path, steps=4, config={"seed": 3}))
    for step, loss in ((1, 5.0), (2, 4.0), (3, 9.0)):
        logger.log_step(step, {"loss": loss, "niah/accuracy": None})
    logger.event("sample", 3, number=0, prompt="two\nlines", text="go *on*")
    logger.event("spike", 3)  # writes the row of its step
    logger.event("rollback", 1, reason="spike")
    for step, loss in ((2, 3.0), (3, 2.5)):
        logger.log_step(step, {"loss": loss})
    logger.close("completed", {"step": 3}, [("loss", "2.5")])
    assert curve(tmp_path, "loss") == [(1, 5.0), (2, 3.0), (3, 2.5)]
    found = read(tmp_path)
    assert "niah/accuracy" not in found.Tags()["scalars"]
    texts = {tag: found.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert "seed: 3" in texts["config/text_summary"]
    assert texts["rollback/text_summary"] == "spike"
    assert texts["sample/0/text_summary"] == "    two\n    lines\n\n    go *on*"
    assert "| status | completed |\n| loss | 2.5 |" in texts["summary/text_summary"]


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    for start, losses in ((0, (5.0, 4.0, 3.0)), (1, (3.5, 2.5))):
        logger = TelemetryLogger([TensorBoardSink(flush_seconds=30)], every=1)
        logger.open(RunInfo(tmp_path, steps=3, start_step=start))
        for step, loss in enumerate(losses, start + 1):
            logger.log_step(step, {"loss": loss})
        logger.close("completed")
    assert curve(tmp_path, "loss") == [(1, 5.0), (2, 3.5), (3, 2.5)]


def test_a_picture_is_shown_at_its_step(tmp_path: Path) -> None:
    from matplotlib.image import imsave

    imsave(tmp_path / "map.png", [[0.0, 1.0], [1.0, 0.0]])
    logger = TelemetryLogger([TensorBoardSink(flush_seconds=30)], every=1)
    logger.open(RunInfo(tmp_path, steps=3))
    assert logger.takes_pictures
    logger.picture("niah", tmp_path / "map.png", 3)
    logger.close("completed")
    (shown,) = read(tmp_path).Images("niah")
    assert (shown.step, shown.width, shown.height) == (3, 2, 2)


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.telemetry.tensorboard.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"^logger.tensorboard: must be left out, or its package be installed: pip"):
        TensorBoardSink(flush_seconds=30)
