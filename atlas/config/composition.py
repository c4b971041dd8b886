"""Overrides -> `RunConfig`: Hydra composes the YAML files onto the schema, the dataclasses check the values.

Imports no torch. Every refusal is one `ConfigError` of one line (`refusals.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer

from atlas.config import LEVELS, ConfigError, RunConfig, require
from atlas.config.atomic import write_atomically
from atlas.config.components import (
    HANDED_OVER,
    check_component,
    loggers,
    named_callable,
    refuse_untrusted,
    untrusted,
    untrusted_names,
)
from atlas.config.continuing import settings_hash
from atlas.config.files import CONF_DIR, read_yaml, require_values
from atlas.config.keys import override_name, plain
from atlas.config.refusals import refuse, unknown_key

GROUPS = {
    "model": "size and kind of the language model",
    "chunk_size": "chunks of the local memories, in tokens",
    "ablation": "a part of the model left out, to see what it is worth",
    "data": "what the model reads",
    "optim": "optimiser and learning-rate schedule",
    "train": "length of the run, batch, validation, gate",
    "niah": "needle-in-a-haystack probes of the memory",
    "rollback": "what happens when the perplexity spikes",
    "watch": "what is told of a run that fails quietly",
    "checkpoint": "how often the run is saved",
    "calibration": "what the local memories are reset to, and what a reset costs",
    "device": "where it runs",
    "parallel": "how several processes train one run",
    "logger": "where metrics go besides the run folder",
    "experiment": "several choices under one name",
}
OF_COMMANDS = {  # what a configuration does not hold, or a single run does not read
    "hydra.run.dir": "atlas.train(config, folder) takes the folder",
    "hydra.sweep.dir": "atlas.train(config, folder) takes the folder of a run",
    "sweep.seeds": "atlas.train makes one run, of config.seed",
}


def register() -> None:
    """Register the schema with Hydra, as `schema`."""
    ConfigStore.instance().store(name="schema", node=_schema())


@cache
def _schema() -> DictConfig:
    schema: DictConfig = OmegaConf.structured(RunConfig)
    return schema


def compose(overrides: Sequence[str] | str = ()) -> RunConfig:
    """The configuration that `python -m atlas.train OVERRIDES` runs with; a text is one override.

    A program that uses Hydra itself finds its own Hydra as it was. Raises `ConfigError`.
    """
    given = [overrides] if isinstance(overrides, str) else list(overrides)
    for text in given:
        if instead := OF_COMMANDS.get(override_name(text)):
            raise ConfigError(f"{text}: must be left out, it does nothing from Python: {instead}")
    with refuse(CONF_DIR, given), _own_hydra(), initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return to_run_config(hydra_compose("config", overrides=given))


class _Store(ConfigStore):
    """Hydra copies the whole store at each composition, though `load` gives out copies already."""

    def __deepcopy__(self, _: object) -> _Store:
        return self


@contextmanager
def _own_hydra() -> Iterator[None]:
    """A Hydra with this package's schema only; the caller's singletons and resolvers are restored afterwards."""
    callers, resolvers = Singleton._instances, BaseContainer._resolvers
    store, known = _Store.__new__(_Store), ConfigStore.instance().repo
    store.repo = {name: known[name] for name in ("hydra", "_dummy_empty_config_.yaml")}
    own: dict[type, Any] = {kind: kind.instance() for kind in (Plugins, SourcesRegistry)}
    Singleton._instances, BaseContainer._resolvers = own | {ConfigStore: store}, dict(resolvers)
    try:
        register()
        yield
    finally:
        Singleton._instances, BaseContainer._resolvers = callers, resolvers


def to_run_config(composed: DictConfig) -> RunConfig:
    """Resolve and check what Hydra composed. Raises `ConfigError` for an unusable value, key or component."""
    with refuse(CONF_DIR):
        check_keys(composed)
        config = _to_object(composed)
        refuse_untrusted(foreign_code(config, config.trust))
        _check_components(config)
    return config


def checked(config: RunConfig) -> RunConfig:
    """The configuration with the checks of `compose`, which a program may have changed since. Its code is trusted: the
    program has named it. Raises `ConfigError`."""
    with refuse(CONF_DIR):
        _check_attributes(config, "")
        found = _to_object(OmegaConf.merge(_schema(), plain(config)))
        _check_components(found)
    return found


def _to_object(settings: Any) -> RunConfig:
    config = OmegaConf.to_object(settings)
    assert isinstance(config, RunConfig)
    _check_numbers(config, "")
    return config


def _check_attributes(settings: Any, prefix: str) -> None:
    """Refuse attributes that no field of the dataclass has: `config.train.stpes = 5` sets nothing."""
    known = {field.name for field in dataclasses.fields(settings)}
    for name, value in vars(settings).items():
        if name not in known:
            raise unknown_key(f"{prefix}{name}={value}", CONF_DIR)
        if dataclasses.is_dataclass(value):
            _check_attributes(value, f"{prefix}{name}.")


def _check_components(config: RunConfig) -> None:
    for group, handed_over in HANDED_OVER.items():
        if group != "logger":
            check_component(group, getattr(config, group), handed_over)
    for key, settings in loggers(config.logger).items():
        check_component(key, settings)
    _require_own_code(config)


def check_own_code(config: RunConfig) -> None:
    """Raise `ConfigError` for code outside of the groups of components that is not trusted, or not there."""
    refuse_untrusted(_own_code(config, config.trust))
    _require_own_code(config)


def _require_own_code(config: RunConfig) -> None:
    for key, names in _own_names(config).items():
        for name in names:
            named_callable(key, name)
    if rule := config.model.memory.own_rule:
        check_component("model.memory.own_rule", rule)


def _own_names(config: RunConfig) -> dict[str, list[str]]:
    return {
        "niah.levels": [level for level in config.niah.levels if level not in LEVELS],
        "telemetry.metrics": config.telemetry.metrics,
    }


def _own_code(config: RunConfig, trust: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What of it is not trusted."""
    for key, names in _own_names(config).items():
        yield from untrusted_names(key, names, trust)
    if rule := config.model.memory.own_rule:
        yield from untrusted("model.memory.own_rule", rule, trust)


