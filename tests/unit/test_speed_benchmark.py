"""The speed benchmark at toy size: what it times is what it says, and its tables are made from what was measured."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import atlas
from atlas.config import VOCABULARY, ConfigError
from experiments.speed.__main__ import main
from experiments.speed.contestants import Shape, TrainingStep, configuration
from experiments.speed.decoding import kept_bytes
from experiments.speed.options import parse
from experiments.speed.plain_transformer import PlainTransformer
from experiments.speed.products import Recorder
from experiments.speed.race import race
from experiments.speed.tables import document
from experiments.speed.targets import targets

CPU = torch.device("cpu")
TOY = Shape("tiny", 1, 128)
RACED = {"contexts": [("gd_c16", 1)], "branch": [("branch_c64", 1)], "decode": [("gd_c16", 2)]}


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("round=3", "round=3: must be key=value with key one of device, model, parts"),
        ("rounds=0", "rounds=0: must be >= 1"),
        ("rounds=ten", "rounds=ten: must be a whole number"),
        ("contestants=gd_c17", "contestants=gd_c17: must be transformer, transformer_atlas"),
        ("parts=whole,all", "parts=whole,all: must be among whole, contexts"),
        ("model=transformer", "model=transformer: must be one of"),
        ("contexts=1000", "contexts=1000: must be divisors of tokens=2048"),
        ("folder=nowhere", "folder=nowhere: must be a folder that exists"),
    ],
)
def test_bad_arguments_are_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(["tokens=2048", argument])
    assert str(refusal.value).startswith(message)


def test_lengths_come_from_model_and_device() -> None:
    assert parse([]).contexts == (1024, 2048, 4096, 8192, 16384)
    assert parse(["device=cuda", "model=atlas_60m"]).contexts == (2048, 4096, 8192, 16384, 32768)
    options = parse(["quick=true", "rounds=7"])
    assert (options.sequence, options.contexts, options.rounds, len(options.contestants)) == (1024, (1024, 8192), 7, 3)


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = race(steps, 2, CPU)
    assert "".join(calls) == "abcbca"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_turn_is_the_mean_of_the_steps_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"long": iter([9.0, 11.0]), "short": iter([1.0, 2.0, 3.0, 4.0, 2.0])}
    monkeypatch.setattr("experiments.speed.race.seconds_of", lambda step, device: next(step()))
    steps = {name: lambda values=values: values for name, values in taken.items()}
    assert race(steps, 2, CPU, turn_seconds=6.0) == {"long": [9.0, 11.0], "short": [2.0, 3.0]}


def test_the_minimal_transformer_is_the_same_function_as_ours() -> None:
    config = configuration("transformer_atlas", TOY)
    ours, minimal = atlas.build_model(config), PlainTransformer(config.model, VOCABULARY, TOY.sequence)
    weights = {key.replace("attention.qkv", "qkv"): weight for key, weight in ours.state_dict().items()}
    minimal.load_state_dict(weights)
    tokens = torch.randint(0, VOCABULARY, (2, TOY.sequence), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(minimal(tokens), ours(tokens).logits, rtol=1e-4, atol=1e-5)


def test_products_of_a_step_are_counted() -> None:
    step = TrainingStep("transformer", TOY, CPU)
    with Recorder() as seen:
        step()
    model = configuration("transformer", TOY).model
    matrices = [layer.weight.numel() for layer in step.loss.modules() if isinstance(layer, nn.Linear)]
    linear = 3 * 2 * TOY.tokens * (sum(matrices) + VOCABULARY * model.width)  # the tied head is one more
    scores = 2 * model.width * TOY.sequence**2 * TOY.batch // 2  # one product of attention, half of it masked
    assert seen.flops == linear + model.layers * (2 + 5) * scores
    assert seen.foreign == set()
    assert seen.replay_seconds(CPU) > sum(seen.counts.values()) * 1e-7


class Doubled(torch.autograd.Function):
    """Hides its products from autograd, and works in place."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(left, right)
        return torch.bmm(left, right).baddbmm_(left, right)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = ctx.saved_tensors
        return 2 * gradient @ right.mT, 2 * left.mT @ gradient


def test_products_in_place_and_inside_custom_functions_are_counted() -> None:
    left, right = torch.ones(3, 4, 5, requires_grad=True), torch.ones(3, 5, 6, requires_grad=True)
    with Recorder() as seen:
        Doubled.apply(left, right).sum().backward()
    assert seen.flops == 4 * 2 * prod((3, 4, 5, 6))


def test_products_of_the_memory_are_counted() -> None:
    """However its chunks are computed: keys and queries meet the hidden layer of every memory, and again backward."""
    flops = []
    for name in ("attention", "gd_c16"):
        step = TrainingStep(name, TOY, CPU)
        with Recorder() as seen:
            step()
        flops.append(seen.flops)
    model, memories = configuration("gd_c16", TOY).model, 2
    hidden_layer = 2 * TOY.tokens * model.width * 2 * model.memory.hidden
    assert flops[1] - flops[0] > model.layers * memories * 2 * 3 * hidden_layer


