"""The folder of the compiled library: ours alone, wherever and however it is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas.kernels.cache import CacheError, cache_folder, is_private


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> str:
    return f"{path.stat().st_mode & 0o777:o}"


@pytest.mark.usefixtures("open_umask")
def test_every_folder_is_made_for_this_user_alone_whatever_the_umask(base: Path) -> None:
    assert cache_folder() == base / "atlas" / "kernels"
    assert [mode(base / part) for part in ("", "atlas", "atlas/kernels")] == ["700"] * 3


@pytest.mark.parametrize("part", ["", "atlas", "atlas/kernels"])
def test_a_folder_that_others_can_write_is_refused(base: Path, part: str) -> None:
    cache_folder()
    (base / part).chmod(0o777)
    with pytest.raises(CacheError) as refused:
        cache_folder()
    assert str(refused.value) == f"{base / part} is not used: other users can write it (mode 0777)"


def test_a_folder_above_that_others_can_write_is_refused_unless_it_is_sticky(base: Path) -> None:
    base.parent.chmod(0o777)
    with pytest.raises(CacheError, match=r"is not used: other users can write it \(mode 0777\)$"):
        cache_folder()
    base.parent.chmod(0o1777)
    assert cache_folder() == base / "atlas" / "kernels"
    base.parent.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("part", ["", "atlas", "atlas/kernels"])
def test_a_folder_of_another_user_is_refused(base: Path, part: str) -> None:
    cache_folder()
    os.chown(base / part, 12345, 12345)
    with pytest.raises(CacheError) as refused:
        cache_folder()
    assert str(refused.value) == f"{base / part} is not used: user 12345 owns it, not user 0"


@pytest.mark.parametrize(
    ("variable", "value"), [("XDG_CACHE_HOME", "cache"), ("XDG_CACHE_HOME", "./x"), ("HOME", ""), ("HOME", "here")]
)
def test_only_absolute_paths_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(CacheError) as refused:
        cache_folder()
    assert str(refused.value) == f"no folder for the cache: {variable}={value} must be an absolute path"
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_to_the_folder_that_is_checked(base: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o777)
    base.symlink_to(target)
    with pytest.raises(CacheError) as refused:
        cache_folder()
    assert str(refused.value) == f"{target} is not used: other users can write it (mode 0777)"


def test_a_library_that_others_can_write_is_not_private(tmp_path: Path) -> None:
    library, link = tmp_path / "library.so", tmp_path / "link.so"
    library.write_text("")
    library.chmod(0o644)
    link.symlink_to(library)
    assert is_private(library)
    assert not is_private(link)
    library.chmod(0o666)
    assert not is_private(library)
