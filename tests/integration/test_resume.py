"""A run that is stopped and continued ends bitwise like one that never stopped."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import ConfigError, Rule
from atlas.config.composition import save_config
from atlas.parallel import launch
from atlas.parallel.ranks import Ranks
from atlas.runs.resume import resumed_config
from atlas.runs.summary import RunSummary
from atlas.telemetry.jsonl import read_jsonl
from atlas.training.rollback.journal import JournalEntry
from atlas.training.trainer import Trainer
from tests.integration.sweep_commands import command, contents

FAULT = "debug.inject=nan_loss@23"


class Three(Ranks):
    world = 3


def stop(config: Any, folder: Path, logger: dict[str, Any]) -> None:
    """Run until the logger presses Ctrl-C."""
    with pytest.raises(KeyboardInterrupt):
        atlas.train(replace(config, logger=logger, trust=["interrupting"]), folder)


@pytest.fixture(scope="module")
def stopped_at_24(tiny: Any, interrupting: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny run, stopped between its checkpoints of steps 20 and 30."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop(tiny(), folder, interrupting(at=24))
    return folder


@pytest.fixture
def cut(stopped_at_24: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped_at_24, tmp_path / "cut"))


def go_on(folder: Path, overrides: list[str] | None = None, resume: str | None = None) -> Any:
    """Resume with nothing repeated."""
    given = atlas.compose([f"resume={resume or folder}", "trust=[interrupting,signalling]"])
    config = resumed_config(given, [f"resume={resume or folder}", *(overrides or [])], folder)
    return atlas.train(replace(config, logger={}), None)


FAST = (Rule.gd, "true", 2)
COMBINATIONS = [
    pytest.param(*combination, marks=[] if combination == FAST else [pytest.mark.slow])
    for combination in itertools.product(Rule, ["true", "false"], [1, 2])
]


@pytest.mark.parametrize(
    ("rule", "carry", "parts"), COMBINATIONS, ids=lambda value: str(getattr(value, "value", value))
)
def test_a_resumed_run_is_bitwise_the_undisturbed_one(
    rule: Rule, carry: str, parts: int, tiny: Any, interrupting: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    draw = random.Random(f"{rule} {carry} {parts}")
    settings = [f"model.memory.rule={rule}", f"train.carry_memory={carry}", f"train.accumulate={parts}"]
    config = tiny(*settings, "train.steps=20", "checkpoint.every=4", "telemetry.every=1")
    whole = left(Path(atlas.train(config, tmp_path / "whole").folder))
    cut = left(tmp_path / "cut")
    stop(config, cut.folder, interrupting(at=draw.randint(4, 10)))
    stop(
        replace(config, resume="auto"),
        cut.folder,
        interrupting(at=draw.randint(12, 19)),
    )
    assert go_on(cut.folder).status == "completed"
    assert cut.rows == whole.rows
    assert [row["step"] for row in cut.rows] == list(range(1, 21))
    assert same_state(cut.state, whole.state)


@pytest.mark.slow
@pytest.mark.parametrize("carry", ["true", "false"])
@pytest.mark.parametrize("retired", [True, False], ids=["at its end", "before anything was retired"])
def test_a_rollback_that_is_killed_is_finished_by_the_resume(
    carry: str, retired: bool, tiny: Any, interrupting: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    # The perplexity is first read at step 20, so the rollback goes back behind the checkpoint of step 20.
    config = tiny(f"train.carry_memory={carry}", FAULT, "checkpoint.every=4", "rollback.watch_every=19")
    whole = left(Path(atlas.train(config, tmp_path / "whole").folder))
    assert whole.events("rollback")[0]["step"] == 16
    cut = left(tmp_path / "cut")
    stop(config, cut.folder, interrupting(on="rollback"))
    checkpoints = cut.folder / "checkpoints"
    (undone,) = checkpoints.glob("retired-*")
    if not retired:
        undone.rename(checkpoints / "step-00000020")
    run = go_on(cut.folder)
    assert (run.status, run.segment, run.rollbacks) == ("completed", 1, 1)
    assert same_state(cut.state, whole.state)
    assert [row for row in cut.rows if row["segment"] == 1] == [row for row in whole.rows if row["segment"] == 1]


def test_what_a_watcher_undoes_is_undone_in_the_same_way_after_kills(
    tiny: Any, interrupting: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    settings = ("train.steps=45", "debug.inject=gradient@34", "watch.gradient_jump=rollback", "checkpoint.every=6")
    config = tiny(*settings)
    whole = left(Path(atlas.train(config, tmp_path / "whole").folder))
    (rollback,) = whole.events("rollback")
    assert (rollback["step"], rollback["from_step"]) == (30, 40)
    cut = left(tmp_path / "cut")
    stop(config, cut.folder, interrupting(at=38))  # goes on from step 36, which knows of the large gradient already
    stop(replace(config, resume="auto"), cut.folder, interrupting(on="spike"))  # before anything is undone
    run = go_on(cut.folder)
    assert (run.status, run.rollbacks) == ("completed", 1)
    assert same_state(cut.state, whole.state)


@pytest.mark.slow
def test_resume_needs_nothing_repeated_on_the_command_line(overrides: list[str], left: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "atlas.train"]
    subprocess.run(
        [*command, *overrides, "train.steps=20", "hydra.run.dir=run"], cwd=tmp_path, env=environment, check=True
    )
    run = left(tmp_path / "run")
    before, written = run.rows, b""
    for path in ("run/checkpoints/step-00000010", "run"):
        arguments = [f"resume={path}", "telemetry.every=5", "checkpoint=frequent"]
        result = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")
        state_file = (run.folder / "checkpoints" / "step-00000020" / "state.pt").read_bytes()
        assert written in (b"", state_file)
        written = state_file
    assert result.stdout == f"the run in {run.folder} is complete: nothing is left to do\n"
    assert run.rows == before
    assert not (tmp_path / "outputs").exists()  # only the run's own folder was written
    assert [event["message"] for event in run.events("notice")] == [
        "the steps after 10 are trained anew: their checkpoints are set aside",
        "resumed from step-00000010",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "seed=3",
            "seed=3 instead of 0: must be as in {folder}/config.yaml to continue that run: the batches would be",
        ),
        (
            "optim=muon",
            "optim._target_=atlas.training.optimizer.muon instead of atlas.training.optimizer.adamw: must be",
        ),
        ("rollback.watch_rows=1", "rollback.watch_rows=1 instead of 2: must be as in "),
        ("calibration=on", "calibration.enabled=True instead of False: must be as in "),
        ("train.batch_size=2", "train.batch_size=2 instead of 4: must be as in "),
        ("model=small", "model.width=256 instead of 32, model.layers=4 instead of 1"),
    ],
)
def test_what_cannot_work_is_refused(tiny: Any, tmp_path: Path, override: str, message: str) -> None:
    atlas.config.composition.save_config(tiny(), tmp_path / "config.yaml")
    with pytest.raises(ConfigError) as refusal:
        resumed_config(atlas.compose([override]), [override], tmp_path)
    assert str(refusal.value).startswith(message.format(folder=tmp_path))


def test_what_changes_no_number_is_taken_and_repeating_is_allowed(
    tiny: Any, overrides: list[str], tmp_path: Path
) -> None:
    atlas.config.composition.save_config(tiny("telemetry.every=7"), tmp_path / "config.yaml")
    more = [*overrides, "checkpoint.keep=9", "logger=wandb", "device.threads=2", f"resume={tmp_path}"]
    more.remove("logger=none")
    config = resumed_config(atlas.compose(more), more, tmp_path)
    expected = tiny("telemetry.every=5", "checkpoint.keep=9", "logger=wandb", "device.threads=2", f"resume={tmp_path}")
    assert config == expected
    atlas.config.composition.save_config(tiny("telemetry.every=7", "logger=wandb"), tmp_path / "config.yaml")
    untouched = resumed_config(atlas.compose(["logger.project=x"]), ["logger.project=x"], tmp_path)
    assert untouched == tiny("telemetry.every=7", "logger=wandb", "logger.project=x")


@pytest.mark.slow
def test_what_must_fit_a_resumed_run_is_checked_with_its_own_settings(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the defaults: of a batch of 8 three are no part. Processes of a launcher count before the run's own."""
    monkeypatch.chdir(tmp_path)
    save_config(tiny("train.batch_size=6", "device.processes=2"), tmp_path / "config.yaml")
    refused = command(f"resume={tmp_path}", "train.accumulate=3", "device.processes=4")
    message = (
        "train.batch_size=6: must be a multiple of 12 (least common multiple of train.accumulate=3 and 4 processes)"
    )
    assert (refused.status, refused.err) == (2, [f"atlas: {message}"])
    assert not (tmp_path / "outputs").exists()
    given = atlas.compose([f"resume={tmp_path}"])
    assert resumed_config(given, [f"resume={tmp_path}"], tmp_path).device.processes == 2
    with monkeypatch.context() as launched:
        launched.setattr(launch, "_current", [Three()])
        assert resumed_config(given, [f"resume={tmp_path}"], tmp_path).device.processes == 3


