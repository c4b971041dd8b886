"""G2-1 and G2-2 on decisions made by the written rules from recorded runs, and finished sweeps as evidence."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import atlas
from atlas.config import ConfigError
from atlas.config.composition import save_config
from atlas.config.keys import flat, plain
from atlas.sweeps.sweep_record import Job, SweepRecord
from experiments.phase2.arguments import ExitArguments
from experiments.phase2.check_decisions import judge_decision, require_same_origin
from experiments.phase2.decision import DecisionOutcome, ProtocolDecision
from experiments.phase2.defaults import default_config
from experiments.phase2.evidence import Evidence, sweep_overrides
from experiments.phase2.finding import CheckOutcome
from experiments.phase2.quiet import Machine, MachineClock, Quiet, Spread, spread_between_rounds, write_machine
from tests.unit.phase2.test_chunk_sizes import runs, table
from tests.unit.phase2.test_evidence import WriteSweep, probe_jobs, write_sweep

__all__ = ["write_sweep"]

SPREAD = Spread(0.03, "Set A at 4,096 tokens")
QUIET = Quiet(Machine(load_before=0.31, cores=2, others=0.01), SPREAD)
VERSIONS = {"torch": "2.13.0", "python": "3.11.7"}


@pytest.mark.parametrize(
    ("outcome", "passed", "found"),
    [
        (DecisionOutcome.decided, True, CheckOutcome.decided),
        (DecisionOutcome.out_of_reach, True, CheckOutcome.out_of_reach),
        (DecisionOutcome.locked, True, CheckOutcome.locked),
        (DecisionOutcome.stop, False, CheckOutcome.stop),
        (DecisionOutcome.locked, False, CheckOutcome.failed),  # flagged: too costly at every frequency
        (DecisionOutcome.decided, False, CheckOutcome.failed),
    ],
)
def test_only_a_decision_that_passed_its_criterion_passes(
    outcome: DecisionOutcome, passed: bool, found: CheckOutcome
) -> None:
    decision = ProtocolDecision(outcome, "Set A: {8,16,32,64}", "the numbers", "Use it.", passed)
    finding = judge_decision("chunk_sizes", decision, QUIET)
    quiet = (
        "Load before: 0.31 on 2 cores. Used by others meanwhile: 1% (at most 10%)."
        " Largest spread between rounds: 3%, Set A at 4,096 tokens (at most 15%)."
    )
    evidence = ("the numbers", quiet)
    assert (finding.outcome, finding.detail, finding.evidence) == (found, "Set A: {8,16,32,64}", evidence)
    assert finding.passed is passed
    assert finding.numbers == {
        "protocol": "chunk_sizes",
        "outcome": outcome.value,
        "headline": "Set A: {8,16,32,64}",
        "passed": passed,
        "machine": {
            "load_before": 0.31,
            "cores": 2,
            "others": 0.01,
            "spread": 0.03,
            "spread_of": "Set A at 4,096 tokens",
        },
    }


@pytest.mark.parametrize(
    ("found", "trouble"),
    [
        (
            Quiet(Machine(0.1, 2, 0.38), SPREAD),
            "the machine was not quiet: other processes used 38% of its cores' time",
        ),
        (Quiet(Machine(0.1, 2, 0.01), Spread(0.2, "x")), "the machine was not quiet: rounds differ by 20%, x"),
        (Quiet(Machine(0.6, 2, None), SPREAD), "the machine was not quiet: its load before was 0.60 on 2 cores"),
        (Quiet(None, SPREAD), "not recorded whether the machine was quiet: no machine.json beside the sweep"),
    ],
)
def test_times_of_a_machine_that_is_not_quiet_do_not_pass(found: Quiet, trouble: str) -> None:
    decision = ProtocolDecision(DecisionOutcome.decided, "Set A", "the numbers", "Use it.", True)
    finding = judge_decision("chunk_sizes", decision, found)
    assert (finding.outcome, finding.detail) == (CheckOutcome.failed, trouble)
    assert finding.evidence[-1] == "Not counted: DECIDED (Set A)"


def test_the_largest_spread_of_any_context_is_told_with_its_context() -> None:
    speeds = table(100, 50, 60, 70) | table(100, 50, 60, 70, context=4096)
    speeds[4096, "Set B"] = [60, 66]
    found = spread_between_rounds(runs(speeds))
    assert (found.share, found.of) == (pytest.approx(6 / 63), "Set B at 4,096 tokens")


def test_a_finished_sweep_is_judged_by_what_was_recorded_with_it(write_sweep: WriteSweep, tmp_path: Path) -> None:
    """Whatever the machine does now."""
    sweep = write_sweep(probe_jobs(), "niah_frequency")
    found = []
    for recorded in (None, Machine(5.0, 2, 0.02), Machine(0.0, 2, 0.5)):
        if recorded is not None:
            write_machine(recorded, sweep)
        evidence = Evidence(ExitArguments(default_config(), (), (), None, {"probe_frequency": sweep}), tmp_path, print)
        decision = evidence.decision("probe_frequency")
        found.append(judge_decision("probe_frequency", decision, evidence.quiet["probe_frequency"]).detail)
    assert found == [
        "not recorded whether the machine was quiet: no machine.json beside the sweep",
        "500 steps, 0.7% overhead",
        "the machine was not quiet: other processes used 50% of its cores' time",
    ]


def test_work_of_others_is_told_from_that_of_a_child() -> None:
    """The other process is not waited for by this one until its share was read."""
    burn = "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    own = MachineClock()
    subprocess.run([sys.executable, "-c", burn], check=True)
    of_a_child = own.share()
    clock = MachineClock()
    stranger = subprocess.Popen(
        [sys.executable, "-c", burn + "\nprint(flush=True)\ntime.sleep(60)"], stdout=subprocess.PIPE
    )
    assert stranger.stdout is not None
    stranger.stdout.readline()
    of_a_stranger = clock.share()
    stranger.kill()
    stranger.communicate()
    assert of_a_child is not None
    assert of_a_stranger is not None
    assert of_a_stranger - of_a_child > 0.1


def test_a_decision_that_could_not_be_made_does_not_pass() -> None:
    finding = judge_decision("chunk_sizes", "the sweep is no evidence: a baseline is missing", None)
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
    given = ["train.batch_size=4", "train.steps=3", "niah.samples=2", "niah.every=9", "niah=off", "chunk_size=c8"]
    kept = ("train.batch_size=4", "niah.samples=2", "chunk_size=c8")
    assert sweep_overrides("probe_frequency", given) == ("experiment=niah_frequency", *kept)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of the default configuration with two jobs, the second one a baseline."""
    tmp_path = tmp_path_factory.mktemp("sweep")
    choices = {"choices": {"experiment": "chunk_size_lock"}}
    OmegaConf.save({"hydra": {"runtime": choices}}, tmp_path / "multirun.yaml")
    jobs = tuple(Job(job, str(job), (), f"key {job}") for job in range(2))
    SweepRecord(("experiment=chunk_size_lock",), (), jobs).write(tmp_path)
    for job, own in enumerate(([], ["chunk_size=baseline"])):
        folder = tmp_path / str(job)
        folder.mkdir()
        settings = ["experiment=chunk_size_lock", "device=cpu", "device.threads=1", "train.steps=50", *own]
        save_config(atlas.compose(settings), folder / "config.yaml")
        summary = {"device": "cpu (x86_64, 1 threads)", "versions": VERSIONS, "status": "completed", "git": "abc1234"}
        (folder / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def origin(
    *overrides: str, device: str = "cpu (x86_64, 1 threads)", torch: str = "2.13.0", git: str = "abc1234"
) -> tuple[Any, ...]:
    return device, {**VERSIONS, "torch": torch}, git, composed(overrides)


@cache
def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    return flat(plain(atlas.compose(sweep_overrides("chunk_sizes", ["device=cpu", *overrides]))))


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
    assert refusal("chunk_sizes", *origin(git="fed4321")) == "measured at this revision, fed4321; job 0 ran abc1234"
    others = (
        "device.precision=bf16",
        "model.width=64",
        "train.accumulate=2",
        "optim.lr=0.5",
        "data.recall_hold=0.25",
        "seed=3",
    )
    assert refusal("chunk_sizes", *origin(*others)) == (
        "measured with this configuration; job 0: data.recall_hold=0.5 instead of 0.25,"
        " device.precision=auto instead of bf16,"
        " model.width=128 instead of 64, optim.lr=0.002 instead of 0.5, seed=0 instead of 3,"
        " train.accumulate=1 instead of 2"
    )
