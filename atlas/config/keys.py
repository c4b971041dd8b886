"""Dotted keys of settings, such as `model.memory.rule`, and the overrides that set them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any


def flat(settings: Mapping[Any, Any], prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """Nested mappings as `a.b.c` -> value. An empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{key}{separator}", separator))
        else:
            found[f"{prefix}{key}"] = value
    return found


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `flat` was made from."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, name = key.split(".")
        node = found
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return found


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as its YAML file has it: dictionaries, lists, texts and numbers."""
    return {key: _plain(value) for key, value in asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def lies_in(key: str, names: Iterable[str]) -> bool:
    """Whether `names` holds the dotted key, or a group above it."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def override_values(overrides: Iterable[str]) -> dict[str, str]:
    """Name -> what each override sets, without the backslashes that Hydra puts before special characters."""
    return {override_name(text): re.sub(r"\\(.)", r"\1", text.partition("=")[2]) for text in overrides}


def override_name(override: str) -> str:
    """The key or the group that an override sets: `train.steps` of `+train.steps=3`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]
