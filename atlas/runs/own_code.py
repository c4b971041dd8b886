"""Which code of the user's a run was started with: code.json in its folder, and what has changed since."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
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
        for module in _modules(key, name):
            file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
            if file.is_file() and _PACKAGE not in file.parents:
                found.setdefault(module, (file, f"{key}={name}"))
    return found


def _modules(key: str, name: str) -> Iterator[str]:
    """Where the component is defined, and of a class the modules of its bases that are no installed package's."""
    target: Any = named_callable(key, name)
    yield getattr(target, "__module__", None) or name.rpartition(".")[0]
    for base in inspect.getmro(target)[1:] if inspect.isclass(target) else ():
        file = getattr(sys.modules.get(base.__module__), "__file__", None) or ""
        if "-packages/" not in file and not in_python(file):
            yield base.__module__


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / CODE_FILE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
