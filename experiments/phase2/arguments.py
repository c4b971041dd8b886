"""The command line of the exit gate: its own keys, and overrides of the default configuration. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path

from atlas.config import ConfigError, RunConfig, require
from atlas.config.composition import GROUPS, compose
from atlas.config.keys import override_name
from experiments.phase2.finding import CHECKS

PROTOCOLS = {"G2-1": "chunk_sizes", "G2-2": "probe_frequency"}
EVIDENCE = {f"evidence.{protocol}": protocol for protocol in PROTOCOLS.values()}
# The exit gate sets these itself: with another start the run would not be the one that the criteria mean.
OWN_CHOICE = ("hydra", "experiment", "resume", "init_from")


@dataclass(frozen=True)
class ExitArguments:
    config: RunConfig
    overrides: tuple[str, ...]  # of the default configuration
    only: tuple[str, ...]  # ids of the checks to run
    folder: Path | None = None  # where evidence and report go; None = outputs/gates/<time>
    sweeps: Mapping[str, Path] = field(default_factory=dict)  # protocol -> finished sweep to take as evidence


def parse_arguments(arguments: Sequence[str]) -> ExitArguments:
    """Raises `ConfigError` for what cannot be used."""
    own = {key: value for key, _, value in (text.partition("=") for text in arguments) if key in OWN_KEYS}
    overrides = tuple(text for text in arguments if text.partition("=")[0] not in OWN_KEYS)
    for text in overrides:
        name = override_group(text)
        key, _, value = text.partition("=")
        near = get_close_matches(key, OWN_KEYS, n=1)
        if near and name not in KNOWN:
            raise ConfigError(f"{text}: must be a key that exists (--help lists them); did you mean {near[0]}?")
        require(name not in OWN_CHOICE, key, value, "left out: the gate sets it itself")
    return ExitArguments(
        config=compose(overrides),
        overrides=overrides,
        only=_checks(own.get("only")),
        folder=_folder(own.get("folder")),
        sweeps={protocol: _sweep(key, own[key]) for key, protocol in EVIDENCE.items() if key in own},
    )


OWN_KEYS = ("only", "folder", *EVIDENCE)
KNOWN = (*GROUPS, *(setting.name for setting in fields(RunConfig)))  # names of the configuration


def override_group(override: str) -> str:
    """The first word of an override's key: `train` of `+train.steps=3`."""
    return override_name(override).partition(".")[0]


def _checks(value: str | None) -> tuple[str, ...]:
    ids = tuple(check.id for check in CHECKS)
    if value is None:
        return ids
    wanted = [name.strip().upper() for name in value.strip("[]").split(",")]
    require(all(name in ids for name in wanted), "only", value, f"some of {','.join(ids)}")
    return tuple(name for name in ids if name in wanted)


def _folder(value: str | None) -> Path | None:
    if value is None:
        return None
    path = Path(value).resolve()
    free = value != "" and (not path.exists() or (path.is_dir() and not any(path.iterdir())))
    require(free, "folder", value, "a new or empty folder: evidence of two gates does not mix")
    return path


def _sweep(key: str, value: str) -> Path:
    path = Path(value).resolve()
    require(value != "" and path.is_dir(), key, value, "the folder of a finished sweep")
    return path
