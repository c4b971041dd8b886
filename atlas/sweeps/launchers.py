"""What starts the jobs (`hydra/launcher=...`): one after the other, several on this machine, or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

from hydra.conf import HydraConf
from omegaconf import DictConfig

from atlas.config import require, with_extra
from atlas.config.cores import usable_cores

SERIAL = "basic"
JOBLIB = "joblib"
SUBMITIT = ("submitit_local", "submitit_slurm")
MOST_JOBS = 8  # jobs at a time by default: each needs memory of its own
_NAMES = {
    "BasicLauncher": SERIAL,
    "JoblibLauncher": JOBLIB,
    "LocalLauncher": "submitit_local",
    "SlurmLauncher": "submitit_slurm",
}
# option -> the module that it needs, and the extra that brings it
_JOBLIB = ("hydra_plugins.hydra_joblib_launcher", "parallel")
_SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "slurm")
_NEEDED = {
    "hydra/launcher=joblib": _JOBLIB,
    "hydra/launcher=submitit_local": _SUBMITIT,
    "hydra/launcher=submitit_slurm": _SUBMITIT,
    "hydra/launcher=slurm": _SUBMITIT,
    "hydra/sweeper=optuna": ("optuna", "optuna"),
}


def require_installed(arguments: Sequence[str]) -> None:
    """Raise `ConfigError` where the command line chooses a launcher or sweeper whose package is missing."""
    for argument in arguments:
        module, extra = _NEEDED.get(argument, (None, ""))
        key, _, name = argument.partition("=")
        require(module is None or find_spec(module) is not None, key, name, with_extra(extra))


def launcher_name(hydra: DictConfig | HydraConf) -> str:
    """basic, joblib, submitit_local, submitit_slurm or the class of another launcher, whatever its option is called."""
    kind = str(hydra.launcher._target_).rpartition(".")[2]
    return _NAMES.get(kind, kind)


def export_tasks() -> bool:
    """Make the tasks of a submitit job the ranks of its run, by the variables that torchrun would set; False for one.

    submitit starts the same job in each of its tasks, on every node.
    """
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks == 1:
        return False
    if "RANK" not in os.environ:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)  # a rank takes the GPU of its number
    return True


def prepare_launcher(hydra: DictConfig) -> None:
    """Set how many jobs joblib runs at a time; joblib divides the cores among them."""
    if launcher_name(hydra) != JOBLIB:
        return
    if hydra.launcher.n_jobs == -1:
        hydra.launcher.n_jobs = _jobs_at_a_time()
    hydra.launcher.batch_size = "1"  # "auto" would run short jobs in batches, one after the other in one worker


def _jobs_at_a_time() -> int:
    """One for each CUDA device; without one for each core, up to a limit."""
    import torch

    return torch.cuda.device_count() or min(usable_cores(), MOST_JOBS)
