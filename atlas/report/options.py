"""The options of the configuration's groups that runs were made with: `attention_only` says more than its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from atlas.config import RunConfig
from atlas.config.composition import GROUPS, options
from atlas.config.files import CONF_DIR
from atlas.config.keys import flat, override_values
from atlas.config.option_files import option_settings
from atlas.config.untrusted import read_json
from atlas.report.wording import value_text
from atlas.telemetry.run_files import JOBS_FILE

NAMED = [group for group in GROUPS if group not in ("experiment", "logger")]


def options_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Group -> the one option that has all its settings in `config`, which is flat; groups without one are left out.

    config.yaml holds the values of an option and not its name. A component, most of whose keys are the user's to set,
    is known by its class.
    """
    found = {group: _option(group, config) for group in NAMED} if config else {}
    return {group: option for group, option in found.items() if option is not None}


def _option(group: str, config: Mapping[str, Any]) -> str | None:
    known = {option: _settings(group, option) for option in options(group)}
    usual = {key: value for key, value in defaults().items() if key in keys_of(group)}
    fitting = [option for option, settings in known.items() if _fits({**usual, **settings}, config)]
    if not fitting:  # single settings were changed too
        known = {option: _class_alone(group, settings) or settings for option, settings in known.items()}
        fitting = [option for option, settings in known.items() if settings and _fits(settings, config)]
        most = max((len(known[option]) for option in fitting), default=0)
        fitting = [option for option in fitting if len(known[option]) == most]
    return fitting[0] if len(fitting) == 1 else None


def _class_alone(group: str, settings: Mapping[str, str]) -> Mapping[str, str]:
    """The entry that names a component's class; {} of an option of settings."""
    return {key: value for key, value in settings.items() if key == f"{group}._target_"}


def keys_of(group: str) -> frozenset[str]:
    """The settings that some option of the group sets."""
    return frozenset(key for option in options(group) for key in _settings(group, option))


def _fits(settings: Mapping[str, str], config: Mapping[str, Any]) -> bool:
    return all(key in config and value_text(config[key]) == value for key, value in settings.items())


@cache
def _settings(group: str, option: str) -> Mapping[str, str]:
    """The values that an option sets itself, by dotted keys; references to other settings are left out."""
    settings = option_settings(CONF_DIR / group / f"{option}.yaml", group)
    return {key: value_text(value) for key, value in settings.items() if "${" not in str(value)}


@cache
def defaults() -> Mapping[str, str]:
    """The values of settings that nothing sets, as text."""
    values: Any = OmegaConf.to_container(OmegaConf.structured(RunConfig), enum_to_str=True)
    return {key: value_text(value) for key, value in flat(values).items()}


def swept_values(sweep: Path) -> dict[str, dict[str, str]]:
    """Folder of a job -> the overrides in which the sweep's jobs differ; {} where sweep.json cannot be read."""
    try:
        jobs = {str(job["folder"]): override_values(job["overrides"]) for job in read_json(sweep / JOBS_FILE)["jobs"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    names = {name for values in jobs.values() for name in values}
    varying = {name for name in names if len({values.get(name) for values in jobs.values()}) > 1}
    return {
        folder: {name: value for name, value in values.items() if name in varying} for folder, values in jobs.items()
    }


def chosen_options(
    configs: Sequence[Mapping[str, Any]], swept: Sequence[Mapping[str, str]]
) -> dict[str, list[str | None]]:
    """Group -> the option of each run, of the groups whose options the runs differ in; None where config.yaml is lost.

    `swept`: what each run's sweep gave it, which is its name for what it did. A group that is not swept is told by the
    settings, and only where each run has one of its options.
    """
    given = {name for values in swept for name in values if name in GROUPS}
    found = [options_of(config) | {name: values[name] for name in given & set(values)}
             for config, values in zip(configs, swept, strict=True)]  # fmt: skip
    chosen = {}
    for group in GROUPS:
        texts = [own.get(group) if config else None for own, config in zip(found, configs, strict=True)]
        known = [text for text, config in zip(texts, configs, strict=True) if config]
        explained = given and all(swept) and group not in given  # the sweep names what differs
        if None not in known and len(set(known)) > 1 and not explained:
            chosen[group] = texts
    return chosen
