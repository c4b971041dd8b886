"""Which text a run was trained on: data.json in its folder, and the check when the run is continued."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atlas.config import ConfigError, RunConfig
from atlas.config.atomic import write_atomically
from atlas.config.untrusted import read_json
from atlas.data.corpus import Corpus
from atlas.data.files import absolute

DATA_FILE = "data.json"  # digest -> source and files with their hashes, for each text that the run has seen

MOST_RECORD_BYTES = 2**28


def rooted(config: RunConfig) -> RunConfig:
    """The configuration with paths of text from the root on, so that the run goes on from any folder."""
    paths = config.data.get("paths")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        return config
    return replace(config, data={**config.data, "paths": [str(absolute(path)) for path in paths]})


def record_data(folder: Path, corpus: Corpus) -> None:
    """Note the files of the corpus in the run folder."""
    known = _read(folder)
    if corpus.digest in known:
        return
    known[corpus.digest] = {"source": corpus.source, "files": dict(corpus.contents)}
    write_atomically(folder / DATA_FILE, json.dumps(known, indent=0) + "\n")


def require_same_data(digest: object, corpus: Corpus | None, accepted: bool, folder: Path) -> list[str]:
    """Check the text of a continued run, whose checkpoint was trained on the text of `digest`; returns notices.

    Raises `ConfigError` where the corpus is another one, unless that is accepted.
    """
    if digest is None and corpus is not None:
        return [
            "the checkpoint does not tell what text it was trained on: whether it is still the same was not checked"
        ]
    if corpus is None or digest == corpus.digest:
        return []
    difference = _difference(_read(folder).get(str(digest)), corpus)
    if accepted:
        return [f"goes on with another text (accept_changed_data=true): {difference}"]
    moved = "; data.paths=[...] names the place that it was moved to" if corpus.paths else ""
    raise ConfigError(
        f"resume={folder}: must find the text that the run was trained on; {difference}"
        f" (accept_changed_data=true goes on with the text as it is now{moved})"
    )


def _difference(before: Any, corpus: Corpus) -> str:
    if not isinstance(before, Mapping) or not isinstance(before.get("files"), Mapping):
        return f"it is another one, and {DATA_FILE} does not tell which files differ"
    old, new = before["files"], corpus.contents
    kinds = {
        "changed": [name for name in new if name in old and old[name] != new[name]],
        "added": [name for name in new if name not in old],
        "missing": [name for name in old if name not in new],
    }
    reported = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
    if not reported:
        return "its files are the same, their split is not"
    first, kind = min((name, kind) for kind, names in kinds.items() for name in names)
    other = f"{corpus.source} instead of {before.get('source')}: " if not corpus.paths else ""
    return f"{other}files {reported}; the first: {first!r} {kind}"


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / DATA_FILE, MOST_RECORD_BYTES)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
