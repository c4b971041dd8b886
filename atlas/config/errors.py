"""How a setting is refused: one line that names the key, the value and what is allowed."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that cannot be used. The message is meant to be shown to the user as it is."""


class CheckpointWarning(UserWarning):
    """What is read of a run is not what its user may think. A command shows the message as a line."""


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise `ConfigError` unless `holds`; the message names key, value and what is allowed."""
    if not holds:
        raise ConfigError(f"{key}={value}: must be {allowed}")


def with_extra(extra: str) -> str:
    """How a refusal says where the packages of an extra come from, in the tested versions."""
    return f'installed: pip install -c constraints.txt -e ".[{extra}]" in a checkout'
