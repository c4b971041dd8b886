from __future__ import annotations

import os
from pathlib import Path

import pytest

from atlas.config import ConfigError
from atlas.telemetry.jsonl import JsonlError
from atlas.telemetry.run_files import RunFiles

FAULTS = {  # file -> its content, what it is read as, what tolerant reading says of it
    "config.yaml": ("a: [1\n", {}, "must be plain YAML (expected ',' or ']', but got '<stream end>', line 2)"),
    "summary.json": ('{"status": "runn', {}, "cannot be read (JSONDecodeError)"),
    "niah.json": ("noise", {}, "cannot be read (JSONDecodeError)"),
    "metrics.jsonl": ('{"step":1}\nnoise\n{"step":3}\n', [{"step": 1}, {"step": 3}], ""),
    "events.jsonl": ('[]\n{"kind":"end","step":3}\n', [{"kind": "end", "step": 3}], ""),
}
PARTS = dict(zip(FAULTS, ("settings", "summary", "niah", "rows", "events"), strict=True))


def write(folder: Path) -> Path:
    """A sound run folder whose last row is torn, as a kill leaves it."""
    (folder / "config.yaml").write_text("a: {b: 1, c: [1, 2], d: {}}\ne: text\n")
    (folder / "summary.json").write_text('{"status": "running"}')
    (folder / "metrics.jsonl").write_text('{"step":1}\n{"step":2')
    (folder / "events.jsonl").write_text('{"kind":"start","step":0}\n{"kind":"spike","step":1}\n')
    return folder


@pytest.mark.parametrize("strict", [True, False])
def test_a_killed_run_is_read_the_same_strictly_and_tolerantly(tmp_path: Path, strict: bool) -> None:
    run = RunFiles(write(tmp_path), strict)
    assert run.settings == {"a.b": 1, "a.c": [1, 2], "a.d": {}, "e": "text"}
    assert (run.summary, run.niah, run.rows) == ({"status": "running"}, {}, [{"step": 1}])
    assert run.of_kind("spike") == [{"kind": "spike", "step": 1}]
    assert run.problems == []


@pytest.mark.parametrize("file", FAULTS)
def test_a_damaged_file_is_refused_strictly_and_told_tolerantly(tmp_path: Path, file: str) -> None:
    content, read, told = FAULTS[file]
    (write(tmp_path) / file).write_text(content)
    with pytest.raises((ValueError, ConfigError)) as refusal:
        getattr(RunFiles(tmp_path), PARTS[file])
    if file.endswith("jsonl"):
        assert refusal.type is JsonlError
        told = f": 1 of {len(content.splitlines())} lines are damaged and left out"
    run = RunFiles(tmp_path, strict=False)
    assert getattr(run, PARTS[file]) == read
    assert run.problems == [f"{file}{told}" if told.startswith(":") else f"{file} {told}"]


def test_missing_files_are_refused_strictly_and_told_tolerantly(tmp_path: Path) -> None:
    for part in ("settings", "summary", "rows", "events"):
        with pytest.raises(FileNotFoundError):
            getattr(RunFiles(tmp_path), part)
    assert RunFiles(tmp_path).niah == {}
    run = RunFiles(tmp_path, strict=False)
    assert [run.settings, run.summary, run.niah, run.rows, run.events] == [{}, {}, {}, [], []]
    assert run.problems == ["config.yaml is missing", "summary.json is missing"]  # it failed before its first row
    (tmp_path / "events.jsonl").touch()
    run = RunFiles(tmp_path, strict=False)
    assert (run.rows, run.problems) == ([], ["metrics.jsonl is missing"])


def test_references_of_a_job_that_failed_early_are_resolved_tolerantly(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: {b: 1}\ne: ${a.b}\n")
    assert RunFiles(tmp_path).settings == {"a.b": 1, "e": "${a.b}"}
    run = RunFiles(tmp_path, strict=False)
    assert (run.settings, run.problems) == ({"a.b": 1, "e": 1}, [])
    (tmp_path / "config.yaml").write_text("a: ${nothing}\n")
    assert RunFiles(tmp_path, strict=False).settings == {"a": "${nothing}"}


@pytest.mark.parametrize("file", PARTS)
def test_a_pipe_in_the_place_of_a_file_is_no_file(tmp_path: Path, file: str) -> None:
    (write(tmp_path) / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / file)
    with pytest.raises(OSError, match="not a regular file"):
        getattr(RunFiles(tmp_path), PARTS[file])
    run = RunFiles(tmp_path, strict=False)
    assert len(getattr(run, PARTS[file])) == 0
    assert len(run.problems) == 1
    assert run.problems[0].startswith(f"{file} cannot be read (")


def test_json_that_is_no_object_is_refused_strictly_and_empty_tolerantly(tmp_path: Path) -> None:
    (write(tmp_path) / "summary.json").write_text("[1]")
    with pytest.raises(ValueError, match="not a JSON object"):
        _ = RunFiles(tmp_path).summary
    assert RunFiles(tmp_path, strict=False).summary == {}
