"""How much recall is lost at longer texts, by setting: a table over sweeps.

python -m experiments.lengths.needles SWEEP [SWEEP ...] [KEY=VALUE ...]

  samples=24                   needles at each length and depth
  factors=1,2,4,8,16           lengths, in trained lengths of the first job
  lasting=0                    rates from which a write of the global memory lasts beyond a trained length (0: all do),
                               such as 0,0.5: every run is read in each of these ways
  folder=experiments/lengths   where needles.json and NEEDLES.md go
  trust=MODULE                 a module of your own that the runs' components come from

Every run is probed anew, on the same needles: one of four, asked for by its key, in noise and in text that the run has
not seen, at three depths; and the loss of such text is measured, at the same places for all runs. The settings of the
first job are the reference; every other row names what it changes. Writes needles.json and NEEDLES.md, and niah.json
and niah.png of each run again, in some minutes for each run.
Exit status: 0 written, 2 refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from statistics import mean
from typing import Any

from atlas.config import NIAHConfig, require
from atlas.config.arguments import names, read_settings, run_command
from atlas.config.atomic import write_atomically
from atlas.evaluate import EvaluationSettings, evaluate, read_texts
from atlas.niah import probe_run
from atlas.runs.environment import git_revision, versions
from atlas.runs.load import load_checkpointed
from experiments.finished_runs import changes, jobs, read_run

HERE = Path(__file__).parent
TASKS = {"multi_key": "noise", "multi_key_text": "text"}
TEXT_ROWS = 8  # places of the text, read to each length
AIM = 0.015  # share that may be lost at four times the trained length (ATLAS)


@dataclass
class Settings:
    samples: int = 24
    factors: str = "1,2,4,8,16"
    lasting: str = "0"
    folder: str = str(HERE)
    trust: str = ""

    def __post_init__(self) -> None:
        require(self.samples >= 1, "samples", self.samples, ">= 1")
        whole = all(text.isdecimal() and int(text) >= 1 for text in names(self.factors))
        require(whole and self.factors != "", "factors", self.factors, "whole numbers >= 1, such as 1,2,4")
        require(self.rates != [], "lasting", self.lasting, "numbers in [0, 1], such as 0,0.5")
        require(Path(self.folder).is_dir(), "folder", self.folder, "a folder that exists")

    @property
    def rates(self) -> list[float]:
        """[] for what are none."""
        try:
            rates = [float(text) for text in dict.fromkeys(names(self.lasting))]
        except ValueError:
            return []
        return rates if all(0 <= rate <= 1 for rate in rates) else []


@dataclass(frozen=True)
class Run:
    setting: str
    lasting: float
    seed: int
    validation_loss: float | None  # nats per token
    trained_at: str  # revision
    found: dict[str, dict[str, float]]  # by haystack and length: share of needles over the depths
    blind: dict[str, dict[str, float]]  # the same by the best reader that ignores the key
    needles: int  # of a length
    text: dict[str, float]  # loss of text up to a length, nats per token

    @property
    def way(self) -> str:
        """What the rows of a table have in common."""
        return self.setting + (f", lasting={self.lasting:g}" if self.lasting else "")


def probed(folder: Path, lengths: Sequence[int], lasting: float, settings: Settings) -> dict[str, Any]:
    """Shares of needles found, over the depths. Raises `ConfigError` for a run without a memory."""
    given = [
        "niah.levels=[recall]",
        f"niah.tasks={[*TASKS]}".replace("'", ""),
        f"niah.lengths={list(lengths)}",
        "niah.all_depths=true",
        f"niah.samples={settings.samples}",
        f"lasting={lasting}",
    ]
    (result,) = probe_run([str(folder), *given, f"trust={settings.trust}"])
    found: dict[str, dict[str, float]] = {haystack: {} for haystack in TASKS.values()}
    blind: dict[str, dict[str, float]] = {haystack: {} for haystack in TASKS.values()}
    needles = 0
    for task, haystack in TASKS.items():
        for length in lengths:
            cells = [cell for cell in result.cells if (cell.task, cell.length) == (task, length) and cell.samples]
            if cells:
                found[haystack][str(length)] = mean(cell.accuracy or 0.0 for cell in cells)
                readers = [mean(cell.key_blind[name] for cell in cells) for name in cells[0].key_blind]
                blind[haystack][str(length)] = max(readers)
                needles = sum(cell.samples for cell in cells)
    return {"found": found, "blind": blind, "needles": needles}


def losses(folder: Path, lasting: float, settings: Settings) -> dict[str, float]:
    """Of the run's validation text up to each length, in nats per token; {} where it is too short."""
    model, config, _ = load_checkpointed(str(folder), names(settings.trust))
    model.plan = model.plan.with_lasting(lasting, config.train.sequence)
    chosen = EvaluationSettings(factors=settings.factors, rows=TEXT_ROWS, bytes=2, memory="on")
    texts = read_texts(config, chosen, model.tokenizer_file).texts
    found = evaluate(model, config.train.sequence, texts, chosen)["lengths"]["on"]
    return {str(one["factor"] * config.train.sequence): log(one["perplexity"]) for one in found}


