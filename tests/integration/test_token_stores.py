"""From text to a trained model on a token store: its vocabulary everywhere, exact resume, a continuation in words."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import atlas
from atlas.config import ConfigError
from atlas.data.blend import BlendCorpus
from atlas.data.sampler import SEPARATE_BATCHES
from atlas.data.tokenizer import LibraryTokenizer
from atlas.evaluate import EvaluationSettings, _lost, read_texts
from atlas.evaluate import main as evaluate
from atlas.generate import main as generate
from atlas.niah import main as niah
from atlas.prepare import main as prepare
from atlas.report.__main__ import main as report
from atlas.runs.build import build_data
from atlas.runs.data_record import record_data
from atlas.runs.known_text import known_shares
from atlas.runs.resume import resumed_config
from tests.integration.small_runs import JOB
from tests.integration.sweep_commands import command


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


TEXT = "some words that the store has not seen, " * 8
NEEDLES = ["pairs=2", "queries=2", "sparse_pairs=1", "sparse_queries=1", "distance_min=16"]
MIXED = ["data=mixed_tokens", *(f"data.recall.{setting}" for setting in NEEDLES)]


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    pytest.importorskip("tokenizers")
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, 5))) for _ in range(50)]
    lines = [" ".join(rng.choice(words, 30)) for _ in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    for name, tokenizer in (("pieces", "train:300"), ("bytes", "bytes")):
        command = [f"{tmp_path}/a.jsonl", f"out={tmp_path}/{name}", f"tokenizer={tokenizer}", "workers=1"]
        assert prepare([*command, "validation_share=0.3"]) == 0
    return tmp_path


@pytest.mark.slow
def test_a_run_on_a_store_from_start_to_words(
    stores: Path, interrupting: Any, left: Any, same_state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = left(stores / "whole"), left(stores / "cut")
    settings = [*JOB, *MIXED, f"data.path={stores}/pieces"]
    finished = atlas.train(atlas.compose(settings), whole.folder)
    assert finished.bytes_per_token == pytest.approx(15036 / 11130)
    assert finished.validation_bits_per_byte == pytest.approx(
        finished.validation_loss / log(2) / finished.bytes_per_token
    )
    model, config = atlas.load(whole.folder)
    assert (model.embedding.num_embeddings, config.model.vocabulary) == (300, 300)

    with pytest.raises(KeyboardInterrupt):
        atlas.train(replace(atlas.compose(settings), logger=interrupting(at=3)), cut.folder)
    (stores / "pieces").rename(stores / "moved")
    overrides = [f"resume={cut.folder}", "trust=[interrupting]", *MIXED, f"data.path={stores}/moved"]
    atlas.train(replace(resumed_config(atlas.compose(overrides), overrides, cut.folder), logger={}))
    assert same_state(cut.state, whole.state)

    assert report([str(whole.folder)]) == 0
    page = next(whole.folder.rglob("report.md")).read_text()
    assert f"{finished.validation_bits_per_byte:.4f} of the validation text, 1.35 bytes per token" in page

    shutil.rmtree(stores / "moved")  # what follows needs the run folder only
    (stores / "new.txt").write_text(TEXT)
    assert evaluate([str(whole.folder), f"paths={stores}/new.txt", "memory=on", "factors=1"]) == 0
    (answer,) = json.loads((whole.folder / "evaluation.json").read_text())["evaluations"]
    told = answer["bits_per_byte"][f"{stores}/new.txt"]
    ids = LibraryTokenizer(whole.folder / "tokenizer.json").encode([TEXT.encode()])[0]
    tokens = torch.from_numpy(ids)[None]
    nats = model.losses(model.read(tokens[:, :-1]).hidden, tokens[:, 1:]).mean().item()
    assert told["on"] == pytest.approx(nats / log(2) / (len(TEXT) / len(ids)), rel=1e-4)
    assert told["bytes"] == len(TEXT)
    uneven = "".join(json.loads((stores / "a.jsonl").read_text().splitlines()[0])["text"].split()) + "zq#%!" * 40
    (stores / "uneven.txt").write_text(uneven)
    cut = ["memory=on", "factors=1", "bytes=16"]
    assert evaluate([str(whole.folder), f"paths={stores}/uneven.txt", *cut]) == 0
    answer = json.loads((whole.folder / "evaluation.json").read_text())["evaluations"][-1]
    tokenizer = LibraryTokenizer(whole.folder / "tokenizer.json")
    ids = tokenizer.encode([uneven.encode()])[0][:16]
    tokens = torch.from_numpy(ids)[None]
    nats = model.losses(model.read(tokens[:, :-1]).hidden, tokens[:, 1:]).mean().item()
    told, size = answer["bits_per_byte"][f"{stores}/uneven.txt"], len(tokenizer.decode(ids.tolist()))
    assert told["bytes"] == size
    assert told["on"] == pytest.approx(nats / log(2) / (size / 16), rel=1e-4)
    capsys.readouterr()
    assert generate([str(whole.folder), "prompt=abc", "tokens=20", "device=cpu"]) == 0
    assert len(capsys.readouterr().out) > 1


@pytest.mark.slow
def test_separate_documents_train_in_micro_batches_as_in_one(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of several lengths, whose rows the number of micro-batches does not divide."""
    settings = [*JOB, "data=tokens", "data.documents=separate", f"data.path={stores}/pieces", "train.batch_size=4"]
    settings += ["train.steps=10"]
    runs = [
        atlas.train(atlas.compose([*settings, f"train.accumulate={parts}"]), stores / f"run{parts}") for parts in (1, 4)
    ]
    whole, cut = ([row["loss"] for row in read_rows(Path(run.folder))] for run in runs)
    assert cut == pytest.approx(whole, rel=1e-3)
    assert runs[0].tokens == runs[1].tokens
    newest = max(Path(runs[0].folder, "checkpoints").glob("step-*"))
    assert torch.load(newest / "state.pt", weights_only=True)["batches"] == SEPARATE_BATCHES
    monkeypatch.setattr("atlas.data.sampler.SEPARATE_BATCHES", SEPARATE_BATCHES + 1)
    with pytest.raises(ConfigError, match=r"must be of a run with this version's batches; it has those of an earlier"):
        atlas.train(atlas.compose([*settings, "train.accumulate=1", "resume=auto"]), runs[0].folder)


