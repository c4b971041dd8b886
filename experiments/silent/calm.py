"""Thirty calm runs in which nothing is wrong: what they tell is a false alarm.

python -m experiments.silent.calm [KEY=VALUE ...]

  only=NAME          these runs
  folder=PATH        the runs are kept there; otherwise in a temporary folder
  older=true         runs of earlier revisions in calm.json stay, but for those of `only`; each names its revision

The default recipe to its end, `small` for 300 steps, and the small model of the catalogue with each learning rule, each
fusion, carried memory, each optimiser, each source of text, 10,000 steps, and more. An hour on one core, of which the
two recipes take most; a run tells when others slow the machine, which does not count. A run that calm.json has for this
revision is not made again. Writes calm.json and CALM.md beside this file.
Exit status: 0 no finding, 1 there are some, 2 refused.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atlas.config import ConfigError
from atlas.config.arguments import names, read_settings, run_command
from atlas.runs.environment import versions
from experiments.silent.bench import LITTLE_TEXT, MIXED, TEXT, Bench
from experiments.silent.data import little_text, store
from experiments.silent.failure import facts, of_machine
from experiments.silent.table import QUIET as QUIET_KINDS
from experiments.silent.table import revision as revision_of_code
from experiments.silent.table import revisions_of

HERE = Path(__file__).parent
RULES = ("gd", "momentum", "muon", "omega", "atlas")
FUSIONS = ("gated_sum", "multiplicative", "additive")
WINDOWED = {"omega": ("model.memory.omega.window=8",), "atlas": ("model.memory.atlas.window=8",)}
CALM: dict[str, tuple[str, ...]] = {
    "the default recipe to its end": (),
    "small for 300 steps": ("model=small", "train.steps=300"),
    **{f"rule {rule}": (*TEXT, f"model.memory.rule={rule}", *WINDOWED.get(rule, ())) for rule in RULES},
    **{f"rule {rule} with recall": (*MIXED, f"model.memory.rule={rule}", *WINDOWED.get(rule, ())) for rule in RULES},
    **{f"fusion {fusion}": (*TEXT, f"model.fusion={fusion}") for fusion in FUSIONS},
    **{f"fusion {fusion} with recall": (*MIXED, f"model.fusion={fusion}") for fusion in FUSIONS[1:]},
    "carried memory": (*TEXT, "train.carry_memory=true"),
    "carried memory with momentum": (*TEXT, "train.carry_memory=true", "model.memory.rule=momentum"),
    "the standard library": ("data=stdlib",),
    "text and recall": MIXED,
    "a token store": ("STORE",),
    "a token store with a document a row": ("STORE", "data.documents=separate"),
    "adamw": (*TEXT, "optim=adamw"),
    "constant learning rate": (*TEXT, "optim.schedule=constant"),
    "accumulation": (*TEXT, "train.accumulate=2"),
    "no clipping": (*TEXT, "train.gradient_clip=0"),
    "two layers with two local memories": (*TEXT, "model.layers=2", "chunk_size.local=[4,16]"),
    "without a memory": (*TEXT, "model.memory.enabled=false", "model.memory.hidden=64"),
    "no global memory": (*TEXT, "ablation=no_global"),
    "PyTorch's operations": (*TEXT, "device.kernels=torch"),
    "bf16": (*TEXT, "device.precision=bf16"),
    "calibrated W_init": (*TEXT, "calibration=on"),
    "10000 steps": (
        "data=stdlib",
        "train.steps=10000",
        "train.validation_every=500",
        "checkpoint.every=500",
        "telemetry.every=20",
    ),
}
RECIPES = ("the default recipe to its end", "small for 300 steps")
QUIET = ("logger=none", "device=cpu", "device.threads=1")


@dataclass(frozen=True)
class Options:
    only: str = ""
    folder: str = ""
    older: bool = False


def calm(name: str, place: Path) -> dict[str, Any]:
    """One run, and what it told."""
    bench, settings, began = Bench(place, 0), CALM[name], time.monotonic()
    if "STORE" in settings:
        text = little_text()
        made = store(bench, [text[at : at + 60] for at in range(0, len(text), 60)], "store")
        settings = ("data=tokens", f"data.path={made}", *settings[1:])
    ended = bench.run(*QUIET, *settings, bare=True) if name in RECIPES else bench.run(*settings)
    found = facts(ended)
    told = [one for one in found.findings if one.kind not in QUIET_KINDS]
    slowed, alarms = (
        [f"{one.kind} at step {one.step}: {one.message}" for one in told if of_machine(one) is machine]
        for machine in (True, False)
    )
    verdicts = [one.message for one in found.findings if one.kind == "table"]
    seconds = round(time.monotonic() - began, 1)
    return {"status": found.status, "findings": alarms, "slowed": slowed, "verdicts": verdicts, "seconds": seconds}


def text_of(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| run | settings beside the defaults or the small model | findings |", "| --- | --- | --- |"]
    for name, one in found.items():
        settings = (
            " ".join(CALM[name]).replace(str(LITTLE_TEXT), "atlas/training/[!_]*.py") or "`python -m atlas.train`"
        )
        lines.append(f"| {name} | {settings.replace('|', '/')} | {'; '.join(one['findings']) or '0'} |")
    count = sum(len(one["findings"]) for one in found.values())
    lines += ["", f"{count} findings in {len(found)} calm runs."]
    if slowed := sum(len(one["slowed"]) for one in found.values()):
        lines += ["", f"{slowed} runs tell that the machine was slow, which is true where others use it too."]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    wanted = names(options.only) or list(CALM)
    for name in wanted:
        if name not in CALM:
            raise ConfigError(f"only={name}: must be one of {'; '.join(CALM)}")
    torch.set_num_threads(1)
    file, revision = HERE / "calm.json", revision_of_code()
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found: dict[str, dict[str, Any]] = {
        name: run
        for name, run in kept.get("runs", {}).items()
        if name in CALM and (run["git"] == revision or (options.older and not (options.only and name in wanted)))
    }
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(CALM):
            if name not in wanted or name in found:
                continue
            place = Path(options.folder or scratch).resolve() / str(number)
            found[name] = calm(name, place) | {"git": revision}
            if not options.folder:
                shutil.rmtree(place, ignore_errors=True)
            print(f"{name}: {found[name]}", flush=True)
            content = {"versions": versions(), "runs": found}
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    found = {name: found[name] for name in CALM if name in found}
    source = revisions_of(run["git"] for run in found.values())
    source = f"Written by `python -m experiments.silent.calm`, {source}; do not edit."
    (HERE / "CALM.md").write_text(f"# Calm runs\n\n{source}\n\n{text_of(found)}\n", encoding="utf-8")
    print(f"\n{text_of(found)}")
    return int(any(one["findings"] for one in found.values()))


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