def measure(arguments: Sequence[str]) -> int:
    """Probe, and write the table. Raises `ConfigError` for arguments that cannot be used."""
    sweeps = [argument for argument in arguments if "=" not in argument]
    require(bool(sweeps), "SWEEP", "", "one or more folders of sweeps")
    settings = read_settings(Settings, [argument for argument in arguments if "=" in argument])
    read = {folder: read_run(folder, settings.trust) for folder in jobs(sweeps, settings.trust)}
    reference = next(iter(read.values()))[0]
    trained = reference["train.sequence"]
    lengths = [trained * int(factor) for factor in names(settings.factors)]
    runs = [
        Run(
            ", ".join(f"{key}={value}" for key, value in sorted(changes(own, reference).items())) or "reference",
            lasting,
            own["seed"],
            summary["validation_loss"],
            summary["git"] or "unknown",
            **probed(folder, lengths, lasting, settings),
            text=losses(folder, lasting, settings),
        )
        for folder, (own, summary) in read.items()
        if own["model.memory.enabled"]
        for lasting in settings.rates
    ]
    require(bool(runs), "SWEEP", " ".join(sweeps), "sweeps with a run that has a memory")
    record = {
        "runs": [asdict(run) for run in runs],
        "trained_length": trained,
        "git": git_revision(),
        "versions": versions(),
    }
    folder = Path(settings.folder)
    write_atomically(folder / "needles.json", json.dumps(record, indent=1) + "\n")
    write_atomically(folder / "NEEDLES.md", document(runs, lengths, record))
    print(f"\nwritten to {folder / 'NEEDLES.md'}")
    return 0


def document(runs: Sequence[Run], lengths: Sequence[int], record: dict[str, Any]) -> str:
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        groups.setdefault(run.way, []).append(run)
    trained = record["trained_length"]
    lines = [
        "# Needles in longer texts: results",
        "",
        "Written by `python -m experiments.lengths.needles`; do not edit. Share of needles found by their key, one of",
        f"four, over three depths, {max(run.needles for run in runs)} needles a run and length; mean over the seeds,",
        f"and the range. The first row is trained on {trained} tokens. The aim: at 4x at most {AIM:.1%} is lost, of at",
        f"least {NIAHConfig().threshold:.0%} at 1x.",
    ]
    for haystack in TASKS.values():
        columns = ["setting", "seeds", "loss of text", *(f"{length:,} ({length / trained:g}x)" for length in lengths)]
        lines += [
            "",
            f"## In {haystack}",
            "",
            _line([*columns, "lost at 4x", "aim met by"]),
            "|---" * (len(columns) + 2) + "|",
        ]
        for setting, group in groups.items():
            cells = [setting, ", ".join(str(run.seed) for run in group)]
            cells.append(_spread([run.validation_loss for run in group], ".4f"))
            cells += [_spread([run.found[haystack].get(str(length)) for run in group], ".1%") for length in lengths]
            lost = [_lost(run.found[haystack], trained) for run in group]
            met = sum(_meets_aim(run.found[haystack], trained) for run in group)
            aim = "not measured" if None in lost else f"{met} of {len(group)}"
            lines.append(_line([*cells, _spread(lost, "+.1%"), aim]))
        blind = [_spread([run.blind[haystack].get(str(length)) for run in runs], ".1%") for length in lengths]
        lines.append(_line(["the best reader that ignores the key", "-", "-", *blind, "-", "-"]))
    columns = ["setting", *(f"{length:,} ({length / trained:g}x)" for length in lengths)]
    lines += ["", "## Loss of text up to a length, nats per token", "", _line(columns), "|---" * len(columns) + "|"]
    for setting, group in groups.items():
        of_text = [_spread([run.text.get(str(length)) for run in group], ".4f") for length in lengths]
        lines.append(_line([setting, *of_text]))
    revisions = " or ".join(sorted({run.trained_at for run in runs}))
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join(
        [*lines, "", f"Trained at revision {revisions}, probed at {record['git'] or 'unknown'}; {packages}.", ""]
    )


def _lost(found: dict[str, float], trained: int) -> float | None:
    """Between the trained length and four times it."""
    before, after = found.get(str(trained)), found.get(str(4 * trained))
    return None if before is None or after is None else before - after


def _meets_aim(found: dict[str, float], trained: int) -> bool:
    """A run that finds nothing has nothing to lose."""
    lost = _lost(found, trained)
    return lost is not None and lost <= AIM and found[str(trained)] >= NIAHConfig().threshold


def _spread(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not measured"
    return f"{mean(known):{form}}" + (f" ({min(known):{form}} to {max(known):{form}})" if len(known) > 1 else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(measure, arguments, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
