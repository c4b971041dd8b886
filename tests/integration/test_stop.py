"""A run that a signal stops has saved the step it reached, and goes on bitwise like one that nobody stopped."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.runs.signals import SIGNALS
from atlas.telemetry.jsonl import read_jsonl
from tests.integration.test_resume import go_on

NAMES = {number: "Ctrl-C" if number == signal.SIGINT else number.name for number in SIGNALS}


def stopped(config: Any, folder: Path, logger: dict[str, Any], *, resume: str | None = None) -> dict[str, Any]:
    """Run until the logger's signal has stopped it; returns the summary."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt):
        atlas.train(replace(config, logger=logger, resume=resume, trust=["signalling"]), folder)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def newest(folder: Path) -> str:
    return max(path.name for path in (folder / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        pytest.param([], signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(["model.memory.rule=momentum", "train.carry_memory=true"], signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(["train.accumulate=2"], signal.SIGHUP, marks=pytest.mark.slow),
        (["model.memory.rule=momentum", "train.carry_memory=true", "train.accumulate=2"], signal.SIGUSR1),
    ],
    ids=["plain", "momentum and carry", "accumulate", "all"],
)
def test_nothing_is_lost_and_the_rest_is_bitwise_that_of_the_undisturbed_run(
    settings: list[str], number: signal.Signals, tiny: Any, signalling: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    config = tiny(*settings, "train.steps=20")
    whole = left(Path(atlas.train(config, tmp_path / "whole").folder))
    cut, draw = left(tmp_path / "cut"), random.Random(str(settings))
    first, second = draw.randint(1, 9), draw.randint(11, 19)
    for step, resume in ((first, None), (second, "auto")):
        summary = stopped(config, cut.folder, signalling(number, at=step), resume=resume)
        assert (summary["status"], summary["reason"]) == ("aborted", f"stopped by {NAMES[number]}")
        assert (summary["step"], newest(cut.folder)) == (step, f"step-{step:08d}")
    assert go_on(cut.folder).status == "completed"
    assert [event["message"] for event in cut.events("notice")] == [
        f"resumed from step-{step:08d}" for step in (first, second)
    ]
    assert cut.rows == whole.rows
    assert same_state(cut.state, whole.state)
    kept = [sorted(path.name for path in (run.folder / "checkpoints").glob("step-*")) for run in (cut, whole)]
    assert kept[0] == kept[1]


PROBED = ["niah.enabled=true", "niah.every=5", "niah.samples=1", "niah.tasks=[single]", "niah.depths=[0.0]"]
PLACES = {
    "validation and a checkpoint are due": {"at": 10},
    "in the probe": {"at": 10, "key": "validation/loss"},
    "in a probe that nothing else follows": {"at": 15},
    "the last step's validation": {"at": 20},
    "the last step's probe": {"at": 20, "key": "validation/loss"},
    "at a checkpoint": {"on": "checkpoint"},
    "measuring the reset": {"at": 20, "key": "niah/accuracy"},
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_what_a_signal_cuts_off_is_done_by_the_next_start(
    place: dict[str, Any], tiny: Any, signalling: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    config = tiny(*PROBED, "train.steps=20", "telemetry.every=10")
    whole = left(Path(atlas.train(config, tmp_path / "whole").folder))
    cut = left(tmp_path / "cut")
    summary = stopped(config, cut.folder, signalling(signal.SIGTERM, **place))
    assert (summary["status"], summary["step"]) == ("aborted", place.get("at", 0))
    run = go_on(cut.folder)
    assert (run.status, run.validation_loss) == ("completed", whole.rows[-1]["validation/loss"])
    assert cut.rows == whole.rows
    assert same_state(cut.state, whole.state)
    found = [[{**event, "time": 0, "seconds": 0} for event in run.events("probe")] for run in (cut, whole)]
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("carry", ["true", "false"])
@pytest.mark.parametrize("place", [{"at": 21}, {"at": 22}, {"on": "spike"}, {"on": "rollback"}], ids=str)
def test_a_stop_around_a_spike_changes_nothing_of_the_rollback(
    place: dict[str, Any], carry: str, tiny: Any, signalling: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    """The fault shows some steps later: the checkpoint of the stop lies between, and is no target of the rollback."""
    config = tiny(f"train.carry_memory={carry}", "debug.inject=weights@20:3", "train.steps=40", "telemetry.every=1")
    whole = left(Path(atlas.train(config, tmp_path / "whole").folder))
    assert len(whole.events("rollback")) == 1
    cut = left(tmp_path / "cut")
    stopped(config, cut.folder, signalling(signal.SIGINT, **place))
    assert go_on(cut.folder).status == "completed"
    assert same_state(cut.state, whole.state)
    assert [row for row in cut.rows if row["segment"] == 1] == [row for row in whole.rows if row["segment"] == 1]
    assert [event["step"] for event in cut.events("rollback")] == [event["step"] for event in whole.events("rollback")]


def test_a_stop_right_after_a_rollback_has_the_numbers_of_the_restored_step(
    tiny: Any, signalling: Any, left: Any, tmp_path: Path
) -> None:
    config = tiny("debug.inject=weights@21:3", "telemetry.every=1", "rollback.watch_every=1", "trust=[signalling]")
    config.logger = signalling(signal.SIGTERM, on="rollback")
    with pytest.raises(KeyboardInterrupt):
        atlas.train(config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (row,) = (row for row in left(tmp_path / "run").rows if row["step"] == 20)
    assert (summary["step"], summary["segment"]) == (20, 1)
    assert [summary[key] for key in ("loss", "validation_loss")] == [row["loss"], row["validation/loss"]]


def test_on_stop_false_saves_nothing(tiny: Any, signalling: Any, left: Any, tmp_path: Path) -> None:
    config = tiny("train.steps=20", "checkpoint.on_stop=false")
    summary = stopped(config, tmp_path / "cut", signalling(signal.SIGTERM, at=13))
    assert (summary["status"], summary["reason"], newest(tmp_path / "cut")) == (
        "aborted",
        "stopped by SIGTERM",
        "step-00000010",
    )


def test_a_second_signal_stops_at_once(tiny: Any, signalling: Any, tmp_path: Path) -> None:
    summary = stopped(tiny("train.steps=20"), tmp_path / "cut", signalling(signal.SIGTERM, at=13, second=signal.SIGINT))
    assert (summary["status"], summary["reason"]) == ("aborted", "interrupted (Ctrl-C or SIGTERM)")
    assert newest(tmp_path / "cut") == "step-00000010"


def test_a_signal_that_the_caller_handles_stays_the_callers(tiny: Any, signalling: Any, tmp_path: Path) -> None:
    """As under submitit, which handles SIGTERM and the warning of its cluster itself."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        config = replace(tiny("train.steps=5"), logger=signalling(signal.SIGUSR1, at=3))
        assert atlas.train(config, tmp_path / "run").status == "completed"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]


def test_in_another_thread_no_handler_is_touched(tiny: Any, tmp_path: Path) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(atlas.train(tiny("train.steps=2"), tmp_path / "run").status))
    thread.start()
    thread.join()
    assert found == ["completed"]


def test_a_signal_that_comes_too_late_is_not_lost(tiny: Any, signalling: Any, tmp_path: Path) -> None:
    config = tiny("train.steps=5", "calibration=off")
    summary = stopped(config, tmp_path / "run", signalling(signal.SIGINT, on="end"))
    assert (summary["status"], summary["step"]) == ("completed", 5)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_command_line_tells_how_to_continue(
    number: signal.Signals, overrides: list[str], left: Any, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "atlas.train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A shell that runs the tests in the background has them ignore SIGINT, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    run = left(tmp_path / "a run")
    with subprocess.Popen(
        [*command, *overrides, "train.steps=100000", "checkpoint.every=100000", "hydra.run.dir='a run'"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("step     10/100000"):
            assert process.poll() is None
        process.send_signal(number)
        printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "")
    hint = """continue with: python -m atlas.train 'resume='"'"'a run'"'"''"""
    assert printed.splitlines()[-1] == hint
    summary = json.loads((run.folder / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("aborted", f"stopped by {NAMES[number]}")
    assert newest(run.folder) == f"step-{summary['step']:08d}"
    assert run.events("end")[-1]["status"] == "aborted"


@pytest.mark.slow
def test_a_terminal_that_is_closed_costs_nothing(overrides: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "atlas.train", *overrides, "train.steps=100000", "checkpoint.every=100000"]
    rows = tmp_path / "run" / "metrics.jsonl"
    process, terminal = pty.fork()
    if not process:  # pragma: no cover - the child
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [*command, f"hydra.run.dir={tmp_path / 'run'}"])
    try:
        while not (rows.exists() and rows.read_bytes()):
            assert os.read(terminal, 1024)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("aborted", "stopped by SIGHUP")
    assert newest(tmp_path / "run") == f"step-{summary['step']:08d}"
    kinds = [event["kind"] for event in read_jsonl(tmp_path / "run" / "events.jsonl")]
    assert kinds[-2:] == ["end", "warning"]  # that nobody could be told on the console
