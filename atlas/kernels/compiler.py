"""C++ sources of this folder -> a shared library, built once per machine and kept in the user's cache.

`CXX` names the compiler, `XDG_CACHE_HOME` the cache (by default ~/.cache).
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
# No -ffast-math: a NaN has to stay one.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
TIMEOUT_SECONDS = 120


class CompileError(Exception):
    """No library. The message says why, in one line."""


def build() -> Path:
    """The library of these sources for this processor; compiled unless the cache has it. Raises `CompileError`."""
    if sys.platform != "linux":
        raise CompileError(f"kernels are compiled on Linux only, this is {sys.platform}")
    compiler = _compiler()
    folder = _cache()
    kept = folder / f"{_digest(compiler)}.so"
    if not _is_whole(kept):
        try:
            with tempfile.TemporaryDirectory(dir=folder) as part:
                fresh = Path(part) / kept.name
                _compile(compiler, fresh)
                _seal(fresh).write_text(_sum(fresh), encoding="ascii")
                for path in (_seal(fresh), fresh):  # each at once, whoever else builds it
                    path.replace(folder / path.name)
        except OSError as error:
            raise CompileError(f"{folder} cannot be written: {error.strerror}") from error
    return kept


def _is_whole(library: Path) -> bool:
    """Loading a torn library would end the process."""
    try:
        return _seal(library).read_text(encoding="ascii") == _sum(library)
    except (OSError, UnicodeDecodeError):
        return False


def _seal(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _sum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _compiler() -> str:
    asked = os.environ.get("CXX")
    for name in (asked,) if asked else COMPILERS:
        if found := shutil.which(name):
            return found
    raise CompileError(f"CXX={asked} is not there" if asked else f"no C++ compiler ({', '.join(COMPILERS)})")


def _digest(compiler: str) -> str:
    """Of everything that the library depends on: a cache may be shared by machines with other processors."""
    try:
        told = subprocess.run([compiler, "--version"], capture_output=True, timeout=TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise CompileError(f"{compiler} does not run: {error}") from error
    parts = [path.read_bytes() for path in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")])]
    parts += [told.stdout, " ".join(FLAGS).encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _processor() -> str:
    """What `-march=native` reads of the processor, as the system tells it."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        told = ""
    lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", told, re.MULTILINE)
    return "\n".join([platform.machine(), *sorted(set(lines))])


def _cache() -> Path:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atlas" / "kernels"
    except RuntimeError as error:
        raise CompileError(f"no folder for the cache, set XDG_CACHE_HOME: {error}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompileError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


def _compile(compiler: str, target: Path) -> None:
    command = [compiler, *FLAGS, *map(str, sorted(FOLDER.glob("*.cpp"))), "-o", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise CompileError(f"{compiler} does not run: {error}") from error
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CompileError(f"{compiler} fails: {told[0]}")
