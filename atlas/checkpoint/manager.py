"""`CheckpointManager`: saves, finds, keeps and retires the checkpoints of one run."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atlas.checkpoint.folder import CheckpointError, CheckpointFolder, folders, step_of
from atlas.checkpoint.manifest import Manifest, UnsoundError, read_manifest
from atlas.checkpoint.snapshot import SnapshotError, snapshot
from atlas.checkpoint.state_file import read_state
from atlas.config.lock import LockedError, RunLock
from atlas.config.untrusted import printable

Skipped = tuple[tuple[Path, str], ...]  # checkpoints passed over, each with the reason


@dataclass(frozen=True)
class SavedCheckpoint:
    """What a save did. `seconds`: for how long training stood still."""

    path: Path
    step: int
    bytes: int
    seconds: float


class CheckpointManager:
    """The checkpoints under `root`.

    Kept are the newest `keep`, the one with the lowest `validation_loss`, the newest healthy one (a rollback would use
    it) and the one named by `protect`; one of a stop (`health["stopped"]`) only until the next one is saved. Only a
    process that holds the lock writes; reading needs no lock.
    With a `config_hash`, checkpoints of another one are passed over like damaged ones, except those of `former_hashes`,
    and those without all `parts`.
    """

    def __init__(
        self,
        root: Path,
        keep: int,
        *,
        config_hash: str = "",
        versions: Mapping[str, str] | None = None,
        parts: tuple[str, ...] = (),
        former_hashes: Collection[str] = (),
    ) -> None:
        self.root = Path(root)
        self.keep = keep
        self.config_hash = config_hash
        self._folder = CheckpointFolder(self.root, config_hash, versions or {})
        self.parts = parts
        self.former_hashes = former_hashes
        self.skipped: Skipped = ()  # by the last `load` or `rollback`
        self._protected: int | None = None
        self._lock: RunLock | None = None
        self._background: Future[SavedCheckpoint] | None = None  # a save that a thread does

    def lock(self) -> None:
        """Lock the folder for this process, creating it if necessary, and delete what a killed process left half done.

        `save` and `retire` do this themselves; call it early to learn of another run before any work.
        Raises `CheckpointError` if another process holds it or it cannot be written.
        """
        if self._lock is not None and self._lock.holds:
            return
        self.close()  # of a folder that was removed meanwhile
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(self.root)
            for unfinished in self.root.glob(".tmp-step-*"):
                shutil.rmtree(unfinished)
            self._folder.sweep()
        except LockedError as error:
            raise CheckpointError(str(error)) from error
        except OSError as error:
            self.close()
            raise CheckpointError(f"{self.root} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Wait for a save in the background, then release the lock."""
        self._settle()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def save(self, step: int, payload: dict[str, Any], health: Mapping[str, float | bool | None]) -> SavedCheckpoint:
        """Write a checkpoint of `step`, verify it, then delete those no longer wanted.

        On failure the older ones are untouched, nothing half-written remains and `CheckpointError` is raised.
        """
        began = time.perf_counter()
        state = self._taken(step, payload)
        saved = self._written(step, state, health)
        return replace(saved, seconds=time.perf_counter() - began)

    def begin_save(self, step: int, payload: dict[str, Any], health: Mapping[str, float | bool | None]) -> None:
        """As `save`, but only the copy of `payload` is made at once: a thread does the rest.

        `collect` tells how it went, and is to be called before the next save. Every other method that looks at the
        folder waits for the thread. Raises `CheckpointError` where no thread was started.
        """
        began = time.perf_counter()
        state = self._taken(step, payload)
        stall = time.perf_counter() - began
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._background = thread.submit(lambda: replace(self._written(step, state, health), seconds=stall))
        thread.shutdown(wait=False)  # it ends with its work

    def collect(self, *, wait: bool) -> SavedCheckpoint | None:
        """What a save in the background did, once; None if there is none, or it has not ended and `wait` is false.

        Raises the `CheckpointError` with which it failed.
        """
        if self._background is None or not (wait or self._background.done()):
            return None
        ended, self._background = self._background, None
        return ended.result()

    def take_removed(self) -> list[Path]:
        """The newest checkpoint of before where somebody had removed it when the next one was saved, once."""
        return self._folder.take_removed()

    def begin(self, step: int) -> Path:
        """The folder that becomes the checkpoint of `step`, for layout `sharded` (`together.py`)."""
        self.lock()
        self._settle()
        with self._saving(step):
            return self._folder.begin(step)

    def end(
        self,
        temporary: Path,
        step: int,
        plain: dict[str, Any],
        health: Mapping[str, float | bool | None],
        files: dict[str, Any],
    ) -> SavedCheckpoint:
        """Make it a checkpoint. `plain`: for state.pt; `files`: those that are there, with size and SHA-256."""
        with self._saving(step):
            manifest = self._folder.seal(temporary, step, snapshot(plain), health, files)
        self._prune()
        return SavedCheckpoint(manifest.path, step, manifest.bytes + sum(size for size, _ in files.values()), 0.0)

    def _settle(self) -> None:
        """Wait for a save in the background; `collect` still tells how it went."""
        if self._background is not None:
            wait([self._background])

    def _taken(self, step: int, payload: dict[str, Any]) -> dict[str, Any]:
        self.lock()
        self._settle()
        try:
            return snapshot(payload)
        except SnapshotError as error:
            raise self.not_saved(step, str(error)) from error

    def _written(self, step: int, state: dict[str, Any], health: Mapping[str, float | bool | None]) -> SavedCheckpoint:
        with self._saving(step):
            manifest = self._folder.seal(self._folder.begin(step), step, state, health, {})
        self._prune()
        return SavedCheckpoint(manifest.path, step, manifest.bytes, 0.0)

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """What a write fails with inside becomes a `CheckpointError` that names the step."""
        try:
            yield
        except CheckpointError:
            raise
        except OSError as error:
            raise self.not_saved(step, str(error.strerror)) from error
        except (SnapshotError, UnsoundError, RuntimeError, MemoryError) as error:  # torch.save raises RuntimeError
            raise self.not_saved(step, str(error) or type(error).__name__) from error

    def not_saved(self, step: int, reason: str) -> CheckpointError:
        return CheckpointError(f"step {step} could not be saved in {self.root}: {reason}")

    def load(self, path: Path | None = None) -> tuple[dict[str, Any], Manifest]:
        """The checkpoint at `path`, or the newest (None). An unsound one is passed over for the sound one before it.

        `skipped` then holds those passed over, with the reason. The payload's tensors are on the CPU.
        Raises `CheckpointError` if `path` does not exist or no checkpoint is sound.
        """
        self._settle()
        if path is None:
            return self._first_sound(lambda: folders(self.root), self.root)
        chosen = Path(path)

        def listed() -> list[Path]:
            if not chosen.is_dir():
                raise CheckpointError(f"{chosen}: there is no checkpoint of this name")
            return [chosen, *(folder for folder in folders(chosen.parent) if folder.name < chosen.name)]

        return self._first_sound(listed, chosen)

    def rollback(self, before_step: int) -> tuple[dict[str, Any], Manifest]:
        """The newest sound and healthy checkpoint older than `before_step`. Raises `CheckpointError` if there is none.

        Changes nothing on disk: call `retire` once the state is restored.
        """
        self._settle()

        def older() -> list[Path]:
            return [folder for folder in folders(self.root) if step_of(folder) < before_step]

        return self._first_sound(older, self.root, healthy=True)

    def list(self) -> tuple[Manifest, ...]:
        """The checkpoints with a readable manifest, oldest first; their state files are not verified."""
        self._settle()
        return self._folder.manifests()

    def protect(self, step: int | None) -> None:
        """Keep the checkpoint of `step` until another one is named; None lifts it."""
        self._settle()
        self._protected = step

    def retire(self, after_step: int) -> tuple[Path, ...]:
        """Rename the checkpoints newer than `after_step`: they hold what a rollback undid. Returns the new names."""
        self._settle()
        self.lock()
        newer = [folder for folder in folders(self.root) if step_of(folder) > after_step]
        return tuple(self._folder.set_aside(folder, "retired") for folder in newer)

    def _prune(self) -> None:
        found = self._folder.manifests()
        newest, manifests = found[-1], [manifest for manifest in found if not manifest.stopped]
        measured = [manifest for manifest in manifests if manifest.validation_loss < math.inf]
        best = sorted(measured, key=lambda manifest: manifest.validation_loss)[:1]
        rollback_target = [manifest for manifest in manifests if manifest.healthy][-1:]
        protected = [manifest for manifest in manifests if manifest.step == self._protected]
        wanted = {manifest.path for manifest in (newest, *manifests[-self.keep :], *best, *rollback_target, *protected)}
        for manifest in found:
            if manifest.path not in wanted:
                self._folder.delete(manifest.path)

    def _first_sound(
        self, listed: Callable[[], Iterable[Path]], place: Path, *, healthy: bool = False
    ) -> tuple[dict[str, Any], Manifest]:
        """Of those `listed`, again where one is gone: a run that lives has deleted it and saved a newer one."""
        skipped: list[tuple[Path, str]] = []
        self.skipped = ()
        for folder in listed():
            try:
                manifest = read_manifest(folder)
                if healthy and manifest.stopped:
                    continue
                if healthy and not manifest.healthy:
                    raise UnsoundError(f"not healthy: {manifest.health}")
                if self.config_hash and manifest.config_hash not in ("", self.config_hash, *self.former_hashes):
                    told = f"config.yaml was edited since, or it is of another run (config hash {manifest.config_hash})"
                    raise UnsoundError(told)
                payload = read_state(manifest, self.parts)
            except (UnsoundError, OSError) as error:
                if folder not in listed():
                    return self._first_sound(listed, place, healthy=healthy)
                skipped.append((folder, printable(str(error))))
                continue
            self.skipped = tuple(skipped)
            return payload, manifest
        self.skipped = tuple(skipped)
        alike: dict[str, list[str]] = {}
        for folder, reason in skipped:
            alike.setdefault(reason, []).append(folder.name)
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in alike.items())
        raise CheckpointError(f"{place}: no usable checkpoint" + (f" ({reasons})" if reasons else ""))