@pytest.mark.slow
def test_resume_auto_starts_a_run_where_there_is_none(tiny: Any, left: Any, tmp_path: Path) -> None:
    atlas.train(tiny("train.steps=5"), tmp_path / "other")
    run = left(Path(atlas.train(tiny("resume=auto", f"init_from={tmp_path / 'other'}"), tmp_path / "run").folder))
    assert [event["message"] for event in run.events("notice")] == [
        "nothing to resume here: starts at step 1",
        f"starts from the weights of {tmp_path / 'other' / 'checkpoints' / 'step-00000005'}",
    ]
    assert run.rows[-1]["step"] == 30


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "state.pt").write_bytes(data)


def truncate(folder: Path) -> None:
    os.truncate(folder / "state.pt", 1000)


def another_shape(folder: Path) -> None:
    shutil.rmtree(folder)
    manager = CheckpointManager(folder.parent, keep=9, config_hash="other")
    manager.save(20, {"model": {}}, {})
    manager.close()


DAMAGES = [
    (flip_a_byte, "step-00000020 was passed over: state.pt is damaged: its SHA-256 differs from the manifest's"),
    (truncate, "step-00000020 was passed over: state.pt has 1000 bytes instead of "),
    (
        another_shape,
        "step-00000020 was passed over: config.yaml was edited since, or it is of another run",
    ),
    (shutil.rmtree, "the checkpoint of step 20, of which events.jsonl tells, is gone: the run goes back to step 10"),
]
SOME_DAMAGES = [DAMAGES[0], *(pytest.param(*damage, marks=pytest.mark.slow) for damage in DAMAGES[1:])]  # one is fast


