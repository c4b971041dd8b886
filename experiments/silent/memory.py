"""Failures of the memory."""

from __future__ import annotations

from experiments.silent.bench import MIXED, TEXT
from experiments.silent.failure import Failure, Procedure, trained, with_optimizer

RECALL = ("niah=default", "niah.levels=[recall]", "niah.samples=16")


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str], says: str = "") -> Failure:
    run, twin = run_and_twin
    return Failure(name, "memory", what, run, twin, says)


FAILURES = (
    _failure(
        "rates_near_zero", "`model.memory.rate_init=1e-8`: tokens write nothing", trained("model.memory.rate_init=1e-8")
    ),
    _failure("gates_open", "every gate is held at 1 (bias 3, sharpness 10)", with_optimizer("gates_open", at=0)),
    _failure("gates_shut", "every gate is held at 0", with_optimizer("gates_shut", at=0)),
    _failure(
        "memory_ignored",
        "the gate's weights are held at 0: what is recalled goes nowhere",
        with_optimizer("ignoring", at=0),
    ),
    _failure(
        "memory_saturated",
        "`model.memory.weight_norm_max=0.5`: every memory sits at its bound",
        trained("model.memory.weight_norm_max=0.5"),
    ),
    _failure(
        "queries_collapsed", "queries and keys of all tokens share one direction", with_optimizer("same_queries", at=0)
    ),
    _failure(
        "never_reset",
        "`chunk_size.shard=64`, the whole sequence: local memories are never reset",
        trained("chunk_size.shard=64"),
    ),
    _failure(
        "always_reset", "`chunk_size.shard=8`, one chunk: local memories carry nothing", trained("chunk_size.shard=8")
    ),
    _failure(
        "global_never_written",
        "`chunk_size.global_size=128` with sequences of 64",
        trained("chunk_size.global_size=128"),
    ),
    _failure(
        "equal_keys_overshoot",
        "`model.memory.curvature_max_local=0`: a row of one symbol overshoots from chunk to chunk of a shard",
        trained(
            "model.memory.curvature_max_local=0",
            shared=(
                *TEXT,
                "trust=[experiments.silent]",
                "data._target_=experiments.silent.wrong_data.OneSymbol",
                "+data.at=120",
                "model.memory.rate_init=0.25",
                "train.sequence=512",
                "chunk_size.local=[32]",
                "chunk_size.shard=256",
                "chunk_size.global_size=128",
            ),
        ),
        says="gradient",
    ),
    _failure(
        "recall_key_blind",
        "all keys of a sequence have one value: recall is learnt without reading a key",
        trained(
            "data._target_=experiments.silent.wrong_data.KeyBlind",
            # A calm run has 6 % after 240 steps, 46 to 52 % after 600, which is a key-blind reader's, and 83 % now.
            shared=(*MIXED, *RECALL, "trust=[experiments.silent]", "train.steps=1200"),
        ),
        says="key-blind|key blind|without reading|ignores the key",
    ),
)
