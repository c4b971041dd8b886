"""`CheckpointFolder`: the checkpoints of one run on the disk.

    root/step-00001000/{state.pt, manifest.json}    a checkpoint, complete from the moment it has this name
    root/step-00001000/tensors/                     of layout `sharded`: what each rank has written (`tensor_files.py`)
    root/retired-000-step-00001000/                 undone by a rollback, never chosen again
    root/damaged-000-step-00001000/                 found unsound when the run wrote this step again
    root/.tmp-*                                     being written or deleted; can go once the lock is free
    root/.lock                                      held by the process that writes

A checkpoint is written into a temporary folder, synced to the disk and then renamed: a crash leaves all of it or
nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atlas.checkpoint.manifest import (
    MANIFEST_FILE,
    STATE_FILE,
    Manifest,
    UnsoundError,
    encode,
    finite_health,
    is_healthy,
    read_manifest,
    verify,
)
from atlas.checkpoint.state_file import write_state
from atlas.config.atomic import sync_file, sync_folder


class CheckpointError(RuntimeError):
    """No checkpoint could be written or none can be used. The message is meant to be shown to the user as it is."""


class CheckpointFolder:
    """Only a process that holds the lock may change it. `config_hash` and `versions` go into every manifest."""

    def __init__(self, root: Path, config_hash: str, versions: Mapping[str, str]) -> None:
        self.root, self.config_hash, self.versions = root, config_hash, dict(versions)
        self._newest: Path | None = None  # checkpoint that was saved here
        self._removed: list[Path] = []  # of those, what the next save did not find any more

    def manifests(self) -> tuple[Manifest, ...]:
        """Those that can be read, oldest first; their state files are not verified."""
        found = []
        for folder in reversed(folders(self.root)):
            try:
                found.append(read_manifest(folder))
            except UnsoundError:
                continue
        return tuple(found)

    def take_removed(self) -> list[Path]:
        """The newest checkpoint of before where somebody had removed it when the next one was saved, once."""
        found, self._removed = self._removed, []
        return found

    def begin(self, step: int) -> Path:
        """The folder that becomes the checkpoint of `step`."""
        final = self.root / f"step-{step:08d}"
        if self._newest is not None and not self._newest.exists():
            self._removed, self._newest = [self._newest], None
        if final.exists():
            self._make_room(final)
        temporary = self.root / f".tmp-{final.name}"
        temporary.mkdir()
        return temporary

    def seal(
        self,
        temporary: Path,
        step: int,
        state: dict[str, Any],
        health: Mapping[str, float | bool | None],
        files: dict[str, Any],
    ) -> Manifest:
        """Write what is missing, verify all of it and give the checkpoint its name. On failure nothing is left."""
        final = self.root / f"step-{step:08d}"
        try:
            size, sha256 = write_state(temporary / STATE_FILE, state)
            manifest = Manifest(
                path=final,
                step=step,
                bytes=size,
                sha256=sha256,
                health=finite_health(health),
                healthy=is_healthy(health),
                config_hash=self.config_hash,
                versions=self.versions,
                files=files,
            )
            with (temporary / MANIFEST_FILE).open("wb") as file:
                file.write(encode(manifest))
                sync_file(file)
            sync_folder(temporary)
            verify(replace(manifest, path=temporary))
            if final.exists():
                self._take_out(final)  # saved by a stop (see `_make_room`); it takes long to delete
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.root)
        self._newest = final
        self.sweep()
        return manifest

    def _make_room(self, final: Path) -> None:
        """A sound checkpoint is not overwritten, except one of a stop; an unsound one in its place is set aside."""
        try:
            manifest = read_manifest(final)
            verify(manifest)
        except UnsoundError:
            self.set_aside(final, "damaged")
            return
        if manifest.stopped:
            return
        raise CheckpointError(f"{final} exists already and is sound: it is not overwritten")

    def set_aside(self, folder: Path, reason: str) -> Path:
        """Rename it, so that it is never chosen again. Returns the new name."""
        numbers = [path.name.split("-")[1] for path in self.root.glob(f"{reason}-*-step-*")]
        number = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
        target = self.root / f"{reason}-{number:03d}-{folder.name}"
        self._newest = None if folder == self._newest else self._newest
        try:
            folder.rename(target)
            sync_folder(self.root)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be renamed: {error.strerror}") from error
        return target

    def delete(self, folder: Path) -> None:
        """Take it out of the checkpoints, and off the disk: see `sweep`."""
        self._take_out(folder)
        self.sweep()

    def _take_out(self, folder: Path) -> None:
        try:
            folder.rename(self.root / f".tmp-delete-{folder.name}")  # a kill leaves no partial checkpoint
        except OSError as error:
            raise CheckpointError(f"{folder} could not be deleted: {error.strerror}") from error

    def sweep(self) -> None:
        """Take off the disk what is deleted. What stays, as on NFS where a file of it is being read, goes next time."""
        for deleted in self.root.glob(".tmp-delete-*"):
            shutil.rmtree(deleted, ignore_errors=True)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def folders(root: Path) -> tuple[Path, ...]:
    """The checkpoint folders of `root`, newest first."""
    named = [folder for folder in root.glob("step-*") if folder.name.removeprefix("step-").isdecimal()]
    return tuple(sorted(named, key=step_of, reverse=True))
