"""sweep.json: the jobs of a sweep, and the command line that makes them again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from atlas.config import ConfigError
from atlas.config.atomic import write_atomically
from atlas.config.continuing import changeable
from atlas.config.keys import flat, override_values
from atlas.config.untrusted import read_json
from atlas.telemetry.run_files import JOBS_FILE


@dataclass(frozen=True)
class Job:
    """`folder` is relative to the sweep's; `key` is equal for settings that must give the same numbers."""

    number: int
    folder: str
    overrides: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class SweepRecord:
    """`task` and `hydra` are the overrides that the sweep was started with, separated as Hydra does.

    `flags`: where Hydra was told to look for the configuration.
    """

    task: tuple[str, ...]
    hydra: tuple[str, ...]
    jobs: tuple[Job, ...]
    flags: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Replace the file as a whole. Raises OSError."""
        write_atomically(folder / JOBS_FILE, json.dumps(asdict(self), indent=1) + "\n")

    def job_in(self, folder: str) -> Job:
        return next(job for job in self.jobs if job.folder == folder)

    def swept(self, job: Job) -> dict[str, str]:
        """The overrides of a job in which the jobs differ; all of them where there is one job."""
        own = override_values(job.overrides)
        return {name: value for name, value in own.items() if len(self.jobs) == 1 or name in self.varying}

    @cached_property
    def varying(self) -> set[str]:
        """Names that not all jobs give the same value."""
        values = [override_values(job.overrides) for job in self.jobs]
        names = {name for own in values for name in own}
        return {name for name in names if len({own.get(name) for own in values}) > 1}


def read_record(folder: Path, key: str) -> SweepRecord:
    """The record of the sweep in `folder`. Raises `ConfigError` naming `key` where there is none that can be read."""
    try:
        content = read_json(folder / JOBS_FILE)
        jobs = tuple(Job(**{**job, "overrides": tuple(job["overrides"])}) for job in content["jobs"])
        flags = tuple(content.get("flags", ()))  # absent before version 0.2
        return SweepRecord(tuple(content["task"]), tuple(content["hydra"]), jobs, flags)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{key}={folder}: must be the folder of a sweep (with {JOBS_FILE})") from error


def settings_key(composed: DictConfig) -> str:
    """Hash of a job's settings, without those that may change when it is continued."""
    task = OmegaConf.masked_copy(composed, [str(name) for name in composed if name != "hydra"])
    plain = OmegaConf.to_container(task, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    named = flat({str(name): value for name, value in plain.items()})
    settings = {name: value for name, value in named.items() if not changeable(name)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
