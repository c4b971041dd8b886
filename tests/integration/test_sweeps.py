"""Sweeps that survive what fails in them, stop in good order and go on where they stopped."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.telemetry.jsonl import read_jsonl
from atlas.telemetry.rows import without_clock
from tests.integration.sweep_commands import (
    REFUSED,
    SIX,
    Ended,
    command,
    contents,
    report_line,
    statuses,
    summary,
    table,
)


@pytest.fixture(scope="module")
def six(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A sweep of six jobs, one of them refused."""
    folder = tmp_path_factory.mktemp("six") / "sweep"
    return folder, command("-m", *small, *SIX, f"hydra.sweep.dir={folder}")


@pytest.fixture
def copy(six: tuple[Path, Ended], tmp_path: Path) -> Path:
    return Path(shutil.copytree(six[0], tmp_path / "sweep"))


@pytest.mark.slow
def test_one_failing_job_of_six_takes_no_other_with_it(six: tuple[Path, Ended]) -> None:
    folder, ended = six
    assert ended.status == 1
    assert statuses(folder, 6) == [*["completed"] * 5, "failed"]
    rows = table(ended)
    assert [row[:3] for row in rows] == [
        [str(number), f"train.sequence={sequence} chunk_size.shard={shard}", "failed" if number == 5 else "completed"]
        for number, (sequence, shard) in enumerate((s, c) for s in (64, 96) for c in (16, 32, 64))
    ]
    losses = [f"{summary(folder / str(number))['validation_loss']:.4f}" for number in range(5)]
    assert [row[3:] for row in rows] == [
        *([loss, "-", "resets" if number == 2 else "healthy"] for number, loss in enumerate(losses)),
        ["-", "-", "-"],
    ]
    assert len(set(losses)) > 1
    assert ended.err[-3:] == [
        f"atlas: job 5 failed: {REFUSED}; see {folder}/5",
        f"atlas: python -m atlas.train -m sweep.resume={folder} runs the jobs that are left",
        f"atlas: 5 of 6 jobs completed; see {folder}",
    ]
    assert summary(folder / "5")["reason"] == REFUSED
    assert REFUSED in (folder / "5" / "train.log").read_text(encoding="utf-8")
    assert {summary(folder / str(number))["launcher"] for number in range(6)} == {"basic"}


@pytest.mark.slow
def test_a_sweep_over_texts_has_no_best_job(small: list[str], text: Path, tmp_path: Path) -> None:
    other, sweep = tmp_path / "other.txt", tmp_path / "sweep"
    other.write_bytes(text.read_bytes()[::-1])
    ended = command("-m", *small, f"data.paths=[{text}],[{other}]", f"hydra.sweep.dir={sweep}")
    assert ended.status == 0
    why = "Not all runs can be compared, since their validation losses are of different texts or targets."
    said = ended.out.splitlines()
    (line,) = (line for line in said[said.index(report_line(ended)) :] if line.startswith(why))
    page = (sweep / "report" / "report.md").read_text()
    assert line in page
    assert ("Best run" in page, "(best)" in page) == (False, False)


@pytest.mark.slow
def test_the_report_of_a_sweep_is_written_at_its_end(six: tuple[Path, Ended]) -> None:
    folder, ended = six
    assert report_line(ended) == f"report: {folder}/report/index.html"
    report = (folder / "report" / "report.md").read_text(encoding="utf-8")
    statuses_of_runs = re.findall(r"^\| \d(?: \(best\))? \| (\w+) \|", report, re.MULTILINE)[:6]
    assert statuses_of_runs == [*["completed"] * 5, "failed"]
    assert REFUSED in report


@pytest.mark.slow
def test_resume_runs_only_the_jobs_that_did_not_complete(copy: Path) -> None:
    killed, untouched = copy / "1", {number: contents(copy / str(number)) for number in (0, 2, 3, 4)}
    uninterrupted = contents(killed)["metrics.jsonl"]
    _kill_after_checkpoint_2(killed)
    ended = command("-m", f"sweep.resume={copy}")
    assert ended.err[:3] == [
        "atlas: 4 of 6 jobs are complete, 2 are left",
        "atlas: job 1: train.sequence=64 chunk_size.shard=32",
        "atlas: job 5: train.sequence=96 chunk_size.shard=64",
    ]
    assert (ended.status, statuses(copy, 6)) == (1, [*["completed"] * 5, "failed"])
    assert {number: contents(copy / str(number)) for number in untouched} == untouched
    assert [without_clock(row) for row in read_jsonl(killed / "metrics.jsonl")] == [
        without_clock(json.loads(line)) for line in uninterrupted.splitlines()
    ]
    notices = [event.get("message") for event in read_jsonl(killed / "events.jsonl")]
    assert "resumed from step-00000002" in notices
    assert not (copy / "6").exists()


