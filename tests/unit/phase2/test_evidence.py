"""From sweep folders to evidence: what is read, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas.config import ConfigError
from atlas.config.continuing import settings_hash
from atlas.runs.summary import RunSummary
from atlas.telemetry.rows import make_row
from experiments.phase2 import chunk_sizes, probe_frequency
from experiments.phase2.chunk_runs import SETS
from experiments.phase2.decide import PROTOCOLS, decide_sweeps
from experiments.phase2.decision import make_record, protocol_of, read_record
from experiments.phase2.sweeps import read_sweep

SECONDS = 60.0  # of a job, and between the starts of two

BASE: dict[str, Any] = {
    "model": {"memory": {"enabled": True, "use_global": True}, "native": {"sequence": 512}},
    "chunk_size": {"local": [8], "shard": 128, "global_size": 128},
    "train": {"sequence": 512, "batch_size": 8, "steps": 50},
    "niah": {"enabled": True, "every": 1000},
    "telemetry": {"every": 1},
    "optim": {"lr": 0.002},
    "logger": {},
    "sweep": {"round": 0},
}
BASELINE = {"chunk_size.shard": 512, "model.memory.use_global": False}
WriteSweep = Callable[..., Path]


@dataclass
class Job:
    """One job with its defaults; `settings` are nested as in config.yaml."""

    settings: dict[str, Any]
    status: str = "completed"
    reason: str = ""
    launcher: str = "basic"
    device: str = "cpu (a processor, 1 threads)"
    versions: dict[str, str] = field(default_factory=lambda: {"torch": "2.13.0"})
    speeds: Sequence[float] = (100.0,) * 50
    probes: int = 0
    probe_seconds: float = 0.0
    train_seconds: float = 20.0
    config_hash: str = ""  # "" = that of its settings
    data_digest: str = "of the text"
    measurements: Sequence[tuple[int, float, float]] = ()  # step, validation loss, recall
    start: float | None = None  # of the first start, seconds; None = after the job before
    starts: int = 1
    rollbacks: int = 0
    bytes_per_token: float = 1.0

    def write(self, folder: Path, number: int) -> None:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(self.settings), encoding="utf-8")
        RunSummary(
            str(folder),
            status=self.status,
            reason=self.reason,
            step=len(self.speeds),
            loss=3.0,
            seconds={"train": self.train_seconds, "probe": self.probe_seconds},
            config_hash=self.config_hash or settings_hash(self.settings),
            data_digest=self.data_digest,
            niah={"recall": {"accuracy": 0.25, "control": 0.0, "chance": 0.0625}},
            device=self.device,
            versions=self.versions,
            launcher=self.launcher,
            peak_memory_bytes=2**30,
            bytes_per_token=self.bytes_per_token,
        ).write()
        start = number * SECONDS if self.start is None else self.start
        events = [{"kind": "start", "step": 0, "time": start + extra} for extra in range(self.starts)]
        events += [{"kind": "probe", "step": step, "time": start + 5} for step in range(self.probes) for _ in range(3)]
        events += [{"kind": "rollback", "step": 0, "time": start + 6}] * self.rollbacks
        for step, _, recall in self.measurements:
            events.append({"kind": "probe", "step": step, "time": start + 5, "level": "recall", "accuracy": recall})
        events.append({"kind": "end", "step": len(self.speeds), "time": start + SECONDS - 1})
        rows = [make_row({"step": step, "tokens_per_second": speed}) for step, speed in enumerate(self.speeds, 1)]
        rows.append(make_row({"step": len(self.speeds), "tokens_per_second": 1e9}))  # of the last step once more
        rows += [make_row({"step": step, "validation/loss": loss}) for step, loss, _ in self.measurements]
        for name, lines in (("events", events), ("metrics", rows)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def write_sweep(tmp_path: Path) -> WriteSweep:
    """Writes jobs into a sweep folder."""

    def write(jobs: Sequence[Job], experiment: str | None = None, name: str = "sweep") -> Path:
        sweep = tmp_path / name
        for number, job in enumerate(jobs):
            job.write(sweep / str(number), number)
        listed = [{"number": number, "folder": str(number)} for number in range(len(jobs))]
        task = [f"experiment={experiment}", "data.paths=[a b]"]
        (sweep / "sweep.json").write_text(json.dumps({"task": task, "jobs": listed}), encoding="utf-8")
        choices = {"hydra": {"runtime": {"choices": {"experiment": experiment}}}}
        (sweep / "multirun.yaml").write_text(yaml.safe_dump(choices), encoding="utf-8")
        return sweep

    return write


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` given as {"group.key": value}."""
    result = json.loads(json.dumps(base))
    for path, value in changes.items():
        *groups, key = path.split(".")
        node = result
        for group in groups:
            node = node.setdefault(group, {})
        node[key] = value
    return dict(result)


