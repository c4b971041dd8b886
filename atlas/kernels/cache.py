"""The folder that holds the compiled library. Whoever can write there runs code in every run, so only this user may."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class CacheError(Exception):
    """No folder that can be trusted. The message says why, in one line."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/atlas/kernels` or `~/.cache/atlas/kernels`, made if it is not there. Raises `CacheError`."""
    named, home = os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME")
    try:
        base = Path(named) if named else (Path.home() if home is None else Path(home)) / ".cache"
    except RuntimeError as error:
        raise CacheError(f"no folder for the cache, set XDG_CACHE_HOME: {error}") from error
    if not base.is_absolute():
        source = f"XDG_CACHE_HOME={named}" if named else f"HOME={home}"
        raise CacheError(f"no folder for the cache: {source} must be an absolute path")
    base = base.resolve()
    folder = base / "atlas" / "kernels"
    for path in (*reversed(folder.parents), folder):
        try:
            if not path.exists():
                path.mkdir(mode=0o700, exist_ok=True)
                path.chmod(0o700)  # whatever the umask
            _check(path, base)
        except OSError as error:
            raise CacheError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


def is_private(path: Path) -> bool:
    """Whether it is a regular file that this user owns and no other can write."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _check(path: Path, base: Path) -> None:
    """Raise `CacheError` where another user owns or can write the cache, or can replace a folder above it."""
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    above, below = path in base.parents, base in path.parents
    if not above and status.st_uid != os.geteuid():
        raise CacheError(f"{path} is not used: user {status.st_uid} owns it, not user {os.geteuid()}")
    others = stat.S_IWOTH | (stat.S_IWGRP if below else 0)  # a user's own group may write ~/.cache on some systems
    if mode & others and not (above and mode & stat.S_ISVTX):
        raise CacheError(f"{path} is not used: other users can write it (mode {mode:04o})")
