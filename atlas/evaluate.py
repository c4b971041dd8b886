"""Evaluate a trained model on text: `python -m atlas.evaluate RUN [data.paths=notes.txt,docs/*.md] [KEY=VALUE ...]`.

RUN is a run folder (its newest healthy checkpoint), a checkpoint folder, or `latest`, the newest run in outputs/runs.
Prints two tables, with the memory on, off and frozen: the perplexity of texts of several lengths, beside that of the
same text read in pieces of the trained length; and the bits per byte of each file, read from its start. Text that the
run was trained on is named. evaluation.json in the run folder keeps all of it: an entry for each checkpoint, text and
settings that were asked for.

  data.paths=PATTERN,...   your own files, ** crosses folders; else the validation text of the run's data
  factors=1,2,4,8          the lengths, in trained lengths; those that the text is too short for are left out
  rows=8  seed=0           how many places of the text are read at every length, and which
  bytes=65536              of a file that are read for the bits per byte; tokens, where the run has a tokenizer
  lasting=0                beyond the trained length: writes of the global memory at smaller rates last for a trained
                           length only; 0.5 finds more needles, and costs text (experiments/lengths)
  memory=on,off,frozen     frozen reads its initial weights and writes nothing
  weights=trained | averaged   averaged: of a run with train.ema
  device=auto | cpu | cuda; device.threads and device.kernels say how
  trust=MODULE             a module of your own that the run's components come from

Exit status: 0 done; 1 stdout cannot be written; 2 refused; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas.config import ConfigError, RunConfig, require
from atlas.config.arguments import (
    Weights,
    names,
    read_device,
    read_settings,
    require_lasting,
    require_lasting_of,
    run_command,
    split_arguments,
)
from atlas.config.choices import Choices
from atlas.config.console import log as progress_log
from atlas.config.console import print_result, progress
from atlas.config.exits import no_exit
from atlas.data.corpus import hash_of_file, stdlib_corpus
from atlas.data.files import read_files
from atlas.data.tokenizer import BYTES_END, Tokenizer
from atlas.models.plan import MemoryMode
from atlas.preparation.lost_characters import WARNED_FROM, lost_share

if TYPE_CHECKING:
    from torch import Tensor

    from atlas.models.language_model import AtlasModel
    from atlas.probes.lengths import Length

Text = NDArray[np.unsignedinteger[Any]]
MOST_TOKENS = 1 << 26  # of a validation text that are read
USAGE = "python -m atlas.evaluate RUN [data.paths=PATTERN,...] [KEY=VALUE ...]"
MODES = {"on": MemoryMode.learn, "off": MemoryMode.off, "frozen": MemoryMode.frozen}
STDLIB_SHARE = 0.1  # held out, for a run on data without text


@dataclass
class EvaluationSettings(Choices):
    """What the command line may set; see the module's docstring."""

    paths: str = field(default="", metadata={"key": "data.paths"})
    factors: str = "1,2,4,8"
    rows: int = 8
    seed: int = 0
    bytes: int = 65_536
    lasting: float = 0.0
    memory: str = "on,off,frozen"
    weights: Weights = Weights.trained
    trust: str = ""

    def __post_init__(self) -> None:
        sound = all(text.isdecimal() and 1 <= int(text) <= 10_000 for text in names(self.factors))
        require(sound and bool(self.chosen_factors), "factors", self.factors, "integers in [1, 10000], such as 1,2,4")
        require(1 <= self.rows <= 10_000, "rows", self.rows, "in [1, 10000]")
        require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2**63)")
        require(self.bytes >= 2, "bytes", self.bytes, ">= 2")
        require_lasting(self.lasting)
        known = bool(names(self.memory)) and all(mode in MODES for mode in names(self.memory))
        require(known, "memory", self.memory, f"some of {','.join(MODES)}")

    @property
    def chosen_factors(self) -> list[int]:
        return sorted({int(text) for text in names(self.factors) if text.isdecimal()})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(_evaluate, arguments, f"{USAGE}\n\n{__doc__}")


