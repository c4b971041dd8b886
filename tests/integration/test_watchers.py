"""Quiet failures, really caused: the run tells of each once, and calm twins tell of nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import atlas
from atlas.runs.summary import RunSummary
from atlas.telemetry.jsonl import read_jsonl
from atlas.telemetry.sinks import RunInfo, Sink

pytestmark = pytest.mark.slow


def told(folder: Path) -> list[str]:
    return [event["watch"] for event in read_jsonl(folder / "events.jsonl") if event["kind"] == "watch"]


def test_a_calm_run_is_healthy(undisturbed: RunSummary) -> None:
    folder = Path(undisturbed.folder)
    assert (undisturbed.watch, told(folder)) == ([], [])
    assert set(undisturbed.memory_use) == {"step", "on", "off", "frozen"}
    assert undisturbed.memory_use["step"] == 30
    assert read_jsonl(folder / "metrics.jsonl")[-1]["memory_use/on"] == undisturbed.memory_use["on"]


def test_a_plateau_is_told_everywhere(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = atlas.train(tiny("optim.lr=1e-9", "train.steps=120", "checkpoint.every=60"), tmp_path / "run")
    assert summary.status == "completed"
    events = [event for event in read_jsonl(tmp_path / "run" / "events.jsonl") if event["kind"] == "watch"]
    names = [event["watch"] for event in events]
    assert "plateau" in names
    plateau = events[names.index("plateau")]
    assert (plateau["step"], plateau["action"]) == (110, "warn")
    assert plateau["message"] == f"{plateau['seen']}: {plateau['why']}; try {plateau['hint']} (watch.plateau)"
    assert [found["watch"] for found in summary.watch] == names
    printed = capsys.readouterr().out
    assert f"step 110  watch: {plateau['message']}" in printed
    assert "  health" in printed
    assert "plateau at step 110" in printed.splitlines()[-2]


def test_a_run_that_goes_on_at_a_lower_rate_has_no_schedule_that_ended(tiny: Any, tmp_path: Path) -> None:
    constant = ["optim.schedule=constant", "optim.warmup=2"]
    atlas.train(tiny(*constant, "optim.lr=2e-3", "train.steps=10"), tmp_path / "run")
    atlas.train(tiny(*constant, "optim.lr=2e-4", "train.steps=30", "resume=auto"), tmp_path / "run")
    assert "learning_rate" not in told(tmp_path / "run")


def test_abort_saves_and_ends_as_failed_and_a_resumed_run_is_not_told_again(tiny: Any, tmp_path: Path) -> None:
    settings = ("chunk_size.shard=64", "train.steps=12")
    summary = atlas.train(tiny(*settings, "watch.resets=abort"), tmp_path / "run")
    assert (summary.status, summary.step) == ("failed", 0)
    assert summary.reason.startswith("no sequence of 64 tokens reaches a reset (chunk_size.shard=64): ")
    assert (tmp_path / "run" / "checkpoints" / "step-00000000").is_dir()
    summary = atlas.train(tiny(*settings, "watch.resets=abort", "resume=auto"), tmp_path / "run")
    assert (summary.status, told(tmp_path / "run")) == ("completed", ["resets"])
    summary = atlas.train(tiny(*settings, "watch.resets=off"), tmp_path / "off")
    assert (summary.status, summary.watch) == ("completed", [])


def test_a_damaged_line_of_events_hides_no_finding(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("chunk_size.shard=64", "train.steps=6", "checkpoint.every=3")
    atlas.train(tiny(*settings, "watch.resets=abort"), tmp_path / "run")
    events = tmp_path / "run" / "events.jsonl"
    first, *rest = events.read_text().splitlines(keepends=True)
    events.write_text("".join([first, "\0\0\n", "{}\n", *rest]))
    summary = atlas.train(tiny(*settings, "watch.resets=warn", "resume=auto"), tmp_path / "run")
    assert summary.status == "completed"
    assert [found["watch"] for found in summary.watch] == ["resets"]
    (told,) = [text for text in summary.warnings if text.startswith("events.jsonl: 1 of ")]
    assert f"warning: {told}" in capsys.readouterr().out


def test_a_setting_that_nothing_reads_is_told(tiny: Any, tmp_path: Path) -> None:
    atlas.train(tiny("model.memory.momentum=0.9", "train.steps=1"), tmp_path / "run")
    events = read_jsonl(tmp_path / "run" / "events.jsonl")
    told = [event["message"] for event in events if event["kind"] == "warning"]
    assert "model.memory.momentum=0.9 changes nothing with model.memory.rule=gd" in told


@pytest.mark.parametrize("rate", [0.9, 0.1])
def test_steps_of_muon_that_are_long_in_all_are_told(rate: float, tiny: Any, tmp_path: Path) -> None:
    chunks = ("chunk_size.local=[1]", "chunk_size.shard=64", "train.steps=50")
    atlas.train(tiny(*chunks, "model.memory.rule=muon", f"model.memory.muon.rate_init={rate}"), tmp_path / "run")
    assert ("rates_high" in told(tmp_path / "run")) == (rate == 0.9)


@pytest.mark.parametrize(("fault", "found"), [("weights@58:3", ["weights_jump", "last_steps"]), (None, [])])
def test_damage_in_the_last_steps_marks_the_last_checkpoint(
    fault: str | None, found: list[str], tiny: Any, tmp_path: Path
) -> None:
    inject = [f"debug.inject={fault}"] if fault else []
    settings = ("train.steps=60", "checkpoint.every=20", "rollback.suspect_every=4", "rollback.watch_every=10")
    atlas.train(tiny(*settings, *inject), tmp_path / "run")
    assert told(tmp_path / "run") == found
    if not found:
        atlas.load(tmp_path / "run")
        return
    with pytest.warns(UserWarning, match="step-00000060 is not healthy: .*; step-00000040 is taken instead"):
        model, _ = atlas.load(tmp_path / "run")
    healthy, _ = atlas.load(tmp_path / "run" / "checkpoints" / "step-00000040")
    assert torch.equal(model.embedding.weight, healthy.embedding.weight)
    with pytest.warns(UserWarning, match="step-00000060 is not healthy: .* at that step$"):
        atlas.load(tmp_path / "run" / "checkpoints" / "step-00000060")


@pytest.mark.parametrize("action", ["warn", "rollback"])
def test_one_large_gradient_is_told_and_undone_if_wished(action: str, tiny: Any, tmp_path: Path) -> None:
    settings = ("train.steps=50", "debug.inject=gradient@34", f"watch.gradient_jump={action}")
    summary = atlas.train(tiny(*settings), tmp_path / "run")
    assert (summary.status, told(tmp_path / "run")) == ("completed", ["gradient_jump"])
    events = read_jsonl(tmp_path / "run" / "events.jsonl")
    (found,) = (event for event in events if event["kind"] == "watch")
    assert found["step"] == 40
    assert found["seen"].startswith("the gradient of step 34 has a norm of ")
    assert [event["step"] for event in events if event["kind"] == "rollback"] == ([30] if action == "rollback" else [])


def test_a_finding_that_comes_again_after_its_rollback_is_undone_again(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = ("debug.inject=gradient@34:always", "watch.gradient_jump=rollback", "rollback.limit=2")
    summary = atlas.train(tiny("train.steps=50", *fault), tmp_path / "run")
    assert (summary.status, summary.rollbacks) == ("aborted", 2)
    assert told(tmp_path / "run") == ["gradient_jump"] * 3
    assert summary.reason.startswith("the gradient of step 34 has a norm of ")
    assert summary.reason.endswith(", after 2 rollbacks (rollback.limit=2)")
    assert "seen: gradient_jump at steps 40, 40, 40, 3 spikes, it was aborted" in capsys.readouterr().out


def test_what_was_told_is_undone_once_a_resumed_run_asks_for_that(tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    atlas.train(tiny("train.steps=40", "debug.inject=gradient@34"), folder)
    more = ("train.steps=70", "resume=auto", "debug.inject=gradient@54", "watch.gradient_jump=rollback")
    summary = atlas.train(tiny(*more), folder)
    assert (summary.status, summary.rollbacks) == ("completed", 1)
    assert told(folder) == ["gradient_jump"] * 2


def test_a_resumed_run_undoes_again_what_comes_again(tiny: Any, tmp_path: Path) -> None:
    """As one that was not stopped between the two."""
    settings = ("watch.gradient_jump=rollback", "rollback.limit=1")
    first = atlas.train(tiny("train.steps=40", "debug.inject=gradient@34", *settings), tmp_path / "run")
    assert (first.status, first.rollbacks) == ("completed", 1)
    more = ("train.steps=70", "resume=auto", "debug.inject=gradient@54:always")
    second = atlas.train(tiny(*more, *settings), tmp_path / "run")
    assert second.status == "aborted"
    assert second.reason.startswith("the gradient of step 54 has a norm of ")


class Remover(Sink):
    """A logger that removes a file of the run at a step."""

    def __init__(self, *, name: str, at: int) -> None:
        self.name, self.at, self.folder = name, at, Path()

    def open(self, info: RunInfo) -> None:
        self.folder = info.folder

    def progress(self, step: int, values: Mapping[str, Any]) -> None:
        if step == self.at:
            (self.folder / self.name).unlink(missing_ok=True)


def test_a_removed_file_is_told(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("removing")
    vars(module)["logger"] = Remover
    monkeypatch.setitem(sys.modules, "removing", module)
    logger = {"_target_": "removing.logger", "name": "metrics.jsonl", "at": 12}
    config = replace(tiny("trust=[removing]", "telemetry.every=30"), logger=logger)
    summary = atlas.train(config, tmp_path / "run")
    assert [(one["watch"], one["step"]) for one in summary.watch] == [("files", 20)]
    assert summary.watch[0]["seen"] == "metrics.jsonl was removed while the run went on"


class Editor(Remover):
    """A logger that writes another learning rate into config.yaml."""

    def progress(self, step: int, values: Mapping[str, Any]) -> None:
        path = self.folder / self.name
        if step == self.at:
            path.write_text(path.read_text().replace("  lr: ", "  lr: 1"))


def test_settings_that_somebody_edits_are_told(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("editing")
    vars(module)["logger"] = Editor
    monkeypatch.setitem(sys.modules, "editing", module)
    logger = {"_target_": "editing.logger", "name": "config.yaml", "at": 12}
    summary = atlas.train(replace(tiny("trust=[editing]"), logger=logger), tmp_path / "run")
    assert [(one["watch"], one["step"]) for one in summary.watch] == [("files", 20)]
    assert summary.watch[0]["message"] == (
        "config.yaml was edited while the run went on: the run keeps the settings that it began with, and whoever "
        "reads the file later gets others; try to put it back; resume=RUN KEY=VALUE changes settings (watch.files)"
    )
