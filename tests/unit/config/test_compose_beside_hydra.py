"""`atlas.compose` inside a program that uses Hydra itself: it composes, and the program's Hydra is as it was."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir, version
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.version import VersionBase
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

import atlas
from atlas.config import ConfigError

PROGRAM = """
import hydra, atlas
from hydra.core.hydra_config import HydraConfig

@hydra.main(config_path=None, config_name="schema", version_base="1.2")
def program(config):
    print(config.mine, atlas.compose(["train.steps=7"]).train.steps, HydraConfig.get().job.name)

from hydra.core.config_store import ConfigStore
ConfigStore.instance().store(name="schema", node={"mine": 3})
program()
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of another program's configuration; the names are those that atlas uses as well."""
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text("defaults: [schema, _self_, {model: big}]\nmine: 1\n")
    (tmp_path / "model" / "big.yaml").write_text("size: 9\n")
    others = {kind: one for kind, one in Singleton._instances.items() if kind is not VersionBase}
    monkeypatch.setattr(Singleton, "_instances", others)
    monkeypatch.setattr(ConfigStore.instance(), "repo", dict(ConfigStore.instance().repo))
    ConfigStore.instance().store(name="schema", node={"theirs": 2})
    ConfigStore.instance().store(group="train", name="default", node={"steps": "theirs"})
    monkeypatch.setattr(BaseContainer, "_resolvers", dict(BaseContainer._resolvers))
    OmegaConf.register_new_resolver("now", lambda text: f"their {text}", replace=True)
    return tmp_path


def hydras_state() -> dict[str, Any]:
    return {
        "hydra": GlobalHydra.instance().hydra,
        "store": deepcopy(ConfigStore.instance().repo),
        "run": HydraConfig.instance().cfg,
        "version": version.getbase(),
        "singletons": dict(Singleton._instances),
        "resolvers": dict(BaseContainer._resolvers),
    }


def test_a_program_that_initialised_hydra_finds_it_as_it_was(conf: Path) -> None:
    with initialize_config_dir(str(conf), version_base="1.2"):
        before = hydras_state()
        config = atlas.compose(["train.steps=7"])
        with pytest.raises(atlas.ConfigError):
            atlas.compose(["train.steps=0"])
        assert hydras_state() == before
        assert (config.train.steps, config.model.width) == (7, 128)
        assert OmegaConf.to_container(compose("config")) == {"mine": 1, "theirs": 2, "model": {"size": 9}}


@pytest.mark.slow
def test_a_program_that_runs_under_hydra_composes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    result = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.stderr, result.stdout) == ("", "3 7 program\n")


def test_a_text_is_one_override() -> None:
    assert atlas.compose("train.steps=2").train.steps == 2


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("hydra.run.dir=mine", "atlas.train(config, folder) takes the folder"),
        ("hydra.sweep.dir=mine", "atlas.train(config, folder) takes the folder of a run"),
        ("++sweep.seeds=3", "atlas.train makes one run, of config.seed"),
    ],
)
def test_what_only_a_command_reads_is_refused(override: str, instead: str) -> None:
    with pytest.raises(ConfigError) as caught:
        atlas.compose(["train.steps=2", override])
    assert str(caught.value) == f"{override}: must be left out, it does nothing from Python: {instead}"


def test_a_composition_leaves_nothing_to_the_next() -> None:
    """They share the schema and Hydra's store."""
    before = atlas.compose()
    assert atlas.compose(["train.steps=2", "chunk_size.local=[8,16]", "optim=adamw"]) != before
    assert atlas.compose() == before
