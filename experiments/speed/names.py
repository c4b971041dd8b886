"""The contestants' names, and which of them a part races unless told otherwise. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

RULE_NAMES = ("gd", "momentum", "muon", "omega", "atlas")
CHUNKS = ("c8", "c16", "c64", "set_a")  # options of conf/chunk_size
PLAIN = ("transformer", "transformer_atlas")
TITANS = ("titans_64", "titans_16")  # the quicker one first
UNSHARDED, LOCAL, PYTORCH = "_unsharded", "_local", "_torch"


class Memory(NamedTuple):
    """What a name like `muon_c64_unsharded` or `branch_c8_local_torch` says."""

    rule: str
    chunk: str
    sharded: bool
    use_global: bool
    compiled: bool = True  # kernels, where there is a compiler


MODELS = {
    f"{rule}_{chunk}{UNSHARDED * (not sharded)}": Memory(rule, chunk, sharded, True)
    for sharded in (True, False)
    for rule in RULE_NAMES
    for chunk in CHUNKS
}
BRANCHES = {f"branch_{chunk}": Memory("gd", chunk, True, True) for chunk in CHUNKS}
BRANCHES |= {f"branch_{chunk}{LOCAL}": Memory("gd", chunk, True, False) for chunk in CHUNKS}
BRANCHES |= {f"branch_{chunk}{UNSHARDED}": Memory("gd", chunk, False, False) for chunk in CHUNKS}
MODELS |= {f"{name}{PYTORCH}": memory._replace(compiled=False) for name, memory in MODELS.items()}
BRANCHES |= {f"{name}{PYTORCH}": memory._replace(compiled=False) for name, memory in BRANCHES.items()}

ALL_NAMES = (*PLAIN, "attention", *MODELS, *BRANCHES, *TITANS)
NAME_GRAMMAR = (
    f"{', '.join(PLAIN)}, attention, {', '.join(TITANS)}, RULE_CHUNK, RULE_CHUNK{UNSHARDED}, or branch_CHUNK with"
    f" nothing, {LOCAL} or {UNSHARDED} after it; the last three also with {PYTORCH} at the end;"
    f" RULE one of {', '.join(RULE_NAMES)}, CHUNK one of {', '.join(CHUNKS)}"
)

WHOLE = (
    *PLAIN,
    "attention",
    "gd_c16_torch",
    *(name for name, memory in MODELS.items() if memory.compiled and (memory.sharded or memory.rule == "gd")),
)
CONTEXTS = ("transformer", "gd_c16", "gd_set_a")
BRANCH = (
    "branch_c64",
    "branch_c64_local",
    "branch_c8",
    "branch_c64_unsharded",
    "branch_c8_unsharded_torch",
    "branch_c8_unsharded",
)
DECODE = ("gd_c16", "transformer_atlas")


def label(name: str) -> str:
    """How tables and charts call a contestant."""
    if name in MODELS:
        memory = MODELS[name]
        return f"atlas {memory.rule}, {_chunk(memory)}{', unsharded' * (not memory.sharded)}{_kernels(memory)}"
    if name in BRANCHES:
        memory = BRANCHES[name]
        kind = "global + local" if memory.use_global else "local only" if memory.sharded else "one memory, unsharded"
        return f"{kind}, {_chunk(memory)}{_kernels(memory)}"
    return {
        "transformer": "plain Transformer, minimal",
        "transformer_atlas": "plain Transformer, atlas model=transformer",
        "attention": "atlas without memory (window attention)",
        "titans_16": "titans-pytorch, memory chunk 16",
        "titans_64": "titans-pytorch, memory chunk 64",
    }[name]


def _chunk(memory: Memory) -> str:
    return memory.chunk.replace("_a", " A")


def _kernels(memory: Memory) -> str:
    return "" if memory.compiled else ", PyTorch's kernels"
