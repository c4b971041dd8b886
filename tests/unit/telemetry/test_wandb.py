import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas.telemetry import wandb as module
from atlas.telemetry.jsonl import read_jsonl
from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.sinks import JsonlSink, RunInfo
from atlas.telemetry.wandb import WandbSink, decision_numbers, has_login, run_id

FAKE_KEY = "0" * 40


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture(autouse=True)
def fresh_service() -> Iterator[None]:
    """The service of one test holds its settings; the next test gets another."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def sink(**changes: Any) -> WandbSink:
    naming = {"project": "atlas", "group": "sweep-1", "name": "c16", "job_type": "train", "tags": ["tiny"]}
    return WandbSink(**{"mode": "auto", **naming, **changes})


def written_records(folder: Path) -> list[dict[str, Any]]:
    """What W&B itself reads in the run's file."""
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [json.loads(line) for line in output.splitlines()]


def of_type(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


@pytest.mark.slow
def test_an_offline_run_keeps_both_segments_the_alerts_and_the_decision_numbers(tmp_path: Path) -> None:
    logger = TelemetryLogger([JsonlSink(), sink()], every=1)
    config = {"seed": 3, "chunk_size": {"local": [16]}}
    logger.open(RunInfo(folder=tmp_path, steps=3, config=config, versions={"torch": "2.13.0"}))
    for step in (1, 2, 3):
        logger.log_step(step, {"segment": 0, "loss": 3.0 - step})
    logger.event("rollback", 3, to_step=1, reason="spike")
    logger.event("probe", 3, level="recall", passed=False)
    logger.event("sample", 3, number=1, prompt="a <b", text="c")
    for step in (2, 3):
        logger.log_step(step, {"segment": 1, "loss": 1.5 - step / 4})
    logger.close("aborted", {"reason": "too many rollbacks", "rollbacks": 3, "niah": {"recall": 0.5}, "git": "abc"})

    records = written_records(tmp_path)
    (run,) = of_type(records, "run")
    assert (run["project"], run["run_group"], run["display_name"], run["job_type"], run["tags"]) == (
        "atlas",
        "sweep-1",
        "c16",
        "train",
        ["tiny"],
    )
    assert run["run_id"] == (tmp_path / "wandb_id").read_text().strip()
    written = run["config"]["update"]
    assert (written["seed"], written["chunk_size"], written["versions"]) == (3, {"local": [16]}, {"torch": "2.13.0"})
    history = [record["item"] for record in of_type(records, "history")]
    (shown,) = [item for item in history if "loss" not in item]
    assert (shown["train/step"], shown["sample/1._type"]) == (3, "html-file")
    (page,) = (tmp_path / "wandb").glob("offline-run-*/files/media/html/sample/*.html")
    assert page.read_text() == "<pre>a &lt;b</pre><pre>c</pre>"
    rows = [item for item in history if "loss" in item]
    assert [(item["segment"], item["train/step"], item["loss"]) for item in rows] == [
        (0, 1, 2.0),
        (0, 2, 1.0),
        (0, 3, 0.0),
        (1, 2, 1.0),
        (1, 3, 0.75),
    ]
    assert all("grad_norm" not in item for item in rows)
    assert {"glob_name": "*", "step_metric": "train/step"}.items() <= of_type(records, "metric")[1].items()
    assert [(alert["title"], alert["text"]) for alert in of_type(records, "alert")] == [
        ("rollback", "step=3, to_step=1, reason=spike"),
        ("probe failed", "step=3, level=recall, passed=False"),
        ("run aborted", "too many rollbacks"),
    ]
    summary = {key: value for record in of_type(records, "summary") for key, value in record["update"].items()}
    assert (summary["rollbacks"], summary["niah/recall"], summary["status"]) == (3, 0.5, "aborted")
    assert "git" not in summary
    assert [record["exit_code"] for record in of_type(records, "exit")] == [1]  # a slow machine adds the runtime
    (notice,) = [event for event in read_jsonl(tmp_path / "events.jsonl") if event["kind"] == "notice"]
    assert notice["message"] == ("W&B is offline (no key in WANDB_API_KEY or netrc); upload later with `wandb sync`")


@pytest.mark.slow
def test_a_job_that_died_does_not_lend_its_run_to_the_next(tmp_path: Path) -> None:
    identities = []
    for job in ("0", "1"):
        folder = tmp_path / job
        folder.mkdir()
        mirror = sink(mode="offline")
        assert mirror.open(RunInfo(folder=folder, steps=1)) is None
        mirror.row({"step": 1, "loss": float(job)})
        identities.append(run_id(folder))
        if job == "1":
            mirror.close("completed", {}, [])  # job 0 never got there
    (run,) = of_type(written_records(tmp_path / "1"), "run")
    assert run["run_id"] == identities[1] != identities[0]


@pytest.mark.slow
def test_a_key_without_network_falls_back_to_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(module, "INIT_SECONDS", 2.0)
    mirror = sink()
    notice = mirror.open(RunInfo(folder=tmp_path, steps=1))
    mirror.row({"step": 1, "loss": 1.0})
    mirror.close("completed", {}, [])
    assert notice is not None
    assert notice.startswith("W&B is offline (")
    assert notice.endswith("; upload later with `wandb sync`")
    records = written_records(tmp_path)
    assert [record["item"]["loss"] for record in of_type(records, "history")] == [1]
    assert of_type(records, "run")[0]["run_id"] == f"{run_id(tmp_path)}-offline"
    assert capfd.readouterr() == ("", "")


def test_disabled_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for mirror in (sink(), sink(mode="disabled")):
        assert mirror.open(RunInfo(folder=tmp_path, steps=1)) is None
        mirror.row({"step": 1})
        mirror.close("completed", {}, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("named", "mode"), [("dryrun", "offline"), ("run", "online"), ("disabled", "disabled")])
def test_what_the_environment_asks_for_counts_with_a_login(
    named: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setenv("WANDB_MODE", named)
    assert sink()._resolve_mode() == (mode, None)


@pytest.mark.parametrize("mode", ["offline", "disabled", "online"])
def test_what_wandb_was_told_counts_with_a_login(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `wandb offline` and its like leave it in the folder where they are called."""
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(f"[default]\nmode = {mode}\n")
    assert sink()._resolve_mode() == (mode, None)


def test_a_login_is_a_key_or_a_netrc_entry_for_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_login() is False
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {FAKE_KEY}\n")
    assert has_login() is True
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert has_login() is False
    (tmp_path / "netrc").write_text("not a netrc file\n")
    assert has_login() is False
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    assert has_login() is True


def test_the_id_is_made_once_per_run_folder(tmp_path: Path) -> None:
    first = run_id(tmp_path)
    assert run_id(tmp_path) == first == (tmp_path / "wandb_id").read_text().strip()


def test_numbers_are_flat_and_the_rest_is_left_out() -> None:
    summary = {"status": "completed", "loss": 1.5, "niah": {"memory": {"accuracy": 1.0}}, "device": "cpu", "best": None}
    assert decision_numbers(summary) == {"status": "completed", "loss": 1.5, "niah/memory/accuracy": 1.0}


def test_wandb_is_not_imported_before_a_run_starts() -> None:
    program = "import sys, atlas.telemetry.wandb; print('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
