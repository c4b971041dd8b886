"""A run of several processes (gloo): the same numbers as one process, one writer, and a good order when one fails.

Each test starts its processes once (`rank_group.py`) and has them do all that it looks at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.config import Fusion, Rule
from atlas.config.composition import save_config
from tests.integration import rank_group
from tests.integration.test_data_of_a_resumed_run import NEEDLES

pytestmark = pytest.mark.slow
LIMIT_SECONDS = 400.0  # a busy machine takes many times as long as a quiet one
PROBES = ["niah.enabled=true", "niah.every=10", "niah.samples=1", "niah.tasks=[single]", "niah.depths=[0.0]"]
# Muon, two validation batches, probes, a rollback; text and recall rows.
WHOLE = [*PROBES, "optim=muon", "optim.warmup=5", "train.steps=20", "train.validation_batches=2"]
CARRY = ["model.memory.rule=momentum", "train.carry_memory=true", "train.steps=12"]


class Ranks:
    """Jobs of several processes, each with its overrides and folder, and how each ended on each rank."""

    def __init__(self, world: int, overrides: list[str], folder: Path) -> None:
        self.world, self.overrides, self.folder = world, overrides, folder
        self.jobs: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        *overrides: str,
        do: str = "train",
        folder: Path | None = None,
        rank: int = 1,
        also: Any = (),
        restart: int = 0,
        of: Path | None = None,
    ) -> Path:
        place = folder or self.folder / name
        job = {"name": name, "do": do, "overrides": [*self.overrides, *overrides], "folder": str(place)}
        self.jobs.append(job | {"rank": rank, "also": list(also), "restart": restart, "of": str(of)})
        return place

    def run(self) -> dict[str, list[str]]:
        listed = self.folder / "jobs.json"
        listed.write_text(json.dumps(self.jobs))
        command = [sys.executable, "-m", "tests.integration.rank_group", str(self.world), str(listed), str(self.folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
        self.output = done.stdout + done.stderr
        assert done.returncode == 0, self.output
        return {job["name"]: [self._ended(job["name"], rank) for rank in range(self.world)] for job in self.jobs}

    def _ended(self, name: str, rank: int) -> str:
        path = self.folder / f"{name}.rank{rank}"
        return path.read_text() if path.exists() else "killed"


def troubled(what: str, on: int = 1) -> list[str]:
    module = "tests.integration.rank_group"
    target = [f"data._target_={module}.Troubled", f"+data.trouble='{what}'", f"+data.on={on}"]
    return [*target, f"trust=[{module}]"]


def without_gates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Statistics of the gates of all ranks are put together, so they are equal up to round-off only."""
    return [{key: value for key, value in row.items() if not key.startswith("gate/")} for row in rows]


