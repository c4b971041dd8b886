"""The manifest of a checkpoint: size and SHA-256 of its file, and the health of the run at that step."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atlas.config.untrusted import open_regular, read_json

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
TENSORS = "tensors"  # the folder of a checkpoint of layout `sharded`
FORMAT, SHARDED_FORMAT = 1, 2
MOST_BYTES = 2**18  # of a manifest; one of ours has about 1 kB


class UnsoundError(Exception):
    """This checkpoint cannot be used. The message says why, without its path."""


@dataclass(frozen=True)
class Manifest:
    """One checkpoint. `health` has null for a number that was not measured or not finite; the latter is unhealthy."""

    path: Path
    step: int
    bytes: int  # size of state.pt
    sha256: str  # of state.pt
    health: dict[str, float | bool | None]
    healthy: bool  # every health number was finite, and health["healthy"], if given, was true
    config_hash: str
    versions: dict[str, str]
    files: dict[str, Any] = field(default_factory=dict)  # name in tensors/ -> size and SHA-256; layout `sharded`

    @property
    def stopped(self) -> bool:
        """Whether a signal was the reason to save. Only the next start uses such a checkpoint.

        A rollback must not: a run that was never stopped does not have it, and would go back elsewhere.
        """
        return self.health.get("stopped") is True

    @property
    def is_rollback_target(self) -> bool:
        return self.healthy and not self.stopped

    @property
    def validation_loss(self) -> float:
        """In nats per token; infinite if it was not measured."""
        value = self.health.get("validation_loss")
        return math.inf if value is None else float(value)


def is_healthy(health: Mapping[str, float | bool | None]) -> bool:
    """A health stamp is bad if a number in it is not finite, or if it says `healthy: False` itself."""
    numbers = [value for value in health.values() if value is not None]
    return all(math.isfinite(number) for number in numbers) and health.get("healthy") is not False


def finite_health(health: Mapping[str, float | bool | None]) -> dict[str, float | bool | None]:
    """`health` as JSON can hold it: a number that is not finite becomes null."""
    return {key: value if value is None or math.isfinite(value) else None for key, value in health.items()}


def encode(manifest: Manifest) -> bytes:
    """The manifest file: JSON, with a digest of its own content under `digest`."""
    content = {"format": SHARDED_FORMAT if manifest.files else FORMAT, **asdict(manifest)}
    del content["path"]
    if not manifest.files:
        del content["files"]
    return json.dumps({**content, "digest": _digest(content)}, indent=1, allow_nan=False).encode() + b"\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`, itself verified. Raises `UnsoundError`."""
    try:
        content = read_json(folder / MANIFEST_FILE, MOST_BYTES)
        digest = content.pop("digest")
        sound = digest == _digest(content)
        version = content.pop("format")
    except FileNotFoundError:
        raise UnsoundError(f"{MANIFEST_FILE} is missing") from None
    except OSError as error:
        raise UnsoundError(f"{MANIFEST_FILE} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsoundError(f"{MANIFEST_FILE} is damaged") from error
    if not sound:
        raise UnsoundError(f"{MANIFEST_FILE} is damaged: its content does not match its digest")
    if version not in (FORMAT, SHARDED_FORMAT):
        allowed = f"{FORMAT} and {SHARDED_FORMAT}"
        raise UnsoundError(f"{MANIFEST_FILE} has format {version!r:.20}, this version reads {allowed}")
    _check_content(content, _VALUES if version == FORMAT else {**_VALUES, "files": _are_files})
    if folder.name.startswith("step-") and folder.name != f"step-{content['step']:08d}":
        raise UnsoundError(f"{MANIFEST_FILE} is of step {content['step']}")
    return Manifest(path=folder, **content)


def _check_content(content: Mapping[str, Any], values: Mapping[str, Callable[[Any], bool]]) -> None:
    """Raise `UnsoundError` unless the keys are those of a manifest and the values of their types: anyone can write
    a matching digest."""
    unknown = sorted(content.keys() ^ values.keys())
    if unknown:
        raise UnsoundError(f"{MANIFEST_FILE} is damaged: {unknown[0]!r:.40} is missing or not a key of it")
    for key, holds in values.items():
        if not holds(content[key]):
            raise UnsoundError(f"{MANIFEST_FILE} is damaged: {key} is {content[key]!r:.40}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_health(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    measured = [item for item in value.values() if not (item is None or isinstance(item, bool))]
    return all(isinstance(item, int | float) and abs(item) <= sys.float_info.max for item in measured)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_files(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    pairs = [one for one in value.values() if isinstance(one, list) and len(one) == 2]
    sound = len(pairs) == len(value) and all(_is_count(size) and _is_text(sha256) for size, sha256 in pairs)
    return sound and all(re.fullmatch(r"__\d+_\d+\.distcp|\.metadata", name) for name in value)


_VALUES: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "bytes": _is_count,
    "sha256": _is_text,
    "health": _is_health,
    "healthy": lambda value: isinstance(value, bool),
    "config_hash": _is_text,
    "versions": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
}


def verify(manifest: Manifest) -> None:
    """Raise `UnsoundError` unless each file is, byte for byte, what was written."""
    _verify(manifest.path, STATE_FILE, manifest.bytes, manifest.sha256)
    for name, (size, sha256) in manifest.files.items():
        _verify(manifest.path, f"{TENSORS}/{name}", size, sha256)


def _verify(folder: Path, name: str, wanted: int, digest: str) -> None:
    try:
        with open_regular(folder / name) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != wanted:
                raise UnsoundError(f"{name} has {size} bytes instead of {wanted}")
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise UnsoundError(f"{name} is missing") from None
    except OSError as error:
        raise UnsoundError(f"{name} cannot be read: {error.strerror}") from error
    if sha256 != digest:
        raise UnsoundError(f"{name} is damaged: its SHA-256 differs from the manifest's")