def chunk_jobs() -> list[Job]:
    jobs = []
    for number in (0, 1):
        jobs.append(Job(merged(BASE, {**BASELINE, "sweep.round": number, "logger.name": "a"})))
        for sizes in SETS.values():
            jobs.append(Job(merged(BASE, {"chunk_size.local": list(sizes), "sweep.round": number, "logger.name": "b"})))
    return jobs


def probe_jobs() -> list[Job]:
    jobs = []
    for number in (0, 1):
        with_probes = {"niah.every": 20, "sweep.round": number}
        jobs.append(Job(merged(BASE, with_probes), probes=2, probe_seconds=3.0))
        jobs.append(Job(merged(BASE, {"niah.enabled": False, "sweep.round": number})))
    return jobs


def refusal(sweep: Path, protocol: str = "chunk_sizes") -> str:
    with pytest.raises(ConfigError) as error:
        decide_sweeps([sweep], protocol)
    return str(error.value)


def test_jobs_become_evidence_on_chunk_sizes(write_sweep: WriteSweep) -> None:
    jobs = chunk_jobs()
    jobs[1].speeds = [*range(1, 51)]
    evidence = chunk_sizes.gather([read_sweep(write_sweep(jobs))])
    assert [(run.round, run.candidate) for run in evidence] == [
        (number, name) for number in (0, 1) for name in ("baseline", *SETS)
    ]
    second = evidence[1]
    assert second.speeds == [*range(1, 51)]  # the row that came again with the last step's other values is left out
    assert (second.context, second.configured, second.batch_size, second.fits) == (512, 512, 8, True)


def test_jobs_become_evidence_on_the_probe_frequency(write_sweep: WriteSweep) -> None:
    first, second, *_ = probe_frequency.gather([read_sweep(write_sweep(probe_jobs()))])
    assert (first.every, first.probes, first.probe_seconds, first.train_seconds) == (20, 2, 3.0, 20.0)
    assert (second.every, second.probes, second.wall_seconds) == (None, 0, 59.0)


def test_a_record_is_read_back_as_it_was_written(write_sweep: WriteSweep, tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(chunk_jobs(), "chunk_size_lock"))
    record = make_record([sweep], protocol_of(sweep, "", PROTOCOLS))
    path = tmp_path / "decision.json"
    path.write_text(record.json(), encoding="utf-8")
    assert read_record(path, PROTOCOLS) == record
    assert record.decision.headline.startswith("best Set C 1.00x < 5x at 512 tokens; not investigated")
    (source,) = record.provenance
    assert source.command == "python -m atlas.train -m experiment=chunk_size_lock 'data.paths=[a b]'"
    assert (source.runs, source.minutes) == (8, 8.0)


def test_a_set_that_does_not_fit_in_memory_is_evidence(write_sweep: WriteSweep) -> None:
    jobs = chunk_jobs()
    for job in (jobs[1], jobs[5]):
        job.status, job.reason = "failed", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    evidence = chunk_sizes.gather([read_sweep(write_sweep(jobs))])
    assert [run.candidate for run in evidence if not run.fits] == ["Set A", "Set A"]
    assert [len(run.speeds) for run in evidence if not run.fits] == [0, 0]


def test_a_protocol_is_known_by_its_experiment_or_named(write_sweep: WriteSweep) -> None:
    sweep = read_sweep(write_sweep(probe_jobs()))
    with pytest.raises(ConfigError, match=r"^experiment=none: must be chunk_size_lock or chunk_size_learning or "):
        protocol_of(sweep, "", PROTOCOLS)
    assert protocol_of(sweep, "probe_frequency", PROTOCOLS).experiments == ("niah_frequency",)
    with pytest.raises(
        ConfigError, match=r"^protocol=luck: must be one of chunk_sizes, probe_frequency, rollback_threshold$"
    ):
        protocol_of(sweep, "luck", PROTOCOLS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "running"}, "job 3 status=running: must be completed (it was killed)"),
        (
            {"status": "failed", "reason": "ValueError: a\nb"},
            "job 3 status=failed: must be completed (ValueError: a b)",
        ),
        ({"launcher": "joblib"}, "job 3 launcher=joblib: must be basic: timings of jobs that ran in parallel are no"),
        ({"device": "another"}, "job 3 device=another: must be cpu (a processor, 1 threads), as in job 0"),
        ({"data_digest": "another"}, "job 3 data_digest=another: must be of the text, as in job 0"),
        ({"config_hash": "ffff"}, "job 3 config_hash=ffff: must be "),
        ({"speeds": [1.0] * 49}, "job 3 step=49: must be 50, as in train.steps"),
        ({"speeds": [-1.0] + [1.0] * 49}, "job 3 speeds[0]=-1.0: must be > 0"),
        ({"versions": {"torch": "2.6"}}, "job 3 versions=torch 2.6: must be torch 2.13.0, as in job 0"),
        ({"starts": 2}, "job 3 starts=2: must be 1: a continued run mixes the timings of two moments"),
        ({"rollbacks": 1}, "job 3 rollbacks=1: must be 0: its times are of undone steps as well"),
        ({"start": 130.0}, "job 3 start=-49.0 s: must be after the end of job 2: the jobs overlapped"),
        ({"start": 900.0}, "job 4 start=-719.0 s: must be after the end of job 3: the jobs overlapped"),
        ({"speeds": [None] + [1.0] * 49}, "job 3 telemetry.every=1: must be telemetry.every=1: 49 of 50 steps were"),
    ],
)
def test_a_job_that_cannot_be_compared_is_refused(
    change: dict[str, Any], message: str, write_sweep: WriteSweep
) -> None:
    jobs = chunk_jobs()
    for name, value in change.items():
        setattr(jobs[3], name, value)
    assert refusal(write_sweep(jobs)).startswith(message)


