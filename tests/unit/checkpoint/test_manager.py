"""What is kept, found, retired and locked."""

import errno
import hashlib
import json
import math
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.checkpoint.folder import CheckpointError
from atlas.checkpoint.manager import CheckpointManager
from atlas.checkpoint.snapshot import SnapshotError, snapshot
from tests.unit.checkpoint.checkpoints import SOUND, names, payload, same, save


def test_a_checkpoint_comes_back_with_its_manifest(manager: CheckpointManager, root: Path) -> None:
    saved = manager.save(10, payload(10), {"validation_loss": 1.5, "niah": None, "finite": True})
    assert (saved.path, saved.step) == (root / "step-00000010", 10)
    assert saved.bytes == (saved.path / "state.pt").stat().st_size
    found, manifest = manager.load()
    assert same(found, 10)
    assert manager.skipped == ()
    assert (manifest.path, manifest.step, manifest.bytes, manifest.healthy) == (saved.path, 10, saved.bytes, True)
    assert manifest.sha256 == hashlib.sha256((saved.path / "state.pt").read_bytes()).hexdigest()
    assert manifest.health == {"validation_loss": 1.5, "niah": None, "finite": True}
    assert (manifest.config_hash, manifest.versions) == ("abc", {"torch": "2"})
    assert names(saved.path) == ["manifest.json", "state.pt"]


def test_a_reader_needs_no_lock(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10)
    reader = CheckpointManager(root, keep=2)
    assert same(reader.load()[0], 10)
    assert [manifest.step for manifest in reader.list()] == [10]


