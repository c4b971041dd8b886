"""Every option of every component group becomes the object it names; model sizes are what their options say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import atlas
from atlas.config import ConfigError
from atlas.config.composition import options
from atlas.config.rules import Rule
from atlas.data.batch import Batch
from atlas.prepare import main as prepare
from atlas.runs.build import (
    build_data,
    build_model,
    build_optimizer,
    build_probe,
    build_telemetry,
)
from atlas.runs.load import refuse_a_larger_model


def parameters(overrides: Sequence[str]) -> int:
    with torch.device("meta"):
        model = build_model(atlas.compose(overrides))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("option", options("model"))
def test_every_model_reads_tokens(option: str) -> None:
    config = atlas.compose([f"model={option}"])
    with torch.device("meta"):
        out = build_model(config)(torch.zeros(1, 128, dtype=torch.int64))
    assert out.logits.shape == (1, 128, 256)
    with_memory = option not in ("attention_only", "transformer")
    assert len(out.gates) == (config.model.layers if with_memory else 0)


def test_sizes_of_the_models() -> None:
    tiny = parameters(["model=tiny"])
    assert parameters(["model=attention_only"]) == pytest.approx(tiny, rel=0.01)
    assert parameters(["model=transformer"]) == pytest.approx(tiny, rel=0.01)
    assert parameters(["model=atlas_60m"]) == pytest.approx(60e6, rel=0.05)
    assert parameters(["model=atlas_43m", "model.vocabulary=32000"]) == pytest.approx(43e6, rel=0.02)
    assert parameters(["model=atlas_125m", "model.vocabulary=32000"]) == pytest.approx(125e6, rel=0.02)


@pytest.mark.parametrize("option", options("data"))
def test_every_data_option_gives_batches_of_the_configured_shape(option: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("In the beginning there was text. " * 1000)
    paths = [f'data.paths=["{tmp_path}/*.txt"]'] if option == "text" else []
    if "tokens" in option or option == "blend":
        (tmp_path / "words.txt").write_text("".join(f"the word is {number}. " for number in range(1000)))
        assert prepare([f"{tmp_path}/words.txt", "separator=. ", f"out={tmp_path}/store", "validation_share=0.3"]) == 0
        paths = [f"data.path={tmp_path}/store"]
    if option == "blend":
        paths = [f"data.paths=[{tmp_path}/store]", "data.weights=[1.0]"]
    config = atlas.compose([f"data={option}", *paths, "train.batch_size=3"])
    data = build_data(config)
    assert f"{type(data).__module__}.{type(data).__name__}" == config.data["_target_"]
    batch, apart = data.batch(1), [data.batch(1, range(row, row + 1)) for row in range(3)]
    for column in fields(Batch):
        assert torch.equal(torch.cat([getattr(row, column.name) for row in apart]), getattr(batch, column.name))
    assert batch.inputs.shape == batch.targets.shape == (3, 512)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


@pytest.mark.parametrize("option", options("optim"))
def test_every_optimiser_lowers_a_loss(option: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    config = atlas.compose([f"optim={option}", "optim.lr=0.1", "optim.warmup=1", "train.steps=50"])
    optimizer = build_optimizer(config, model)
    inputs = torch.randn(64, 4)
    targets = inputs.sum(dim=1, keepdim=True)
    losses = []
    for step in range(1, 51):
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(step)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("option", "mirrors"), [("none", []), ("wandb", ["WandbSink"])])
def test_every_logger_comes_after_files_and_console(option: str, mirrors: list[str]) -> None:
    telemetry = build_telemetry(atlas.compose([f"logger={option}"]))
    names = [type(sink).__name__ for sink in telemetry._sinks]
    assert names == ["JsonlSink", "ConsoleSink", *mirrors]


def test_several_loggers_stand_beside_each_other() -> None:
    pytest.importorskip("tensorboard")
    telemetry = build_telemetry(atlas.compose(["logger=[wandb,tensorboard]", "logger.mode=offline"]))
    names = [type(sink).__name__ for sink in telemetry._sinks]
    assert names == ["JsonlSink", "ConsoleSink", "WandbSink", "TensorBoardSink"]


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    config = atlas.compose(["model.width=32", "model.feedforward=32", "seed=3"])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = build_model(config).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second = build_model(config).state_dict()
    config.seed = 4
    other = build_model(config).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_the_default_dtype_of_torch_does_not_change_the_weights() -> None:
    config = atlas.compose(["model.width=32", "model.feedforward=32"])
    first = build_model(config).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        second = build_model(config).state_dict()
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in second.values()} == {torch.float32}
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_probe_that_reads_no_text_does_not_ask_for_it(tmp_path: Path) -> None:
    """The text of a run may be gone when its model is probed."""
    gone = ["data=text", f"data.paths=[{tmp_path}/gone.txt]"]
    config = atlas.compose([*gone, "niah.levels=[recall]", "niah.tasks=[single,mqar]"])
    assert build_probe(config, build_data(config)).text is None
    for more in (["niah.tasks=[single,text]"], ["niah.levels=[recall]", "niah.tasks=[single,ruler]"]):
        config = atlas.compose([*gone, *more])
        with pytest.raises(ConfigError, match=r"gone\.txt' matches none$"):
            build_probe(config, build_data(config))


@pytest.mark.parametrize("rule", list(Rule))
def test_a_model_is_laid_out_without_memory(rule: Rule) -> None:
    """As the shapes of a checkpoint's weights are compared before they are loaded."""
    config = atlas.compose([f"model.memory.rule={rule.value}"])
    with torch.device("meta"):
        outline = build_model(config).state_dict()
    weights = build_model(config).state_dict()
    assert {name: part.shape for name, part in outline.items()} == {name: part.shape for name, part in weights.items()}
    assert all(part.is_meta for part in outline.values())


def test_a_part_of_a_component_is_refused_like_the_component() -> None:
    config = atlas.compose(["data=recall", "data.recall.queries=2"])
    with pytest.raises(ConfigError, match=r"^data.recall.sparse_queries=12: must be <= 2$"):
        build_data(config)


def test_a_checkpoint_that_is_deleted_while_its_size_is_taken_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the run that lives, while a second `resume` looks. The other one still tells how large the model may be."""
    for step, size in ((10, 1000), (20, 2000)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(bytes(size))
    real = Path.stat

    def stat(path: Path, **more: bool) -> os.stat_result:
        if path.parent.name == "step-00000020" and not more:
            path.unlink(missing_ok=True)
        return real(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    refuse_a_larger_model(atlas.compose(["resume=auto"]), tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match=r"fits into the checkpoints of .* \(1000 bytes\)$"):
        refuse_a_larger_model(atlas.compose(["resume=auto", "model.layers=2000"]), tmp_path / "checkpoints")
