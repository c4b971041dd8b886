"""Continue a prompt with a trained model: `python -m atlas.generate RUN prompt="def main(" [KEY=VALUE ...]`.

RUN is a run folder (its newest healthy checkpoint), a checkpoint folder, or `latest`, the newest run in outputs/runs.
Prints the continuation as it comes.

  prompt=TEXT | prompt_file=PATH   what to continue; "-" reads standard input
  tokens=256                       how many tokens to add, bytes without a tokenizer; the end of a document ends it
  temperature=0.7                  0 takes the likeliest token every time
  top_k=0  top_p=1.0               draw from the k likeliest tokens; from the likeliest ones of probability p
  seed=0                           of the draws: the same seed gives the same text
  chunk=trained | 1                after the prompt the local memories learn in chunks as in training, or at every token
  resets=trained | off             local memories start anew at every shard as in training, or never
  lasting=0                        of a text longer than those of training: writes of the global memory at smaller rates
                                   last for a period only; 0.5 finds more needles, and costs text (experiments/lengths)
  period=0                         of it, in tokens; 0 is the trained length, which is left as it is
  memory=on | off | frozen         frozen reads its initial weights and writes nothing
  weights=trained | averaged       averaged: of a run with train.ema
  device=auto | cpu | cuda
  threads=1                        of the CPU; more do not help a small model, 0 is torch's own choice
  device.kernels=auto | torch      without compiled kernels
  trust=MODULE                     a module of your own that the run's components come from

Exit status: 0 done, 1 stdout cannot be written, 2 refused, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice, takewhile
from math import isfinite
from numbers import Integral, Real
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO, get_type_hints

from atlas.config import MOST_THREADS, ConfigError, DeviceConfig, DeviceKind, StepGraphs, require
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
from atlas.config.console import PROGRESS_SECONDS, progress, writing
from atlas.config.exits import no_exit
from atlas.config.path_overrides import expanded
from atlas.config.untrusted import open_regular
from atlas.config.values import describe

if TYPE_CHECKING:
    from atlas.data.tokenizer import LibraryTokenizer
    from atlas.models.language_model import AtlasModel
    from atlas.models.plan import ChunkPlan

COLDEST = 1e-6  # above 0: logits divided by much less are no numbers
MOST_PROMPT_BYTES = 16 << 20  # a prompt takes about twenty times its size in memory
USAGE = 'python -m atlas.generate RUN prompt="..." [KEY=VALUE ...]'


class Chunk(StrEnum):
    trained = "trained"
    one = "1"


class Resets(StrEnum):
    trained = "trained"
    off = "off"


class Memory(StrEnum):
    on = "on"
    off = "off"
    frozen = "frozen"


@dataclass
class GenerationSettings(Choices):
    """What the command line may set; see the module's docstring."""

    prompt: str = ""
    prompt_file: str = ""
    tokens: int = 256
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    chunk: Chunk = Chunk.trained
    resets: Resets = Resets.trained
    lasting: float = 0.0
    period: int = 0
    memory: Memory = Memory.on
    weights: Weights = Weights.trained
    device: DeviceKind = DeviceKind.auto
    threads: int = 1
    trust: str = ""

    def __post_init__(self) -> None:
        both = bool(self.prompt) and bool(self.prompt_file)
        require(not both, "prompt_file", self.prompt_file, "left out where prompt is given")
        require(bool(self.prompt or self.prompt_file), "prompt", self.prompt, "a text that is not empty")
        require(1 <= self.tokens < 2**31, "tokens", self.tokens, "in [1, 2**31)")
        warm = isfinite(self.temperature) and (self.temperature == 0 or self.temperature >= COLDEST)
        require(warm, "temperature", self.temperature, f"0 (the likeliest token) or >= {COLDEST:g}")
        require(0 <= self.top_k < 2**31, "top_k", self.top_k, "in [0, 2**31) (0 = all)")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2**63)")
        require_lasting(self.lasting)
        require(0 <= self.period < 2**31, "period", self.period, "in [0, 2**31) (0 = the trained length)")
        require(self.lasting > 0 or not self.period, "period", self.period, "left out where lasting=0")
        allowed = f"in [0, {MOST_THREADS}] (0 = torch's own choice)"
        require(0 <= self.threads <= MOST_THREADS, "threads", self.threads, allowed)

    def prompt_bytes(self) -> bytes:
        """The prompt as the model reads it. Raises `ConfigError` for a file that cannot be read or is empty."""
        if not self.prompt_file:
            try:
                return os.fsencode(self.prompt)  # an argument that is not UTF-8 comes through as it was typed
            except UnicodeEncodeError as error:
                allowed = f"text that can be encoded; its character {error.start} cannot ({error.reason})"
                raise ConfigError(f"prompt={self.prompt!r}: must be {allowed}") from error
        piped = self.prompt_file == "-"
        require(not piped or sys.stdin is not None, "prompt_file", "-", "a file: standard input is closed")
        try:
            with nullcontext(sys.stdin.buffer) if piped else open_regular(expanded(self.prompt_file)) as file:
                content = file.read(MOST_PROMPT_BYTES + 1)
        except OSError as error:
            allowed = f"a file that can be read ({error.strerror})"
            raise ConfigError(f"prompt_file={self.prompt_file}: must be {allowed}") from error
        require(len(content) > 0, "prompt_file", self.prompt_file, "a file that is not empty")
        allowed = f"at most {MOST_PROMPT_BYTES >> 20} MiB"
        require(len(content) <= MOST_PROMPT_BYTES, "prompt_file", self.prompt_file, allowed)
        return content


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(_print_continuation, arguments, f"{USAGE}\n\n{__doc__}")


