"""What holds in every sound run: each judge, and what it measures, on sound parts and on wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlas.config import ChunkSizeConfig, MemoryConfig, ModelConfig
from atlas.data.batch import Batch
from atlas.models.language_model import AtlasModel
from atlas.training.evaluating import evaluating
from atlas.training.watchers import JUDGES
from atlas.training.watchers.apart import standing
from atlas.training.watchers.batch_facts import row_digests
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.model_facts import model_facts
from atlas.training.watchers.observations import ModelFacts, Recomputed, Unsaved
from atlas.training.watchers.own_files import lettered, letters, stand_in, texts_of
from atlas.training.watchers.reach import reach
from atlas.training.watchers.record import ROWS, Record
from experiments.silent.wrong_limits import logits_scaled_for_the_loss, positions_ignored, temperature_in_training
from experiments.silent.wrong_optim import sound

SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "warmup": 0, "lr_min_ratio": 0.1}


def seen(watcher: str, **recorded: Any) -> str | None:
    found = JUDGES[watcher](Record(Facts(steps=100), **recorded))
    return None if found is None else found.seen


def test_what_no_checkpoint_holds() -> None:
    assert seen("unsaved", unsaved=Unsaved(0.01, "memory", 0.04)) is None
    text = "an optimiser that is made anew, with the saved state and the same gradients, takes another step: that of "
    assert seen("unsaved", unsaved=Unsaved(0.3, "memory", 0.04)) == f"{text}memory differs by 30%"
    text = "a model that is made anew, with the same weights, has outputs that differ by 20%"
    assert seen("unsaved", unsaved=Unsaved(0.3, "memory", 0.2)) == text


def test_a_step_that_is_computed_again() -> None:
    def told(*numbers: Any) -> str | None:
        return seen("recomputed", recomputed=Recomputed(*numbers))

    assert told(3.0, 3.01, 0.95, "memory", 1.0, 1.2) is None
    assert told(3.0, 3.3, 0.5, "memory", 9.0, 1.2) == (
        "a step had a loss of 3.000 nats, plain code has 3.300 of the same batch"
    )
    assert told(3.0, 3.01, 0.5, "memory", 9.0, 1.2) == (
        "the gradients of memory in a step have a cosine of 0.50 with those of its batch"
    )
    assert told(3.0, 3.01, 0.95, "memory", 4.0, 1.0) == (
        "the gradient of a step was 4.00 times as large as that of its batch"
    )


def a_model(how: Any, layers: int = 1) -> tuple[AtlasModel, torch.Tensor]:
    torch.manual_seed(0)
    memory = MemoryConfig(hidden=8, rate_init=0.5)
    config = ModelConfig(width=16, layers=layers, heads=2, window=5, feedforward=12, persistent_keys=6, memory=memory)
    model = AtlasModel(config, ChunkSizeConfig([4], 16, 16), 17)
    how(model=model, steps=1, **SETTINGS)
    return model, torch.arange(24)[None] % 17


def facts_of(how: Any) -> ModelFacts:
    model, row = a_model(how)
    with evaluating(model):
        return model_facts(model, row, (row * 3 + 1) % 17)


def reached(how: Any) -> dict[str, float]:
    model, row = a_model(how, layers=2)
    with evaluating(model):
        return reach(model, row)


def test_how_far_back_a_model_reaches() -> None:
    found = reached(sound)
    assert found.keys() == {f"layer{layer}/{name}" for layer in (0, 1) for name in ("attention", "order", "memory")}
    assert min(found.values()) > 0.01
    assert seen("reach", model_facts=ModelFacts(0.0, 0.0, reach=found)) is None
    placeless = reached(positions_ignored)
    assert max(placeless[f"layer{layer}/order"] for layer in (0, 1)) < 1e-5
    text = "attention gives the same in whatever order the tokens before it stand"
    assert seen("reach", model_facts=ModelFacts(0.0, 0.0, reach=placeless)) == text


@pytest.mark.slow
def test_losses_that_are_not_those_of_the_logits() -> None:
    found = facts_of(sound)
    assert (found.head < 1e-6, found.modes, seen("head", model_facts=found)) == (True, False, None)
    scaled = facts_of(logits_scaled_for_the_loss)
    assert (seen("head", model_facts=scaled) or "").startswith("in evaluation the losses of the model differ by ")
    tempered = facts_of(temperature_in_training)
    assert (tempered.modes, tempered.head < 1e-6) == (True, True)


def test_what_is_told_of_reach() -> None:
    def told(**reach: float) -> str | None:
        named = {f"layer1/{name}": size for name, size in reach.items()}
        return seen("reach", model_facts=ModelFacts(0.0, 0.0, reach={"layer0/order": 0.1, **named}))

    assert told(attention=1e-5, memory=1e-5, order=0.0) is None  # one layer may leave the order out
    assert (
        told(attention=0.0) == "the attention of layer1 gives the same whatever stands in the older half of its window"
    )
    assert told(memory=0.0) == "the memory of layer1 gives the same whatever stands in what it has read a chunk before"


def batch_of(rows: np.ndarray[Any, Any]) -> Batch:
    ones, none = np.ones((len(rows), rows.shape[1] - 1), dtype=np.float32), np.zeros(len(rows), dtype=bool)
    return Batch.from_tokens(rows, ones, none, ~none)


@pytest.mark.parametrize(("different", "text", "told"), [(10_000, 10**6, False), (48, 10**6, True), (48, 10**4, False)])
def test_rows_that_come_again(different: int, text: int, told: bool) -> None:
    record = Record(Facts(steps=100, sequence=64, text=text))
    draws = np.random.default_rng(0)
    for _ in range(ROWS // 4 + 10):
        starts = draws.integers(0, different, 4)
        record.add_rows(row_digests(torch.from_numpy(starts[:, None] + np.arange(65))))
    found = JUDGES["rows_again"](record)
    assert (found is not None) == told
    if found is not None:
        assert found.seen.startswith(f"only {found.value:.0%} of the last 128 rows are new")


def test_text_that_the_files_do_not_hold(tmp_path: Path) -> None:
    content = " ".join(f"Word{number * 7919 % 1000}," for number in range(2000)).encode()
    (tmp_path / "a.txt").write_bytes(content)
    texts = texts_of([str(tmp_path / "*.txt")], len(content))
    assert texts == [letters(content)]
    cleaned = content.lower().replace(b" ", b"\n")
    others = np.random.default_rng(0).integers(97, 122, len(content)).astype(np.uint8).tobytes()
    pieces = [lettered(np.frombuffer(text, dtype=np.uint8)) for text in (content, cleaned, others)]
    assert [(stand_in(texts, some), len(some)) for some in pieces] == [(32, 32), (32, 32), (0, 32)]
    assert seen("other_text", in_files=(0, 15)) is None
    assert seen("other_text", in_files=(1, 20)) is None
    told = seen("other_text", in_files=(0, 20)) or ""
    assert told.startswith("none of 20 pieces of the text stands in the files that data.paths names")
    (tmp_path / "a.txt").write_bytes(content.decode().encode("utf-16"))  # a source of the user's may decode it
    assert texts_of([str(tmp_path / "*.txt")], len(content)) == []
    (tmp_path / "a.txt").write_text("list.txt", encoding="utf-8")
    assert texts_of([str(tmp_path / "*.txt")], len(content)) == texts_of([str(tmp_path / "no")], 1) == []


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_rows_of_the_other_part_of_the_text(kind: type) -> None:
    draws = np.random.default_rng(0)
    train, held_out = (draws.integers(0, 200, size).astype(kind) for size in (5000, 1000))
    held_out[:200] = train[:200]

    def rows(text: Any, *starts: int) -> Batch:
        return batch_of(np.stack([text[start : start + 65] for start in starts]))

    assert standing(rows(train, 7, 4000), train) == (2, 2)
    assert standing(rows(held_out, 7, 700, 800), train) == (1, 3)
    assert standing(rows(held_out, 7, 700, 800), held_out, but_not_in=train) == (2, 3)
    assert standing(batch_of(np.zeros((2, 9), dtype=kind)), train) == (0, 0)
    assert seen("mixed_parts", validation_known=(1, 4), training_held_out=1) is None
    assert seen("mixed_parts", validation_known=(2, 4)) == "2 of 4 validation rows stand in the training text"
    text = "3 of the first training rows stand in the validation text, and not in that of training"
    assert seen("mixed_parts", training_held_out=3) == text
    found = JUDGES["mixed_parts"](Record(Facts(steps=100), validation_known=(4, 4)))
    assert found is not None
    assert found.hint.startswith("a text that does not say the same again and again; ")