def test_a_checkpoint_of_a_stop_is_deleted_once_the_new_one_has_its_name(
    manager: CheckpointManager, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while it is deleted, which takes long, loses neither."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    save(manager, 10)
    save(manager, 15, stopped=True)
    with monkeypatch.context() as kill:
        kill.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save(manager, 15)
    manager.close()
    manager.lock()
    assert names(root) == ["step-00000010", "step-00000015"]
    found, manifest = manager.load()
    assert (manifest.step, manifest.stopped, same(found, 15)) == (15, False, True)


@pytest.mark.parametrize(
    "at", ["manager.read_manifest", "state_file.verify", "state_file.check_sizes", "state_file.torch.load"]
)
def test_a_reader_of_a_run_that_lives_takes_what_it_has_saved_meanwhile(
    at: str, manager: CheckpointManager, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is deleted at any moment of its reading; an older one is there, and not what is wanted."""
    save(manager, 10, validation_loss=1.0)
    save(manager, 20, validation_loss=2.0)
    name, moments = f"atlas.checkpoint.{at}", [True]
    real = pkgutil.resolve_name(name)

    def pruning(*given: Any, **more: Any) -> Any:
        if moments and moments.pop():
            save(manager, 30, validation_loss=2.0)
            save(manager, 40, validation_loss=2.0)
        return real(*given, **more)

    reader = CheckpointManager(root, keep=2)
    monkeypatch.setattr(name, pruning)
    found, manifest = reader.load()
    assert (manifest.step, reader.skipped) == (40, ())
    assert same(found, 40)


def test_the_newest_the_best_and_the_protected_are_kept(manager: CheckpointManager, root: Path) -> None:
    for step, loss in [(10, 3.0), (20, 1.0), (30, math.nan), (40, 2.0), (50, 2.5)]:
        if step == 30:
            manager.protect(10)
        manager.save(step, payload(step), {"validation_loss": loss, "healthy": True})
    assert names(root) == ["step-00000010", "step-00000020", "step-00000040", "step-00000050"]
    manager.protect(None)
    save(manager, 60)
    assert names(root) == ["step-00000020", "step-00000050", "step-00000060"]


def test_a_folder_that_the_file_system_holds_fails_no_save(
    manager: CheckpointManager, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does while another process reads a file of it."""

    def held(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    save(manager, 10, 20)
    with monkeypatch.context() as busy:
        busy.setattr("os.rmdir", held)
        assert manager.save(30, payload(30), SOUND).step == 30
        manager.close()
        manager.lock()  # nor does it keep a run from starting
    assert [manifest.step for manifest in manager.list()] == [20, 30]
    assert names(root) == [".tmp-delete-step-00000010", "step-00000020", "step-00000030"]
    save(manager, 40)
    assert names(root) == ["step-00000030", "step-00000040"]


def test_the_newest_healthy_one_outlives_any_number_of_unhealthy_ones(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10, 20, 30)
    save(manager, 40, loss=math.inf)
    save(manager, 50, 60, healthy=False)
    assert names(root) == ["step-00000030", "step-00000050", "step-00000060"]
    assert [manifest.healthy for manifest in manager.list()] == [True, False, False]
    assert manager.rollback(before_step=60)[1].step == 30


def test_a_sound_checkpoint_is_never_overwritten_and_a_damaged_one_is_set_aside(
    manager: CheckpointManager, root: Path
) -> None:
    save(manager, 10, 20)
    with pytest.raises(CheckpointError, match="step-00000020 exists already and is sound"):
        save(manager, 20)
    (root / "step-00000020" / "state.pt").write_bytes(b"rubbish")
    save(manager, 20)
    assert names(root) == ["damaged-000-step-00000020", "step-00000010", "step-00000020"]
    assert same(manager.load()[0], 20)


def test_rollback_finds_the_newest_healthy_one_before_the_onset(manager: CheckpointManager) -> None:
    manager.keep = 9
    save(manager, 10, 20)
    save(manager, 30, healthy=False)
    save(manager, 40)
    found, manifest = manager.rollback(before_step=40)
    assert same(found, 20)
    assert manifest.step == 20
    assert [(path.name, reason) for path, reason in manager.skipped] == [
        ("step-00000030", "not healthy: {'healthy': False}")
    ]
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        manager.rollback(before_step=10)


def test_the_user_may_remove_a_retired_checkpoint(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10)
    for _ in range(2):
        save(manager, 20)
        manager.retire(after_step=10)
    shutil.rmtree(root / "retired-000-step-00000020")  # to make room
    save(manager, 20)
    assert [path.name for path in manager.retire(after_step=10)] == ["retired-002-step-00000020"]
    assert names(root) == ["retired-001-step-00000020", "retired-002-step-00000020", "step-00000010"]


def test_retired_checkpoints_are_never_chosen_again_and_their_steps_are_free(
    manager: CheckpointManager, root: Path
) -> None:
    save(manager, 10, 20)
    assert [path.name for path in manager.retire(after_step=10)] == ["retired-000-step-00000020"]
    assert same(manager.load()[0], 10)
    save(manager, 20)
    manager.retire(after_step=10)
    assert names(root) == ["retired-000-step-00000020", "retired-001-step-00000020", "step-00000010"]
    assert [manifest.step for manifest in manager.list()] == [10]


def test_a_folder_that_was_removed_before_a_save_is_told_once(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10, 20)
    manager.retire(after_step=10)  # by the run itself
    save(manager, 20, 30)
    assert manager.take_removed() == []
    shutil.rmtree(root)
    save(manager, 40)
    assert manager.take_removed() == [root / "step-00000030"]
    save(manager, 50)
    assert manager.take_removed() == []


def test_a_snapshot_does_not_follow_the_training_and_keeps_tied_weights_tied() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    state = OrderedDict(embedding=weight, head=weight.detach(), row=weight[1:], moments=[(1, 2.5, None, b"x", "y")])
    copied = snapshot({"model": state})["model"]
    with torch.no_grad():
        weight.fill_(7.0)
    assert type(copied) is dict
    assert copied["embedding"].tolist() == [1.0, 1.0, 1.0]
    assert copied["row"].tolist() == [1.0, 1.0]
    assert copied["embedding"] is copied["head"]
    assert copied["embedding"].requires_grad is False
    assert copied["moments"] == [(1, 2.5, None, b"x", "y")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [Path("x")]}, r"payload\['a'\]\[0\]: PosixPath cannot be kept in a checkpoint"),
        ({"a": {1.5: 1}}, r"payload\['a'\]: key 1.5 must be a string or an integer"),
        ({"a": {1, 2}}, r"payload\['a'\]: set cannot be kept"),
        ({"a": torch.float32}, r"payload\['a'\]: dtype cannot be kept"),
    ],
)
def test_what_could_not_be_read_back_is_refused_when_saving(
    manager: CheckpointManager, root: Path, value: dict[str, Any], message: str
) -> None:
    with pytest.raises(SnapshotError, match=message):
        snapshot(value)
    with pytest.raises(CheckpointError, match=message):
        manager.save(10, value, SOUND)
    assert names(root) == []


