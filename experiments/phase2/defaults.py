"""What the default configuration has where a decision speaks of it. Imports no torch."""

from __future__ import annotations

from functools import cache

from atlas.config import RunConfig
from atlas.config.composition import compose
from atlas.config.files import CONF_DIR, read_yaml


@cache
def default_config() -> RunConfig:
    return compose()


@cache
def default_option(group: str) -> str:
    """Name of the option that is chosen in a group of the configuration."""
    options = read_yaml(CONF_DIR / "config.yaml")["defaults"]
    return next(str(one[group]) for one in options if isinstance(one, dict) and group in one)
