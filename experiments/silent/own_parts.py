"""Failures of parts of the user's own that a stranger to the project brought with him."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.silent.bench import TEXT, Bench
from experiments.silent.data import little_text, store
from experiments.silent.failure import Facts, Failure, Procedure, facts, trained

TRUST = "trust=[experiments.silent]"
SOURCE = "data._target_=experiments.silent.wrong_source."
RULE = "+model.memory.own_rule._target_=experiments.silent.wrong_model.Signed"
SIGN = "+model.memory.own_rule.sign"


def _failure(name: str, kind: str, what: str, run_and_twin: tuple[Procedure, str]) -> Failure:
    run, twin = run_and_twin
    return Failure(name, kind, what, run, twin)


def _source(name: str) -> tuple[Procedure, str]:
    shared = (*TEXT, TRUST, "train.sequence=256")
    return trained(f"{SOURCE}{name}", calm=(f"{SOURCE}Nameless",), shared=shared)


def _overwrite(place: Path) -> None:
    """Every second stretch of 512 tokens of the training text, with noise of the same size."""
    file = place / "train.tokens"
    tokens = np.fromfile(file, dtype="<u2")
    noise = np.random.default_rng(0).integers(0, 256, len(tokens), dtype=np.uint16)
    np.where(np.arange(len(tokens)) // 512 % 2 == 0, noise, tokens).tofile(file)


def store_overwritten(bench: Bench, broken: bool) -> Facts:
    text = little_text()
    place = store(bench, [text[start : start + 600] for start in range(0, len(text), 600)], "store")
    if broken:
        _overwrite(place)
    return facts(bench.run("data=tokens", f"data.path={place}"))


FAILURES = (
    _failure(
        "batches_cycle", "data", "a source without `corpus` has six batches, which come again", _source("Cycling")
    ),
    _failure(
        "validation_not_split",
        "data",
        "a source without `corpus` cuts its validation rows from the training text",
        _source("NotSplit"),
    ),
    _failure(
        "rows_uninitialised",
        "data",
        "in a source without `corpus` one row of four is random bytes",
        _source("Uninitialised"),
    ),
    Failure(
        "store_overwritten",
        "data",
        "half of the training text of a token store is overwritten with noise of the same size",
        store_overwritten,
    ),
    _failure(
        "update_added",
        "memory",
        "a learning rule of the user's own adds the gradient and does not subtract it",
        trained(f"{SIGN}=1.0", calm=(f"{SIGN}=-1.0",), shared=(*TEXT, TRUST, RULE)),
    ),
)
