"""Real text from the package index -> an 8k tokenizer and a token store -> `small` beside two baselines of its size.

python -m experiments.corpus.recipe [folder=outputs/corpus] [steps=2000] [models=small,attention_only,transformer]

Downloads wheels without native code (pip, versions pinned, 140 MB), takes their source text and documentation as JSONL,
a document per file, prepares a store with `tokenizer=train:8192`, trains each model on text with a share of recall on
one thread, and writes the table to the console and FOLDER/table.md. What is finished is not done again, and a run that
was killed goes on where it stopped. Batch and lengths are scaled down, so that a model takes some minutes on one core:
2 sequences of 128 tokens, a window of 8, shards and global chunks of 32, AdamW.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atlas import compose
from atlas.config import require
from atlas.config.arguments import names, read_settings, run_command
from atlas.data.store_format import read_record
from atlas.runs.build import build_model
from atlas.telemetry.run_files import RunFiles

PACKAGES = {
    "ansible": "11.1.0", "transformers": "4.46.3", "homeassistant": "2024.3.3", "sympy": "1.14.0", "plotly": "6.0.0",
    "networkx": "3.4.2", "django": "5.1.4", "faker": "33.1.0", "apache-airflow": "2.10.4",
}  # fmt: skip
TEXTS = (".py", ".md", ".rst", ".txt", ".yml", ".yaml")
LEAST_BYTES = 64  # of a document
VOCABULARY = 8192
LENGTHS = [
    "model.window=8", "model.native.sequence=128", "model.native.shard=32", "model.native.global_size=32",
    "model.native.needle_distance=32", "train.batch_size=2", "data.recall.pairs=6", "data.recall.queries=12",
    "data.recall.sparse_queries=6",
]  # fmt: skip
TRAINED = [
    "data=mixed_tokens", "optim=adamw", "logger=none", "device=cpu", "device.threads=1", "calibration=off",
    "checkpoint.every=100", "niah.every=1000000", "niah.levels=[recall]", "niah.samples=64",
    "train.validation_batches=64",
]  # fmt: skip
MODELS = {
    "small": [],
    "attention_only": ["model.memory.enabled=false"],
    "transformer": ["model.memory.enabled=false", "model.window=0", "model.persistent_keys=0"],
}


@dataclass
class RecipeSettings:
    folder: str = "outputs/corpus"
    steps: int = 2000
    models: str = ",".join(MODELS)

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", self.steps, ">= 1")
        chosen = names(self.models)
        require(bool(chosen) and set(chosen) <= set(MODELS), "models", self.models, f"some of {', '.join(MODELS)}")


def download(folder: Path) -> None:
    """The wheels, as far as they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {wheel.name.lower().rpartition("-py3")[0] for wheel in folder.glob("*.whl")}
    versions = PACKAGES.items()
    wanted = [f"{name}=={version}" for name, version in versions if f"{name.replace('-', '_')}-{version}" not in there]
    if wanted:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, f"--dest={folder}", *wanted], check=True)


def documents(wheel: Path) -> Iterator[str]:
    """The texts of a wheel in the order of their names; what is not UTF-8 is left out."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith(TEXTS):
                continue
            try:
                text = archive.read(name).decode("utf-8")
            except UnicodeDecodeError:
                continue
            if len(text) >= LEAST_BYTES:
                yield text


def unpack(wheels: Path, folder: Path) -> None:
    """A JSONL file per wheel, a line per document; it appears when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(wheels.glob("*.whl")):
        out = folder / f"{wheel.name.partition('-')[0].lower()}.jsonl"
        if out.exists():
            continue
        part = out.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents(wheel))
        part.rename(out)


def prepare(texts: Path, store: Path) -> None:
    if store.exists():
        return
    sources = [str(path) for path in sorted(texts.glob("*.jsonl"))]
    command = [sys.executable, "-m", "atlas.prepare", *sources, f"out={store}", f"tokenizer=train:{VOCABULARY}"]
    subprocess.run([*command, "workers=1"], check=True)


def settings_of(model: str, store: Path, steps: int) -> list[str]:
    """Overrides of a model; a baseline has a feed-forward layer that makes it as large as `small`."""
    common = ["model=small", f"data.path={store}", f"train.steps={steps}", *TRAINED, *LENGTHS, "model.vocabulary=8192"]
    if not MODELS[model]:
        return common
    wanted, found = parameters(common), parameters([*common, *MODELS[model]])
    config = compose([*common, *MODELS[model]]).model
    wider = config.feedforward + round((wanted - found) / (3 * config.width * config.layers))
    return [*common, *MODELS[model], f"model.feedforward={wider}"]


def parameters(settings: Sequence[str]) -> int:
    with torch.device("meta"):
        return sum(part.numel() for part in build_model(compose(settings)).parameters())


def train(run: Path, settings: Sequence[str]) -> dict[str, Any]:
    """The summary of the run, which goes on where it stopped."""
    command = [sys.executable, "-m", "atlas.train", *settings, f"hydra.run.dir={run}", "resume=auto"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return dict(RunFiles(run).summary)


def line(model: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    level = found["niah"].get("recall", {})
    shares = ("-" if level.get(part) is None else f"{level[part]:.0%}" for part in ("accuracy", "control"))
    cells = [
        model,
        f"{found['parameters'] / 1e6:.2f} M",
        f"{found['validation_bits_per_byte']:.3f}",
        *shares,
        f"{found['tokens_per_second']:,.0f}",
        f"{found['peak_memory_bytes'] / 2**20:.0f} MiB",
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> int:
    settings = read_settings(RecipeSettings, arguments)
    folder = Path(settings.folder).resolve()
    store = folder / "store"
    download(folder / "wheels")
    unpack(folder / "wheels", folder / "text")
    prepare(folder / "text", store)
    record = read_record(store, "folder")
    text = sum(split.bytes for split in record.splits.values())
    titles = "model", "parameters", "bits per byte", "keyed recall", "without memory", "tokens/s", "peak memory"
    shared = f"{record.validation_in_training:.0%} of the validation text stands in training as well"
    lines = [
        f"{text / 1e6:.0f} MB of text, {record.bytes_per_token:.2f} bytes per token, {settings.steps} steps of 2 x 128"
        f" tokens; {shared}; chance of recall is 1/16",
        "",
        f"| {' | '.join(titles)} |",
        f"|{' --- |' * len(titles)}",
    ]
    for model in names(settings.models):
        lines.append(line(model, train(folder / "runs" / model, settings_of(model, store, settings.steps))))
        (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