def _kill_after_checkpoint_2(folder: Path) -> None:
    """Make of a complete run what a kill during step 3 leaves."""
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    killed = {**summary(folder), "status": "running", "reason": ""}
    (folder / "summary.json").write_text(json.dumps(killed), encoding="utf-8")


@pytest.mark.slow
def test_a_job_that_failed_without_a_checkpoint_starts_again_and_keeps_its_log(
    small: list[str], text: Path, tmp_path: Path
) -> None:
    source, sweep = tmp_path / "source.txt", tmp_path / "sweep"
    arguments = [*small[:-1], f"data.paths=[{source}]", "seed=0,1", f"hydra.sweep.dir={sweep}"]
    failed = command("-m", *arguments)
    assert (failed.status, statuses(sweep, 2)) == (1, ["failed", "failed"])
    log = (sweep / "0" / "train.log").read_text(encoding="utf-8")
    assert "ConfigError" in log
    shutil.copy(text, source)
    resumed = command(f"sweep.resume={sweep}")  # -m may be left out
    assert (resumed.status, statuses(sweep, 2)) == (0, ["completed", "completed"])
    assert (sweep / "0" / "train.log").read_text(encoding="utf-8").startswith(log)
    assert [row["step"] for row in read_jsonl(sweep / "0" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert resumed.err[-1] == f"atlas: 2 of 2 jobs completed; see {sweep}"
    again = command("-m", f"sweep.resume={sweep}")
    assert (again.status, again.err) == (
        0,
        ["atlas: 2 of 2 jobs are complete, 0 are left", f"atlas: 2 of 2 jobs completed; see {sweep}"],
    )


@pytest.mark.slow
def test_fail_fast_starts_no_job_after_the_first_failure(small: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    ended = command("-m", *small, "init_from=none,null,null", "sweep.fail_fast=true", f"hydra.sweep.dir={sweep}")
    assert (ended.status, statuses(sweep, 3)) == (1, ["failed", None, None])
    assert [row[2] for row in table(ended)] == ["failed", "not started", "not started"]
    assert "atlas: 2 of the jobs not started: job 0 failed (sweep.fail_fast)" in ended.err
    assert [path.name for path in sweep.iterdir() if path.name.isdigit()] == ["0"]
    resumed = command("-m", f"sweep.resume={sweep}", "sweep.fail_fast=false")
    assert (resumed.status, statuses(sweep, 3)) == (1, ["failed", "completed", "completed"])


@pytest.mark.slow
def test_an_interrupted_sweep_ends_in_good_order_and_goes_on_bitwise(
    small: list[str], tmp_path: Path, interrupting: Any, left: Any, same_state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "sweep"
    logger = [f"+logger.{key}={value!r}" for key, value in interrupting(at=3).items()]
    trust = "trust=[interrupting]"
    ended = command("-m", *small, *logger, trust, "seed=1,2", f"hydra.sweep.dir={sweep}")
    assert (ended.status, statuses(sweep, 2)) == (130, ["aborted", None])
    assert ended.err[-4:] == [
        f"atlas: job 0 aborted: interrupted (Ctrl-C or SIGTERM); see {sweep}/0",
        "atlas: 1 of the jobs not started: the sweep was interrupted",
        f"atlas: python -m atlas.train -m sweep.resume={sweep} runs the jobs that are left",
        f"atlas: 0 of 2 jobs completed; see {sweep}",
    ]
    monkeypatch.delattr(f"{interrupting()['_target_']}.progress")
    assert command("-m", f"sweep.resume={sweep}", trust).status == 0
    atlas.train(atlas.compose([*small, "seed=1"]), tmp_path / "undisturbed")
    assert left(sweep / "0").rows == left(tmp_path / "undisturbed").rows
    assert same_state(left(sweep / "0").state["model"], left(tmp_path / "undisturbed").state["model"])


@pytest.mark.slow
def test_the_number_of_a_repeat_changes_nothing(small: list[str], tmp_path: Path, left: Any) -> None:
    sweep = tmp_path / "sweep"
    ended = command("-m", *small, "train.steps=1", "sweep.round=0,1", f"hydra.sweep.dir={sweep}")
    assert [row[1:3] for row in table(ended)] == [["sweep.round=0", "completed"], ["sweep.round=1", "completed"]]
    assert left(sweep / "0").rows == left(sweep / "1").rows
    assert summary(sweep / "0")["config_hash"] == summary(sweep / "1")["config_hash"]


REFUSALS = {
    "another setting": (
        ["seed=3"],
        r"seed=3: must be left out, or as in .*/sweep\.json, to resume that sweep; only lo",
    ),
    "a swept one": (["chunk_size.shard=8"], r"chunk_size\.shard=8: must be left out: the sweep gives it several value"),
    "a group of it": (["chunk_size=c8"], r"chunk_size=c8: must be left out: the sweep gives it several values"),
    "more jobs": (["telemetry.every=1,2"], r"sweep\.resume=.*: must be a sweep of 12 jobs, not 6"),
    "other place": (["hydra.sweep.dir=x"], r"hydra\.sweep\.dir=x: must be left out"),
    "a single run": (["resume=auto"], r"resume=auto: must be left out"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("more", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_resumed_sweep_stays_the_same(six: tuple[Path, Ended], more: list[str], message: str) -> None:
    before = contents(six[0])
    ended = command("-m", f"sweep.resume={six[0]}", *more)
    assert (ended.status, len(ended.err)) == (2, 1)
    assert re.match(f"atlas: {message}", ended.err[0])
    assert contents(six[0]) == before


@pytest.mark.slow
def test_what_writes_and_watches_may_change(copy: Path) -> None:
    ended = command("-m", f"sweep.resume={copy}", "checkpoint.every=1", "device.threads=0", "train.steps=4")
    assert ended.err[0] == "atlas: 5 of 6 jobs are complete, 1 are left"


@pytest.mark.slow
def test_an_edited_configuration_is_noticed(copy: Path) -> None:
    record = json.loads((copy / "sweep.json").read_text(encoding="utf-8"))
    record["jobs"][2]["key"] = "of other settings"
    (copy / "sweep.json").write_text(json.dumps(record), encoding="utf-8")
    ended = command("-m", f"sweep.resume={copy}")
    assert (ended.status, ended.err) == (
        2,
        [
            f"atlas: sweep.resume={copy}: must be a sweep whose jobs compose as at its start; job 2 has other settings"
            " now (was conf/ edited, or the package updated?)"
        ],
    )


def test_only_a_sweep_can_be_resumed_and_only_by_the_command_line(tmp_path: Path, small: list[str]) -> None:
    missing = command("-m", f"sweep.resume={tmp_path}")
    assert (missing.status, missing.err) == (
        2,
        [f"atlas: sweep.resume={tmp_path}: must be the folder of a sweep (with sweep.json)"],
    )
    with pytest.raises(atlas.ConfigError, match=r"^sweep\.resume=x: must be given on the command line"):
        atlas.train(atlas.compose([*small, "sweep.resume=x"]), tmp_path / "run")


@pytest.mark.slow
def test_a_second_sweep_in_the_same_folder_is_refused(six: tuple[Path, Ended], small: list[str]) -> None:
    folder = six[0]
    ended = command("-m", *small, "seed=0,1", f"hydra.sweep.dir={folder}")
    allowed = f"must be a folder without a sweep (sweep.resume={folder} continues it)"
    assert (ended.status, ended.err) == (2, [f"atlas: hydra.sweep.dir={folder}: {allowed}"])


@pytest.mark.slow
def test_a_sweep_that_is_cut_short_between_its_first_files_can_be_gone_on_with(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sweep, start = tmp_path / "sweep", ["-m", *small, "seed=0,1", "train.steps=1", f"hydra.sweep.dir={tmp_path}/sweep"]
    said = f"atlas: hydra.sweep.dir={sweep}: must be a folder that can be written (No space left on device)"
    for place in ("atlas.sweeps.sweep_record.write_atomically", "atlas.sweeps.sweeper.OmegaConf.save"):
        with monkeypatch.context() as full:
            full.setattr(place, refuse)
            ended = command(*start)
        assert (ended.status, ended.err) == (2, [said])
        (sweep / "multirun.yaml").touch()  # what an earlier version has left
    (sweep / "multirun.yaml").unlink()
    assert command(f"sweep.resume={sweep}").status == 0
    assert statuses(sweep, 2) == ["completed", "completed"]
    assert (sweep / "multirun.yaml").read_text().startswith("hydra:")


@pytest.mark.slow
def test_an_experiment_may_make_itself_a_sweep(small: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    more = ["hydra.mode=MULTIRUN", "+hydra.sweeper.params.seed='0,1'", "train.steps=1"]
    ended = command(*small, *more, f"hydra.sweep.dir={sweep}")
    assert (ended.status, [row[1] for row in table(ended)]) == (0, ["seed=0", "seed=1"])
    _kill_after_start(sweep / "1")
    assert command(f"sweep.resume={sweep}").err[0] == "atlas: 1 of 2 jobs are complete, 1 are left"


def _kill_after_start(folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps({**summary(folder), "status": "running"}), encoding="utf-8")


@pytest.mark.slow
def test_a_value_that_no_job_can_use_is_refused_before_the_first_job(small: list[str], tmp_path: Path) -> None:
    """A grid with a hole runs: `six`."""
    place = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    ended = command("-m", *small, "seed=0,-1", "train.steps=1,2", place)
    assert (ended.status, ended.err) == (2, ["atlas: seed=-1: must be in [0, 2**63)"])
    ended = command("-m", "experiment=niah_frequency", "train.batch_size=0", place)
    assert (ended.status, ended.err) == (2, ["atlas: train.batch_size=0: must be >= 1"])
    assert not (tmp_path / "sweep").exists()
