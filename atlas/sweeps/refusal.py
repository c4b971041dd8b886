"""Values that no job of a sweep can use, refused before the first job starts."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, open_dict

from atlas.config import ConfigError, require
from atlas.config.composition import to_run_config
from atlas.parallel.launch import to_launched_config
from atlas.sweeps.launchers import JOBLIB, SERIAL


def refuse_useless_values(combinations: Sequence[Sequence[str]], settings: Sequence[DictConfig], launcher: str) -> None:
    """Raise the `ConfigError` of a job that has a value which every job with it refuses.

    `combinations`: the overrides of each job, of which its `settings` are composed. A grid may have holes: where two
    values do not go together and each goes with others, that job alone fails.
    """
    refused: dict[int, ConfigError] = {}
    for number, composed in enumerate(settings):
        try:
            _check(composed, launcher)
        except ConfigError as error:
            refused[number] = error
    everywhere = len(refused) == len(settings)
    for number, refusal in refused.items():
        jobs_with = [{job for job, own in enumerate(combinations) if text in own} for text in combinations[number]]
        if everywhere or any(jobs <= refused.keys() for jobs in jobs_with):
            raise refusal


def _check(composed: DictConfig, launcher: str) -> None:
    require_own_start(composed)
    task = composed.copy()
    with open_dict(task):
        del task["hydra"]
    if launcher in (SERIAL, JOBLIB):
        to_launched_config(task)
    else:  # the number of processes is that of the tasks of a cluster
        to_run_config(task)


def require_own_start(composed: DictConfig) -> None:
    allowed = "left out, or auto, in a sweep (sweep.resume=DIR continues one)"
    require(composed.resume in (None, "auto"), "resume", composed.resume, allowed)
