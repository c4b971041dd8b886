"""Failures of the data."""

from __future__ import annotations

from pathlib import Path

from experiments.silent.bench import LITTLE_TEXT, MIXED, Bench
from experiments.silent.failure import Facts, Failure, Procedure, facts, trained, with_data

MIDDLE = 120


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str], says: str = "") -> Failure:
    run, twin = run_and_twin
    return Failure(name, "data", what, run, twin, says)


def written(content: str | bytes, *settings: str) -> Procedure:
    """A run on a file with this content, or on the little text."""

    def run(bench: Bench, broken: bool) -> Facts:
        given = content if isinstance(content, bytes) else content.encode()
        paths = [str(LITTLE_TEXT)]
        if broken:
            bench.scratch.mkdir(parents=True, exist_ok=True)
            (bench.scratch / "corpus.txt").write_bytes(given)
            paths = [str(bench.scratch / "corpus.txt")]
        return facts(bench.run("data=text", f'data.paths=["{paths[0]}"]', *settings))

    return run


def little_text() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(LITTLE_TEXT.parent.glob(LITTLE_TEXT.name)))


def changed_between_two_starts(bench: Bench, broken: bool) -> Facts:
    """The corpus is edited after the first start; the run is resumed for longer."""
    bench.scratch.mkdir(parents=True, exist_ok=True)
    corpus = bench.scratch / "corpus.txt"
    corpus.write_text(little_text(), encoding="utf-8")
    given = ("data=text", f'data.paths=["{corpus}"]', "data.validation_share=0.2")
    bench.run(*given, "train.steps=50")
    if broken:
        corpus.write_text(little_text().replace("state", "State"), encoding="utf-8")
    return facts(bench.run(*given, "resume=auto", "train.steps=100"), 50)


def store(bench: Bench, documents: list[str], name: str) -> Path:
    """A token store of these documents, bytes as tokens."""
    from atlas.prepare import main

    bench.scratch.mkdir(parents=True, exist_ok=True)
    text = bench.scratch / f"{name}.txt"
    text.write_text("<|cut|>".join(documents), encoding="utf-8")
    made = bench.scratch / name
    arguments = [str(text), f"out={made}", "separator=<|cut|>", "validation_share=0.1", "workers=1"]
    ended = bench.run(*arguments, main=main)
    if ended.status:
        raise RuntimeError(ended.printed)
    return made


def _pieces(size: int) -> list[str]:
    text = little_text()
    return [text[start : start + size] for start in range(0, len(text), size)]


def documents_cut(bench: Bench, broken: bool) -> Facts:
    """Documents of 96 bytes or of 60, each to have a row of 64 of its own."""
    place = store(bench, _pieces(96 if broken else 60), "store")
    return facts(bench.run("data=tokens", f"data.path={place}", "data.documents=separate"))


FAILURES = (
    _failure("labels_shifted", "the target is the token after the next", with_data("Shifted")),
    _failure(
        "one_batch_repeated", f"from step {MIDDLE} on the same batch again and again", with_data("Repeated", at=MIDDLE)
    ),
    _failure(
        "batches_drawn_anew",
        "batches come from a generator that goes on, whatever their step: no resume and no rollback finds them again",
        with_data("DrawnAnew"),
    ),
    _failure("one_batch_from_the_start", "the first batch again and again", with_data("Repeated")),
    _failure(
        "noise_for_text", f"from step {MIDDLE} on tokens are random: a broken decoder", with_data("Random", at=MIDDLE)
    ),
    _failure(
        "empty_rows",
        f"three of four rows of each batch are empty from step {MIDDLE} on",
        with_data("Padded", at=MIDDLE),
    ),
    Failure("corpus_of_one_byte", "data", "a corpus of one repeated byte", written("a" * 100_000), "little text"),
    Failure("corpus_of_zeros", "data", "a corpus of zeros", written(bytes(100_000)), "little text"),
    Failure(
        "corpus_of_one_line",
        "data",
        "a corpus of one line again and again: validation text is training text",
        written("the same line again and again, from the start to the end of the file\n" * 1500),
        "little text",
    ),
    _failure("rows_of_padding", "each row has a document of 16 tokens and 48 of padding", with_data("Short")),
    Failure("documents_cut", "data", "documents of 96 bytes that are to stand whole in rows of 64", documents_cut),
    Failure("corpus_changed", "data", "the corpus is edited between two starts of a run", changed_between_two_starts),
    _failure(
        "recall_by_attention",
        "`model.window=64`: attention sees every needle, so recall says nothing about the memory",
        trained("model.window=64", shared=MIXED),
    ),
    _failure(
        "recall_unsolvable",
        "no global memory, and local ones are reset between every needle and its question",
        trained(
            "ablation=no_global",
            "chunk_size.shard=8",
            calm=("ablation=no_global",),
            shared=MIXED,
        ),
    ),
    _failure(
        "recall_without_questions",
        "`data.recall.distance_min=56` in sequences of 64: hardly a question finds room",
        trained("data.recall.distance_min=56", shared=MIXED),
    ),
)