def test_two_processes_do_what_one_does_with_two_micro_batches(
    overrides: list[str], tiny: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    """Bitwise: rows, checkpoints, probes and events. Also where memories are carried, and where a signal cuts in."""
    mixed = ["data=mixed", *(f"data.recall.{setting}" for setting in NEEDLES)]
    ranks = Ranks(2, overrides, tmp_path)
    whole = ranks.add("whole", *mixed, *WHOLE, "debug.inject=nan_loss@15")
    carry = ranks.add("carry", *CARRY)
    stopped = ranks.add("stopped", *CARRY, *troubled("SIGTERM@6"))
    ranks.add("continued", *CARRY, *troubled("SIGTERM@6"), "resume=auto", folder=stopped)
    ended = ranks.run()
    assert ended == {
        "whole": ["completed"] * 2,
        "carry": ["completed"] * 2,
        "stopped": ["interrupted: stopped by SIGTERM"] * 2,
        "continued": ["completed"] * 2,
    }
    for folder, settings in ((whole, [*mixed, *WHOLE, "debug.inject=nan_loss@15"]), (carry, CARRY)):
        alone = left(Path(atlas.train(tiny(*settings, "train.accumulate=2"), tmp_path / f"{folder.name}-alone").folder))
        together = left(folder)
        assert without_gates(together.rows) == without_gates(alone.rows)
        assert same_state(together.state, alone.state)
        kinds = [[(event["kind"], event["step"]) for event in all_events(run)] for run in (together, alone)]
        assert kinds[0] == kinds[1]
    assert same_state(left(stopped).state, left(carry).state)
    assert left(stopped).events("end")[0]["reason"] == "stopped by SIGTERM"
    assert [event["message"] for event in left(stopped).events("notice")] == ["resumed from step-00000006"]
    assert left(whole).events("rollback")[0]["from_step"] == 14
    assert json.loads((whole / "summary.json").read_text())["processes"] == 2
    assert ranks.output.count("status") == 4  # one closing table for each start


def all_events(run: Any) -> list[dict[str, Any]]:
    return [
        event for kind in ("start", "probe", "spike", "rollback", "checkpoint", "end") for event in run.events(kind)
    ]


MODELS = {
    **{f"rule {rule}": [f"model.memory.rule={rule}"] for rule in Rule},
    **{f"fusion {fusion}": [f"model.fusion={fusion}"] for fusion in Fusion},
    "carried": ["model.memory.rule=momentum", "train.carry_memory=true"],
    "no memory": ["model.memory.enabled=false"],
    "accumulated": ["train.accumulate=2"],
}


def test_gradients_of_three_processes_are_those_of_one(overrides: list[str], tmp_path: Path) -> None:
    """Up to round-off, for every rule and fusion; on all ranks bitwise the same."""
    ranks = Ranks(3, [*overrides, "train.batch_size=6", "train.steps=2", "optim.lr=1e-30"], tmp_path)
    for name, settings in MODELS.items():
        ranks.add(name, *settings, do="gradients")
        if name != "carried":  # refused
            ranks.add(f"{name}, in slices", *settings, "parallel.kind=fsdp", do="gradients")
    assert ranks.run() == {job["name"]: ["done"] * 3 for job in ranks.jobs}
    for job in ranks.jobs:
        found = torch.load(job["folder"])
        rank_group.gradients({**job, "folder": str(tmp_path / "alone")}, job["overrides"])
        alone = torch.load(tmp_path / "alone")
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-6), job["name"]
        for name, gradient in alone["gradients"].items():
            if gradient is None:
                assert found["gradients"][name] is None, (job["name"], name)
                continue
            error = (found["gradients"][name].view(gradient.shape) - gradient).abs().max()
            assert error <= 2e-6 * gradient.abs().max(), (job["name"], name)


def test_ranks_that_differ_do_not_start(overrides: list[str], tmp_path: Path) -> None:
    ranks = Ranks(2, overrides, tmp_path)
    ranks.add("settings", also=["train.steps=29"])
    ranks.add("memory", do="train_other_memory")
    ranks.add("indivisible", "train.batch_size=3")
    ranks.add("processes", "train.batch_size=6", "device.processes=3")
    ended = ranks.run()
    assert ended["settings"] == ["refused: rank 1: train.steps=29 instead of 30: must be as on rank 0"] * 2
    first, second = ended["memory"]
    assert first == second
    assert first.startswith("refused: persistent memory: must be the same on every rank before step 1; rank 1 has ")
    assert first.endswith(" (first at blocks.0.persistent.keys)")
    allowed = "must be a multiple of 2 (least common multiple of train.accumulate=1 and 2 processes)"
    launcher = "device.processes=3: must be 2, or left out: the launcher has started 2"
    assert ended["processes"] == [f"refused: {launcher}"] * 2
    assert ended["indivisible"] == [f"refused: train.batch_size=3: {allowed}"] * 2
    assert not any((tmp_path / job["name"]).exists() for job in ranks.jobs)


