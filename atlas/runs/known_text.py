"""How much of a text a run was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from atlas.config import RunConfig
from atlas.data.leakage import share_within
from atlas.data.needles import Tokens
from atlas.runs.build import build_data
from atlas.runs.data_record import files_of_run, texts_of_run

SEARCHED = 2**28  # bytes of a training text, at most: a search takes seconds
TOLD = 0.1  # share of a text from which on it is told: quotes and licences stand in many texts


def known_shares(config: RunConfig, folder: Path, texts: Mapping[str, Tokens]) -> dict[str, float | None]:
    """The share of each text that stands in the training text of the run in `folder`; None where it is not known.

    The training text is read again, and counts where it is still the one of which data.json tells.
    """
    unknown: dict[str, float | None] = dict.fromkeys(texts)
    known = texts_of_run(folder)
    if not known:
        return unknown
    try:
        corpus = build_data(config).corpus
        if corpus is None or corpus.digest not in known:
            return unknown
        parts = [one.train for one, _ in corpus.sources]
    except Exception:  # its files are gone, or a source of the user's fails: no reason not to evaluate
        return unknown
    if sum(part.nbytes for part in parts) > SEARCHED:
        return unknown
    found = [share_within(part, texts) for part in parts]
    return {name: max((share for one in found if (share := one[name]) is not None), default=None) for name in texts}


def training_text_notes(shares: Mapping[str, float | None], hashes: Mapping[str, str], folder: Path) -> list[str]:
    """A line where texts are training text. `hashes`: of each text's file, as in data.json."""
    seen = {name: share for name, share in shares.items() if share is not None and share >= TOLD}
    if seen:
        name = max(seen, key=seen.__getitem__)
        first = f"training text: {seen[name]:.0%} of {name} stands in what the run was trained on"
        more = f", and parts of {len(seen) - 1} more" if len(seen) > 1 else ""
        return [f"{first}{more}: these losses are no test"]
    files = files_of_run(folder)
    named = [name for name, share in shares.items() if share is None and hashes.get(name) in files]
    if not named:
        return []
    more = f" and {len(named) - 1} more" if len(named) > 1 else ""
    return [f"text of the run: {named[0]}{more} is in data.json, as training or validation text: this may be no test"]