@no_exit()
def _print_continuation(arguments: Sequence[str]) -> int:
    folder, overrides = split_arguments(arguments, USAGE)
    dotted = [text for text in overrides if text.startswith("device.")]
    settings = read_settings(GenerationSettings, [text for text in overrides if text not in dotted])
    device = read_device([f"device={settings.device}", f"device.threads={settings.threads}", *dotted])
    with progress(quiet_seconds=PROGRESS_SECONDS):
        print_stream(continuation(folder, settings, device), sys.stdout)
    return 0


def continuation(folder: str, settings: GenerationSettings, where: DeviceConfig | None = None) -> Iterator[bytes]:
    """The bytes that the model of a run adds to the prompt. Raises `ConfigError` before the first one."""
    prompt = settings.prompt_bytes()
    from atlas.runs.build import prepare_device
    from atlas.runs.data_record import read_tokenizer
    from atlas.runs.load import load_checkpointed

    where = where or DeviceConfig(kind=settings.device, threads=settings.threads)
    device, _ = prepare_device(where)
    model, config, _ = load_checkpointed(folder, names(settings.trust), weights=settings.weights)
    require_lasting_of(config.model, settings.lasting)
    if settings.lasting:
        settings = replace(settings, period=settings.period or config.train.sequence)
    graphs = device.type == "cuda" and where.graph is not StepGraphs.never
    tokenizer = read_tokenizer(model.tokenizer_file) if model.tokenizer_file else None
    return _continued(model.to(device), prompt, settings, tokenizer, graphs=graphs)


def generate(model: AtlasModel, prompt: str | bytes, *, tokenizer: str = "", **settings: Any) -> str:
    """The continuation of a prompt as text: `atlas.generate(model, "def main(", tokens=100, temperature=0)`.

    A model whose tokens are not bytes knows its tokenizer from `atlas.load`; another one needs `tokenizer`, the folder
    of a run, or the file. `settings` are the keys of the command line, less those of how the model is loaded and where
    it runs. A byte that is no part of a character becomes U+FFFD.
    Raises `ConfigError`.
    """
    for key in settings.keys() & {"weights", "device", "threads", "trust"}:
        raise ConfigError(f"{key}={settings[key]}: must be left out: the model is used as it is")
    require(isinstance(prompt, str | bytes), "prompt", prompt, "text or bytes")
    plain: dict[Any, type] = {int: Integral, float: Real, str: str}  # an enum refuses what is none of it
    for key, kind in get_type_hints(GenerationSettings).items():
        if key in settings:
            require(isinstance(settings[key], plain.get(kind, object)), key, settings[key], describe(kind))
    chosen = GenerationSettings(prompt=os.fsdecode(prompt), **settings)
    given = chosen.period > 0 or not chosen.lasting
    require(given, "period", chosen.period, "given with lasting: the trained length, in tokens")
    from atlas.runs.data_record import read_tokenizer, tokenizer_file

    place = expanded(tokenizer) if tokenizer else None
    file = place if place and place.is_file() else tokenizer_file(place) if place else model.tokenizer_file
    require(file is not None or place is None, "tokenizer", tokenizer, "a run with a tokenizer.json, or such a file")
    known = read_tokenizer(file) if file else None
    return b"".join(_continued(model, chosen.prompt_bytes(), chosen, known)).decode("utf-8", "replace")


