"""Table of an ablation sweep: recall with and without memory, and validation loss, per setting over its seeds.

python experiments/ablations/table.py outputs/sweeps/<time>
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}


def read_runs(sweep: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(settings without the seed, summary) of every job that has ended."""
    runs = []
    for path in sorted(sweep.glob("*/summary.json")):
        settings = flat(OmegaConf.to_container(OmegaConf.load(path.parent / "config.yaml")))
        settings.pop("seed")
        runs.append((settings, json.loads(path.read_text(encoding="utf-8"))))
    return runs


def spread(values: list[float | None], form: str) -> str:
    """Mean and range; "-" where one was not measured."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    return f"{mean(known):{form}} ({min(known):{form}} to {max(known):{form}})"


def table(runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    keys = {key for settings, _ in runs for key in settings}
    differing = sorted(key for key in keys if len({str(settings.get(key)) for settings, _ in runs}) > 1)
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for settings, summary in runs:
        groups[", ".join(f"{key}={settings.get(key)}" for key in differing)].append(summary)
    lines = ["| settings | seeds | ended | recall | memory off | validation loss |", "|---|---|---|---|---|---|"]
    for label, summaries in groups.items():
        recalls = [summary["niah"].get("recall", {}) for summary in summaries]
        status = ", ".join(sorted({summary["status"] for summary in summaries}))
        cells = [
            spread([recall.get("accuracy") for recall in recalls], ".1%"),
            spread([recall.get("control") for recall in recalls], ".1%"),
            spread([summary["validation_loss"] for summary in summaries], ".4f"),
        ]
        lines.append(f"| {label or 'all alike'} | {len(summaries)} | {status} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python experiments/ablations/table.py SWEEP_FOLDER")
    print(table(read_runs(Path(sys.argv[1]))))
