"""Refusals of how several processes are to train one run: whole messages, before any work."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import cast

import pytest
from omegaconf import DictConfig, OmegaConf

import atlas
from atlas.config import ConfigError, ParallelKind, RunConfig
from atlas.config.composition import save_config
from atlas.parallel import launch
from atlas.parallel.ranks import Ranks
from atlas.runs.resume import resumed_config

LEAST = "(least common multiple of train.accumulate=1 and 3 processes)"
DIVISOR, SETS = "a divisor of the number of processes, and", "(device.processes or the launcher sets it)"
REFUSED = {
    "device.processes=0": "device.processes=0: must be in [1, 64] (torchrun or Slurm starts those of several machines)",
    "device.processes=3": f"train.batch_size=8: must be a multiple of 3 {LEAST}",
    "parallel.context=0": "parallel.context=0: must be >= 1",
    "parallel.context=4 train.sequence=512 chunk_size.shard=256": (
        "parallel.context=4: must be such that train.sequence=512 is cut into parts of whole shards"
        " (chunk_size.shard=256)"
    ),
    "parallel.context=2 parallel.kind=fsdp": (
        "parallel.context=2: must be 1 with parallel.kind=fsdp (parallel.kind=ddp cuts sequences)"
    ),
    "parallel.context=2 train.carry_memory=true": "parallel.context=2: must be 1 with train.carry_memory=true",
    "parallel.context=2 model.window=0 niah.enabled=false": (
        "parallel.context=2: must be 1 with model.window=0: attention to all tokens is not cut"
    ),
    "parallel.context=2 data.documents=separate": (
        "parallel.context=2: must be 1 with data.documents=separate: its rows are of any length"
    ),
    "parallel.context=2 device.processes=3": f"parallel.context=2: must be {DIVISOR} 3 is no multiple of 2 {SETS}",
    "parallel.context=2 device.processes=6": (
        "train.batch_size=8: must be a multiple of 3"
        " (least common multiple of train.accumulate=1 and 3 groups of 2 processes)"
    ),
    "parallel.start_timeout_s=1e300": "parallel.start_timeout_s=1e+300: must be in [1, 31536000] (a year)",
    "parallel.step_timeout_s=0.001": "parallel.step_timeout_s=0.001: must be in [1, 31536000] (a year)",
    "parallel.kind=fsdp train.carry_memory=true": (
        "train.carry_memory=True: must be false with parallel.kind=fsdp (parallel.kind=ddp carries memories)"
    ),
}
# Of three processes that torchrun has started: the number comes before what is to fit it.
LAUNCHED = {
    "device.processes=2 train.batch_size=7": "device.processes=2: must be 3, or left out: the launcher has started 3",
    "parallel.context=2 train.batch_size=7 train.sequence=384": (
        f"parallel.context=2: must be {DIVISOR} 3 is no multiple of 2 {SETS}"
    ),
    "train.batch_size=8": f"train.batch_size=8: must be a multiple of 3 {LEAST}",
}
UNKNOWN = {
    "parallel.kind=zero": "parallel.kind=zero: must be one of auto, ddp, fsdp",
    "parallel=zero": "parallel=zero: must be one of ddp, auto, fsdp",
    "device.processes=abc": "device.processes=abc: must be an integer, such as 1",
    "checkpoint.layout=parts": "checkpoint.layout=parts: must be one of whole, sharded",
}


@cache
def base() -> DictConfig:
    """Composed once: it takes longer than all the checks."""
    config: DictConfig = OmegaConf.structured(atlas.compose(["train.batch_size=8"]))
    return config


@pytest.mark.parametrize("settings", REFUSED)
def test_what_several_processes_cannot_do_is_refused(settings: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(REFUSED[settings])}$"):
        OmegaConf.to_object(OmegaConf.merge(base(), OmegaConf.from_dotlist(settings.split())))


class Three(Ranks):
    world = 3


@pytest.mark.parametrize("settings", LAUNCHED)
def test_what_three_processes_of_a_launcher_cannot_do_is_refused(
    settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_current", [Three()])
    with pytest.raises(ConfigError, match=f"^{re.escape(LAUNCHED[settings])}$"):
        launch.to_launched_config(OmegaConf.merge(base(), OmegaConf.from_dotlist(settings.split())))


@pytest.mark.parametrize(("environment", "processes"), [({}, 2), ({"TORCHELASTIC_RUN_ID": "none"}, 1)])
def test_one_process_of_torchrun_resumes_a_run_of_two_alone(
    environment: dict[str, str], processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torchrun the run starts its own two."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = OmegaConf.to_object(OmegaConf.merge(base(), {"device": {"processes": 2}}))
    save_config(cast(RunConfig, config), tmp_path / "config.yaml")
    assert resumed_config(base(), [f"resume={tmp_path}"], tmp_path).device.processes == processes
    if environment:
        with pytest.raises(ConfigError, match=r"^device.processes=2: must be 1, or left out: the launcher has started"):
            launch.to_launched_config(OmegaConf.merge(base(), {"device": {"processes": 2}}))


@pytest.mark.parametrize("override", UNKNOWN)
def test_an_unknown_kind_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(UNKNOWN[override])}$"):
        atlas.compose([override])


def test_the_options_of_the_group() -> None:
    assert [atlas.compose([f"parallel={name}"]).parallel.kind for name in ("auto", "ddp", "fsdp")] == list(ParallelKind)
