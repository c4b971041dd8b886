import os
import sys

import pytest
from omegaconf import OmegaConf

from atlas.config import ConfigError
from atlas.sweeps import launchers
from atlas.sweeps.launchers import export_tasks, launcher_name, prepare_launcher, require_installed


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("hydra._internal.core_plugins.basic_launcher.BasicLauncher", "basic"),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "joblib"),
        ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", "submitit_slurm"),
        ("hydra_plugins.other.RayLauncher", "RayLauncher"),
    ],
)
def test_a_launcher_is_known_by_its_class(target: str, name: str) -> None:
    assert launcher_name(OmegaConf.create({"launcher": {"_target_": target}})) == name


def test_joblib_runs_a_job_for_each_core_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for cores, asked, given in ((3, -1, 3), (64, -1, launchers.MOST_JOBS), (3, 2, 2)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        hydra = OmegaConf.create({"launcher": {"_target_": "x.JoblibLauncher", "n_jobs": asked, "batch_size": "auto"}})
        prepare_launcher(hydra)
        assert (hydra.launcher.n_jobs, hydra.launcher.batch_size) == (given, "1")


def test_a_launcher_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_installed(["seed=0", "hydra/launcher=joblib", "hydra/launcher=basic"])
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_submitit_launcher", None)
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refusal:
        require_installed(["-m", "hydra/launcher=slurm"])
    message = 'hydra/launcher=slurm: must be installed: pip install -c constraints.txt -e ".[slurm]" in a checkout'
    assert str(refusal.value) == message


def test_the_tasks_of_a_slurm_job_become_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Task 9 of 16, on the second of two nodes."""
    given = {"SLURM_JOB_ID": "71", "SLURM_NTASKS": "16", "SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": "9"}
    given |= {"SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "gpu[03-04]"}
    for name, value in (given | {"SUBMITIT_EXECUTOR": "slurm"}).items():
        monkeypatch.setenv(name, value)
    ranks = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "gpu03"}
    for name in (*ranks, "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is removed in the end
        monkeypatch.delenv(name)
    assert export_tasks()
    assert {name: os.environ[name] for name in ranks} == ranks
    assert 20000 <= int(os.environ["MASTER_PORT"]) <= 60000
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not export_tasks()
