"""A sample of the sources, from the beginning of each: to train a tokenizer on, and to estimate the store's size."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from atlas.config import ConfigError, require
from atlas.data.store_format import DTYPES
from atlas.data.tokenizer import Tokenizer, import_library
from atlas.preparation.compression import SourceError
from atlas.preparation.documents import is_blank, place_of, text_of
from atlas.preparation.readers import read_source
from atlas.preparation.settings import OnError, PrepareSettings
from atlas.preparation.sources import Kind, Source

TRAINING_BYTES = 64 << 20  # of text that a tokenizer is trained on
ESTIMATE_BYTES = 128 << 10
EXPANSION = {"gz": 4.0, "zst": 4.0}  # what a byte of a compressed file becomes, about
END_OF_DOCUMENT = "<|endoftext|>"


def sample(
    sources: Sequence[Source], settings: PrepareSettings, size: int, *, utf8: bool
) -> Iterator[tuple[int, bytes, float]]:
    """About `size` bytes of text, as much of each source as is fair: (index of the source, text, bytes that it takes in
    the source, uncompressed by `EXPANSION`). Raises `ConfigError` for what cannot be read.
    """
    left = size
    for index, source in enumerate(sources):
        share = left // (len(sources) - index)
        taken, before = 0, 0.0
        try:
            with closing(read_source(source, settings)) as documents:
                for number, (raw, read) in enumerate(documents, 1):
                    if taken >= share:
                        break
                    held = len(raw or b"") if source.kind in (Kind.text, Kind.jsonl) else (read - before) * source.size
                    before = read
                    if is_blank(source.kind, raw):
                        continue
                    try:
                        text = text_of(source.kind, raw, settings.field, utf8=utf8)
                    except ValueError as error:
                        _refuse(settings, source, f"{place_of(source.name, source.kind, number)} {error}")
                        continue
                    piece = text[: share - taken]
                    taken += len(piece)
                    yield index, piece, held * len(piece) / len(text) if text else held
        except SourceError as error:
            _refuse(settings, source, f"{source.name!r} {error}")
        left -= taken


def train_tokenizer(sources: Sequence[Source], settings: PrepareSettings, vocabulary: int) -> str:
    """A byte-level BPE of `vocabulary` ids, as a tokenizer.json. Equal samples give the same one."""
    library = import_library("tokenizers", "tokenizer", settings.tokenizer)
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text.decode("utf-8", "ignore") for _, text, _ in sample(sources, settings, TRAINING_BYTES, utf8=True))
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    allowed = f"train:N with N <= {found}: the text of the sources has no more pairs to merge"
    require(found == vocabulary, "tokenizer", settings.tokenizer, allowed)
    text: str = tokenizer.to_str(pretty=True)
    return text


def require_room(
    folder: Path, sources: Sequence[Source], settings: PrepareSettings, tokenizer: Tokenizer, done: float
) -> None:
    """Refuse a disk that will not hold the store, as far as that can be told; `done`: the share that stands on it."""
    texts, held = [0] * len(sources), [0.0] * len(sources)  # bytes of text, and those of its source
    whole = []
    for index, text, taken in sample(sources, settings, ESTIMATE_BYTES, utf8=tokenizer.name != "bytes"):
        texts[index], held[index] = texts[index] + len(text), held[index] + taken
        whole.append(text.decode("utf-8", "ignore").encode())  # a sample may end inside of a character
    size = sum(texts)
    if not size:
        return
    tokens = sum(map(len, tokenizer.encode(whole)))
    text_bytes = sum(
        source.size * EXPANSION.get(source.compression, 1.0) * (text / part if part else 1.0)
        for source, text, part in zip(sources, texts, held, strict=True)
    )
    needed = text_bytes * (1 - done) * tokens / size * DTYPES[dtype_of(tokenizer)].itemsize
    free = shutil.disk_usage(folder).free
    allowed = f"on a disk with about {_gigabytes(needed)} free for the store; {_gigabytes(free)} are"
    require(needed < free, "out", settings.out, allowed)


def dtype_of(tokenizer: Tokenizer) -> str:
    return "uint16" if tokenizer.vocabulary <= 1 << 16 else "uint32"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def _refuse(settings: PrepareSettings, source: Source, reason: str) -> None:
    if settings.on_error is OnError.refuse:
        raise ConfigError(f"SOURCE={source.name}: must be readable; {reason} (on_error=skip leaves such text out)")
