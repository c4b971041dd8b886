"""The runs of an ablation as a table: a row per setting, over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

REFERENCE = "reference"
COLUMNS = (
    "setting",
    "seeds",
    "ended",
    "recall",
    "memory off",
    "trained without memory",
    "validation loss",
    "against the reference",
)


@dataclass(frozen=True)
class Run:
    setting: str  # what differs from the reference
    seed: int
    status: str
    parameters: int
    validation_loss: float | None  # nats per byte
    recall: float | None  # share of needles found; None = not measured
    control: float | None  # the same with the memory off
    without: float | None  # the same needles, by the run of this seed that was trained without a memory
    chance: float | None
    needles: int
    tokens_per_second: float | None

    @classmethod
    def of(cls, changed: dict[str, Any], seed: int, summary: dict[str, Any], recall: dict[str, Any]) -> Run:
        return cls(
            setting=", ".join(f"{key}={value}" for key, value in sorted(changed.items())) or REFERENCE,
            seed=seed,
            status=summary["status"],
            parameters=summary["parameters"],
            validation_loss=summary["validation_loss"],
            recall=recall.get("recall"),
            control=recall.get("control"),
            without=recall.get("without"),
            chance=recall.get("chance"),
            needles=recall.get("needles", 0),
            tokens_per_second=summary["tokens_per_second"],
        )


def document(runs: Sequence[Run], record: dict[str, Any]) -> str:
    """RESULTS.md."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.setting, []).append(run)
    reference = {run.seed: run.validation_loss for run in groups.get(REFERENCE, [])}
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [_row(setting, group, reference) for setting, group in groups.items()]
    needles = sorted({run.needles for run in runs if run.needles})
    chance = sorted({run.chance for run in runs if run.chance is not None})
    about = [
        "# Ablations: results",
        "",
        "Written by `python -m experiments.ablations`; do not edit. A cell is the mean over the seeds, and the range.",
        f"Recall: share of needles found in a noise haystack beyond the attention window, {_joined(needles)} needles a",
        f"run, chance {_joined([f'{value:.1%}' for value in chance])}. Validation loss: nats per byte of real text;",
        "against the reference: the difference to the reference run of the same seed, negative = better.",
        "",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*about, *lines, "", f"Probed at revision {record['git'] or 'unknown'}; {versions}.", ""])


def _row(setting: str, runs: Sequence[Run], reference: dict[int, float | None]) -> str:
    differences = [_difference(run.validation_loss, reference.get(run.seed)) for run in runs]
    cells = [
        setting,
        ", ".join(str(run.seed) for run in runs),
        ", ".join(sorted({run.status for run in runs})),
        _spread([run.recall for run in runs], ".1%"),
        _spread([run.control for run in runs], ".1%"),
        _spread([run.without for run in runs], ".1%"),
        _spread([run.validation_loss for run in runs], ".4f"),
        "-" if setting == REFERENCE else _spread(differences, "+.4f"),
    ]
    return f"| {' | '.join(cells)} |"


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _spread(values: Sequence[float | None], form: str) -> str:
    """Mean and range of what was measured, and how many were; "-" where none was."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{mean(known):{form}}"
    text += f" ({min(known):{form}} to {max(known):{form}})" if len(known) > 1 else ""
    return text if len(known) == len(values) else f"{text}, {len(known)} of {len(values)} measured"


def _joined(values: Sequence[object]) -> str:
    return " or ".join(map(str, values)) or "none measured"
