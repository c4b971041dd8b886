"""Failures of processes, and of what is read of a run afterwards."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from atlas.generate import main as generate
from atlas.report.__main__ import main as report
from atlas.runs.summary import read_summary
from experiments.silent.bench import SMALL, STEPS, TEXT, Bench, Ended, Running, train
from experiments.silent.failure import Facts, Failure, Finding, facts, with_optimizer

MIDDLE = 100
ENDLESS = "train.steps=100000"


def told(ended: Ended, *texts: str) -> Facts:
    """What commands that read runs have said: every line is a finding of its own."""
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return Facts(ended.status, [Finding("told", line) for line in lines])


def reported(bench: Bench, *folders: Path) -> tuple[Ended, str]:
    """`python -m atlas.report`: how it ended, and report.md."""
    target = bench.scratch / "report"
    ended = bench.run(*map(str, folders), f"target={target}", main=report)
    page = target / "report.md"
    return ended, page.read_text(encoding="utf-8") if page.exists() else ended.printed


def killed(bench: Bench, broken: bool) -> Facts:
    """The process is killed (SIGKILL), or goes on, while a report and `read_summary` look at the run."""
    running = bench.start(*TEXT, ENDLESS)
    running.wait_for_step(MIDDLE)
    if broken:
        os.kill(running.process, signal.SIGKILL)
        running.wait()
    ended, text = reported(bench, running.folder)
    summary = read_summary(running.folder)
    if not broken:
        os.kill(running.process, signal.SIGINT)
        running.wait()
    words = summary.status if summary else "?"
    return told(ended, text, f"read_summary: {words}")


def report_of_half_a_run(bench: Bench, broken: bool) -> Facts:
    """A report is made while the run is half way, or after its end."""
    running = bench.start(*TEXT)
    if broken:
        running.wait_for_step(MIDDLE)
        os.kill(running.process, signal.SIGSTOP)
    else:
        running.wait()
    ended, text = reported(bench, running.folder)
    if broken:
        os.kill(running.process, signal.SIGCONT)
        running.wait()
    return told(ended, text)


def sweep(bench: Bench, *settings: str) -> list[str]:
    return ["-m", *SMALL, *TEXT, "train.steps=60", f"hydra.sweep.dir={bench.scratch / 'sweep'}", *settings]


def run_sweep(arguments: list[str]) -> int:
    return train(arguments)


def job_vanished(bench: Bench, broken: bool) -> Facts:
    """The folder of one of three finished jobs is removed, then the sweep is reported."""
    bench.run(*sweep(bench, "seed=0,1,2"), main=run_sweep)
    if broken:
        shutil.rmtree(bench.scratch / "sweep" / "1")
    ended, text = reported(bench, bench.scratch / "sweep")
    return told(ended, text)


def job_killed(bench: Bench, broken: bool) -> Facts:
    """One of two jobs that run beside each other is killed."""
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "train.steps=150")
    running = bench.start(*sweep(bench, "seed=0,1", *launcher), main=run_sweep)
    lock = bench.scratch / "sweep" / "1" / "checkpoints" / ".lock"
    Running(running.process, running.printed, bench.scratch / "sweep" / "1").wait_for_step(5)
    if broken:
        os.kill(int(lock.read_text(encoding="utf-8").split()[1]), signal.SIGKILL)
    ended = running.wait()
    return told(ended, ended.printed)


def unhealthy_is_loaded(bench: Bench, broken: bool) -> Facts:
    """Weights are corrupted in the last steps, then `generate` takes the last checkpoint."""
    fault = (f"debug.inject=weights@{STEPS - 1}:0.5",) if broken else ()
    made = bench.run(*TEXT, *fault)
    ended = bench.run(str(made.folder), "prompt=def main(", "tokens=1", "temperature=0", main=generate)
    return told(ended, *[line for line in ended.printed.splitlines() if "step-" in line or "health" in line])


def mirror_stops(bench: Bench, broken: bool) -> Facts:
    """W&B's own process is killed in the middle of the run."""
    running = bench.start(*TEXT, "logger=wandb", "logger.mode=offline")
    at = running.wait_for_step(MIDDLE)
    if broken:
        for process in _below(running.process):
            if "wandb" in Path(f"/proc/{process}/cmdline").read_text(errors="replace"):
                os.kill(process, signal.SIGKILL)
    return facts(running.wait(), at)


def _below(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
    return [int(child) for child in children] + [one for child in children for one in _below(int(child))]


unreadable, unreadable_twin = with_optimizer("unreadable")
FAILURES = (
    Failure(
        "killed_but_running",
        "process",
        "a run is killed: what do readers call it?",
        killed,
        says=r"(?<!or )\bkilled\b",
    ),
    Failure(
        "report_of_half_a_run", "process", "a report is made half way", report_of_half_a_run, says="running|going on"
    ),
    Failure(
        "sweep_job_vanished",
        "process",
        "the folder of a sweep's job is gone",
        job_vanished,
        says="left nothing",
    ),
    Failure("sweep_job_killed", "process", "a sweep's job is killed", job_killed, says="killed"),
    Failure(
        "unhealthy_is_loaded",
        "process",
        "`generate` takes a checkpoint that is marked unhealthy",
        unhealthy_is_loaded,
        says="health",
    ),
    Failure("checkpoint_unreadable", "process", "the optimiser saves what it cannot load", unreadable, unreadable_twin),
    Failure("mirror_stops", "process", "W&B's process is killed", mirror_stops),
)