@pytest.mark.parametrize(("damage", "message"), SOME_DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_the_newest_sound_checkpoint_is_used_and_this_is_said(
    undisturbed: RunSummary, cut: Path, left: Any, same_state: Any, damage: Any, message: str
) -> None:
    damage(cut / "checkpoints" / "step-00000020")
    assert go_on(cut).status == "completed"
    whole, run = left(Path(undisturbed.folder)), left(cut)
    said = [event["message"] for event in run.events("notice")]
    assert said[1:] == ["resumed from step-00000010"]
    assert said[0].startswith(message)
    assert run.rows == whole.rows
    assert same_state(run.state, whole.state)


def rolled_back(folder: Path) -> Path:
    """The run as a rollback from step 20 to step 10 leaves it; returns what that has undone."""
    root = folder / "checkpoints"
    JournalEntry(step=10, segment=1, rollbacks=1, skipped=11, lr_scale=1.0, restarted=True).write(root)
    return (root / "step-00000020").rename(root / "retired-000-step-00000020")


def test_a_rollback_of_which_nothing_was_told_is_told_by_the_next_start(cut: Path, left: Any) -> None:
    rolled_back(cut)
    assert go_on(cut).rollbacks == 1
    told = "goes on after the rollback to step 10, of which events.jsonl does not tell: the run was killed"
    assert [event["message"] for event in left(cut).events("notice")] == [told, "resumed from step-00000010"]


def test_what_a_rollback_has_undone_is_not_gone_on_from(cut: Path) -> None:
    undone = rolled_back(cut)
    before = contents(cut / "checkpoints")
    with pytest.raises(ConfigError, match=r"must be one that no rollback has undone \(init_from starts a new run"):
        go_on(cut, resume=str(undone))
    assert contents(cut / "checkpoints") == before


def test_no_sound_checkpoint_is_refused(cut: Path) -> None:
    for folder in (cut / "checkpoints").glob("step-*"):
        truncate(folder)
    with pytest.raises(ConfigError, match=r"must hold a sound checkpoint .*step-00000010: state\.pt has 1000 bytes"):
        go_on(cut)


@pytest.mark.parametrize("resume", ["auto", "{run}", "{run}/checkpoints/step-00000010"])
def test_a_run_whose_checkpoints_are_gone_is_not_trained_anew(cut: Path, resume: str) -> None:
    for folder in (cut / "checkpoints").glob("step-*"):
        shutil.rmtree(folder)
    before = contents(cut)
    named = resume.format(run=cut)
    place = [f"hydra.run.dir={cut}"] if resume == "auto" else []
    ended = command(f"resume={named}", "trust=[interrupting]", "logger=none", *place)
    said = (
        f"resume={cut}: must be a run with its checkpoints (a new folder trains it anew);"
        f" {cut}/checkpoints holds none, but events.jsonl tells of that of step 20"
    )
    if "step" in named:
        said = f"resume={named}: must hold a sound checkpoint ({named}: there is no checkpoint of this name)"
    assert (ended.status, ended.err) == (2, [f"atlas: {said}"])
    assert {name: left for name, left in contents(cut).items() if name in before} == before


def test_two_processes_on_one_folder_get_one_message(tiny: Any, cut: Path) -> None:
    before = (cut / "summary.json").read_text()
    first = CheckpointManager(cut / "checkpoints", keep=2)
    first.lock()
    said = f"must be a folder that this run alone writes .*is being written by another run .process {os.getpid()} on "
    with pytest.raises(ConfigError, match=said):
        go_on(cut)
    first.close()
    assert (cut / "summary.json").read_text() == before
    with pytest.raises(ConfigError, match="must be a folder without a run"):
        atlas.train(tiny("trust=[interrupting]"), cut)


@pytest.mark.slow
def test_a_killed_run_is_seen_to_be_unfinished(tiny: Any, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, atlas\n"
        "from atlas.config.composition import load_config\n"
        "from atlas.telemetry.console import ConsoleSink\n"
        "from pathlib import Path\n"
        "row = ConsoleSink.row\n"
        "ConsoleSink.row = lambda self, values: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atlas.train(load_config(Path(sys.argv[1])), sys.argv[2])\n"
    )
    atlas.config.composition.save_config(tiny(), tmp_path / "given.yaml")
    command = [sys.executable, "-c", program, str(tmp_path / "given.yaml"), str(tmp_path / "run")]
    result = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert result.returncode == -9
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "running"
    assert go_on(tmp_path / "run").status == "completed"
    assert read_jsonl(tmp_path / "run" / "events.jsonl")[-1]["status"] == "completed"


@pytest.mark.slow
def test_a_run_that_is_killed_after_its_last_checkpoint_is_completed_with_all_its_numbers(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearse = Trainer._rehearse

    def killed(trainer: Trainer) -> str:
        if trainer.state.step == 0:
            return rehearse(trainer)
        raise RuntimeError("killed")

    config = tiny("train.steps=10", "niah=quick", "niah.samples=2", "niah.levels=[recall]", "niah.length_factors=[1]")
    whole = atlas.train(config, tmp_path / "whole")
    with monkeypatch.context() as kill:
        kill.setattr(Trainer, "_rehearse", killed)
        with pytest.raises(RuntimeError, match="killed"):
            atlas.train(config, tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoints" / "step-00000010").exists()
    found = go_on(tmp_path / "cut")
    assert found.status == "completed"
    for name in ("loss", "validation_loss", "validation_bits_per_byte", "memory_use", "baselines"):
        assert getattr(found, name) == getattr(whole, name), name
    assert whole.validation_bits_per_byte is not None
    assert whole.memory_use["step"] == 10
    verdicts = [{level: {**one, "seconds": 0} for level, one in run.niah.items()} for run in (found, whole)]
    assert verdicts[0] == verdicts[1]
    assert list(verdicts[0]) == ["recall"]


def test_weights_of_another_size_are_refused_with_the_settings_that_differ(tiny: Any, tmp_path: Path) -> None:
    run = Path(atlas.train(tiny("train.steps=1"), tmp_path / "run").folder)
    other = tiny("model.width=64", "model.layers=2", f"init_from={run}")
    with pytest.raises(ConfigError) as error:
        atlas.train(other, tmp_path / "other")
    assert str(error.value) == (
        f"init_from={run}/checkpoints/step-00000001: must hold the weights of this model"
        " (it has model.width=32, not 64; model.layers=1, not 2)"
    )
