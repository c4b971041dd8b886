"""The manifest of a checkpoint: what its file must be, byte for byte, and how healthy the run was at that step."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
FORMAT = 1


class UnsoundError(Exception):
    """This checkpoint cannot be used. The message says why, without its path."""


@dataclass(frozen=True)
class Manifest:
    """One checkpoint. `health` holds null for what was not measured or not finite; `healthy` knows the difference."""

    path: Path
    step: int
    bytes: int  # size of state.pt
    sha256: str  # of state.pt
    health: dict[str, float | bool | None]
    healthy: bool  # every health number was finite, and health["healthy"], if given, was true
    config_hash: str
    versions: dict[str, str]

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
    content = {"format": FORMAT, **asdict(manifest)}
    del content["path"]
    return json.dumps({**content, "digest": _digest(content)}, indent=1, allow_nan=False).encode() + b"\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`, itself verified. Raises `UnsoundError`."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_bytes())
        digest = content.pop("digest")
        sound = digest == _digest(content)
        version = content.pop("format")
    except FileNotFoundError:
        raise UnsoundError(f"{MANIFEST_FILE} is missing") from None
    except OSError as error:
        raise UnsoundError(f"{MANIFEST_FILE} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsoundError(f"{MANIFEST_FILE} is damaged") from error
    if not sound:
        raise UnsoundError(f"{MANIFEST_FILE} is damaged: its content does not match its digest")
    if version != FORMAT:
        raise UnsoundError(f"{MANIFEST_FILE} has format {version}, this version reads {FORMAT}")
    return Manifest(path=folder, **content)


def verify(manifest: Manifest) -> None:
    """Raise `UnsoundError` unless state.pt is, byte for byte, what was written."""
    file = manifest.path / STATE_FILE
    try:
        size = file.stat().st_size
        if size != manifest.bytes:
            raise UnsoundError(f"{STATE_FILE} has {size} bytes instead of {manifest.bytes}")
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise UnsoundError(f"{STATE_FILE} is missing") from None
    except OSError as error:
        raise UnsoundError(f"{STATE_FILE} cannot be read: {error.strerror}") from error
    if sha256 != manifest.sha256:
        raise UnsoundError(f"{STATE_FILE} is damaged: its SHA-256 differs from the manifest's")