@no_exit()
def _evaluate(arguments: Sequence[str]) -> int:
    path, given = split_arguments(arguments, USAGE)
    own = [text for text in given if text.startswith(("device=", "device."))]
    others = [f"data.{text}" if text.startswith("paths=") else text for text in given if text not in own]
    settings = read_settings(EvaluationSettings, others, also=("device", "device.threads", "device.kernels"))
    device = read_device(own)
    from atlas.runs.build import prepare_device
    from atlas.runs.evaluation_record import EVALUATION_FILE, read_evaluations, record_evaluation
    from atlas.runs.known_text import known_shares, training_text_notes
    from atlas.runs.load import load_checkpointed

    model, config, manifest = load_checkpointed(path, names(settings.trust), weights=settings.weights)
    require_lasting_of(config.model, settings.lasting)
    model.plan = model.plan.with_lasting(settings.lasting, config.train.sequence)
    folder = manifest.path.parents[1]
    target = folder / EVALUATION_FILE
    read_evaluations(target)  # refuses a file that is none, before the work
    asked = read_texts(config, settings, model.tokenizer_file)
    shares = known_shares(config, folder, asked.texts)
    place, _ = prepare_device(device)
    with progress():
        found = evaluate(model.to(place), config.train.sequence, asked.texts, settings, asked.bytes_per_token)
    notes = [*training_text_notes(shares, asked.hashes, folder), *_lost(asked), *_cut(asked, settings.bytes)]
    record_evaluation(
        target,
        {
            "checkpoint": manifest.path.name,
            "settings": asdict(settings),
            "texts": asked.hashes,
            "in_training": shares,
            "notes": notes,
            **found,
        },
    )
    print_result("\n".join([*table(found), *(["", *notes] if notes else [])]))
    print_result(f"\nfile  {target}")
    return 0


def _cut(asked: Asked, most: int) -> list[str]:
    """A line where a text is longer than what is read for the bits per byte."""
    lengths = [len(text) for text in asked.texts.values()]
    longer = sum(length > most for length in lengths)
    if not longer:
        return []
    unit = "bytes" if {*asked.bytes_per_token.values()} <= {1.0} else "tokens"
    of = f"of {longer} of {len(lengths)} texts" if len(lengths) > 1 else "of the text"
    return [f"bits per byte: {of} the first {most:,} {unit} were read; bytes={max(lengths)} reads all of it"]


def _lost(asked: Asked) -> list[str]:
    """A line for each text of which the tokenizer loses characters: nothing has to predict them."""
    lost = {name: share for name, share in asked.lost.items() if share > WARNED_FROM}
    why = "bits per byte and perplexity are too low"
    return [f"{name}: {share:.1%} of the characters are lost to the tokenizer: {why}" for name, share in lost.items()]


@dataclass(frozen=True)
class Asked:
    """The texts by name as the run's tokens, the hashes of their files, the bytes per token of what is read, and the
    share of their characters that the tokenizer loses."""

    texts: dict[str, Text]
    hashes: dict[str, str]
    bytes_per_token: dict[str, float]
    lost: dict[str, float]


def read_texts(config: RunConfig, settings: EvaluationSettings, tokenizer_file: Path | None) -> Asked:
    """Raises `ConfigError` for files that are no texts, and for a text of less than two tokens."""
    from atlas.runs.data_record import read_tokenizer

    tokenizer = read_tokenizer(tokenizer_file) if tokenizer_file else None
    means: dict[str, float] = {}  # bytes per token of each text as a whole
    lost: dict[str, float] = {}
    if settings.paths:
        encoding = "bytes" if tokenizer is None else "utf8"
        files, _ = read_files(names(settings.paths), encoding, "the tokenizer of the run takes UTF-8 alone")
        hashes = {str(path): hash_of_file(content) for path, content in files.items()}
        texts = {str(path): np.frombuffer(content, dtype=np.uint8) for path, content in files.items()}
        if tokenizer is not None:
            texts = {str(path): tokenizer.encode([content])[0].astype(np.uint32) for path, content in files.items()}
            lost = {str(path): lost_share(tokenizer, [content]) for path, content in files.items()}
        means = {str(path): len(content) / max(len(texts[str(path)]), 1) for path, content in files.items()}
    else:
        from atlas.runs.build import build_data

        corpus = build_data(config).corpus or stdlib_corpus(STDLIB_SHARE)
        parts = {f"validation part of the {one.source}": one for one, _ in corpus.sources}
        texts = {name: one.validation[:MOST_TOKENS] for name, one in parts.items()}
        means = {name: one.bytes_per_token for name, one in parts.items()}
        hashes = {name: hash_of_file(text.tobytes()) for name, text in texts.items()}
    for name, text in texts.items():
        if len(text) < 2:
            raise ConfigError(f"data.paths={name}: must be a text of at least 2 tokens, the first is given")
    read = {name: text[: settings.bytes] for name, text in texts.items()}
    bytes_per_token = {
        name: means[name] if len(text) == len(texts[name]) else _bytes(text, tokenizer) / len(text)
        for name, text in read.items()
    }
    return Asked(texts, hashes, bytes_per_token, lost)


