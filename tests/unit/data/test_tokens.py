"""Batches from a token store, and recall in its ids."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlas.config import ChunkSizeConfig, ConfigError, ModelConfig
from atlas.data.bigram import SparseBigram
from atlas.data.blend import BlendData
from atlas.data.corpus import spread
from atlas.data.recall import RecallTask
from atlas.data.store_corpus import load_store
from atlas.data.symbols import BYTE_SYMBOLS, Symbols, choose_symbols
from atlas.data.text import TextData
from atlas.data.tokens import MixedTokenData, TokenData, cut_share
from atlas.models.language_model import AtlasModel
from atlas.prepare import main

MODEL = ModelConfig(width=16, layers=1, heads=2, feedforward=16, persistent_keys=2, window=8)
RUN: dict[str, Any] = {"sequence": 64, "batch_size": 4, "seed": 3, "steps": 10, "carry_memory": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of bytes, and one of 300 ids, of the same documents."""
    made = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, 5))) for _ in range(50)]
    lines = [" ".join(rng.choice(words, 30)) for _ in range(200)]
    (made / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    source = [f"{made}/a.jsonl", "workers=1", "validation_share=0.2"]
    assert main([*source, f"out={made}/bytes"]) == 0
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        return made
    assert main([*source, f"out={made}/pieces", "tokenizer=train:300"]) == 0
    return made


def packed(folder: Path, **settings: Any) -> TokenData:
    return TokenData(path=str(folder / "bytes"), documents="packed", **settings)


def test_rows_of_a_store_are_stretches_of_its_tokens(folder: Path) -> None:
    data = packed(folder, **RUN)
    assert data.vocabulary == 257
    stored = np.fromfile(folder / "bytes/train.tokens", dtype="<u2").astype(np.int64)
    windows = {stored[start : start + 65].tobytes() for start in range(len(stored) - 64)}
    batch = data.batch(1)
    for inputs, targets in zip(batch.inputs.numpy(), batch.targets.numpy(), strict=True):
        assert np.append(inputs, targets[-1]).tobytes() in windows
    for other in (
        data.batch(2),
        packed(folder, **{**RUN, "seed": 4}).batch(1),
    ):
        assert not (other.inputs == batch.inputs).all()
    assert (packed(folder, **RUN).batch(1).inputs == batch.inputs).all()
    assert (data.batch(1, range(1, 3)).inputs == batch.inputs[1:3]).all()


def test_a_store_gives_the_rows_of_the_same_text_in_a_file(folder: Path, tmp_path: Path) -> None:
    tokens = np.fromfile(folder / "bytes/train.tokens", dtype="<u2")
    validation = np.fromfile(folder / "bytes/validation.tokens", dtype="<u2")
    text = np.concatenate([tokens, validation])
    text[text == 256] = 10
    (tmp_path / "a.txt").write_bytes(text.astype(np.uint8).tobytes())
    data = packed(folder, **RUN)
    file = TextData(paths=[f"{tmp_path}/a.txt"], encoding="bytes", validation_share=len(validation) / len(text), **RUN)
    assert len(file.corpus.train) == len(tokens)
    for step in (1, 7):
        expected = data.batch(step).inputs
        expected[expected == 256] = 10
        assert (file.batch(step).inputs == expected).all()


def task(**changes: Any) -> RecallTask:
    settings: dict[str, Any] = {
        "pairs": 2, "queries": 3, "sparse_share": 0.0, "sparse_pairs": 1, "sparse_queries": 1, "key_bytes": 2,
        "value_bytes": 1, "value_alphabet": 16, "distance_min": 8, "curriculum_steps": 0, "filler_weight": 0.0,
        "haystack": {"noise": 1.0, "random": 1.0, "text": 1.0, "none": 1.0},
    }  # fmt: skip
    return RecallTask(**{**settings, **changes})


def test_recall_is_asked_in_ids_of_the_store(folder: Path) -> None:
    pytest.importorskip("tokenizers")
    shares = {"recall_share_start": 0.5, "recall_share_end": 0.5, "recall_hold": 0.5, "recall_blend_end": 0.5}
    data = MixedTokenData(path=str(folder / "pieces"), recall=task(), **shares, **{**RUN, "batch_size": 16})
    symbols = data.needles.symbols
    assert (data.vocabulary, symbols.vocabulary) == (300, 300)
    answered = 0
    for step in range(1, 4):
        batch = data.batch(step)
        assert batch.recall.tolist() == [True] * 8 + [False] * 8
        for row in range(8):
            tokens = np.append(batch.inputs[row].numpy(), batch.targets[row, -1].item())
            for place in np.flatnonzero(batch.weights[row].numpy()):
                event = tokens[place - 2 : place + 2]  # marker, key, key, value
                assert event[0] == symbols.marker
                assert np.isin(event[1:3], symbols.keys).all()
                assert event[3] in symbols.values[:16]
                earlier = [start for start in range(place - 2) if (tokens[start : start + 4] == event).all()]
                assert earlier
                answered += 1
    assert answered > 30


def test_characters_without_an_id_of_their_own_get_other_ordinary_ids() -> None:
    single = {"a": 7, "A": 7, "0": 3, " ": 1}
    symbols = choose_symbols(single, [1, 5, 1], list(range(1, 200)), 201)
    letters = dict(zip(map(chr, BYTE_SYMBOLS.keys), symbols.keys.tolist(), strict=True))
    assert letters["a"] == 7 or letters["A"] == 7
    everything = [symbols.marker, *symbols.keys.tolist(), *symbols.values.tolist()]
    assert len({*everything}) == 63
    assert symbols.values[0] == 3
    assert not {1, 5} & {*everything}
    assert max(everything) < 200
    with pytest.raises(ConfigError) as refusal:
        choose_symbols(single, [1, 5, 1], list(range(1, 9)), 10)
    assert str(refusal.value) == (
        "tokenizer=(of 10 ids): must be one with 61 ordinary ids for the characters of needles that have none of their"
        " own"
    )
    again = Symbols.from_record(json.loads(json.dumps(symbols.record())))
    assert again.record() == symbols.record()


def test_the_bigram_of_a_large_vocabulary_is_its_equation() -> None:
    rng = np.random.default_rng(0)
    text = rng.integers(0, 5, 4000, dtype=np.uint8)
    sparse = SparseBigram(text, 256)
    counts = np.zeros((256, 256))
    np.add.at(counts, (text[:-1], text[1:]), 1)
    unigram = (np.bincount(text, minlength=256) + 1) / (len(text) + 256)
    share = (counts + 100 * unigram) / (counts.sum(axis=1, keepdims=True) + 100)
    data = TokenBatches(rng)
    expected = float(np.mean([-np.log(share[a, b]) for a, b in data.pairs]))
    assert sparse.loss([data.batch]) == pytest.approx(expected, rel=1e-12)


class TokenBatches:
    """A batch of tokens below 7, two of which the text never shows."""

    def __init__(self, rng: np.random.Generator) -> None:
        from atlas.data.batch import Batch

        tokens = rng.integers(0, 7, (3, 21), dtype=np.uint8)
        flags = np.zeros(3, dtype=np.bool_)
        self.batch = Batch.from_tokens(tokens, np.ones((3, 20), dtype=np.float32), flags, flags)
        self.pairs = [(int(a), int(b)) for row in tokens for a, b in pairwise(row)]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "data.path=: must be the folder of a token store, made by python -m atlas.prepare"),
        (
            "{folder}/none",
            "data.path={folder}/none: must be a folder that python -m atlas.prepare has made"
            " (store.json: No such file or directory)",
        ),
    ],
)
def test_what_is_no_store_is_refused(path: str, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        TokenData(documents="packed", path=path.format(folder=folder), **RUN).batch(1)
    assert str(refusal.value) == message.format(folder=folder)


def test_a_sequence_longer_than_the_shortest_part_is_refused(folder: Path) -> None:
    data = packed(folder, **{**RUN, "sequence": 100_000})
    with pytest.raises(ConfigError) as refusal:
        data.batch(1)
    shorter = len(np.fromfile(folder / "bytes/validation.tokens", dtype="<u2"))
    source = f"token store {folder}/bytes, or that part longer (validation_share)"
    allowed = f"< {shorter}, the tokens of the validation part of {source}"
    assert str(refusal.value) == f"train.sequence=100000: must be {allowed}"


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of bytes of 300 documents, most of them short; each is told by its number."""
    made = tmp_path_factory.mktemp("uneven")
    lengths = np.random.default_rng(1).geometric(0.02, 300)
    lines = [f"{number:04d}" + "abcdefghij" * int(length // 4) for number, length in enumerate(lengths)]
    (made / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    assert main([f"{made}/a.jsonl", f"out={made}/store", "workers=1", "validation_share=0.2"]) == 0
    return made / "store"


def test_separate_documents_fill_a_row_each_and_padding_does_not_count(uneven: Path) -> None:
    data = TokenData(path=str(uneven), documents="separate", **{**RUN, "batch_size": 8})
    split = data.store.train
    known = {
        (bytes_of(document[start : start + 65]), min(len(document) - 1 - start, 64))
        for document in map(split.document, range(len(split.ends)))
        for start in range(0, len(document), 64)
    }
    positions = padded = 0
    for step in range(1, 60):
        batch = data.batch(step)
        rows, longest = batch.inputs.shape
        assert rows >= 8
        assert rows * longest <= 8 * 64
        counts = batch.weights.sum(dim=1).long()
        assert (batch.weights == (torch.arange(longest) < counts[:, None])).all()
        assert counts.max() == longest
        for inputs, targets, count in zip(batch.inputs, batch.targets, counts.tolist(), strict=True):
            assert (bytes_of(torch.cat((inputs[:1], targets[:count])).numpy()), count) in known
        positions, padded = positions + batch.weights.numel(), padded + int((batch.weights == 0).sum())
        halves = [data.batch(step, half).inputs for half in (range(4), range(4, 8))]  # as of two processes
        assert all(map(torch.equal, halves, (part.inputs for part in batch.split(2))))
    assert padded / positions < 0.1
    assert data.describe()["padding"] == pytest.approx(padded / positions, abs=0.05)


def test_every_token_of_separate_documents_is_about_equally_likely(uneven: Path) -> None:
    """By length of their rows: the shares of tokens seen are those of the store."""
    data = TokenData(path=str(uneven), documents="separate", **{**RUN, "batch_size": 4})
    lengths = np.diff(data.store.train.ends, prepend=0) - 1
    of_store = np.bincount(np.concatenate([np.append(np.full(n // 64, 64), n % 64) for n in lengths]), minlength=65)
    seen = np.zeros(65)
    for step in range(1, 400):
        batch = data.batch(step)
        share = np.bincount(batch.weights.sum(dim=1).long().numpy(), minlength=65) * np.arange(65)
        seen += share / share.sum()  # a batch counts as one, however many tokens it has
    wanted = of_store * np.arange(65)
    groups = [slice(1, 16), slice(16, 32), slice(32, 48), slice(48, 64), slice(64, 65)]
    found = [seen[group].sum() / seen.sum() for group in groups]
    assert found == pytest.approx([wanted[group].sum() / wanted.sum() for group in groups], abs=0.05)


def bytes_of(ids: np.ndarray[Any, Any]) -> bytes:
    return ids.astype("<u2").tobytes()


def test_a_blend_draws_each_row_from_one_store_by_weight(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"{n:05d}" * 40}) + "\n" for n in range(100)))
    assert main([f"{tmp_path}/b.jsonl", f"out={tmp_path}/digits", "workers=1", "validation_share=0.3"]) == 0
    paths = [str(folder / "bytes"), str(tmp_path / "digits")]
    data = BlendData(paths=paths, weights=[1, 3], **{**RUN, "batch_size": 64})
    of_digits = []
    for step in range(1, 9):
        batch = data.batch(step)
        digits = ((batch.inputs >= 48) & (batch.inputs < 58)).sum(dim=1)
        assert ((digits == 0) | (digits >= 62)).all()
        of_digits += (digits > 0).tolist()
    assert np.mean(of_digits) == pytest.approx(0.75, abs=0.06)
    assert (data.batch(3, range(5, 9)).inputs == data.batch(3).inputs[5:9]).all()
    assert data.validation(0).inputs.shape == (64, 64)
    sizes = [one.store.record.splits["validation"] for one in data._stores]
    per_token = [size.bytes / size.tokens for size in sizes]
    assert data.corpus.bytes_per_token == pytest.approx(0.25 * per_token[0] + 0.75 * per_token[1])
    training = [one.store.record.splits["train"] for one in data._stores]
    per_token = [size.bytes / size.tokens for size in training]
    assert data.corpus.train_bytes_per_token == pytest.approx(0.25 * per_token[0] + 0.75 * per_token[1])
    assert data.corpus.digest != BlendData(paths=paths, weights=[1, 2], **RUN).corpus.digest


def test_the_baseline_of_a_blend_is_of_all_of_its_text(folder: Path, tmp_path: Path) -> None:
    """Two stores of letters and of digits: a bigram of one alone is worse than chance on rows of the other."""
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"{n:05d}" * 40}) + "\n" for n in range(100)))
    assert main([f"{tmp_path}/b.jsonl", f"out={tmp_path}/digits", "workers=1", "validation_share=0.3"]) == 0
    paths = [str(folder / "bytes"), str(tmp_path / "digits")]
    data = BlendData(paths=paths, weights=[0.55, 0.45], **{**RUN, "batch_size": 64})
    letters, digits = (one.train for one in data.corpus.stores)
    count = len(letters) + len(digits)
    parts = [(letters, round(0.55 * count)), (digits, round(0.45 * count))]
    assert [len(part) < most for part, most in parts] == [False, True]  # one is cut, one comes again
    sample = np.concatenate([np.resize(spread(part, most), most) for part, most in parts])
    assert data.baseline(2) == SparseBigram(sample, 257).loss([data.validation(0), data.validation(1)])
    assert data.baseline(2) < 3 < SparseBigram(letters, 257).loss([data.validation(0)])
    for weight in (0, 1e-9):  # a store without a token in the sample
        alone = BlendData(paths=paths, weights=[1, weight], **RUN)
        wanted = SparseBigram(np.resize(letters, count), 257).loss([alone.validation(0)])
        assert alone.baseline(1) == wanted
    names = [f"token store {path}" for path in paths]
    assert [(one.source, share) for one, share in data.corpus.sources] == list(zip(names, [0.55, 0.45], strict=True))
    assert data.corpus.foreign < 0.1


def test_validation_text_in_the_training_part_of_another_store_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same documents, of which the two stores hold out others."""
    assert main([f"{folder}/a.jsonl", f"out={tmp_path}/more", "workers=1", "validation_share=0.6"]) == 0
    paths = [str(folder / "bytes"), str(tmp_path / "more")]
    corpus = BlendData(paths=paths, weights=[1, 1], **RUN).corpus
    first, more = corpus.stores
    windows = {bytes_of(window) for window in np.lib.stride_tricks.sliding_window_view(first.train, 129)}
    own = [bytes_of(window) in windows for window in np.lib.stride_tricks.sliding_window_view(more.validation, 129)]
    assert (first.leakage, more.leakage) == (0, 0)
    assert 0.1 < np.mean(own) / 2 == pytest.approx(corpus.leakage, abs=1e-4)
    assert "of the validation blocks" in corpus.warnings[0]
    monkeypatch.setattr("atlas.data.blend.SEARCHED", 100)
    large = BlendData(paths=paths, weights=[1, 1], **RUN).corpus
    assert large.leakage == 0.0
    assert large.warnings == [
        "validation text of one store in the training text of another was not looked for: they are too large"
    ]


def test_short_documents_that_training_may_have_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A block of 128 bytes is longer than most documents: those that differ by a full stop are not found."""
    lines = [f"sentence number {n // 2:05d} of the same kind" + "." * (n % 2) for n in range(200)]
    (tmp_path / "short.txt").write_text("\n\n".join([*lines, "long " * 60]))
    command = [f"{tmp_path}/short.txt", f"out={tmp_path}/short", "workers=1", "validation_share=0.3", "separator=\n\n"]
    assert main(command) == 0
    corpus = load_store(str(tmp_path / "short"), "data.path")
    lengths = np.diff(corpus.store.validation.ends, prepend=0)
    told = f"{lengths[lengths < 129].sum() / lengths.sum():.0%} of the validation text stands in documents of less than"
    assert (corpus.leakage, len(corpus.warnings)) == (0, 1)
    assert corpus.warnings[0].startswith(f"{told} 128 bytes: whether they stand in training as well")
    assert corpus.warnings[0] in capsys.readouterr().out
    assert load_store(str(folder / "bytes"), "data.path").warnings == []


def test_stores_whose_documents_end_in_another_way_are_not_blended(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "bytes", tmp_path / "other")
    record = json.loads((tmp_path / "other/store.json").read_text())
    (tmp_path / "other/store.json").write_text(json.dumps(record | {"end_of_document": 0}))
    paths = [str(folder / "bytes"), str(tmp_path / "other")]
    with pytest.raises(ConfigError) as refusal:
        BlendData(paths=paths, weights=[1, 1], **RUN).batch(1)
    allowed = f"stores whose documents end alike (end_of_document); {paths[1]!r} differs from {paths[0]!r}"
    assert str(refusal.value) == f"data.paths={paths}: must be {allowed}"


def test_a_document_as_long_as_a_row_is_not_cut_there() -> None:
    """Of 64 tokens and its end: the end is the target of the row's last token."""
    whole, longer = np.arange(1, 9) * 65, np.arange(1, 9) * 66
    assert cut_share(whole, 64, packed=False) == 0.0
    assert cut_share(longer, 64, packed=False) == 1.0


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [-1.0, 2.0], [1.0, float("nan")]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError) as refusal:
        BlendData(paths=["a", "b"], weights=weights, **RUN)
    allowed = "2 numbers >= 0, one for each of data.paths, not all 0"
    assert str(refusal.value) == f"data.weights={weights}: must be {allowed}"


