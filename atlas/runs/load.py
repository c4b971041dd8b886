"""A trained model from the folder of a run or of a checkpoint, and its settings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from atlas.checkpoint.contents import MODEL
from atlas.checkpoint.manifest import STATE_FILE, Manifest
from atlas.config import RunConfig, require
from atlas.config.arguments import Weights
from atlas.config.choices import member
from atlas.config.composition import load_config
from atlas.config.errors import CheckpointWarning
from atlas.config.latest import is_latest, latest_run
from atlas.models.language_model import AtlasModel
from atlas.models.plan import ChunkPlan
from atlas.runs.build import build_model
from atlas.runs.data_record import tokenizer_file
from atlas.runs.own_code import changed_code
from atlas.runs.start import find_checkpoint, other_model
from atlas.telemetry.run_files import CONFIG_FILE, RunFiles
from atlas.training.weight_average import AVERAGE


def load(
    path: str | Path, trust: Sequence[str] = (), *, weights: Weights | str = Weights.trained
) -> tuple[AtlasModel, RunConfig]:
    """The trained model of a run folder (its newest sound checkpoint) or of a checkpoint folder, and its configuration.

    The model is on the CPU, in evaluation mode, with the chunks of its last step. A damaged checkpoint is skipped with
    a warning, and the one before it is used. `trust` names further modules whose components the run may use;
    `weights="averaged"` takes the average that a run with `train.ema` keeps. The model knows the tokenizer of its run,
    see `atlas.generate`.

    `latest` is the newest run in outputs/runs. Raises `ConfigError` for a folder that is neither, or has no sound
    checkpoint.
    """
    folder = latest_run("path") if is_latest(str(path)) else path
    model, config, _ = load_checkpointed(folder, trust, weights=weights, key="path")
    return model, config


def load_checkpointed(
    path: str | Path, trust: Sequence[str] = (), *, weights: Weights | str = Weights.trained, key: str = "RUN"
) -> tuple[AtlasModel, RunConfig, Manifest]:
    """As `load`, with the manifest of the checkpoint. `key` names the path in a refusal."""
    averaged = member(Weights, "weights", weights) is Weights.averaged
    payload, manifest, notices = find_checkpoint(Path(path), key)
    folder = manifest.path.parents[1]
    config = load_config(folder / CONFIG_FILE, trust)
    notices += RunFiles(folder, strict=False).edited_config(manifest.step, manifest.config_hash)
    notices += changed_code(folder, config)
    for notice in notices:
        warnings.warn(notice, CheckpointWarning, stacklevel=3)
    require(not averaged or AVERAGE in payload, "weights", "averaged", "trained, for a run without train.ema")
    try:
        tensors = payload[AVERAGE if averaged else MODEL]
        if config.model.layers > len(tensors):  # every layer has several; that many would take for ever to build
            raise RuntimeError(f"model.layers={config.model.layers}, it has {len(tensors)} tensors")
        with torch.device("meta"):  # compares the shapes: settings may ask for far more memory than the weights take
            build_model(config).load_state_dict(tensors, assign=True)
        model = build_model(config)
        model.load_state_dict(tensors)
    except Exception as error:  # plain data of another shape fails in many ways
        raise other_model(key, manifest.path, error) from error
    model.tokenizer_file = tokenizer_file(folder)
    model.plan = ChunkPlan.at_step(config, manifest.step)
    return model.eval(), config, manifest


def refuse_a_larger_model(config: RunConfig, checkpoints: Path) -> None:
    """Raise `ConfigError` where the model would have far more bytes than any checkpoint that it could go on from.

    The settings of another person's run may ask for more memory than there is. A damaged checkpoint is told later.
    """
    sizes = []
    for state in checkpoints.glob(f"step-*/{STATE_FILE}"):
        with suppress(OSError):  # a run that lives deletes its old ones
            sizes.append(sum(file.stat().st_size for file in state.parent.rglob("*")))
    if not sizes:
        return
    most = max(sizes)
    allowed = f"settings whose model fits into the checkpoints of {checkpoints.parent} ({most} bytes)"
    # So many layers take for ever to build, even without memory; each takes more than 1000 bytes of a checkpoint.
    require(1000 * config.model.layers < most + 2**20, "resume", config.resume, allowed)
    with torch.device("meta"):
        size = sum(part.nbytes for part in build_model(config).parameters())
    require(size <= most + 2**28, "resume", config.resume, allowed)
