"""Where `decide` and the exit gate may write, looked at before any work. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from atlas.config import ConfigError, require
from experiments.phase2.decision import DATA

ROOM_BYTES = 2**20  # the reports, the evidence and the document take less


def require_document(given: str, inputs: Sequence[Path]) -> None:
    """Raise `ConfigError` unless the document and the evidence beside it can be written, and overwrite no input."""
    path = Path(given)
    require(path.parent.is_dir(), "document", given, f"a file in a folder that exists; {path.parent} does not")
    markdown = path.suffix == path.resolve().suffix == ".md" and not path.is_dir()
    require(markdown, "document", given, "a file whose name ends in .md")
    taken = [folder / "decision.md" for folder in inputs if folder.is_dir()]
    require(path.resolve() not in [one.resolve() for one in taken], "document", given, "another file than decision.md")
    data = path.parent / DATA
    require(data.is_dir() or not data.exists(), "document", given, f"beside a folder {DATA}; {data} is a file")
    require_room(data if data.is_dir() else path.parent, "document", given)


def require_room(folder: Path, key: str, given: object) -> None:
    """Raise `ConfigError` naming `key` unless the folder takes another file of `ROOM_BYTES`."""
    probe = folder / ".room"
    try:
        probe.write_bytes(bytes(ROOM_BYTES))
    except OSError as error:
        allowed = f"where {ROOM_BYTES >> 20} MiB can be written"
        raise ConfigError(f"{key}={given}: must be {allowed} ({error.strerror})") from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