def test_stores_of_two_tokenizers_are_not_blended(folder: Path) -> None:
    pytest.importorskip("tokenizers")
    paths = [str(folder / "bytes"), str(folder / "pieces")]
    with pytest.raises(ConfigError) as refusal:
        BlendData(paths=paths, weights=[1, 1], **RUN).batch(1)
    allowed = f"stores of one tokenizer; that of {paths[1]!r} is another than that of {paths[0]!r}"
    assert str(refusal.value) == f"data.paths={paths}: must be {allowed}"


def test_a_document_that_changes_moves_no_logit_of_another(folder: Path, tmp_path: Path) -> None:
    """One store beside its copy in which some documents are reversed; their rows are told by their ids."""
    shutil.copytree(folder / "bytes", tmp_path / "changed")
    tokens = np.fromfile(folder / "bytes/train.tokens", dtype="<u2")
    ends = np.fromfile(folder / "bytes/train.ends", dtype="<i8")
    changed = tokens.copy()
    for number in range(6, 20):
        changed[ends[number] : ends[number + 1] - 1] = changed[ends[number] : ends[number + 1] - 1][::-1]
    changed.tofile(tmp_path / "changed/train.tokens")
    settings = {**RUN, "batch_size": 256, "documents": "separate"}
    before = TokenData(path=str(folder / "bytes"), **settings).batch(1).inputs
    after = TokenData(path=str(tmp_path / "changed"), **settings).batch(1).inputs
    documents = bytes_of(tokens[ends[6] : ends[20]])
    texts = [row[row != 256].numpy() for row in before]
    own = [len(text) > 0 and bytes_of(text) in documents for text in texts]
    assert 5 < sum(own) < 60
    assert (before != after).any(dim=1).tolist() == own
    torch.manual_seed(0)
    model = AtlasModel(MODEL, ChunkSizeConfig(local=[8], global_size=32, shard=32), 257)
    with torch.no_grad():
        logits = [model(inputs).logits for inputs in (before, after)]
    assert (logits[0] != logits[1]).flatten(1).any(dim=1).tolist() == own
