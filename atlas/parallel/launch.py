"""The ranks of this process, from the environment that torchrun, or another launcher like it, gives."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from typing import cast

from omegaconf import DictConfig, OmegaConf

from atlas.config import ConfigError, DeviceConfig, ParallelConfig, RunConfig, require
from atlas.config.composition import to_run_config
from atlas.config.files import CONF_DIR
from atlas.config.parallel import is_timeout
from atlas.config.refusals import refuse
from atlas.config.run import number_of_processes
from atlas.parallel.ranks import ALONE, Ranks

RUN_DIR = "ATLAS_RUN_DIR"
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_groups = count()  # of this process, one after the other
_current: list[Ranks] = []


def current() -> Ranks:
    """The ranks inside of `launched`; elsewhere this process is alone."""
    return _current[-1] if _current else ALONE


def launched_number() -> int:
    """The processes that a launcher has started for this run; 0 where the run starts its own."""
    return current().world if current().world > 1 or "TORCHELASTIC_RUN_ID" in os.environ else 0


def processes_here(processes: int) -> int:
    """Of a run's `processes` those on this machine; 1 where a launcher does not tell. Raises `ConfigError`."""
    return _number("LOCAL_WORLD_SIZE", 1) if "WORLD_SIZE" in os.environ else processes


def first_by_environment() -> bool:
    """Whether this is rank 0 or a process alone, where the ranks need not find each other."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def start_timeout_of(arguments: Sequence[str]) -> float:
    """What a command line gives, or the default: ranks find each other before the configuration is composed."""
    given = [text.partition("=")[2] for text in arguments if text.startswith("parallel.start_timeout_s=")]
    with suppress(ValueError):  # which the configuration refuses
        if given and is_timeout(float(given[-1])):
            return float(given[-1])
    return ParallelConfig.start_timeout_s


@contextmanager
def launched(start_timeout_s: float = ParallelConfig.start_timeout_s) -> Iterator[Ranks]:
    """The ranks of this process; `$ATLAS_RUN_DIR` then names one run folder for all of them.

    Raises `ConfigError` for an environment that does not tell which rank this process is, and where the ranks do not
    find each other within the time-out.
    """
    if _current or _number("WORLD_SIZE", 1) == 1:
        yield current()
        return
    missing = [name for name in NEEDED if name not in os.environ]
    world, absent = os.environ["WORLD_SIZE"], ", ".join(missing)
    require(not missing, "WORLD_SIZE", world, f"set together with {absent}, as torchrun does")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from atlas.parallel.group import Group, meeting

    # torchrun keeps the store over its restarts: what the killed processes wrote would be taken for that of these.
    name = f"{_number('TORCHELASTIC_RESTART_COUNT', 0)}.{next(_groups)}"
    with meeting(start_timeout_s) as timeout:
        store, rank, processes = next(rendezvous("env://", timeout=timeout))
        group = Group(PrefixStore(name, store), rank, processes, _number("LOCAL_RANK", 0), timeout)
    folder, stamp = os.environ.get(RUN_DIR), f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    os.environ[RUN_DIR] = folder or f"outputs/runs/{group.told_by_first('stamp', stamp)}"
    _current.append(group)
    try:
        yield group
    finally:
        _current.remove(group)
        group.leave(sys.exc_info()[1])
        if folder is None:
            del os.environ[RUN_DIR]


def refuse_launch(arguments: Sequence[str], multirun: bool) -> None:
    """Raise `ConfigError` for a command line that does not go together with how torchrun was called."""
    world = current().world
    if world > 1 and multirun:
        raise ConfigError(
            f"-m: must be left out under torchrun, each of the {world} processes would run the sweep"
            " (hydra/launcher=joblib runs jobs side by side)"
        )
    given = dict(argument.partition("=")[::2] for argument in arguments if "=" in argument)
    resume = given.get("resume", "null")
    continues = resume != "null" and (resume != "auto" or "hydra.run.dir" in given)
    if _number("TORCHELASTIC_MAX_RESTARTS", 0) and not continues:
        raise ConfigError("hydra.run.dir: must be given, with resume=auto, for torchrun --max-restarts")


def to_launched_config(settings: DictConfig) -> RunConfig:
    """Resolve and check what Hydra composed, for the processes that this start has. Raises `ConfigError`.

    Their number is looked at first: what else has to fit it may be right already.
    """
    with refuse(CONF_DIR):
        device, parallel = (OmegaConf.to_object(settings[group]) for group in ("device", "parallel"))
        processes = number_of_processes(cast(DeviceConfig, device), cast(ParallelConfig, parallel), launched_number())
    config = to_run_config(settings)
    config.train.require_parts(config.parallel.groups(processes), config.parallel.context)
    return config


def _number(name: str, default: int) -> int:
    """Of an environment variable. Raises `ConfigError`."""
    text = os.environ.get(name, str(default))
    require(text.isdecimal(), name, text, "a number")
    return int(text)
