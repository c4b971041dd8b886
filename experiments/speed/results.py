"""The files that hold what was measured: one per device and model, a part replaced whenever it is run again."""

from __future__ import annotations

import json
import os
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from atlas.runs.environment import device_name, git_revision, versions
from experiments.speed.options import Options


def save_part(options: Options, part: str, found: dict[str, Any]) -> None:
    """Put a part's result into the file of its device and model."""
    path = options.folder / f"results-{options.device}-{options.model}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content |= {"device": options.device, "model": options.model, part: found}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_results(folder: Path) -> list[dict[str, Any]]:
    """All that was measured, CPU before CUDA."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("results-*.json"))]


def circumstances(device: torch.device, arguments: list[str]) -> dict[str, Any]:
    """What a reader must know to judge the figures; taken before the part is run."""
    return {
        "command": " ".join(["python -m experiments.speed", *arguments]),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": device_name(device),
        "load_before": round(os.getloadavg()[0], 2),
        "git": git_revision(),
        "versions": versions() | {"titans-pytorch": _peer_version()},
    }


def _peer_version() -> str:
    try:
        return version("titans-pytorch")
    except PackageNotFoundError:
        return "missing"
