"""The runs of an ablation as a table: a row per setting, over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

REFERENCE = "reference"
COLUMNS = (
    "setting",
    "parameters",
    "seeds",
    "recall",
    "memory off",
    "trained without memory",
    "loss of answers",
    "loss of text",
    "against the reference",
    "loss of both",
    "against the reference",
)


GATES = ("setting", "seeds", "polarised at the peak", "polarised at the end", "standard deviation at the end")
BESIDE_ATTENTION = ("setting", "seeds", "loss of text", "lower in", "loss of both", "lower in")


@dataclass(frozen=True)
class Run:
    setting: str  # what differs from the reference
    seed: int
    parameters: int
    memory: bool
    validation_loss: float | None  # of text, nats per byte
    answer_loss: float | None  # of recall rows that the run has not seen, nats per answer byte; None: has none
    recall_share: float | None  # of the rows, at the end of the run
    recall: float | None  # share of needles found; None = not measured
    control: float | None  # the same with the memory off
    without: float | None  # the same needles, by the run of this seed that was trained without a memory
    chance: float | None
    needles: int
    polarised_peak: float | None  # share of gates below 0.1 or above 0.9 where the loss on them last is at its peak
    polarised_end: float | None
    gate_std: float | None  # at the end
    trained_at: str  # revision

    @property
    def mixed_loss(self) -> float | None:
        """What training minimises, on rows that it has not seen."""
        if self.validation_loss is None or self.answer_loss is None or self.recall_share is None:
            return None
        return (1 - self.recall_share) * self.validation_loss + self.recall_share * self.answer_loss

    @classmethod
    def of(
        cls, changed: dict[str, Any], settings: dict[str, Any], summary: dict[str, Any], found: dict[str, Any]
    ) -> Run:
        return cls(
            setting=", ".join(f"{key}={value}" for key, value in sorted(changed.items())) or REFERENCE,
            seed=settings["seed"],
            parameters=summary["parameters"],
            memory=settings["model.memory.enabled"],
            validation_loss=summary["validation_loss"],
            answer_loss=found.get("answer_loss"),
            recall_share=found.get("recall_share"),
            recall=found.get("recall"),
            control=found.get("control"),
            without=found.get("without"),
            chance=found.get("chance"),
            needles=found.get("needles", 0),
            polarised_peak=found.get("polarised_peak"),
            polarised_end=summary["gate_polarised"],
            gate_std=summary["gate_std"],
            trained_at=summary["git"] or "unknown",
        )


def document(runs: Sequence[Run], record: dict[str, Any]) -> str:
    """RESULTS.md."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        groups.setdefault(run.setting, []).append(run)
    reference = {run.seed: run for run in groups.get(REFERENCE, [])}
    lines = [*_head(COLUMNS), *(_row(setting, group, reference) for setting, group in groups.items())]
    needles = sorted({run.needles for run in runs if run.needles})
    chance = sorted({run.chance for run in runs if run.chance is not None})
    about = [
        "# Ablations: results",
        "",
        "Written by `python -m experiments.ablations`; do not edit. A cell is the mean over the seeds, and the range.",
        f"Recall: share of needles found in noise, beyond the attention window; {_joined(needles)} needles a run,",
        f"chance {_joined([f'{value:.1%}' for value in chance])}. Losses: nats per byte, on rows that the run has not",
        "seen: answers of recall rows, validation text, and both by their shares of the rows at the end, which is what",
        "training minimises. Against the reference: minus the loss of its run of the same seed, negative = better.",
        "",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    trained = _joined(sorted({run.trained_at for run in runs}))
    origin = f"Trained at revision {trained}, probed at {record['git'] or 'unknown'}; {versions}."
    return "\n".join([*about, *lines, "", *_beside_attention(groups), "", *_gates(groups), "", origin, ""])


def _beside_attention(groups: dict[str, list[Run]]) -> list[str]:
    """Every setting with a memory against the runs of the same seeds that were trained without one."""
    alone = {run.seed: run for runs in groups.values() for run in runs if not run.memory}
    lines = ["Minus the loss of the run of the same seed that was trained without a memory, negative = better:", ""]
    lines += _head(BESIDE_ATTENTION)
    for setting, runs in groups.items():
        pairs = [(run, alone[run.seed]) for run in runs if run.memory and run.seed in alone]
        cells = [setting, ", ".join(str(run.seed) for run, _ in pairs)]
        for name in ("validation_loss", "mixed_loss"):
            differences = [_difference(getattr(run, name), getattr(other, name)) for run, other in pairs]
            lower = sum(difference is not None and difference < 0 for difference in differences)
            cells += [_spread(differences, "+.4f"), f"{lower} of {len(pairs)}"]
        lines += [f"| {' | '.join(cells)} |"] if pairs else []
    return lines


def _gates(groups: dict[str, list[Run]]) -> list[str]:
    lines = ["Gates below 0.1 or above 0.9; wanted >= 80% at the peak of the loss on them and >= 20% at the end:", ""]
    lines += _head(GATES)
    for setting, runs in groups.items():
        cells = [setting, ", ".join(str(run.seed) for run in runs)]
        cells += [_spread([getattr(run, name) for run in runs], ".1%") for name in ("polarised_peak", "polarised_end")]
        cells.append(_spread([run.gate_std for run in runs], ".3f"))
        lines += [f"| {' | '.join(cells)} |"] if runs[0].memory else []
    return lines


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _row(setting: str, runs: Sequence[Run], reference: dict[int, Run]) -> str:
    def against(name: str) -> str:
        differences = [_difference(getattr(run, name), getattr(reference.get(run.seed), name, None)) for run in runs]
        return "-" if setting == REFERENCE else _spread(differences, "+.4f")

    cells = [
        setting,
        _joined(sorted({f"{run.parameters:,}" for run in runs})),
        ", ".join(str(run.seed) for run in runs),
        _spread([run.recall for run in runs], ".1%"),
        _spread([run.control for run in runs], ".1%"),
        _spread([run.without for run in runs], ".1%"),
        _spread([run.answer_loss for run in runs], ".4f"),
        _spread([run.validation_loss for run in runs], ".4f"),
        against("validation_loss"),
        _spread([run.mixed_loss for run in runs], ".4f"),
        against("mixed_loss"),
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