def test_a_view_keeps_the_whole_tensor() -> None:
    large = torch.zeros(1000)
    assert kept_bytes((large[:1], large[5:7], torch.zeros(3))) == 4000 + 12


def row(name: str, seconds: list[float], **more: Any) -> dict[str, Any]:
    return {"name": name, "model": "small", "batch": 2, "sequence": 1024, "seconds": seconds, "parameters": 3e6} | more


def measurements() -> dict[str, Any]:
    floor = {"flops": 10**9, "products_seconds": 0.05, "start_bytes": 2 * 10**8, "peak_bytes": 5 * 10**8}
    at = {"command": "c", "date": "d", "machine": "m", "load_before": 0, "load_after": 1, "git": "g", "versions": {}}
    whole = [
        row("transformer", [0.1, 0.1, 0.4], **floor),
        row("transformer_atlas", [0.2, 0.2, 0.2], **floor),
        row("gd_c16", [0.2, 0.25, 0.1], **floor),
        {"name": "gd_set_a", "model": "small", "batch": 2, "sequence": 1024, "reason": "out of memory"},
    ]
    titans = [row("gd_c16", [0.5], **floor), row("titans_16", [20.0], **floor | {"peak_bytes": 10**10})]
    decode = [
        {"name": "gd_c16", "context": context, "seconds": [0.01 * scale], "state_bytes": 100, "prefilled_bytes": 200}
        for context, scale in ((1024, 1.0), (16384, 1.2))
    ]
    parts = {"whole": {"rows": whole, "peak_flops": 2e10}, "titans": {"rows": titans}, "decode": {"rows": decode}}
    return {"device": "cpu", "model": "small"} | {name: {"circumstances": at} | part for name, part in parts.items()}


def test_targets_are_judged_from_the_measurements() -> None:
    verdicts = [(target.verdict, target.found) for target in targets(measurements())]
    # The anchor is the Transformer with the lower median; a row without a measurement reaches nothing.
    assert verdicts[0] == ("reached", (0.5, 0.4, 4.0))
    # 10^9 operations at 2 * 10^10 a second take 0.05 s, half of the anchor's step.
    assert [target.highest for target in targets(measurements())][:2] == [2.0, None]
    assert [verdict for verdict, _ in verdicts[1:4]] == ["not measured"] * 3
    assert verdicts[4] == ("MISSED", (40.0, 40.0, 40.0))
    assert verdicts[5] == ("reached", 0.05)
    assert [verdict for verdict, _ in verdicts[6:]] == ["not measured", "not measured", "MISSED", "reached"]


def test_tables_are_made_from_the_measurements() -> None:
    lines = document([measurements()]).splitlines()
    assert "| atlas gd, c16 | 3.0 M | 10,240 | 0.50 (0.40 to 4.00) | 0.50 GB | 0.30 GB | 1 | 5 | 25% | 25% |" in lines
    assert "- atlas gd, set A, 1024 tokens: not measured: out of memory" in lines
    assert "| titans-pytorch, memory chunk 16 | 3.0 M | 102 | 0.03 (0.03 to 0.03) | 10.00 GB | 9.80 GB |" in lines
    assert "| atlas gd, c16 | 16384 | 12.00 | 1.20 (1.20 to 1.20) | 0.00 | 1.00 | 0.00 |" in lines
    assert "`c`, revision g; m; " in lines


@pytest.mark.slow
def test_one_command_measures_and_writes(tmp_path: Path) -> None:
    toy = ["model=tiny", "threads=1", "rounds=1", "contexts=128", f"folder={tmp_path}"]
    assert main([*toy, "contestants=gd_c16,branch_c64", "parts=contexts,branch,decode"]) == 0
    results = json.loads((tmp_path / "results-cpu-tiny.json").read_text(encoding="utf-8"))
    raced = {part: [(found["name"], len(found["seconds"])) for found in results[part]["rows"]] for part in RACED}
    assert raced == RACED
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8") == document([results])
    assert (tmp_path / "chart-cpu-tiny.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rounds=0", "rounds=0: must be >= 1"),
        ("contexts=1500", "train.sequence=1500: must be a multiple of chunk_size.shard=256"),
    ],
)
def test_what_cannot_be_run_ends_before_any_work(
    argument: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parts=contexts", f"folder={tmp_path}", argument]) == 2
    assert capsys.readouterr().err.startswith(f"atlas: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_peak_memory_and_products_of_whole_models(tmp_path: Path) -> None:
    words = ["model=tiny", "threads=1", "rounds=2", "sequence=128", "batch=1", f"folder={tmp_path}", "parts=whole"]
    assert main([*words, "contestants=transformer,gd_c16"]) == 0
    rows = json.loads((tmp_path / "results-cpu-tiny.json").read_text(encoding="utf-8"))["whole"]["rows"]
    plain, ours = rows
    assert plain["flops"] < ours["flops"]
    for found in rows:
        assert found["start_bytes"] < found["peak_bytes"] < 4 * found["start_bytes"]
        assert found["products_seconds"] < 10 * sum(found["seconds"])
