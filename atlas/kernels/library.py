"""The compiled library as Python sees it, and whether it is used.

use(Kernels.torch)          from now on; the default is `auto`
library()                   the library, or None: then PyTorch's operations do the work
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from atlas.config import ConfigError, Kernels
from atlas.config.choices import member
from atlas.kernels.compiler import CompileError, build


@dataclass
class _Selection:
    choice: Kernels = Kernels.auto
    loaded: ctypes.CDLL | None = None
    missing: str = ""  # why there is none


_selection = _Selection()


def use(choice: Kernels) -> None:
    """Choose the kernels. Raises `ConfigError` for `compiled` where there is no library."""
    choice = member(Kernels, "device.kernels", choice)
    _selection.choice = choice
    if choice is not Kernels.torch:
        _load()
    if choice is Kernels.compiled and _selection.loaded is None:
        raise ConfigError(f"device.kernels={choice}: must be auto or torch here: {_selection.missing}")


def library() -> ctypes.CDLL | None:
    if _selection.choice is Kernels.torch:
        return None
    _load()
    return _selection.loaded


def loaded() -> ctypes.CDLL:
    """The library, even if `use` has chosen otherwise since: a backward pass needs the library of its forward pass."""
    _load()
    if _selection.loaded is None:
        raise RuntimeError(f"no compiled kernels: {_selection.missing}")
    return _selection.loaded


def description() -> str:
    return "PyTorch kernels" if library() is None else "compiled kernels"


def missing() -> str:
    """Why there is no library though one is wanted, else ""."""
    return "" if library() is not None or _selection.choice is Kernels.torch else _selection.missing


def _load() -> None:
    if _selection.loaded is not None or _selection.missing:
        return
    try:
        _selection.loaded = ctypes.CDLL(str(build()))
    except (CompileError, OSError) as error:
        _selection.missing = str(error)
