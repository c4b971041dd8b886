"""Continuing a run: its folder and its recorded configuration, with the few settings that may be changed on the way.

Imports no torch, so that a refusal answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from atlas.config import ConfigError, RunConfig, require
from atlas.config.composition import GROUPS, check_keys, load_config
from atlas.config.continuing import Effect, change_rule, changeable
from atlas.config.files import CONF_DIR
from atlas.config.keys import flat, lies_in, override_name
from atlas.config.option_files import named_settings, options_in
from atlas.config.path_overrides import expanded
from atlas.config.refusals import refuse
from atlas.config.run import MOST_PROCESSES
from atlas.parallel.launch import launched_number, to_launched_config
from atlas.telemetry.run_files import CONFIG_FILE


def run_folder(resume: str, names: str = "auto") -> Path:
    """The run folder that `resume=PATH` names: PATH itself or, of a checkpoint, the folder above `checkpoints`.

    `names`: what the caller takes instead of a path. Raises `ConfigError` where there is no run.
    """
    require(bool(resume.strip()), "resume", resume, "a run or a checkpoint, or left out")
    path = expanded(resume).resolve()
    for folder in (path, path.parent.parent):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise ConfigError(f"resume={resume}: must be {names}, a run folder (with {CONFIG_FILE}) or one of its checkpoints")


def option_folders(hydra: HydraConf) -> list[Path]:
    """Where the files of options are, in the order in which Hydra looks."""
    return [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]


def resumed_config(
    given: RunConfig | DictConfig, overrides: Sequence[str], folder: Path, options: Sequence[Path] = (CONF_DIR,)
) -> RunConfig:
    """The recorded configuration of the run in `folder`, with what `overrides` change of it; `given` has their values.
    `options`: the folders of option files.

    `given` may be what Hydra composed, unchecked: the defaults beside the overrides are not those of the run, so that
    only the result can be checked. An override may repeat what the run was started with. Raises `ConfigError` for one
    that may not change, and for a result that cannot be used.
    """
    with refuse(CONF_DIR):
        source = OmegaConf.structured(given) if isinstance(given, RunConfig) else given.copy()
        check_keys(source)
        OmegaConf.resolve(source)
    result = OmegaConf.structured(load_config(folder / CONFIG_FILE, source.trust))
    values, before = (flat(cast(dict[str, Any], OmegaConf.to_container(one))) for one in (source, result))
    names = _named(overrides, options)
    wanted = {key: value for key, value in values.items() if lies_in(key, names)}
    refuse_other_settings(wanted, before, folder)
    for name in filter(changeable, names):  # whole groups: another logger has other keys
        transfer(source, result, name.split("."))
    for key in wanted:
        if not changeable(key):
            transfer(source, result, key.split("."))
    launched = launched_number()
    if "device.processes" not in names and result.device.processes not in (1, launched) and launched:
        result.device.processes = launched if launched <= MOST_PROCESSES else 1  # another start had others
    return to_launched_config(result)


def _named(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Settings and whole groups that the overrides set, also by an option that sets those of other groups."""
    names: list[str] = []
    for override in overrides:
        name, (target, _, option) = override_name(override), override.partition("=")
        if name not in GROUPS or not option:
            names.append(target.partition("@")[2] or name)  # data/task@data.recall=OPTION
            continue
        for one in options_in(option):  # logger=[wandb,tensorboard]
            try:
                names += named_settings(name, one, folders)
            except OSError as error:
                allowed = f"an option with a file, to continue a run ({name}/{one}.yaml: {error.strerror})"
                raise ConfigError(f"{override}: must be {allowed}") from error
    return list(dict.fromkeys(names))


def refuse_other_settings(wanted: Mapping[str, Any], before: Mapping[str, Any], folder: Path) -> None:
    """Raise `ConfigError` where `wanted`, by flat keys, differs from what the run in `folder` was started with, in a
    setting that may not change."""
    missing = object()
    differing = [key for key, value in wanted.items() if before.get(key, missing) != value]
    refused = {key: change_rule(key).why for key in differing if change_rule(key).effect is Effect.refused}
    refused |= {key: "that run has no such setting" for key in differing if key not in before and not changeable(key)}
    if "train.accumulate" in differing and before["train.carry_memory"]:
        refused["train.accumulate"] = "train.carry_memory keeps a memory for each part of the batch"
    if not refused:
        return
    changes = ", ".join(f"{key}={as_text(wanted[key])} instead of {as_text(before.get(key))}" for key in refused)
    reasons = "; ".join(dict.fromkeys(refused.values()))
    raise ConfigError(
        f"{changes}: must be as in {folder / CONFIG_FILE} to continue that run: {reasons}"
        f" (init_from={folder} starts a new run from its weights)"
    )


def differences(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Flat key -> both values, where they differ; None for a key that there is not."""
    was, flat_now = flat(asdict(before)), flat(asdict(now))
    keys = dict.fromkeys([*was, *flat_now])
    return {key: (was.get(key), flat_now.get(key)) for key in keys if was.get(key) != flat_now.get(key)}


def transfer(source: Any, target: Any, path: Sequence[str]) -> None:
    """Give the setting at `path` in `target` its value in `source`; both are dataclasses or mappings."""
    for name in path[:-1]:
        source, target = _get(source, name), _get(target, name)
    if isinstance(target, MutableMapping):
        target[path[-1]] = source[path[-1]]
    else:
        setattr(target, path[-1], getattr(source, path[-1]))


def _get(node: Any, name: str) -> Any:
    return node[name] if isinstance(node, MutableMapping) else getattr(node, name)


def as_text(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)
