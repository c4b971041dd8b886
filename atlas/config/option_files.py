"""What the file of an option sets: `ablation=no_global` sets a key of `model.memory`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atlas.config.files import read_yaml
from atlas.config.keys import flat

_PACKAGE = re.compile(r"# @package (\S+)")
_GLOBAL = "_global_"


def option_settings(path: Path, group: str) -> dict[str, Any]:
    """The settings in an option's own file, by dotted keys; none of those that its defaults list brings.

    Raises OSError, UnicodeDecodeError and `ConfigError`.
    """
    package = _PACKAGE.match(path.read_text(encoding="utf-8"))
    prefix = package[1] if package else group
    content = _content(path)
    content.pop("defaults", None)
    return flat(content, "" if prefix == _GLOBAL else f"{prefix}.")


def options_in(text: str) -> list[str]:
    """`a`, `"a"` or `[a,b]`, as an override has them, as a list."""
    return [name.strip("'\" ") for name in text.strip("[]").split(",") if name.strip()]


def named_settings(group: str, option: str, folders: Sequence[Path]) -> Iterator[str]:
    """`group`, and the settings and groups outside of it that `group=option` sets.

    `folders`: where option files are; the first one that has the option counts. Raises OSError where none has,
    UnicodeDecodeError and `ConfigError`.
    """
    places = [folder / group / f"{option}.yaml" for folder in folders]
    path = next((place for place in places if place.is_file()), places[0])
    yield group
    yield from option_settings(path, group)
    for entry in _content(path).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":  # another option of the same group
            yield from named_settings(group, entry, folders)
        for name, chosen in entry.items() if isinstance(entry, dict) else ():
            other = str(name).removeprefix("override").strip()
            if other.startswith("/"):  # a group of its own; the others are parts of this one
                for one in chosen if isinstance(chosen, list) else [chosen] * (chosen is not None):
                    yield from named_settings(other[1:], str(one), folders)


def _content(path: Path) -> dict[str, Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    only_comments = all(line.lstrip()[:1] in ("", "#") for line in lines)
    return {} if only_comments else read_yaml(path)