def foreign_code(config: RunConfig, trust: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Key and dotted name of all code in the settings that is neither the package's nor in a module of `trust`."""
    for group in HANDED_OVER:
        yield from untrusted(group, getattr(config, group), trust)
    yield from _own_code(config, trust)


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML; `load_config` reads it back to an equal one."""
    write_atomically(path, OmegaConf.to_yaml(plain(config)))


def load_config(path: Path, trust: Sequence[str] = ()) -> RunConfig:
    """Read what `save_config` wrote, with the checks of `compose`. Raises `ConfigError`.

    `trust` comes from the caller, never from the file: the sender of a run must not decide what is executed here.
    """
    with refuse(CONF_DIR):
        try:
            content = read_yaml(path) | {"trust": list(trust)}
        except OSError as error:
            raise ConfigError(f"{path}: must be a file that can be read ({error.strerror})") from error
        require_values(path, content)
        _as_it_was(content)
        return to_run_config(OmegaConf.merge(OmegaConf.structured(RunConfig), content))  # type: ignore[arg-type]


def settings_hashes(path: Path, content: Mapping[str, Any]) -> frozenset[str]:
    """Hashes of the content of a run's config.yaml: as it stands, and with the settings that are newer than the run, as
    a later start has them. Imports no component. Raises `ConfigError`."""
    with refuse(CONF_DIR):
        require_values(path, content)
        completed = deepcopy(dict(content))
        _as_it_was(completed)
        config: Any = OmegaConf.to_object(OmegaConf.merge(_schema(), completed))
        return frozenset({settings_hash(content), settings_hash(dataclasses.asdict(config))})


def _as_it_was(content: dict[str, Any]) -> None:
    """Give settings that are newer than the run the values by which it was trained."""
    model = content.get("model")
    if not isinstance(model, dict):
        return
    model.setdefault("gate_sharpness_max", 0.0)
    memory = model.get("memory")
    if isinstance(memory, dict):
        memory.setdefault("curvature_max", 0.0)
        memory.setdefault("curvature_max_local", 0.0)


def options(group: str) -> list[str]:
    """Names of a group's options, numbers in their natural order: c8 before c16."""
    names = [path.stem for path in (CONF_DIR / group).glob("*.yaml")]
    return sorted(names, key=lambda name: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", name)])


def _check_numbers(settings: Any, prefix: str) -> None:
    """Refuse numbers that are not finite or do not fit into 64 bits."""
    for name, value in vars(settings).items():
        if dataclasses.is_dataclass(value):
            _check_numbers(value, f"{prefix}{name}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float):
                require(isfinite(number), f"{prefix}{name}", value, "finite")
            elif isinstance(number, int):
                require(-(2**63) <= number < 2**63, f"{prefix}{name}", value, "in [-2**63, 2**63)")


def check_keys(node: DictConfig, prefix: str = "") -> None:
    """Refuse keys that `+key=value` added beside those of the schema."""
    schema = OmegaConf.get_type(node)
    if schema is None or not dataclasses.is_dataclass(schema):
        return  # a component: `check_component` knows its keys
    known = {field.name for field in dataclasses.fields(schema)}
    for key in node:
        if key not in known:
            raise unknown_key(f"{prefix}{key!s}={node._get_node(key)}", CONF_DIR)
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            check_keys(child, f"{prefix}{key!s}.")