def test_the_command_line_makes_one_folder_and_says_everything_once(
    overrides: list[str], tiny: Any, tmp_path: Path
) -> None:
    """Also what only shows something, and a run of four processes that is resumed by two."""
    ranks = Ranks(2, [*overrides, "train.steps=2"], tmp_path)
    four = tmp_path / "four" / "config.yaml"
    four.parent.mkdir()
    save_config(tiny("train.steps=2", "device.processes=4"), four)
    swept = ranks.add("swept", "-m", "seed=0,1", do="command")
    refused = ranks.add("refused", "train.batch_size=3", do="command")
    unequal = ranks.add("unequal", do="command", also=["seed=1"])
    alone = ranks.add("alone", do="command", also=["train.steps=0"])
    trained = ranks.add("trained", do="command")
    ranks.add("resumed", f"resume={four.parent}", do="command")
    for flags in (["--help"], ["--cfg", "job"], ["--plan"]):
        ranks.add(flags[0], *flags, do="command")
    ended = ranks.run()
    assert list(ended.values()) == [*[["status 2"] * 2] * 4, *[["status 0"] * 2] * 5]
    messages = [
        "-m: must be left out under torchrun, each of the 2 processes would run the sweep"
        " (hydra/launcher=joblib runs jobs side by side)",
        "train.batch_size=3: must be a multiple of 2 (least common multiple of train.accumulate=1 and 2 processes)",
        "rank 1: seed=1 instead of 0: must be as on rank 0",
        "rank 1: train.steps=0: must be >= 1",
    ]
    assert [line for line in ranks.output.splitlines() if line.startswith("atlas: ")] == [
        f"atlas: {message}" for message in messages
    ]
    assert ranks.output.count("status  ") == 2
    for once in ("trains a language model whose memory", "\nniah:\n", "\npeak memory "):
        assert ranks.output.count(once) == 1, once
    assert [list(folder.glob("outputs/runs/*")) for folder in (swept, refused, unequal, alone)] == [[]] * 4
    assert [sorted(path.name for path in run.iterdir()) for run in trained.glob("outputs/runs/*")] == [
        [
            *("checkpoints", "config.yaml", "data.json", "events.jsonl", "metrics.jsonl", "summary.json"),
            *("train.log", "train.rank1.log"),
        ]
    ]


def test_a_rank_that_is_late_or_gone_is_named_and_the_run_goes_on_from_its_checkpoint(
    overrides: list[str], tiny: Any, left: Any, same_state: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's disk is full for a while in the run that loses a rank."""
    ranks = Ranks(2, [*overrides, "train.steps=20"], tmp_path)
    late = ranks.add("late", *troubled("sleep@5"), "parallel.step_timeout_s=1.5")
    full = ranks.add("full", *troubled("full@8 room@12", on=0))
    halted = ranks.add("halted", "parallel.step_timeout_s=1", do="stop_at_end")
    gone = ranks.add("gone", *troubled("SIGKILL@13"))
    ranks.add("restarted", *troubled("SIGKILL@13"), "resume=auto", folder=gone, restart=1)
    ended = ranks.run()
    assert ended["late"][0] == "RankError: rank 1 did not reach step 5 within parallel.step_timeout_s=1.5"
    assert ended["full"] == ["completed"] * 2
    assert ended["halted"] == ["completed"] * 2
    lost = "rank 1 did not reach step 20 within parallel.step_timeout_s=1"
    assert f"warning: {lost}; the run has ended without it" in ranks.output
    assert json.loads((halted / "summary.json").read_text())["warnings"][-1] == lost
    assert left(halted).events("end")[0]["status"] == "completed"
    assert ended["gone"] == ["RankError: rank 1 is gone at step 13 (its log: train.rank1.log)", "killed"]
    for folder, (first, _) in ((late, ended["late"]), (gone, ended["gone"])):
        end = left(folder).events("end")[0]
        assert (end["status"], f"RankError: {end['reason']}") == ("failed", first)
        assert (folder / "train.rank1.log").exists()
    (warning,) = [event["message"] for event in left(full).events("warning")]
    assert warning.startswith("step 10 could not be saved in ")
    assert warning.endswith(": File too large; 2 more failures in a row stop the run, and so does one at its last step")
    assert ended["restarted"] == ["completed"] * 2
    assert [event["message"] for event in left(gone).events("notice")] == ["resumed from step-00000010"]
    assert same_state(left(gone).state, left(full).state)
    monkeypatch.setenv("RANK", "0")
    alone = tiny("train.steps=20", *troubled("sleep@5"), "resume=auto", "train.accumulate=2")
    assert atlas.train(alone, late).status == "completed"
    assert same_state(left(late).state, left(full).state)
