"""Probe a trained model: `python -m atlas.niah RUN [control=RUN] [niah=thorough] [niah.samples=32 ...] [device=cpu]`.

RUN is a run folder (its newest healthy checkpoint), a checkpoint folder, or `latest`, the newest run in outputs/runs.
`control` names a run that was trained without a memory (`model=attention_only`), which then answers the same questions.
Prints a table, and writes niah.json and niah.png into the run folder: niah.json keeps the last 31 results of other
settings and checkpoints, the picture is of the newest recall. `lasting=0.5`: in haystacks beyond the trained length,
writes of the global memory at smaller rates last for a trained length only (experiments/lengths). `device`,
`device.threads` and `device.kernels` say where it runs; `trust=MODULE` names a module of your own that the run's
components come from. Exit status: 0 every level that was asked passed; 1 one failed or was not measured; 2 refused; 130
stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from atlas.config import LEVELS, RECALL, NIAHConfig, RunConfig, Unit, level_of, require
from atlas.config.arguments import (
    names,
    read_device,
    read_settings,
    require_lasting,
    require_lasting_of,
    run_command,
    split_arguments,
)
from atlas.config.composition import check_own_code, options
from atlas.config.console import print_result, progress
from atlas.config.exits import no_exit
from atlas.config.files import CONF_DIR
from atlas.config.refusals import refuse, unknown_key
from atlas.data import mqar, ruler
from atlas.probes.result import NOT_ASKED
from atlas.telemetry.run_files import NIAH_FILE

if TYPE_CHECKING:
    from atlas.models.language_model import AtlasModel
    from atlas.probes.result import NIAHResult, ProbeCell

PICTURE_FILE = "niah.png"
LEGEND = (
    "memory: with the memory   off: the control: memory off; of accumulator no pair, of memory another pair",
    "frozen: memory reads and never writes (niah.frozen=true)   blind: the best reader that ignores the key",
    "without: a model trained without a memory (control=RUN)   chance: a guess   prob.: of the whole answer",
    "algebra: the cosine that the equations predict",
    "n: needles   -: not measured   all numbers are shares of needles found, or cosines with the value",
)
DIFFERENCES = {"mqar": mqar.DIFFERS, "ruler": ruler.DIFFERS}  # from the papers
USAGE = (
    "python -m atlas.niah RUN [control=RUN] [lasting=RATE] [niah=OPTION] [niah.KEY=VALUE ...] [device.KEY=VALUE ...]"
)
_ALLOWED = "niah or a key of it, or where it runs (device.threads=1): all else is the run's own"


@dataclass
class Lasts:
    """The rate from which a write lasts in long haystacks."""

    lasting: float = 0.0

    def __post_init__(self) -> None:
        require_lasting(self.lasting)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(_probe, arguments, f"{USAGE}\n\n{__doc__}")


@no_exit()
def _probe(arguments: Sequence[str]) -> int:
    return 0 if all(result.outcome.value == "passed" for result in probe_run(arguments)) else 1


def probe_run(arguments: Sequence[str]) -> list[NIAHResult]:
    """Probe as the command line says. Raises `ConfigError` for arguments that cannot be used."""
    path, settings = split_arguments(arguments, USAGE)
    own = {key: [text for text in settings if _name(text) == key] for key in ("control", "trust", "device", "lasting")}
    controls = [text.partition("=")[2] for text in own["control"]]
    one = len(controls) <= 1 and "" not in controls
    require(one, "control", " ".join(controls), "one run or checkpoint folder")
    trust = [name for text in own["trust"] for name in names(text.partition("=")[2])]
    chosen = read_device(own["device"])
    lasting = read_settings(Lasts, own["lasting"]).lasting
    from atlas.probes.trained_control import with_trained_control
    from atlas.runs.build import build_data, build_probe, prepare_device
    from atlas.runs.load import load_checkpointed
    from atlas.runs.probe_record import read_probings, record_probing

    model, trained, manifest = load_checkpointed(path, trust)
    config = with_overrides(trained, [text for text in settings if _name(text) not in own])
    loaded = [load_checkpointed(path, trust, key="control") for path in controls]
    for named, (other, settings_of_control, _) in zip(controls, loaded, strict=True):
        require(not settings_of_control.model.memory.enabled, "control", named, "a run trained without a memory")
        _require_same_questions(model, other, (path, named))
    asks = RECALL.name in config.niah.levels
    require(asks or not controls, "control", " ".join(controls), f"left out without the level {RECALL.name}")
    folder = manifest.path.parents[1]
    read_probings(folder / NIAH_FILE)  # refuses a file that is none, before the work
    require_lasting_of(trained.model, lasting)
    model.plan = model.plan.with_lasting(lasting, trained.train.sequence)
    device, _ = prepare_device(chosen)
    probe = build_probe(config, build_data(config))
    with progress():
        results = probe.run(model.to(device), manifest.step, every_task=True)
        for control, _, control_manifest in loaded:
            results = with_trained_control(results, probe, control.to(device), control_manifest.step)
    entry = {
        "checkpoint": manifest.path.name,
        "settings": asdict(config.niah),
        "lasting": lasting,
        "control": [str(own.path.resolve()) for _, _, own in loaded],
        "results": [result.record() for result in results],
    }
    record_probing(folder / NIAH_FILE, entry)
    cells = [asdict(cell) for result in results if level_of(result.level).grid for cell in result.cells]
    if cells:
        from atlas.report.heatmap import draw_heatmaps

        draw_heatmaps(cells, f"{folder.name}, step {manifest.step}: needles found, %", folder / PICTURE_FILE)
    print_result("\n".join(table(results)))
    print_result(f"\nfiles  {folder / NIAH_FILE}" + (f"\n       {folder / PICTURE_FILE}" if cells else ""))
    return results


def _require_same_questions(model: AtlasModel, control: AtlasModel, runs: tuple[str, str]) -> None:
    """Raise `ConfigError` where the control cannot read the questions, or reaches needles that the model cannot."""
    from atlas.probes.recall import attention_reach

    run, control_run = runs
    files = [one.tokenizer_file for one in (model, control)]
    tokenizers = [file.read_bytes() if file else None for file in files]
    same = tokenizers[0] == tokenizers[1] and model.embedding.num_embeddings == control.embedding.num_embeddings
    require(same, "control", control_run, f"a run with the tokens of {run}")
    reaches = attention_reach(model), attention_reach(control)
    told = ["all" if one is None else str(one) for one in reaches]
    allowed = f"a run whose attention reaches {told[0]} tokens back, as that of {run}, not {told[1]}"
    require(reaches[0] == reaches[1], "control", control_run, allowed)


def _name(setting: str) -> str:
    """The first word of a setting's key."""
    return setting.partition("=")[0].partition(".")[0]


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The run's configuration with other probe settings; without `niah=OPTION` they change the run's own."""
    settings: Any = OmegaConf.structured(replace(config.niah, enabled=True))
    for override in overrides:
        key, _, value = override.partition("=")
        require(key == "niah" or key.startswith("niah."), key, value, _ALLOWED)
        if key == "niah":
            known = [name for name in options("niah") if name != "off"]
            require(value in known, "niah", value, f"one of {', '.join(known)}")
            option = OmegaConf.load(CONF_DIR / "niah" / f"{value}.yaml")
            settings = OmegaConf.merge(OmegaConf.structured(NIAHConfig), option)
        elif key.removeprefix("niah.") not in {field.name for field in fields(NIAHConfig)}:
            raise unknown_key(override, CONF_DIR)
    composed = OmegaConf.create({"niah": settings}, flags={"struct": True})
    with refuse(CONF_DIR):
        single = OverridesParser.create().parse_overrides([text for text in overrides if text.startswith("niah.")])
        for parsed in single:
            require(not parsed.is_sweep_override(), parsed.key_or_group, parsed.get_value_string(), "one value")
        ConfigLoaderImpl._apply_overrides_to_config(single, composed)  # with the words of `atlas.train`
        made: Any = OmegaConf.to_object(composed)
        changed = replace(config, niah=made["niah"])
        check_own_code(changed)
        return changed


def table(results: Sequence[NIAHResult]) -> list[str]:
    """The levels, one line each, with their meaning and their cells below; then the legend of the columns."""
    lines = []
    for result in results:
        level = level_of(result.level)
        lines += ["", f"{level.name}  {result.verdict}  [{result.seconds:.1f} s]", f"  {level.meaning}"]
        unit = level.unit
        head = ("memory", "off", "frozen", "without", "blind", "chance" if unit is Unit.share else "algebra")
        columns = f"  {'task':<14} {'haystack':<13} {'length':>6} {'depth':>6}  {'needle':<14} "
        lines.append(f"{columns}{' '.join(f'{name:>7}' for name in head)} {'prob.':>6} {'n':>4}")
        lines += [_row(cell, unit) for cell in result.cells]
        asked = dict.fromkeys(cell.task for cell in result.cells if cell.task in DIFFERENCES)
        lines += [f"  {task}: {DIFFERENCES[task]}" for task in asked]
    for level in LEVELS.values():
        if level.name not in [result.level for result in results]:
            lines += ["", f"{level.name}  {NOT_ASKED}", f"  {level.meaning}"]
    return [*lines[1:], "", *LEGEND]


def _row(cell: ProbeCell, unit: Unit) -> str:
    depth = "" if cell.depth is None else f"{100 * cell.depth:.1f}%"
    chance = cell.chance if unit is Unit.share else cell.expected
    blind = max(cell.key_blind.values(), default=None)
    values = (cell.accuracy, cell.control, cell.frozen, cell.without, blind, chance)
    numbers = ["-" if value is None else _number(value, unit) for value in values]
    probability = "" if cell.likelihood is None else f"{cell.likelihood:.3f}"
    row = f"  {cell.task:<14} {cell.haystack:<13} {cell.length:>6} {depth:>6}  {cell.span:<14} "
    row += " ".join(f"{number:>7}" for number in numbers)
    return f"{row} {probability:>6} {cell.samples:>4}  {cell.reason}".rstrip()


def _number(value: float, unit: Unit) -> str:
    """Small shares in scientific notation: a chance of 1e-7 must not read 0.0 %."""
    return f"{value:.1e}" if unit is Unit.share and 0 < value < 0.0005 else f"{value:{unit.form}}"


if __name__ == "__main__":
    sys.exit(main())