@pytest.mark.parametrize(
    ("job", "change", "message"),
    [
        (2, {"optim.lr": 0.1}, "job 2 optim.lr=0.1: must be 0.002, as in job 0"),
        (2, {"train.batch_size": 4}, "job 2 train.batch_size=4: must be 8, as in job 0"),
        (2, {"train.steps": 60}, "job 2 step=50: must be 60, as in train.steps"),
        (2, {"chunk_size.global_size": 64}, "job 2 chunk_size.global_size=64: must be 128, as in job 1"),
        (2, {"model.memory.enabled": False}, "model.memory.enabled=False: must be true: without a memory there are"),
        (0, {"chunk_size.shard": 256}, "job 1 chunk_size.shard=128: must be 256, as in job 0"),
        (1, {"sweep.round": 1}, "sweep.round=[0, 1, 0, 0, 1, 1, 1, 1]: must be the first key of the sweep, so that"),
        (5, {"chunk_size.local": [16]}, "runs of {16} in round 0=0: must be 1"),
    ],
)
def test_settings_that_differ_are_refused(
    job: int, change: dict[str, Any], message: str, write_sweep: WriteSweep
) -> None:
    jobs = chunk_jobs()
    jobs[job].settings = merged(jobs[job].settings, change)
    assert refusal(write_sweep(jobs)).startswith(message)


def test_one_round_is_refused(write_sweep: WriteSweep) -> None:
    assert refusal(write_sweep(chunk_jobs()[:4])).startswith("sweep.round=[0]: must be at least 2 different values")


def test_rounds_that_are_not_interleaved_are_refused(write_sweep: WriteSweep) -> None:
    jobs = chunk_jobs()
    assert refusal(write_sweep([job for pair in zip(jobs[:4], jobs[4:], strict=True) for job in pair])).startswith(
        "sweep.round=[0, 1, 0, 1, 0, 1, 0, 1]: must be the first key of the sweep"
    )


def test_other_settings_than_those_of_the_probes_are_refused(write_sweep: WriteSweep) -> None:
    jobs = probe_jobs()
    jobs[2].settings = merged(jobs[2].settings, {"niah.samples": 4})
    with pytest.raises(ConfigError, match=r"^job 2 niah.samples=4: must be None, as in job 0$"):
        probe_frequency.gather([read_sweep(write_sweep(jobs))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe_seconds": -1.0}, "job 2 probe_seconds=-1.0: must be >= 0"),
        ({"probe_seconds": 0.0}, "job 2 probe_seconds=0.0: must be > 0, for it ran probes"),
        ({"train_seconds": 0.0}, "job 2 train_seconds=0.0: must be > 0"),
        ({"train_seconds": float("nan")}, "job 2 train_seconds=None: must be a number"),
    ],
)
def test_seconds_that_no_clock_shows_are_refused(change: dict[str, Any], message: str, write_sweep: WriteSweep) -> None:
    jobs = probe_jobs()
    for name, value in change.items():
        setattr(jobs[2], name, value)
    assert refusal(write_sweep(jobs), "probe_frequency") == message


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be the folder of a sweep \(sweep.json is not in it\)$"):
        read_sweep(tmp_path)


def test_a_job_that_has_not_run_is_refused(write_sweep: WriteSweep) -> None:
    sweep = write_sweep(probe_jobs())
    (sweep / "3" / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"job 3 left no summary.json; `python -m .* sweep.resume=.*` runs it"):
        read_sweep(sweep)


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.jsonl", "events.jsonl"])
def test_a_damaged_file_is_refused(name: str, write_sweep: WriteSweep) -> None:
    sweep = write_sweep(chunk_jobs(), "chunk_size_lock")
    path = sweep / "2" / name
    path.write_bytes(b"{damaged: [\n" + path.read_bytes())
    refused = (
        rf"^{path}: must be plain YAML" if name == "config.yaml" else r"^SWEEP=.*: must be a sweep whose files can be"
    )
    with pytest.raises(ConfigError, match=refused):
        decide_sweeps([sweep])
