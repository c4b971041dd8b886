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
from atlas.data.store_corpus import StoreCorpus
from atlas.data.store_format import TOKENIZER_FILE
from atlas.data.tokenizer import LibraryTokenizer

DATA_FILE = "data.json"  # digest -> source, files with their hashes, of each text that the run has seen
END = "end_of_document"  # in an entry: its id, where documents end

MOST_RECORD_BYTES = 2**28


def rooted(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths of its text, so that the run can be continued from any folder."""
    data = dict(config.data)
    paths, path = data.get("paths"), data.get("path")
    if isinstance(paths, list) and all(isinstance(one, str) for one in paths):
        data["paths"] = [str(absolute(one)) for one in paths]
    if isinstance(path, str) and path:
        data["path"] = str(absolute(path))
    return replace(config, data=data)


def record_data(folder: Path, corpus: Corpus) -> None:
    """Note the files of the corpus in the run folder."""
    known = texts_of_run(folder)
    if corpus.digest in known:
        return
    if corpus.tokenizer is not None:
        write_atomically(folder / TOKENIZER_FILE, corpus.tokenizer.read_bytes())
    known[corpus.digest] = {"source": corpus.source, "files": dict(corpus.contents)}
    if corpus.end_of_document is not None:
        known[corpus.digest][END] = corpus.end_of_document
    write_atomically(folder / DATA_FILE, json.dumps(known, indent=0) + "\n")


def texts_of_run(folder: Path) -> dict[str, Any]:
    """What data.json says, by the digest of each text that the run has seen; {} where it cannot be read."""
    try:
        found = read_json(folder / DATA_FILE, MOST_RECORD_BYTES)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def files_of_run(folder: Path) -> set[str]:
    """The hashes of the files of these texts (`hash_of_file`)."""
    found = (one.get("files") for one in texts_of_run(folder).values() if isinstance(one, Mapping))
    return {str(digest) for files in found if isinstance(files, Mapping) for digest in files.values()}


def tokenizer_file(folder: Path) -> Path | None:
    """The run's copy of its tokenizer.json; None where its tokens are bytes."""
    file = folder / TOKENIZER_FILE
    return file if file.is_file() else None


def read_tokenizer(file: Path) -> LibraryTokenizer:
    """A tokenizer.json; of a run folder, with the end of document of the run's text."""
    tokenizer = LibraryTokenizer(file, None, "RUN")
    end = end_of_document(file.parent)
    tokenizer.end_of_document = tokenizer.end_of_document if end is None else end
    return tokenizer


def end_of_document(folder: Path) -> int | None:
    """The id that ends a document of the text that the run saw last; None where documents do not end, or not known."""
    texts = (one for one in texts_of_run(folder).values() if isinstance(one, Mapping))
    ends = [end for one in texts if type(end := one.get(END)) is int]
    return ends[-1] if ends else None


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
    difference = _difference(texts_of_run(folder).get(str(digest)), corpus)
    if accepted:
        return [f"goes on with another text (accept_changed_data=true): {difference}"]
    key = "data.path=DIR" if isinstance(corpus, StoreCorpus) else "data.paths=[...]"
    moved = f"; {key} names the place that it was moved to" if corpus.paths else ""
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
    several = f"files {reported}; the first: " if sum(map(len, kinds.values())) > 1 else ""
    return f"{other}{several}{first!r} {kind}"
