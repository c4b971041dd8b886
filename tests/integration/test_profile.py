"""Where the time of a run goes: `debug.profile`, and the share of the device's peak."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.config import ConfigError, RunConfig
from atlas.models.flops import flops_per_token
from atlas.runs.peak_flops import measured_peak
from atlas.runs.summary import RunSummary
from atlas.telemetry.run_files import RunFiles
from atlas.training.profile import TABLE_FILE, TRACE_FILE, parse_profile

PARTS = {"data", "forward", "backward", "optimizer", "rest of training", "telemetry", "norms", "whole step"}


@pytest.mark.slow
def test_a_profile_shows_where_a_step_goes_and_changes_no_bit(
    tiny: Callable[..., RunConfig],
    tmp_path: Path,
    left: Callable[..., Any],
    same_state: Callable[[Any, Any], bool],
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = ["train.steps=4", "train.validation_every=2", "telemetry.every=1", "calibration=off"]
    found = {}
    for name, more in (("with", ["debug.profile=2:3"]), ("without", [])):
        atlas.train(tiny(*short, *more), tmp_path / name)
        found[name] = left(tmp_path / name)
    assert same_state(found["with"].state, found["without"].state)
    (event,) = found["with"].events("profile")
    table = (tmp_path / "with" / TABLE_FILE).read_text()
    assert (event["step"], event["message"], event["file"]) == (3, table.rstrip("\n"), TRACE_FILE)
    assert table in capsys.readouterr().out
    head, parts, operators = re.split(r"\n  (?:part of a step|operator) .*\n", table)
    assert head == "steps 2 to 3 (trace.json.gz opens in ui.perfetto.dev)"
    rows = [re.fullmatch(r"  (.+?) +(-?[\d.]+) +(-?[\d.]+)%", line) for line in parts.splitlines()]
    took = {row[1]: float(row[2]) for row in rows if row}
    assert set(took) >= PARTS | {"validation"}
    assert sum(took.values()) == pytest.approx(2 * took["whole step"], abs=0.1)  # the whole is the sum of its parts
    assert all(took[part] > 0 for part in ("forward", "backward", "optimizer"))
    assert took["not in a part"] < 0.2 * took["whole step"]
    assert len(operators.splitlines()) == 12
    with gzip.open(tmp_path / "with" / TRACE_FILE) as file:
        names = [entry.get("name") for entry in json.load(file)["traceEvents"]]
    assert names.count("atlas: backward") == 2


@pytest.mark.slow
def test_a_profile_that_cannot_be_written_ends_no_run(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "run" / TRACE_FILE).mkdir(parents=True)
    atlas.train(tiny("train.steps=4", "calibration=off", "debug.profile=2:3"), tmp_path / "run")
    found = RunFiles(tmp_path / "run")
    assert (found.status, [event["step"] for event in found.events if event["kind"] == "profile"]) == ("completed", [])
    expected = f"the profile could not be written to {tmp_path / 'run'}: Is a directory"
    assert expected in [event["message"] for event in found.events if event["kind"] == "warning"]


@pytest.mark.parametrize("text", ["3", "0:2", "3:2", "1:11", "a:b"])
def test_steps_that_are_no_steps_of_the_run_are_refused(text: str) -> None:
    allowed = "must be FIRST:LAST, steps of the run with 1 <= FIRST <= LAST <= train.steps=10"
    with pytest.raises(ConfigError, match=f"^debug.profile={text}: {re.escape(allowed)}$"):
        parse_profile(text, last_step=10)


@pytest.mark.slow
def test_the_share_of_the_peak_is_that_of_the_counted_operations(
    undisturbed: RunSummary, tiny: Callable[..., RunConfig]
) -> None:
    config = tiny()
    counted = flops_per_token(config.model, config.chunk_size, config.train.sequence).training
    assert undisturbed.flops_per_token == counted
    assert undisturbed.peak_flops is not None
    assert undisturbed.tokens_per_second is not None
    expected = counted * undisturbed.tokens_per_second / undisturbed.peak_flops
    assert undisturbed.flops_utilisation == pytest.approx(expected)
    assert 0 < expected < 1


def test_the_peak_is_measured_without_a_random_number_of_training() -> None:
    before = torch.get_rng_state()
    assert 1e8 < measured_peak(torch.device("cpu"), torch.float32, training_seconds=0.0) < 1e14
    assert torch.equal(torch.get_rng_state(), before)
