"""C++ sources of this folder -> a shared library, built once per machine and kept in the user's cache.

`CXX` names the compiler, with arguments if need be; `XDG_CACHE_HOME` the cache (by default ~/.cache).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from atlas.kernels.cache import CacheError, cache_folder, is_private

FOLDER = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
# No -ffast-math: a NaN has to stay one.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC")
TIMEOUT_SECONDS = 300
PART = "build-"  # names of the folders that a build works in


class CompileError(Exception):
    """No library. The message says why, in one line."""


def build() -> Path:
    """The library of these sources for this processor; compiled unless the cache has it. Raises `CompileError`."""
    if sys.platform != "linux":
        raise CompileError(f"kernels are compiled on Linux only, this is {sys.platform}")
    compiler = find_compiler()
    digest = _digest(compiler)
    try:
        folder = cache_folder()
    except CacheError as error:
        raise CompileError(str(error)) from error
    kept = folder / f"{digest}.so"
    try:
        if not _is_whole(kept, digest):
            with _alone(folder):
                if not _is_whole(kept, digest):  # no other process has built it meanwhile
                    _build(compiler, digest, kept)
    except OSError as error:
        raise CompileError(f"{folder} cannot be written: {error.strerror}") from error
    return kept


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Allow one build at a time, and remove what a killed build has left."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{PART}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(lock)


def _build(compiler: list[str], digest: str, kept: Path) -> None:
    if sys.stderr is not None:
        print("atlas: compiles the CPU kernels, once on this machine; some seconds", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=PART, dir=kept.parent) as part:
        fresh = Path(part) / kept.name
        mark = Path(part) / "digest.cpp"
        mark.write_text(f'extern "C" const char atlas_digest[] = "{_mark(digest)}";\n', encoding="ascii")
        _compile(compiler, [mark, *sorted(FOLDER.glob("*.cpp"))], fresh)
        _seal(fresh).write_text(_sum(fresh.read_bytes()), encoding="ascii")
        for path in (_seal(fresh), fresh):
            path.chmod(0o700)
            path.replace(kept.parent / path.name)


def _is_whole(library: Path, digest: str) -> bool:
    """Whether it is this user's, complete and of these sources. Loading a damaged library ends the process."""
    try:
        if not (is_private(library) and is_private(_seal(library))):
            return False
        content = library.read_bytes()
        return _seal(library).read_text(encoding="ascii") == _sum(content) and _mark(digest).encode() in content
    except (OSError, UnicodeDecodeError):
        return False


def _seal(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _mark(digest: str) -> str:
    """A text inside the library, by which `_is_whole` knows its sources."""
    return f"atlas kernels {digest}"


def find_compiler() -> list[str]:
    """The command that compiles: an executable and its arguments."""
    asked = os.environ.get("CXX")
    try:
        # `/my tools/g++` is one word, `ccache g++` is two.
        commands = [[asked], shlex.split(asked)] if asked else [[name] for name in COMPILERS]
    except ValueError as error:
        raise CompileError(f"CXX={asked} cannot be read: {error}") from error
    for name, *arguments in filter(None, commands):
        if found := shutil.which(name):
            return [found, *arguments]
    raise CompileError(f"CXX={asked} is not there" if asked else f"no C++ compiler ({', '.join(COMPILERS)})")


def _digest(compiler: list[str]) -> str:
    """Hash of everything that the library depends on, the processor too: machines may share a cache."""
    version = _run([*compiler, "--version"])
    parts = [path.read_bytes() for path in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")])]
    parts += [version.encode(), shlex.join([*compiler, *FLAGS]).encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _processor() -> str:
    """The properties of the processor that `-march=native` depends on."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        told = ""
    lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", told, re.MULTILINE)
    return "\n".join([platform.machine(), *sorted(set(lines))])


def _compile(compiler: list[str], sources: list[Path], target: Path) -> None:
    """Compile all sources at the same time; one of them takes more than half of the work."""
    objects = [target.parent / f"{source.stem}.o" for source in sources]
    each = zip(sources, objects, strict=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(_run, [[*compiler, *FLAGS, "-c", str(source), "-o", str(to)] for source, to in each]))
    _run([*compiler, *FLAGS, "-shared", *map(str, objects), "-o", str(target)])


def _run(command: list[str]) -> str:
    """Run a compiler; returns what it prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise CompileError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CompileError(f"{command[0]} fails: {told[0]}")
    return done.stdout