@pytest.mark.slow
def test_another_vocabulary_is_refused_and_probes_ask_in_the_stores_ids(
    stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(atlas.train(atlas.compose([*JOB, *MIXED, f"data.path={stores}/bytes"]), stores / "run").folder)
    assert atlas.load(run)[1].model.vocabulary == 257
    with pytest.raises(ConfigError, match=r"init_from=.*model\.vocabulary=257, not 300"):
        atlas.train(atlas.compose([*JOB, *MIXED, f"data.path={stores}/pieces", f"init_from={run}"]), stores / "other")
    settings = [*JOB, *MIXED, f"data.path={stores}/pieces", "model.vocabulary=290"]
    with pytest.raises(ConfigError) as refusal:
        atlas.train(atlas.compose(settings), stores / "small")
    assert str(refusal.value) == "model.vocabulary=290: must be >= 300, the vocabulary of the data"
    capsys.readouterr()
    assert (
        niah(
            [
                str(run),
                "niah.samples=4",
                "niah.length_factors=[2]",
                "niah.levels=[recall]",
                "niah=thorough",
                "device=cpu",
            ]
        )
        == 1
    )
    cells = {cell["task"]: cell for cell in json.loads((run / "niah.json").read_text())["results"][0]["cells"]}
    assert cells["mqar"]["chance"] == pytest.approx(1 / (257 - 128))
    assert cells["multi_key"]["chance"] == pytest.approx(1 / 16)


def test_evaluate_says_where_the_tokenizer_loses_characters(tmp_path: Path) -> None:
    """A tokenizer of the letters a to c, without bytes to fall back on: of "abcd" it loses a quarter."""
    tokenizers = pytest.importorskip("tokenizers")
    file = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "c": 2}, [])).save(str(file))
    (tmp_path / "known.txt").write_text("abc" * 20)
    (tmp_path / "foreign.txt").write_text("abcd" * 20)
    asked = read_texts(atlas.compose(["data=stdlib"]), EvaluationSettings(paths=f"{tmp_path}/*.txt"), file)
    assert asked.lost == {f"{tmp_path}/known.txt": 0.0, f"{tmp_path}/foreign.txt": 0.25}
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(
        ConfigError, match=r"latin.txt' is not UTF-8 at byte 3 \(the tokenizer of the run takes UTF-8 a"
    ):
        read_texts(atlas.compose(["data=stdlib"]), EvaluationSettings(paths=f"{tmp_path}/latin.txt"), file)
    (note,) = _lost(asked)
    told = "25.0% of the characters are lost to the tokenizer: bits per byte and perplexity are too low"
    assert note == f"{tmp_path}/foreign.txt: {told}"


