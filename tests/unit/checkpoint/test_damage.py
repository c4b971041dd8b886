"""Checkpoints that are damaged, missing or hostile, and disks that take no more."""

import gc
import hashlib
import itertools
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.checkpoint import state_file
from atlas.checkpoint.folder import CheckpointError
from atlas.checkpoint.manager import CheckpointManager
from atlas.checkpoint.manifest import encode, read_manifest
from tests.unit.checkpoint.checkpoints import SOUND, names, payload, same, save

FULL = Path("/dev/full")


def truncate(folder: Path) -> None:
    os.truncate(folder / "state.pt", 100)


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "state.pt").write_bytes(data)


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_the_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 50)


def change_the_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"healthy": true', '"healthy": null'))


def lose_the_state(folder: Path) -> None:
    (folder / "state.pt").unlink()


def empty_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [
    (truncate, r"state.pt has 100 bytes instead of \d+"),
    (flip_a_byte, "state.pt is damaged: its SHA-256 differs"),
    (lose_the_manifest, "manifest.json is missing"),
    (cut_the_manifest, "manifest.json is damaged"),
    (change_the_manifest, "manifest.json is damaged: its content does not match its digest"),
    (lose_the_state, "state.pt is missing"),
    (empty_the_folder, "manifest.json is missing"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
@pytest.mark.parametrize("named", [True, False])
def test_a_damaged_checkpoint_is_passed_over_and_this_is_said(
    manager: CheckpointManager, root: Path, damage: Any, reason: str, named: bool
) -> None:
    save(manager, 10, 20)
    newest = root / "step-00000020"
    damage(newest)
    found, manifest = manager.load(newest if named else None)
    assert same(found, 10)
    assert manifest.step == 10
    ((path, said),) = manager.skipped
    assert path == newest
    assert re.match(reason, said)


def test_a_deleted_newest_checkpoint_leaves_the_one_before(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10, 20)
    shutil.rmtree(root / "step-00000020")
    assert same(manager.load()[0], 10)


def test_no_sound_checkpoint_is_an_error_that_names_each(manager: CheckpointManager, root: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoints: no usable checkpoint$"):
        manager.load()
    save(manager, 10, 20)
    truncate(root / "step-00000010")
    lose_the_manifest(root / "step-00000020")
    with pytest.raises(CheckpointError, match=r"step-00000020: manifest.json is missing; step-00000010: state.pt has"):
        manager.load()
    with pytest.raises(CheckpointError, match="step-00000030: there is no checkpoint of this name"):
        manager.load(root / "step-00000030")


class Hostile:
    """Unpickled carelessly, this runs a program."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("by_torch", [True, False])
def test_a_hostile_file_with_a_matching_manifest_is_refused_and_does_not_run(
    manager: CheckpointManager, root: Path, tmp_path: Path, by_torch: bool
) -> None:
    save(manager, 10, 20)
    state, victim = root / "step-00000020" / "state.pt", tmp_path / "victim"
    if by_torch:
        torch.save({"model": Hostile(victim)}, state)
    else:
        state.write_bytes(pickle.dumps(Hostile(victim)))
    _forge(state.parent)
    found, _ = manager.load()
    assert same(found, 10)
    reason = "UnpicklingError" if by_torch else "File is not a zip file"
    assert manager.skipped[0][1] == f"state.pt is refused: it does not hold plain data only ({reason})"
    assert not victim.exists()
    pickle.loads(pickle.dumps(Hostile(victim)))
    assert victim.exists()  # the bait works


def test_something_else_than_a_dict_is_refused(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10)
    torch.save([1], root / "step-00000010" / "state.pt")
    _forge(root / "step-00000010")
    with pytest.raises(CheckpointError, match=r"state\.pt holds a list instead of a dict"):
        manager.load()


def _forge(folder: Path) -> None:
    """Make the manifest agree with whatever state.pt is now."""
    data = (folder / "state.pt").read_bytes()
    forged = replace(read_manifest(folder), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / "manifest.json").write_bytes(encode(forged))


def test_a_later_format_is_named(manager: CheckpointManager, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.checkpoint.manifest.FORMAT", 3)
    save(manager, 10)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"manifest\.json has format 3, this version reads 1 and 2"):
        manager.load()


def test_a_file_that_may_not_grow_leaves_the_old_ones_and_no_rest(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step 20 could not be saved in .*: File too large"):
            manager.save(20, payload(20, size=100_000), SOUND)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(root) == ["step-00000010"]
    assert same(manager.load()[0], 10)
    save(manager, 20)
    assert same(manager.load()[0], 20)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt also where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


WRITE = state_file._HashingStream.write


def interrupt_write(number: int, begun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives in the midst of one write to the state's file, or just before it."""
    calls = itertools.count(1)

    def write(stream: Any, data: bytes) -> int:
        if next(calls) == number:
            if not begun:
                signal.raise_signal(signal.SIGINT)
            stream._file = Interrupting(stream._file)
        return WRITE(stream, data)

    monkeypatch.setattr(state_file._HashingStream, "write", write)


@dataclass
class Interrupting:
    file: Any

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached: the signal is a KeyboardInterrupt")

    def flush(self) -> None:
        self.file.flush()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_at_any_write_stays_an_interrupt_and_leaves_no_rest(
    manager: CheckpointManager, root: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """torch turns one that comes while it writes into a RuntimeError of its own."""
    save(manager, 10)
    for number in itertools.count(1):  # until there is no such write
        interrupt_write(number, begun, monkeypatch)
        try:
            save(manager, 20)
            break
        except KeyboardInterrupt:
            assert names(root) == ["step-00000010"]
    assert number > 10
    assert same(manager.load()[0], 20)


def test_an_error_while_an_interrupt_is_handled_stays_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller is handling has not stopped the write."""

    def failing(*_: Any) -> None:
        raise RuntimeError("torch's own")

    monkeypatch.setattr(torch, "save", failing)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(RuntimeError, match="torch's own"):
            state_file.write_state(tmp_path / "state.pt", payload(1))


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux")
def test_a_failed_write_keeps_nothing_of_the_caller_in_memory() -> None:
    """torch never frees the stream, through which the error of the write holds the caller's variables."""

    def write() -> weakref.ref[torch.Tensor]:
        variable = torch.zeros(10_000)
        with pytest.raises(OSError, match="No space left"):
            state_file.write_state(FULL, {"variable": variable})
        return weakref.ref(variable)

    kept = write()
    gc.collect()
    assert kept() is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs the mount command")
def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    manager = CheckpointManager(small_disk / "checkpoints", keep=3)
    size = 90_000  # 360 kB: two fit
    for step in (10, 20):
        manager.save(step, payload(step, size), SOUND)
    with pytest.raises(CheckpointError, match=r"step 30 could not be saved in .*: No space left on device"):
        manager.save(30, payload(30, size), SOUND)
    assert names(manager.root) == ["step-00000010", "step-00000020"]
    assert same(manager.load()[0], 20, size)
    shutil.rmtree(manager.root / "step-00000010")  # the user makes room
    manager.save(30, payload(30, size), SOUND)
    assert same(manager.load()[0], 30, size)
    manager.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    manager = CheckpointManager(tmp_path / "run" / "checkpoints", keep=2)
    with pytest.raises(CheckpointError, match="run/checkpoints cannot be written: Not a directory"):
        manager.lock()
