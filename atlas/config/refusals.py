"""Hydra's and OmegaConf's errors -> one line that names the key, the value and what is allowed."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from atlas.config import ConfigError, RunConfig
from atlas.config.path_overrides import shell_example
from atlas.config.values import describe

SHOWING = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info")


@contextmanager
def refuse(conf_dir: Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf inside the block into `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, conf_dir, overrides) from error
    except TypeError as error:  # chunk_size=[8,16]: Hydra takes a list as several options, which have names
        for override in overrides:
            group, _, option = override.partition("=")
            known = sorted(path.stem for path in (conf_dir / group).glob("*.yaml"))
            if known and option.startswith("["):
                raise ConfigError(f"{override}: must be one of {', '.join(known)}") from error
        raise
    except RecursionError as error:
        raise ConfigError("the settings must not be nested so deeply, nor refer to each other in a circle") from error


def explain(error: Exception, conf_dir: Path, overrides: Sequence[str] = ()) -> ConfigError:
    """The one-line `ConfigError` for an error of Hydra or OmegaConf."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = sorted(error.options, key=lambda name: (len(name), name))
        return ConfigError(f"{group}={option}: must be one of {', '.join(options)}")
    if isinstance(error, OverrideParseException):
        allowed = f"written KEY=VALUE or GROUP=OPTION ({_quoting(error.override)})"
        if os.path.isdir(error.override):  # noqa: PTH112 (pathlib raises for a long text)
            allowed = f"resume={error.override} to continue that run (python -m atlas.niah, generate or report read it)"
        return ConfigError(f"{error.override}: must be {allowed}")
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error, conf_dir)
    if isinstance(error, ConfigKeyError) and error.full_key:  # of a file
        return unknown_key(error.full_key, conf_dir)
    if "Config group override must be a string" in str(error):  # Hydra does not say which
        for override in overrides:
            group, _, option = override.partition("=")
            names = sorted(path.stem for path in (conf_dir / group).glob("*.yaml"))
            if names and option not in names:
                return ConfigError(f"{override}: must be one of {', '.join(names)}")
    return ConfigError(_one_line(error))


def unknown_key(override: str, conf_dir: Path) -> ConfigError:
    """The refusal of a key that does not exist, with the nearest one that does."""
    key = override.partition("=")[0]
    known = known_keys(conf_dir)
    near = get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    if full := in_full(override, conf_dir):
        hint = f"; did you mean {' or '.join(full)}?"
    if key in known:
        hint = f"; another option of {key.partition('.')[0]} has it"
    listing = "hydra" if key.startswith("hydra.") else "job"
    return ConfigError(f"{override}: must be a key that exists (--cfg {listing} lists them){hint}")


def in_full(override: str, conf_dir: Path) -> list[str]:
    """The override with every full key whose last word it gives: `optim.lr=0.01` for `lr=0.01`."""
    word, known = override.partition("=")[0], known_keys(conf_dir)
    longer = [key for key in known if key.endswith(f".{word}")]
    return [key.removesuffix(word) + override for key in longer]


def refuse_flags(arguments: Sequence[str], conf_dir: Path) -> None:
    """Raise `ConfigError` for `--steps=100`: settings are written without dashes."""
    flags = [text for action in get_args_parser()._actions for text in action.option_strings]
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument.startswith("--") and not any(flag.startswith(name) for flag in flags):
            key = name.removeprefix("--").replace("-", "_")
            plain = f"{key}={value or 'VALUE'}"
            keys = [plain] if key in known_keys(conf_dir) else in_full(plain, conf_dir)
            allowed = f"written {' or '.join(keys)}" if keys else "one of the flags that --hydra-help shows"
            raise ConfigError(f"{argument}: must be {allowed}")


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra's parser takes them: it refuses a flag between two overrides.

    Raises `ConfigError` for a flag that does not exist.
    """
    parsed, unknown = get_args_parser().parse_known_intermixed_args(list(arguments))
    if unknown:
        raise ConfigError(f"{unknown[0]}: must be one of the flags that --hydra-help shows")
    overrides = parsed.overrides
    return [*(argument for argument in arguments if argument not in overrides), *overrides]


def is_multirun(arguments: Sequence[str]) -> bool:
    """Whether Hydra takes these arguments for those of a sweep."""
    parsed = get_args_parser().parse_args(list(arguments))
    return bool(parsed.multirun) or any(text.lower() == "hydra.mode=multirun" for text in parsed.overrides)


def only_shows(arguments: Sequence[str]) -> bool:
    """Whether Hydra, or our help, prints something and starts nothing."""
    return any(text.partition("=")[0] in SHOWING for text in arguments)


def known_keys(conf_dir: Path) -> list[str]:
    """Every key of the schema, and every key that an option of a component sets."""
    keys = {key for key, _ in _schema_keys(RunConfig, "")}
    for path in sorted(conf_dir.glob("*/*.yaml")):
        if path.parent.name in ("data", "optim", "logger"):
            keys.update(f"{path.parent.name}.{key!s}" for key in OmegaConf.load(path) if key != "_target_")
    return sorted(keys)


def _explain_composition(error: ConfigCompositionException, conf_dir: Path) -> ConfigError:
    message, cause = str(error), error.__cause__
    if found := re.match(r"Could not override '.*'\.\nTo append to your config use \+(.*)", message):
        return unknown_key(found[1], conf_dir)
    if found := re.match(r"Ambiguous value for argument '(.*)'", message):
        return ConfigError(f"{found[1]}: must be one value; add -m to sweep over several ({_quoting(found[1])})")
    if found := re.match(r"Multiple values for (\S+)\.", message):
        return ConfigError(f"{found[1]}: must be given once, as {found[1]}=OPTION without +")
    override = re.match(r"Error merging override (.*)", message)
    full_key = re.search(r"full_key: (\S+)", str(cause))
    if override and full_key:
        key = re.sub(r"\[\d+\]$", "", full_key[1])
        wanted = dict(_schema_keys(RunConfig, "")).get(key)
        if wanted is not None:
            default = OmegaConf.select(OmegaConf.structured(RunConfig), key)
            example = f", such as {default}" if wanted is int else ""
            return ConfigError(f"{override[1]}: must be {describe(wanted)}{example}")
    return ConfigError(f"{_one_line(error)}: {_one_line(cause)}" if cause else _one_line(error))


def _quoting(override: str) -> str:
    """How to write a value with characters that mean something to Hydra."""
    if "=" not in override:
        return "quote special characters"
    return f"quote special characters: {shell_example(override)}"


def _schema_keys(schema: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, kind in typing.get_type_hints(schema).items():
        yield f"{prefix}{name}", kind
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _schema_keys(kind, f"{prefix}{name}.")


def _one_line(error: BaseException) -> str:
    """The message of an error without its line breaks, and with the key that OmegaConf puts on the second line."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    key = next((line.removeprefix("full_key: ") for line in rest if line.startswith("full_key: ")), "")
    return f"{key}: {first}" if key else first