def test_evaluate_counts_the_bytes_of_validation_text_as_the_run_does(tmp_path: Path) -> None:
    """A tokenizer that does not give back what it was given: this one puts a space between any two tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = {chr(number): number for number in range(127)}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, []))
    library.add_special_tokens(["</s>"])
    library.save(f"{tmp_path}/tokenizer.json")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"letters{n}" * 9}) + "\n" for n in range(60)))
    keys = [f"out={tmp_path}/store", f"tokenizer={tmp_path}/tokenizer.json", "workers=1", "validation_share=0.3"]
    assert prepare([f"{tmp_path}/a.jsonl", *keys]) == 0
    config = atlas.compose(["data=tokens", f"data.path={tmp_path}/store", "train.sequence=128"])
    asked = read_texts(config, EvaluationSettings(), tmp_path / "store/tokenizer.json")
    corpus = build_data(config).corpus
    assert corpus is not None
    assert [*asked.bytes_per_token.values()] == [corpus.bytes_per_token]


def test_evaluate_reads_and_knows_the_text_of_every_store_of_a_blend(tmp_path: Path) -> None:
    for name, letter in (("a", "x"), ("b", "y")):
        lines = [json.dumps({"text": f"{letter}{number:06d}" * 30}) for number in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        settings = [f"{tmp_path}/{name}.jsonl", f"out={tmp_path}/{name}", "workers=1", "validation_share=0.3"]
        assert prepare(settings) == 0
    paths = [f"{tmp_path}/{name}" for name in "ab"]
    config = atlas.compose(["data=blend", f"data.paths=[{paths[0]},{paths[1]}]", "data.weights=[0.6,0.4]"])
    corpus = build_data(config).corpus
    assert isinstance(corpus, BlendCorpus)
    record_data(tmp_path, corpus)
    texts = read_texts(config, EvaluationSettings(), None).texts
    parts = zip(texts.items(), corpus.stores, paths, strict=True)
    for (name, text), store, path in parts:
        assert name == f"validation part of the token store {path}"
        assert (text == store.validation).all()
        assert known_shares(config, tmp_path, {"train": store.train[:2000], "held out": text}) == {
            "train": 1.0,
            "held out": 0.0,
        }


@pytest.mark.slow
def test_a_start_that_failed_before_it_read_the_store_is_gone_on_from(
    stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by torchrun's --max-restarts."""

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    settings = [*JOB, *MIXED, f"data.path={stores}/pieces", "resume=auto", f"hydra.run.dir={stores}/run"]
    with monkeypatch.context() as full:
        full.setattr("atlas.runs.run.build_model", fail)
        told = f"RuntimeError: CUDA out of memory; the traceback is in {stores}/run/train.log"
        assert command(*settings).err[-1] == f"atlas: the run failed: {told}"
    ended = command(*settings)
    assert (ended.status, ended.err) == (0, [])
    assert atlas.load(stores / "run")[1].model.vocabulary == 300
    again = command(*settings)
    assert (again.status, again.err) == (0, [])