SAVE_IN_A_LOOP = """
import sys
from pathlib import Path
import torch
from atlas.checkpoint.manager import CheckpointManager
manager = CheckpointManager(Path(sys.argv[1]), keep=2)
manager.lock()
step = manager.list()[-1].step if manager.list() else 0
while True:
    step += 1
    manager.save(step, {"step": step, "x": torch.full((200_000,), float(step))}, {"validation_loss": 1.0 / step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_loses_at_most_the_checkpoint_it_was_writing(root: Path) -> None:
    reported = 0
    for round_number in range(4):
        with subprocess.Popen([sys.executable, "-c", SAVE_IN_A_LOOP, str(root)], stdout=subprocess.PIPE) as process:
            assert process.stdout
            for _ in range(3):
                reported = int(process.stdout.readline())
            time.sleep(0.003 * round_number)  # another moment of the write each time
            process.send_signal(signal.SIGKILL)
            for line in process.stdout:
                reported = int(line) if line.endswith(b"\n") else reported
        manager = CheckpointManager(root, keep=2)
        manager.lock()  # the dead process holds nothing
        found, manifest = manager.load()
        assert manager.skipped == ()
        assert manifest.step in (reported, reported + 1)
        assert torch.equal(found["x"], torch.full((200_000,), float(manifest.step)))
        assert [name for name in names(root) if name.startswith(".tmp-")] == []
        manager.close()


def test_two_processes_on_one_folder_get_one_clear_error(root: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SAVE_IN_A_LOOP, str(root)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        second = CheckpointManager(root, keep=2)
        said = rf"checkpoints is being written by another run \(process {process.pid} on "
        for attempt in (second.lock, lambda: save(second, 10**6), lambda: second.retire(0)):
            with pytest.raises(CheckpointError, match=said):
                attempt()
        process.kill()
        process.wait()
    second.lock()
    second.close()


def test_a_lock_is_free_again_after_close(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10)
    other = CheckpointManager(root, keep=2)
    with pytest.raises(CheckpointError, match=f"process {os.getpid()} on "):
        other.lock()
    manager.close()
    save(other, 20)
    other.close()
    assert same(manager.load()[0], 20)


def test_the_manifest_is_plain_json(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10, validation_loss=math.nan)
    content = json.loads((root / "step-00000010" / "manifest.json").read_text())
    assert (content["format"], content["step"], content["health"], content["healthy"]) == (
        1,
        10,
        {"validation_loss": None},
        False,
    )


def test_a_save_in_the_background_is_the_same_checkpoint(manager: CheckpointManager, root: Path) -> None:
    content = payload(10)
    manager.begin_save(10, content, {"healthy": True})
    content["model"]["weight"].zero_()  # training goes on
    assert [manifest.step for manifest in manager.list()] == [10]  # waits for the thread
    assert same(manager.load()[0], 10)
    saved = manager.collect(wait=True)
    assert saved is not None
    assert (saved.path, saved.step) == (root / "step-00000010", 10)
    assert saved.bytes == (saved.path / "state.pt").stat().st_size
    assert manager.collect(wait=True) is None  # told once
    for step in (20, 30):
        manager.begin_save(step, payload(step), SOUND)
    manager.close()
    assert names(root) == ["step-00000020", "step-00000030"]  # pruned too


def test_a_save_that_fails_in_the_background_says_so_when_collected(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10)
    manager.begin_save(10, payload(10), SOUND)
    with pytest.raises(CheckpointError, match="step-00000010 exists already and is sound"):
        manager.collect(wait=True)
    assert same(manager.load()[0], 10)
    with pytest.raises(CheckpointError, match=r"payload\['a'\]: set cannot be kept"):  # before any thread
        manager.begin_save(20, {"a": {1}}, SOUND)


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos 64 vs 0"), MemoryError()], ids=["torch", "memory"])
def test_whatever_a_write_fails_with_is_a_checkpoint_that_was_not_saved(
    error: Exception, manager: CheckpointManager, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, state: object) -> None:
        raise error

    save(manager, 10)
    monkeypatch.setattr("atlas.checkpoint.folder.write_state", fails)
    with pytest.raises(CheckpointError) as told:
        manager.save(20, payload(20), SOUND)
    assert str(told.value) == f"step 20 could not be saved in {root}: {str(error) or 'MemoryError'}"
    manager.begin_save(20, payload(20), SOUND)
    with pytest.raises(CheckpointError, match="step 20 could not be saved"):
        manager.collect(wait=True)
    with pytest.raises(CheckpointError, match="step 20 could not be saved"):  # of layout `sharded`
        manager.end(manager.begin(20), 20, payload(20), SOUND, {})
    assert names(root) == ["step-00000010"]


def test_a_file_in_the_place_of_the_folder_is_told(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10)
    root.rename(root.with_name("moved"))
    root.write_text("no folder")
    with pytest.raises(CheckpointError, match=f"{root} cannot be written: "):
        manager.save(20, payload(20), SOUND)
