"""G2-1 and G2-2 on decisions made by the written rules from recorded runs, and finished sweeps as evidence."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import atlas
from atlas.config import ConfigError
from atlas.config.composition import save_config
from atlas.runs.resume import flat
from atlas.sweeps.record import Job, SweepRecord
from experiments.phase2 import chunk_sizes, probe_frequency
from experiments.phase2.check_decisions import judge_decision, require_same_origin
from experiments.phase2.chunk_sizes import BASELINE, SETS, ChunkRun
from experiments.phase2.decision import DecisionOutcome, ProtocolDecision
from experiments.phase2.evidence import sweep_overrides
from experiments.phase2.finding import CheckOutcome
from experiments.phase2.probe_frequency import ProbeRun

VERSIONS = {"torch": "2.13.0", "python": "3.11.7"}


def chunk_runs(fastest: float) -> list[ChunkRun]:
    """Two rounds of 50 steps; set A takes `fastest` times the baseline's tokens a second."""
    speeds = {BASELINE: 1000.0, **dict.fromkeys(SETS, 900.0), "Set A": 1000.0 * fastest}
    other = {"peak_memory_bytes": None, "loss": None, "validation_loss": None}
    recall = {"recall": None, "recall_control": None, "recall_chance": None}
    return [
        ChunkRun(
            job=job,
            round=job // len(speeds),
            candidate=name,
            context=512,
            configured=512,
            batch_size=8,
            fits=True,
            speeds=[speed] * 50,
            **other,
            **recall,
        )
        for job, (name, speed) in enumerate([*speeds.items()] * 2)
    ]


def test_a_set_that_is_five_times_as_fast_is_decided() -> None:
    finding = judge_decision("chunk_sizes", chunk_sizes.decide(chunk_runs(5.5)))
    assert (finding.outcome, finding.detail) == (CheckOutcome.decided, "Set A: {8,16,32,64}")
    assert finding.passed is True


def test_a_set_that_is_too_slow_is_a_stop_with_the_numbers() -> None:
    finding = judge_decision("chunk_sizes", chunk_sizes.decide(chunk_runs(2.7)))
    assert (finding.outcome, finding.detail) == (CheckOutcome.stop, "best Set A 2.70x < 5x at 512 tokens")
    assert finding.passed is False
    assert "5x" in finding.evidence[0]


def probe_runs(probe_seconds: float) -> list[ProbeRun]:
    """Two rounds of a run with 6 probes beside one without; a step takes 0.4 s."""
    costs = {None: (0, 0.0), 20: (6, 6 * probe_seconds)}
    return [
        ProbeRun(
            job=job,
            round=job // 2,
            every=every,
            steps=120,
            probes=probes,
            probe_seconds=seconds,
            train_seconds=48.0,
            wall_seconds=48.0 + seconds,
        )
        for job, (every, (probes, seconds)) in enumerate([*costs.items()] * 2)
    ]


def test_the_most_frequent_probe_below_one_percent_is_locked() -> None:
    decision = probe_frequency.decide(probe_runs(3.0))  # 3 / (3 + 500 * 0.4) = 1.5 %, every 1000 steps 0.7 %
    finding = judge_decision("probe_frequency", decision)
    assert (finding.outcome, finding.detail) == (CheckOutcome.locked, "1000 steps, 0.7% overhead")
    assert finding.passed is True


def test_an_overhead_that_is_too_high_at_every_frequency_does_not_pass() -> None:
    decision = probe_frequency.decide(probe_runs(12.0))  # 12 / (12 + 2000 * 0.4) = 1.5 %
    finding = judge_decision("probe_frequency", decision)
    assert finding.outcome is CheckOutcome.failed
    assert finding.detail.startswith("2000 steps, 1.5% overhead")


def test_a_word_without_its_pass_does_not_pass() -> None:
    for outcome in (DecisionOutcome.locked, DecisionOutcome.decided):
        finding = judge_decision("probe_frequency", ProtocolDecision(outcome, "2000 steps, 1.3% overhead", "", False))
        assert (finding.outcome, finding.detail) == (CheckOutcome.failed, "2000 steps, 1.3% overhead")


def test_a_decision_that_could_not_be_made_does_not_pass() -> None:
    finding = judge_decision("chunk_sizes", "the sweep is no evidence: a baseline is missing")
    assert (finding.outcome, finding.detail) == (
        CheckOutcome.failed,
        "the sweep is no evidence: a baseline is missing",
    )


def test_a_sweep_takes_what_it_does_not_settle_itself() -> None:
    given = ["device=cpu", "+train.steps=3", "model.width=32", "niah=off", "chunk_size=c8", "seed=1", "logger=none"]
    assert sweep_overrides("chunk_sizes", given) == (
        "experiment=chunk_size_lock",
        "device=cpu",
        "model.width=32",
        "seed=1",
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of the default configuration with two jobs, the second one a baseline."""
    choices = {"choices": {"experiment": "chunk_size_lock"}}
    OmegaConf.save({"hydra": {"runtime": choices}}, tmp_path / "multirun.yaml")
    jobs = tuple(Job(job, str(job), (), f"key {job}") for job in range(2))
    SweepRecord(("experiment=chunk_size_lock",), (), jobs).write(tmp_path)
    for job, own in enumerate(([], ["chunk_size=baseline"])):
        folder = tmp_path / str(job)
        folder.mkdir()
        save_config(atlas.compose(["device=cpu", "device.threads=1", *own]), folder / "config.yaml")
        summary = {"device": "cpu (x86_64, 1 threads)", "versions": VERSIONS, "status": "completed"}
        (folder / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def origin(*overrides: str, device: str = "cpu (x86_64, 1 threads)", torch: str = "2.13.0") -> tuple[Any, ...]:
    return device, {**VERSIONS, "torch": torch}, flat(asdict(atlas.compose(["device=cpu", *overrides])))


def test_a_finished_sweep_of_this_machine_and_configuration_is_evidence(sweep: Path) -> None:
    require_same_origin("evidence.chunk_sizes", sweep, "chunk_sizes", *origin())


def test_a_finished_sweep_of_another_origin_is_refused(sweep: Path) -> None:
    def refusal(protocol: str, *given: Any) -> str:
        with pytest.raises(ConfigError) as error:
            require_same_origin("evidence.x", sweep, protocol, *given)
        return str(error.value).removeprefix(f"evidence.x={sweep}: must be ")

    assert refusal("probe_frequency", *origin()) == "a sweep of experiment=niah_frequency, not of chunk_size_lock"
    assert refusal("chunk_sizes", *origin(device="another device")) == (
        "measured on this device, another device; job 0 ran on cpu (x86_64, 1 threads)"
    )
    assert refusal("chunk_sizes", *origin(torch="2.11.0")) == (
        "measured with the versions installed; job 0: torch 2.13.0 instead of 2.11.0"
    )
    assert refusal("chunk_sizes", *origin("model.width=64")) == (
        "measured with this configuration; job 0: model.width=128 instead of 64"
    )
    assert refusal("chunk_sizes", *origin("device.precision=bf16")) == (
        "measured with this configuration; job 0: device.precision=auto instead of bf16"
    )