def _continued(
    model: AtlasModel,
    prompt: bytes,
    settings: GenerationSettings,
    tokenizer: LibraryTokenizer | None,
    *,
    graphs: bool = False,
) -> Iterator[bytes]:
    """Up to the end of a document. Without a tokenizer a token is a byte."""
    import torch

    from atlas.data.symbols import BYTES
    from atlas.kernels.gpu import cuda_capture
    from atlas.models.decoding import Sampling, decode
    from atlas.models.plan import MemoryMode

    most = model.embedding.num_embeddings
    require(settings.top_k <= most, "top_k", settings.top_k, f"in [0, {most}] (0 = all)")
    of_bytes = "of bytes, or read with the tokenizer of its run (from Python: atlas.load(RUN), or tokenizer=RUN)"
    require(tokenizer is not None or most <= BYTES + 1, "model.vocabulary", most, of_bytes)
    ids = list(prompt) if tokenizer is None else _encoded(prompt, tokenizer)
    mode = {Memory.on: MemoryMode.learn, Memory.off: MemoryMode.off, Memory.frozen: MemoryMode.frozen}
    prefill, plan = plans(model.plan, settings)
    tokens = decode(
        model,
        torch.tensor([ids], device=next(model.parameters()).device),
        Sampling(settings.temperature, settings.top_k, settings.top_p),
        generator=torch.Generator().manual_seed(settings.seed),
        prefill=prefill,
        plan=plan,
        mode=mode[settings.memory],
        capture=cuda_capture if graphs else None,
    )
    added = (int(token) for token in islice(tokens, settings.tokens))
    if tokenizer is None:
        return (bytes([one]) for one in takewhile(lambda one: one < BYTES, added))
    end = tokenizer.end_of_document
    return (text.encode() for text in tokenizer.stream(takewhile(lambda one: one != end, added)))


def _encoded(prompt: bytes, tokenizer: LibraryTokenizer) -> list[int]:
    try:
        ids: list[int] = tokenizer.encode([prompt])[0].tolist()
    except UnicodeDecodeError as error:
        allowed = f"UTF-8 for the model's tokenizer; it is not at byte {error.start}"
        raise ConfigError(f"prompt: must be {allowed}") from error
    require(len(ids) > 0, "prompt", prompt.decode(), "a text that the tokenizer has an id for")
    return ids


def plans(trained: ChunkPlan, settings: GenerationSettings) -> tuple[ChunkPlan, ChunkPlan]:
    """On which chunks the prompt is read and the continuation decoded; the global memory keeps its own."""
    trained = trained.with_lasting(settings.lasting, settings.period)
    prefill = trained if settings.resets is Resets.trained else trained._replace(shard=None)
    if settings.chunk is Chunk.trained:
        return prefill, prefill
    return prefill, prefill.each_token


def print_stream(pieces: Iterator[bytes], to: TextIO | None) -> None:
    """Write UTF-8 as it comes; a character waits for its last byte. A closed pipe ends it silently.

    Raises `OutputError` where nothing can be written.
    """
    decoder = getincrementaldecoder("utf-8")("replace")
    last = ""
    with writing(to) as stream:
        for piece in pieces:
            last = _write(decoder.decode(piece), stream) or last
        last = _write(decoder.decode(b"", final=True), stream) or last
        if last != "\n":
            _write("\n", stream)


def _write(text: str, stream: TextIO) -> str:
    """Write `text`; replaces characters that cannot be encoded or control a terminal. Returns the last one."""
    if not text:
        return ""
    if stream.isatty():
        text = "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
    return text[-1]


class _CallableModule(ModuleType):
    """Makes `atlas.generate` both the module that `python -m` runs and the function of the public API."""

    def __call__(self, model: AtlasModel, prompt: str | bytes, *, tokenizer: str = "", **settings: Any) -> str:
        return generate(model, prompt, tokenizer=tokenizer, **settings)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
