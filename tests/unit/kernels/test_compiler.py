"""Building the compiled kernels, and what is done where that fails."""

from __future__ import annotations

import ctypes
import hashlib
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


@needs_compiler
@pytest.mark.usefixtures("small_source")
def test_a_library_that_is_sealed_but_of_other_sources_is_built_again() -> None:
    path = build()
    right = path.read_bytes()
    wrong = right.replace(f"atlas kernels {path.stem}".encode(), b"atlas kernels " + b"0" * len(path.stem))
    path.write_bytes(wrong)
    path.with_suffix(".sha256").write_text(hashlib.sha256(wrong).hexdigest())
    assert build() == path
    assert path.read_bytes() == right


@needs_compiler
@pytest.mark.usefixtures("small_source")
def test_a_library_that_others_can_write_is_built_again(own_cache: Path) -> None:
    path = build()
    path.chmod(0o777)
    assert build() == path
    assert path.stat().st_mode & 0o777 == 0o700


@needs_compiler
@pytest.mark.usefixtures("small_source")
def test_what_a_killed_build_leaves_is_removed_by_the_next(own_cache: Path) -> None:
    left = own_cache / "atlas" / "kernels" / "build-killed"
    left.mkdir(parents=True, mode=0o700)
    for folder in (left.parent, left.parent.parent):
        folder.chmod(0o700)
    (left / "scan.o").write_text("half")
    path = build()
    assert sorted(entry.suffix for entry in path.parent.iterdir()) == [".sha256", ".so"]


@needs_compiler
@pytest.mark.usefixtures("small_source")
@pytest.mark.parametrize("words", ["{real} -m64", "{wrapper} {real}", "'{wrapper}' {real} -O2"])
def test_the_compiler_may_have_arguments_or_stand_behind_another(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    real = next(filter(None, map(shutil.which, COMPILERS)))
    wrapper = script(own_cache, 'exec "$@"')
    monkeypatch.setenv("CXX", words.format(real=real, wrapper=wrapper))
    assert ctypes.CDLL(str(build())).one() == 1


@needs_compiler
@pytest.mark.usefixtures("small_source")
def test_a_compiler_whose_path_holds_a_blank(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_cache / "my tools"
    folder.mkdir()
    real = next(filter(None, map(shutil.which, COMPILERS)))
    monkeypatch.setenv("CXX", script(folder, f'exec {real} "$@"'))
    assert ctypes.CDLL(str(build())).one() == 1


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
    monkeypatch.setenv("CXX", "'g++")
    with pytest.raises(CompileError, match=r"^CXX='g\+\+ cannot be read: No closing quotation$"):
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
