"""Which code of the user's a run was started with: code.json in its folder, and what has changed since."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from atlas.config import RunConfig
from atlas.config.atomic import write_atomically
from atlas.config.components import named_callable
from atlas.config.composition import foreign_code
from atlas.config.exits import in_python
from atlas.config.untrusted import read_json

CODE_FILE = "code.json"  # module -> its file with its SHA-256, as of the last start that used it
_PACKAGE = Path(__file__).parents[1]


def changed_code(folder: Path, config: RunConfig) -> list[str]:
    """A line where a file that the components of `config` come from is not as the run in `folder` last started with."""
    known, found = _read(folder), _own_code(config)
    changed = {
        file: name
        for module, (file, name) in found.items()
        if isinstance(before := known.get(module), dict) and before.get("sha256") != _sha256(file)
    }
    if not changed:
        return []
    files = ", ".join(f"{file} ({name})" for file, name in changed.items())
    return [f"code of your own has changed since the run was last started: {files}"]


def record_code(folder: Path, config: RunConfig) -> None:
    """Note the files of this start; those of components that it leaves out stay as they are."""
    known = _read(folder)
    now = {module: {"file": str(file), "sha256": _sha256(file)} for module, (file, _) in _own_code(config).items()}
    if known | now != known:
        write_atomically(folder / CODE_FILE, json.dumps(known | now, indent=1) + "\n")


def _own_code(config: RunConfig) -> dict[str, tuple[Path, str]]:
    """Module -> its file, and the component that needs it, as `key=name`."""
    found: dict[str, tuple[Path, str]] = {}
    for key, name in foreign_code(config):
        target: Any = named_callable(key, name)
        left = [name.rpartition(".")[0], getattr(target, "__module__", None) or ""]
        while left:
            module = sys.modules.get(left.pop())
            file = _file(module)
            if module is not None and module.__name__ not in found and file.is_file() and _PACKAGE not in file.parents:
                found[module.__name__] = file, f"{key}={name}"
                left += _imported(module)
    return found


def _imported(module: ModuleType) -> Iterator[str]:
    """The modules that its names lead to, less those of Python and of installed packages."""
    for value in vars(module).values():
        name = value.__name__ if isinstance(value, ModuleType) else ""
        name = value.__module__ if isinstance(value, type | FunctionType) else name
        file = str(_file(sys.modules.get(name)))
        if "-packages/" not in file and not in_python(file):
            yield name


def _file(module: ModuleType | None) -> Path:
    return Path(getattr(module, "__file__", None) or "")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / CODE_FILE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
