"""Sweeps whose configuration or whose jobs lie where they usually do not: resumed by the command that is printed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from experiments.phase2.sweeps import read_sweep
from tests.integration.sweep_commands import Ended, command, contents, summary, table


def printed(ended: Ended) -> list[str]:
    """The arguments of the command that says how to go on."""
    (line,) = [line for line in ended.err if line.startswith("atlas: python -m atlas.train ")]
    words = shlex.split(line)
    return words[words.index("atlas.train") + 1 : words.index("runs")]


def kill(folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps({**summary(folder), "status": "running"}), encoding="utf-8")


@pytest.fixture
def own_options(tmp_path: Path) -> Path:
    """A folder with an option of the user's own."""
    folder = tmp_path / "my conf = 1"
    (folder / "optim").mkdir(parents=True)
    option = "defaults: [adamw, _self_]\nlr: 0.003\n"
    (folder / "optim" / "mine.yaml").write_text(f"# mine\n{option}", encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-cd", "--config-dir="])
def test_the_printed_command_resumes_a_sweep_with_options_of_the_user(
    small: list[str], own_options: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place = [f"{flag}{own_options.name}"] if flag.endswith("=") else [flag, own_options.name]
    sweep = tmp_path / "it's, a sweep"
    arguments = [text for text in small if text != "optim=adamw"]
    quoted = "'" + str(sweep).replace("'", "\\'") + "'"
    more = ["optim=mine", "init_from=none,null", "train.steps=2", f"hydra.sweep.dir={quoted}"]
    failed = command("-m", *place, *arguments, *more)
    assert (failed.status, [row[2] for row in table(failed)]) == (1, ["failed", "completed"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = command(*printed(failed))
    assert again.err[0] == "atlas: 1 of 2 jobs are complete, 1 are left"
    moved = own_options.rename(tmp_path / "moved")
    assert command(*printed(failed)).status == 2
    assert command(*printed(failed), "--config-dir", str(moved)).err[0] == again.err[0]
    monkeypatch.chdir(tmp_path)
    record = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    assert record["flags"] == [f"--config-dir={own_options}"]


@pytest.mark.slow
def test_a_sweep_of_another_root_configuration_is_resumed(small: list[str], tmp_path: Path) -> None:
    folder, sweep = tmp_path / "roots", tmp_path / "sweep"
    folder.mkdir()
    (folder / "root.yaml").write_text("defaults: [config, _self_]\nseed: 5\n", encoding="utf-8")
    place = ["--config-dir", str(folder), "--config-name=root"]
    ended = command("-m", *place, *small, "train.steps=1,2", f"hydra.sweep.dir={sweep}")
    assert ended.status == 0
    kill(sweep / "1")
    resumed = command("-m", f"sweep.resume={sweep}")
    assert (resumed.status, resumed.err[0]) == (0, "atlas: 1 of 2 jobs are complete, 1 are left")
    assert "seed: 5" in (sweep / "1" / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_jobs_in_folders_of_folders_are_reported_decided_and_resumed(
    small: list[str], tmp_path: Path, launcher: str
) -> None:
    sweep = tmp_path / "sweep"
    subdir = "'seed=${seed}/steps=${train.steps}/run'"
    arguments = [*small, "seed=3,4", "train.steps=1,2", f"hydra.sweep.dir={sweep}", f"hydra.sweep.subdir={subdir}"]
    ended = command("-m", *arguments, f"hydra/launcher={launcher}")
    assert (ended.status, [row[2] for row in table(ended)]) == (0, ["completed"] * 4)
    report = (sweep / "report" / "report.md").read_text(encoding="utf-8")
    names = [f"seed={seed}/steps={steps}/run" for seed in (3, 4) for steps in (1, 2)]
    assert report.startswith("# sweep sweep\n\n4 runs: 4 completed.")
    assert all(f"| {name} " in report for name in names)
    assert {run.folder for run in read_sweep(sweep).jobs} == {sweep / name for name in names}
    kill(sweep / names[1])
    others = {name: contents(sweep / name) for name in names if name != names[1]}
    resumed = command("-m", f"sweep.resume={sweep}", "hydra/launcher=basic")
    assert (resumed.status, resumed.err[0]) == (0, "atlas: 3 of 4 jobs are complete, 1 are left")
    assert {name: contents(sweep / name) for name in others} == others


@pytest.mark.parametrize("subdir", ["a", "../${seed}", "/tmp/${seed}", "a/../..", ".", "a${oc.env:SAME}/${seed}/.."])
def test_job_folders_that_are_no_folders_of_their_own_are_refused(
    small: list[str], tmp_path: Path, subdir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAME", "b")
    sweep = tmp_path / "sweep"
    ended = command("-m", *small, "seed=3,4", f"hydra.sweep.dir={sweep}", f"hydra.sweep.subdir='{subdir}'")
    allowed = "a folder for each job, below that of the sweep and not in another job's"
    assert (ended.status, ended.err) == (2, [f"atlas: hydra.sweep.subdir={subdir}: must be {allowed}"])
    assert not sweep.exists()


def test_a_job_in_the_folder_of_another_is_refused(small: list[str], tmp_path: Path) -> None:
    place = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir='${init_from}'"]
    ended = command("-m", *small, "init_from=x,x/y", *place)
    allowed = "a folder for each job, below that of the sweep and not in another job's"
    assert (ended.status, ended.err) == (2, ["atlas: hydra.sweep.subdir=${init_from}: must be " + allowed])
