"""A folder that the library `transformers` loads: weights, settings, tokenizer, code and model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from atlas import __version__
from atlas.config import ConfigError, RunConfig, require, with_extra
from atlas.config.keys import flat
from atlas.config.untrusted import read_json
from atlas.models.language_model import AtlasModel
from atlas.pretrained.tokenizer import end_token, tokenizer_content, tokenizer_settings

SETTINGS_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CODE_FILE = "modeling_atlas.py"
UNFINISHED = ".unfinished"  # a folder in it, with what a killed call has written
PREFIX = "model."  # of the names of tensors: the attribute of `AtlasForCausalLM` that holds the model


def require_new(key: str, folder: Path) -> None:
    """Raise `ConfigError` for a folder that holds something."""
    try:
        taken = folder.exists() and not (folder.is_dir() and {file.name for file in folder.iterdir()} <= {UNFINISHED})
    except OSError as error:  # a name that is too long, a folder that is not this user's
        raise ConfigError(f"{key}={folder}: must be a folder that can be written ({error.strerror})") from error
    require(not taken, key, folder, "a folder that does not exist or is empty")


def write_pretrained(
    folder: Path,
    model: AtlasModel,
    config: RunConfig,
    card: str,
    metadata: Mapping[str, str],
    tokenizer: Path | None = None,
    end_of_document: int | None = None,
) -> None:
    """Write the folder; `metadata` goes into the head of the weights, `tokenizer` is None where tokens are bytes,
    `end_of_document` (an id) where it is not known.

    Raises `ConfigError`, also where the package safetensors is missing.
    """
    save = _safetensors("out", folder).save_file
    from safetensors import SafetensorError

    vocabulary = model.embedding.num_embeddings
    try:
        symbols = tokenizer_content(tokenizer, vocabulary)
        end = end_token(symbols, end_of_document)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{tokenizer}: must be the tokenizer.json of the run ({error})") from error
    generation = {"do_sample": True, "max_new_tokens": 256, "temperature": 0.7}
    weights = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    texts = {"README.md": card}
    for name, content in (
        (SETTINGS_FILE, _settings(config, vocabulary)),
        ("generation_config.json", generation | ({"eos_token_id": end[1]} if end else {})),
        ("tokenizer.json", symbols),
        ("tokenizer_config.json", tokenizer_settings(end)),
    ):
        texts[name] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    part = folder / UNFINISHED
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name, text in texts.items():
            (part / name).write_text(text, encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name(CODE_FILE), part / CODE_FILE)
        save(weights, part / WEIGHTS_FILE, {"format": "pt", **metadata})
        shutil.copymode(part / CODE_FILE, part / WEIGHTS_FILE)  # safetensors lets nobody else read it
        for name in (*texts, CODE_FILE, WEIGHTS_FILE):
            (part / name).rename(folder / name)
    except (OSError, SafetensorError) as error:  # each for a full disk
        raise ConfigError(f"out={folder}: must be a folder that takes all of the files ({error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _settings(config: RunConfig, vocabulary: int) -> dict[str, Any]:
    code = CODE_FILE.removesuffix(".py")
    return {
        "architectures": ["AtlasForCausalLM"],
        "auto_map": {"AutoConfig": f"{code}.AtlasConfig", "AutoModelForCausalLM": f"{code}.AtlasForCausalLM"},
        "model_type": "atlas_mag",
        "dtype": "float32",
        "atlas_version": __version__,
        "vocab_size": vocabulary,
        "model": asdict(config.model),
        "chunk_size": asdict(config.chunk_size),
        "trained_length": config.train.sequence,
    }


def is_pretrained(path: Path) -> bool:
    return (path / WEIGHTS_FILE).is_file()


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the model in such a folder, by dotted keys. Raises OSError or ValueError."""
    content = read_json(folder / SETTINGS_FILE)
    found = {group: content.get(group) for group in ("model", "chunk_size")} if isinstance(content, dict) else {}
    return flat({group: settings for group, settings in found.items() if isinstance(settings, dict)})


def read_weights(key: str, folder: Path) -> dict[str, Tensor]:
    """The weights in such a folder, by the names that the model gives them. Raises `ConfigError` naming `key`."""
    library = _safetensors(key, folder)
    try:
        found: dict[str, Tensor] = library.load_file(folder / WEIGHTS_FILE)
    except Exception as error:  # safetensors has an error of its own for a damaged file
        raise ConfigError(f"{key}={folder}: must hold a sound {WEIGHTS_FILE} ({error})") from error
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}


def _safetensors(key: str, folder: Path) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        needed = f"used with the package safetensors {with_extra('hf')}"
        raise ConfigError(f"{key}={folder}: must be {needed}") from error
    return safetensors.torch
