"""Building the compiled kernels, and what is done where that fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from atlas.config import ConfigError, Kernels
from atlas.kernels import compiler
from atlas.kernels import library as kernels
from atlas.kernels.compiler import COMPILERS, CompileError, build

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(kernels, "_selection", kernels._Selection())
    return tmp_path


@pytest.fixture
def small_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Instead of the kernels, which take seconds to compile."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(compiler, "FOLDER", folder)
    monkeypatch.setattr(kernels, "_selection", kernels._Selection(missing="a small source"))  # is not to be loaded
    return folder / "one.cpp"


def script(folder: Path, text: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@needs_compiler
def test_a_library_is_built_once_and_again_for_another_compiler_or_source(
    own_cache: Path, small_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build()
    built = first.stat().st_mtime_ns
    assert build() == first
    assert first.stat().st_mtime_ns == built
    assert sorted(path.suffix for path in first.parent.iterdir()) == [".sha256", ".so"]
    real = next(filter(None, map(shutil.which, COMPILERS)))
    monkeypatch.setenv("CXX", script(own_cache, f'[ "$1" = --version ] && echo other || exec {real} "$@"'))
    other = build()
    small_source.write_text('extern "C" int one() { return 2; }\n')
    assert len({first, other, build()}) == 3


@needs_compiler
@pytest.mark.usefixtures("small_source")
def test_a_damaged_library_is_built_again() -> None:
    path = build()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert build() == path
    assert path.read_bytes() == whole


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(CompileError, match=r"^no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\)$"):
        build()
    assert kernels.library() is None
    assert kernels.description() == "PyTorch kernels"
    assert kernels.missing() == "no C++ compiler (c++, g++, clang++)"
    with pytest.raises(ConfigError) as refused:
        kernels.use(Kernels.compiled)
    assert str(refused.value) == (
        "device.kernels=compiled: must be auto or torch here: no C++ compiler (c++, g++, clang++)"
    )
    kernels.use(Kernels.torch)
    assert kernels.missing() == ""


def test_a_compiler_that_is_named_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompileError, match=r"^CXX=no-such-compiler is not there$"):
        build()


def test_a_compiler_that_fails_leaves_nothing_behind(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[ "$1" = --version ] || { echo "no such option" >&2; exit 1; }'
    monkeypatch.setenv("CXX", script(own_cache, text))
    with pytest.raises(CompileError, match=r"compiler fails: no such option$"):
        build()
    assert list((own_cache / "atlas" / "kernels").iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_written(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache / "file"))
    assert kernels.library() is None
    assert kernels.missing() == f"{own_cache / 'file' / 'atlas' / 'kernels'} cannot be written: Not a directory"
