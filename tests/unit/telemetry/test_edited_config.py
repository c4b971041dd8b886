"""The hash of a checkpoint says whether config.yaml is the one that it was saved with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import atlas
from atlas.config import RunConfig
from atlas.config.composition import save_config
from atlas.config.continuing import settings_hash
from atlas.config.files import read_yaml
from atlas.runs.environment import config_hash
from atlas.telemetry.run_files import RunFiles

Change = Callable[[Path, RunConfig], str]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def untouched(path: Path, config: RunConfig) -> str:
    return config_hash(config)


def for_one_start(path: Path, config: RunConfig) -> str:
    edit(path, "  threads: 0", "  threads: 7")
    return config_hash(config)


def older_than_a_setting(path: Path, config: RunConfig) -> str:
    edit(path, "  patience: 0\n", "")
    return settings_hash(read_yaml(path))


def older_and_gone_on_with(path: Path, config: RunConfig) -> str:
    older_than_a_setting(path, config)
    return config_hash(config)


def without_a_hash(path: Path, config: RunConfig) -> str:
    edit(path, "  window: 32", "  window: 8")
    return ""


def changed_by_a_start(path: Path, config: RunConfig) -> str:
    later = replace(config, train=replace(config.train, steps=7))
    hashes = {"former_config_hash": config_hash(config), "config_hash": config_hash(later)}
    (path.parent / "events.jsonl").write_text(json.dumps({"kind": "settings", "step": 3, **hashes}) + "\n")
    save_config(later, path)
    return config_hash(config)


def changed_by_an_older_start(path: Path, config: RunConfig) -> str:
    """Before events named the new hash too; summary.json has it."""
    saved_with = changed_by_a_start(path, config)
    events = path.parent / "events.jsonl"
    event = json.loads(events.read_text())
    (path.parent / "summary.json").write_text(json.dumps({"config_hash": event.pop("config_hash")}))
    events.write_text(json.dumps(event) + "\n")
    return saved_with


def of_which_the_summary_is_gone(path: Path, config: RunConfig) -> str:
    saved_with = changed_by_an_older_start(path, config)
    (path.parent / "summary.json").unlink()
    return saved_with


def whose_start_was_killed(path: Path, config: RunConfig) -> str:
    """After the event and before config.yaml; the checkpoint is of the start before that."""
    first = changed_by_a_start(path, replace(config, seed=3))
    save_config(replace(config, seed=3), path)
    return first


def changed_by_a_start_and_edited(path: Path, config: RunConfig) -> str:
    saved_with = changed_by_a_start(path, config)
    edit(path, "  window: 32", "  window: 8")
    return saved_with


def changed_by_an_older_start_and_edited(path: Path, config: RunConfig) -> str:
    saved_with = changed_by_an_older_start(path, config)
    edit(path, "  window: 32", "  window: 8")
    return saved_with


def removed(path: Path, config: RunConfig) -> str:
    path.unlink()
    return config_hash(config)


def of_no_run(path: Path, config: RunConfig) -> str:
    path.write_text("device: 5\ndata: {a: 1, 2: 3}\n")
    return config_hash(config)


def edited(path: Path, config: RunConfig) -> str:
    edit(path, "  window: 32", "  window: 8")
    return config_hash(config)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (untouched, False),
        (for_one_start, False),
        (older_than_a_setting, False),
        (older_and_gone_on_with, False),
        (without_a_hash, False),
        (changed_by_a_start, False),
        (changed_by_an_older_start, False),
        (of_which_the_summary_is_gone, False),
        (whose_start_was_killed, False),
        (changed_by_a_start_and_edited, True),
        (changed_by_an_older_start_and_edited, True),
        (removed, False),
        (of_no_run, False),
        (edited, True),
    ],
)
def test_an_edited_file_is_told_and_no_other(change: Change, told: bool, tmp_path: Path) -> None:
    config, path = atlas.compose(["logger=none"]), tmp_path / "config.yaml"
    save_config(config, path)
    saved_with = change(path, config)
    line = (
        f"{path} is not the one that step 50 was saved with (hash {saved_with}): it was edited since, so the model may"
        " differ from the trained one"
    )
    assert RunFiles(tmp_path, strict=False).edited_config(50, saved_with) == ([line] if told else [])
