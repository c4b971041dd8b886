"""One job of a sweep, in whatever process the launcher starts it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from atlas.config import RunConfig
from atlas.parallel.launch import launched, to_launched_config
from atlas.runs.folder import HeldError, reason, record_failure, remove_if_empty, say
from atlas.runs.resume import option_folders, resumed_config
from atlas.sweeps.launchers import JOBLIB, SERIAL, SUBMITIT, export_tasks, launcher_name
from atlas.sweeps.refusal import require_own_start
from atlas.sweeps.stop import INTERRUPTED, StopSign
from atlas.sweeps.sweep_record import read_record
from atlas.sweeps.workers import Worker, in_own_process, use_own_device
from atlas.telemetry.run_files import CONFIG_FILE
from atlas.telemetry.sinks import SweepJob


def run_job(composed: DictConfig) -> None:
    """Run the job that Hydra composed, unless the sweep's stop sign is up. A failure is recorded in the job's folder.

    Raises KeyboardInterrupt where the sweep runs in this process.
    """
    hydra = HydraConfig.get()
    sweep, folder = Path(hydra.sweep.dir).resolve(), Path(hydra.runtime.output_dir)
    record = read_record(sweep, "hydra.sweep.dir")
    job, stop = record.job_in(str(hydra.sweep.subdir)), StopSign(sweep)
    info = SweepJob(sweep.name, launcher_name(hydra), record.swept(job))
    work = partial(_work, composed, sweep, job.number, info)
    several = info.launcher in SUBMITIT and export_tasks()
    if stop.reason is not None and not several:  # several tasks of a job decide together, in `_work`
        remove_if_empty(folder)
        return
    if not several or os.environ["RANK"] == "0":
        say(f"job {job.number}: {info.name}")
    if info.launcher != JOBLIB:
        work()
    elif killed_by := in_own_process(work):
        say(f"job {job.number} was killed (signal {killed_by})")
        if composed.sweep.fail_fast:
            stop.put_up(f"job {job.number} killed (sweep.fail_fast)")


def _work(composed: DictConfig, sweep: Path, number: int, info: SweepJob) -> None:
    hydra = HydraConfig.get()
    folder, stop = Path(hydra.runtime.output_dir), StopSign(sweep)
    try:
        with _worker(sweep, info.launcher), launched(composed.parallel.start_timeout_s) as ranks:
            if ranks.from_first(lambda: stop.reason) is not None:  # put up while this process started
                ranks.at_end(lambda: remove_if_empty(folder))
                return
            from atlas.runs.run import run  # imports torch, which must come after the choice of a device

            try:
                with ranks.starting():
                    config = _settings(composed, list(hydra.overrides.task), folder)
                    status = run(config, folder, info, ranks).status
            except Exception as error:
                if not ranks.tells(error):
                    return  # another task of the job reports it
                raise
    except KeyboardInterrupt:
        if info.launcher in (SERIAL, JOBLIB):  # a cluster signals a single job; the others go on
            stop.put_up(INTERRUPTED)
        if info.launcher == SERIAL:
            raise
        return
    except HeldError as error:  # the folder belongs to the other process
        say(f"job {number} is left alone: {error}")
        status = "running"
    except Exception as error:
        say(f"job {number} failed: {reason(error)}; {record_failure(folder, error, composed, info.launcher)}")
        status = "failed"
    if status != "completed" and composed.sweep.fail_fast:
        stop.put_up(f"job {number} {status} (sweep.fail_fast)")


@contextmanager
def _worker(sweep: Path, launcher: str) -> Iterator[None]:
    """Register this process as a worker of the sweep, unless it started the sweep itself."""
    if launcher == SERIAL:
        yield
        return
    with Worker.at_work(sweep) as place:
        if launcher == JOBLIB:  # a cluster assigns its devices itself
            use_own_device(place)
        yield


def _settings(composed: DictConfig, overrides: list[str], folder: Path) -> RunConfig:
    """The job's configuration; if its folder holds an earlier start, the one that continues it."""
    require_own_start(composed)
    if not (folder / CONFIG_FILE).exists():
        return to_launched_config(composed)
    config = resumed_config(composed, overrides, folder, option_folders(HydraConfig.get()))
    config.resume = "auto"  # from its newest sound checkpoint, without one from step 1
    return config
