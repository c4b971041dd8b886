"""`ResumableSweeper`: makes the jobs of `-m`, starts those that are left, and closes the sweep."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from atlas.config import ConfigError, require
from atlas.config.keys import override_name
from atlas.config.lock import LockedError, RunLock
from atlas.config.path_overrides import quoted
from atlas.config.sweep import MOST_SEEDS
from atlas.runs.folder import LOG_FILE, log_file, make_folder, reason, require_folder, say
from atlas.sweeps.closing import close_sweep
from atlas.sweeps.launchers import JOBLIB, SERIAL, launcher_name, prepare_launcher
from atlas.sweeps.outcome import cut_short, left_over
from atlas.sweeps.refusal import refuse_useless_values
from atlas.sweeps.resumption import KEY, PLACES, config_flags
from atlas.sweeps.stop import INTERRUPTED, StopSign
from atlas.sweeps.sweep_record import Job, SweepRecord, read_record, settings_key
from atlas.sweeps.workers import living_workers, passing_interrupts_on
from atlas.telemetry.run_files import JOBS_FILE

MULTIRUN_FILE = "multirun.yaml"
MOST_BREAKDOWNS = 3  # of the launcher; then the sweep ends with jobs left
ENDING_SECONDS = 20.0
log = logging.getLogger("atlas")


class ResumableSweeper(BasicSweeper):
    """Runs every combination of the given values, as Hydra's own sweeper; writes sweep.json and resumes from it."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        prepare_launcher(config.hydra)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs that are left. Raises `ConfigError` before any work, and SystemExit unless all completed."""
        assert self.config is not None
        require_folder("hydra.sweep.dir", self.config.hydra.sweep.dir)
        folder, resumed = Path(self.config.hydra.sweep.dir).resolve(), self.config.sweep.resume is not None
        known = read_record(folder, KEY) if resumed else None
        if known is None:
            taken = (folder / JOBS_FILE).exists()
            require(not taken, "hydra.sweep.dir", folder, f"a folder without a sweep ({KEY}={folder} continues it)")
        record = self._plan(arguments, known, folder)
        make_folder(folder, "hydra.sweep.dir")
        with _alone(folder):
            self._write_start(folder, record, resumed)
            _let_workers_end(folder)
            interrupted = self._work(folder, record, resumed)
            status = close_sweep(folder, Path(self.config.hydra.sweep.dir), interrupted)
        if status:
            sys.exit(status)

    def _write_start(self, folder: Path, record: SweepRecord, resumed: bool) -> None:
        """sweep.json first: where the other file is missing, the sweep can be gone on with."""
        try:
            if not resumed:
                record.write(folder)
            if not resumed or not (folder / MULTIRUN_FILE).exists():
                OmegaConf.save(self.config, folder / MULTIRUN_FILE)
        except OSError as error:
            allowed = f"a folder that can be written ({error.strerror})"
            raise ConfigError(f"hydra.sweep.dir={folder}: must be {allowed}") from error

    def _plan(self, arguments: Sequence[str], known: SweepRecord | None, folder: Path) -> SweepRecord:
        """The jobs of the sweep; `known` are those of the sweep that goes on. Raises `ConfigError` for other ones."""
        assert self.config is not None
        combinations = self._combinations(arguments)
        if known is not None:
            allowed = f"a sweep of {len(combinations)} jobs, not {len(known.jobs)}"
            require(len(combinations) == len(known.jobs), KEY, folder, allowed)
        settings = [self._composed(number, overrides) for number, overrides in enumerate(combinations)]
        record = self._record([_job(*one) for one in zip(range(len(settings)), combinations, settings, strict=True)])
        refuse_useless_values(combinations, settings, launcher_name(self.config.hydra))
        if known is not None:
            refuse_other_jobs(record, known, folder)
        return record

    def _work(self, folder: Path, record: SweepRecord, resumed: bool) -> bool:
        """Run the jobs that are left; returns whether the sweep was interrupted."""
        jobs = left_over(folder, record)
        if resumed:
            say(f"{len(record.jobs) - len(jobs)} of {len(record.jobs)} jobs are complete, {len(jobs)} are left")
        return self._launch(folder, record, jobs)

    def _combinations(self, arguments: Sequence[str]) -> list[list[str]]:
        """The overrides of each job."""
        assert self.hydra_context is not None
        assert self.config is not None
        wanted = [text for text in [*self._parse_config(), *arguments] if override_name(text) != KEY]
        seeds = self.config.sweep.seeds
        require(1 <= seeds <= MOST_SEEDS, "sweep.seeds", seeds, f"in [1, {MOST_SEEDS}]")
        if seeds > 1:  # the first to vary slowest: a sweep that is cut short has every combination with the first seeds
            given = [text for text in wanted if override_name(text) == "seed"]
            require(not given, "sweep.seeds", seeds, f"left out, or given without {' '.join(given)}")
            wanted.insert(0, f"seed={','.join(map(str, range(seeds)))}")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides(wanted)
        for override in parsed:
            value = (override.input_line or "").partition("=")[2]
            allowed = "values, as a,b or range(a,b), or given with hydra/sweeper=optuna"
            require(not override.is_interval_sweep(), override.get_key_element(), value, allowed)
        (combinations,) = self.split_arguments(parsed, None)
        return combinations

    def _record(self, jobs: Sequence[Job]) -> SweepRecord:
        """Raises `ConfigError` for jobs without folders of their own."""
        assert self.config is not None
        self._require_own_folders(jobs)
        task, hydra = (_texts(self.config.hydra.overrides[kind]) for kind in ("task", "hydra"))
        hydra = tuple(text for text in hydra if override_name(text) not in PLACES)
        return SweepRecord(task, hydra, tuple(jobs), config_flags(sys.argv[1:]))

    def _require_own_folders(self, jobs: Sequence[Job]) -> None:
        assert self.config is not None
        subdir = self.config.hydra.sweep._get_node("subdir")
        places = {Path(os.path.normpath(job.folder)) for job in jobs}
        apart = len(places) == len(jobs) and not any(parent in places for place in places for parent in place.parents)
        inside = not any(place.is_absolute() or place.parts[:1] in ((), ("..",)) for place in places)
        allowed = "a folder for each job, below that of the sweep and not in another job's"
        require(apart and inside, "hydra.sweep.subdir", subdir, allowed)

    def _compose_job(self, number: int, overrides: Sequence[str]) -> Job:
        return _job(number, overrides, self._composed(number, overrides))

    def _composed(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The settings of a job. Raises `ConfigError` where they cannot be composed."""
        assert self.config is not None
        assert self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(composed.hydra.job):
            composed.hydra.job.id = composed.hydra.job.num = number
        return composed

    def _launch(self, folder: Path, record: SweepRecord, jobs: Sequence[Job]) -> bool:
        """Run the jobs; returns whether the sweep was interrupted."""
        assert self.config is not None
        stop, launcher = StopSign(folder), launcher_name(self.config.hydra)
        stop.take_down()
        if jobs and launcher != SERIAL:
            say("jobs run at the same time: their timings are no evidence")
        try:
            with nullcontext() if launcher == SERIAL else passing_interrupts_on(folder, launcher != JOBLIB):
                for _ in range(MOST_BREAKDOWNS):
                    broke = bool(jobs) and self._hand_over(folder, jobs)
                    # joblib gives up all jobs if one of its own processes is killed: start the interrupted jobs again.
                    if not broke or launcher != JOBLIB or stop.reason is not None:
                        break
                    _let_workers_end(folder)
                    jobs = cut_short(folder, record)
        except KeyboardInterrupt:
            stop.put_up(INTERRUPTED)
            return True
        return stop.reason == INTERRUPTED

    def _hand_over(self, folder: Path, jobs: Sequence[Job]) -> bool:
        """Give the jobs to the launcher; returns whether it broke down. A failure inside a job does not count."""
        assert self.launcher is not None
        # A launcher counts its jobs from 0 in every sweep; a job that is resumed keeps its folder.
        texts = [[*job.overrides, f"hydra.sweep.subdir={quoted(job.folder)}"] for job in jobs]
        first = 0
        try:
            for batch in self.split_overrides_to_chunks(texts, self.max_batch_size or len(texts)):
                for returned in self.launcher.launch(batch, initial_job_idx=first):
                    _ = returned.return_value  # raises what a job could not record itself
                first += len(batch)
        except Exception as error:  # such as a killed worker, or a cluster that refuses
            if StopSign(folder).reason != INTERRUPTED:
                with log_file(folder):
                    log.error("the launcher broke down", exc_info=error)
                say(f"the launcher broke down: {reason(error).splitlines()[0]} (traceback in {folder / LOG_FILE})")
            return True
        return False


def _job(number: int, overrides: Sequence[str], settings: DictConfig) -> Job:
    return Job(number, str(settings.hydra.sweep.subdir), tuple(overrides), settings_key(settings))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from running the same sweep."""
    try:
        lock = RunLock(folder)
    except LockedError as error:
        raise ConfigError(
            f"hydra.sweep.dir={folder}: must be a folder that no other process writes ({error})"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _let_workers_end(folder: Path) -> None:
    """Wait for processes that an earlier start of the sweep, or a launcher that broke down, left behind.

    Raises `ConfigError` where they keep running, as those of a cluster do.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    while living := living_workers(folder):
        allowed = f"a sweep of which no job is running; {', '.join(living)} runs one"
        require(time.monotonic() < deadline, KEY, folder, allowed)
        time.sleep(0.2)


def refuse_other_jobs(now: SweepRecord, before: SweepRecord, folder: Path) -> None:
    """A resumed sweep runs the jobs that it was started with: conf/ may have been edited since."""
    for job, known in zip(now.jobs, before.jobs, strict=True):
        same = (job.folder, job.key) == (known.folder, known.key)
        allowed = f"a sweep whose jobs compose as at its start; job {known.number} has other settings now"
        require(same, KEY, folder, f"{allowed} (was conf/ edited, or the package updated?)")


def _texts(overrides: object) -> tuple[str, ...]:
    plain = OmegaConf.to_container(overrides) if OmegaConf.is_config(overrides) else overrides
    assert isinstance(plain, list)
    return tuple(str(text) for text in plain if override_name(str(text)) != KEY)
