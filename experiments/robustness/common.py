"""The small model that these commands train, how a disturbed run is compared, and where the results go."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import RunConfig, require
from atlas.runs.environment import git_revision, versions
from atlas.runs.run import run
from atlas.telemetry.rows import without_clock
from atlas.telemetry.run_files import RunFiles

HERE = Path(__file__).parent
TEXT = Path(atlas.__file__).parent / "training" / "[!_]*.py"  # little text: a start takes less than a second
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


def counts(arguments: Sequence[str], **defaults: int) -> list[int]:
    """The numbers on the command line, by their order; defaults for the rest. Raises `ConfigError`."""
    names = " ".join(defaults).upper()
    require(
        len(arguments) <= len(defaults), "arguments", " ".join(arguments), f"at most {names}" if names else "left out"
    )
    for name, text in zip(defaults, arguments, strict=False):
        require(text.isdecimal() and int(text) > 0, name.upper(), text, "a number >= 1")
    return [*map(int, arguments), *list(defaults.values())[len(arguments) :]]


def small(*overrides: str, data: str = "data=stdlib") -> RunConfig:
    return atlas.compose([*SMALL, data, *overrides])


def start(config: RunConfig, folder: Path) -> int:
    """Run in a process of its own; returns its id."""
    process = os.fork()
    if process:
        return process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        status = 0 if run(config, folder).status == "completed" else 1
    except KeyboardInterrupt:
        status = 130
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 2
    os._exit(status)


def compare(folder: Path, whole: Path) -> dict[str, Any]:
    """What the disturbed run came to, bitwise against the undisturbed one."""
    payloads = [CheckpointManager(path / "checkpoints", keep=2).load()[0] for path in (folder, whole)]
    for payload in payloads:
        del payload["rng"]
    (first, structure), (second, other) = (pytree.tree_flatten(payload) for payload in payloads)
    equal = [
        torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b) for a, b in zip(first, second, strict=True)
    ]
    rows = [[without_clock(row) for row in RunFiles(path).rows] for path in (folder, whole)]
    notices = [event["message"] for event in RunFiles(folder).of_kind("notice")]
    last = max(row["segment"] for row in rows[1])
    return {
        "state_equal": structure == other and all(equal),
        "rows_of_last_segment_equal": [r for r in rows[0] if r["segment"] == last]
        == [r for r in rows[1] if r["segment"] == last],
        "resumes": sum(text.startswith("resumed from") for text in notices),
        "passed_over": sum("was passed over" in text for text in notices),
        "damaged": len(list((folder / "checkpoints").glob("damaged-*"))),
    }


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