def _bytes(text: Text, tokenizer: Tokenizer | None) -> int:
    """Of the text of these tokens; an end of a document has none."""
    return int((text < BYTES_END).sum()) if tokenizer is None else len(tokenizer.decode(text.tolist()).encode())


def evaluate(
    model: AtlasModel,
    trained_length: int,
    texts: Mapping[str, Text],
    settings: EvaluationSettings,
    bytes_per_token: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """`lengths`: for every mode of the memory, the perplexities; `bits_per_byte`: for every text, one per mode."""
    import torch

    from atlas.probes.lengths import by_length, loss_by_stretch, text_loss

    device = next(model.parameters()).device
    size = dict.fromkeys(texts, 1.0) | dict(bytes_per_token or {})
    whole = np.concatenate(list(texts.values()))
    factors = [factor for factor in settings.chosen_factors if factor * trained_length < len(whole)]
    rows = _rows(whole, factors[-1] * trained_length + 1, settings).to(device) if factors else None
    lengths: dict[str, list[dict[str, Any]]] = {}
    bits: dict[str, dict[str, float | int]] = {
        name: {"bytes": round(min(len(t), settings.bytes) * size[name])} for name, t in texts.items()
    }
    for mode in names(settings.memory):
        progress_log.info("memory %s", mode)
        found: list[Length] = []
        if rows is not None:
            found = by_length(loss_by_stretch(model, rows, trained_length, mode=MODES[mode]), factors)
        lengths[mode] = [asdict(one) for one in found]
        for name, text in texts.items():
            read = torch.from_numpy(text[: settings.bytes].astype(np.int64)).to(device)
            bits[name][mode] = text_loss(model, read, mode=MODES[mode]) / log(2) / size[name]
    left_out = [factor for factor in settings.chosen_factors if factor not in factors]
    return {"trained_length": trained_length, "lengths": lengths, "left_out": left_out, "bits_per_byte": bits}


def _rows(text: Text, length: int, settings: EvaluationSettings) -> Tensor:
    """[rows, length] at random places of the text."""
    import torch

    starts = np.random.default_rng(settings.seed).integers(0, len(text) - length + 1, (settings.rows, 1))
    return torch.from_numpy(text[starts + np.arange(length)].astype(np.int64))


def table(found: Mapping[str, Any]) -> list[str]:
    """Both tables as lines."""
    trained, lengths, bits = found["trained_length"], found["lengths"], found["bits_per_byte"]
    modes = list(lengths)
    pieces = f"in brackets that of the same text read in pieces of {trained} tokens, the trained length"
    lines = [f"perplexity by length in tokens; {pieces}"]
    lines.append(f"  {'length':>10}" + "".join(f"{'memory ' + mode:>24}" for mode in modes))
    for cells in zip(*lengths.values(), strict=True):
        row = [f"{cell['perplexity']:.3f} ({cell['in_pieces']:.3f})" for cell in cells]
        lines.append(f"  {cells[0]['factor'] * trained:>10}" + "".join(f"{text:>24}" for text in row))
    lines += [f"  {factor * trained:>10}  not measured: the text is too short" for factor in found["left_out"]]
    lines += ["", "bits per byte", f"  {'bytes':>10}" + "".join(f"{'memory ' + mode:>16}" for mode in modes)]
    for name, one in bits.items():
        lines.append(f"  {one['bytes']:>10}" + "".join(f"{one[mode]:>16.4f}" for mode in modes) + f"  {name}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
