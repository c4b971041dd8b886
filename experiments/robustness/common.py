"""The small model that these commands train, and where their results go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import atlas
from atlas.config import RunConfig
from atlas.runs.environment import git_revision, versions

HERE = Path(__file__).parent
# One layer of width 32 on the standard library's text; watch, rollback and optimiser as by default.
SMALL = [
    "model.width=32",
    "model.layers=1",
    "model.feedforward=64",
    "model.memory.hidden=16",
    "model.persistent_keys=8",
    "model.window=8",
    "train.sequence=64",
    "chunk_size.shard=32",
    "chunk_size.global_size=32",
    "chunk_size.local=[8]",
    "train.batch_size=8",
    "niah=off",
    "logger=none",
    "device=cpu",
    "device.threads=1",
]


def small(*overrides: str, data: str = "data=stdlib") -> RunConfig:
    return atlas.compose([*SMALL, data, *overrides])


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_result(name: str, title: str, text: str, data: dict[str, Any]) -> None:
    """Write NAME.json and put RESULTS.md together again from all that were written."""
    content = {"title": title, "text": text, "git": git_revision(), "versions": versions(), **data}
    (HERE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    parts = ["# Robustness: results", "", "Written by the commands named; do not edit.", ""]
    for path in sorted(HERE.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        source = f"`python experiments/robustness/{path.stem}.py`, revision {found['git'] or 'unknown'}"
        parts += [f"## {found['title']}", "", source, "", found["text"], ""]
    (HERE / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")
    print(f"\n{text}\n\nwritten to {HERE / 'RESULTS.md'}")
