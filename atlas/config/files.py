"""The place of the option files, and safe reading of YAML that a stranger may have written.

A run folder is data: nothing in it is executed, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf._utils import get_yaml_loader

from atlas.config.errors import ConfigError
from atlas.config.untrusted import open_regular

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries the files inside the package; a checkout has them beside it.
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
LARGEST_BYTES = 1 << 20  # of settings: two hundred times those of the default run
DEEPEST = 32  # levels of keys and lists
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class _PlainLoader(get_yaml_loader()):  # type: ignore[misc]
    """YAML as a run writes it: no aliases, a few of which can expand to gigabytes, and no tags that create objects."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"it holds an alias, *{self.peek_event().anchor}")
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises OSError, and `ConfigError` for what no run writes."""
    text = _read_text(path, LARGEST_BYTES)
    try:
        content = yaml.load(text, Loader=_PlainLoader)
        str(content)  # raises ValueError for a number of thousands of digits, which hexadecimal YAML may hold
    except (yaml.YAMLError, ValueError) as error:
        raise _unreadable(path, "plain YAML", error) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be plain YAML (it holds no keys)")
    return content


def _read_text(path: Path, largest: int) -> str:
    with open_regular(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ConfigError(f"{path}: must be a file of at most {largest >> 20} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(path, "UTF-8", error) from error


def _unreadable(path: Path, kind: str, error: Exception) -> ConfigError:
    reason = str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        reason = f"{error.problem}, line {error.problem_mark.line + 1}"
    return ConfigError(f"{path}: must be {kind} ({' '.join(reason.split())[:300]})")


def require_values(path: Path, content: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for references that could multiply, or ask for more than another value of the file.

    A job that failed before its settings were resolved leaves references to single values.
    """
    for text in _texts(content):
        found = _REFERENCE.fullmatch(text)
        target: Any = content
        for name in found[1].split(".") if found else ():
            target = target.get(name) if isinstance(target, dict) else None
        if "${" in text and (target is None or isinstance(target, dict | list)):
            raise ConfigError(f"{path}: must hold values, not the reference {text[:100]}")


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
