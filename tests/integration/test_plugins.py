"""Each example of docs/plugins.md is run as it stands there: code in a folder of the user's, nothing edited."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.config import ConfigError
from atlas.data.batch import Batch
from atlas.runs.build import build_data
from atlas.telemetry.jsonl import read_jsonl

DOCUMENT = Path(__file__).parents[2] / "docs" / "plugins.md"
BLOCK = re.compile(r"^```(?:python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"^# (\S+\.(?:py|yaml))$", re.MULTILINE)
LONGEST = 25  # lines
STEPS = ["train.steps=2", "checkpoint.every=2"]
Run = Callable[..., tuple[Any, list[dict[str, Any]]]]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the document, copied as they stand there."""
    folder = tmp_path / "mine"
    for content in BLOCK.findall(DOCUMENT.read_text(encoding="utf-8")):
        if (named := NAME.search(content)) is None:
            continue
        name = named[1]
        assert content.count("\n") <= LONGEST + 1, name  # and its name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


@pytest.fixture
def job(small: list[str], mine: Path) -> Callable[..., list[str]]:
    """The overrides of two steps. What they replace is left out: Hydra takes an option of a group once, and the keys of
    another option do not exist."""

    def overrides(*own: str) -> list[str]:
        replaced = tuple(f"{text.partition('=')[0]}{end}" for text in own for end in ("=", "."))
        kept = [text for text in small if not text.startswith(replaced)]
        return [*kept, *STEPS, *own, f"hydra.searchpath=[file://{mine / 'conf'}]"]

    return overrides


@pytest.fixture
def run(job: Callable[..., list[str]], tmp_path: Path) -> Run:
    """Trains two steps; returns the summary and the rows."""

    def train(*overrides: str) -> tuple[Any, list[dict[str, Any]]]:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        summary = atlas.train(atlas.compose(job(*overrides)), folder)
        return summary, read_jsonl(folder / "metrics.jsonl")

    return train


def test_a_data_source(run: Run) -> None:
    summary, _ = run("data=counting", "trust=[mine_data]")
    assert (summary.status, summary.tokens) == ("completed", 2 * 2 * 64)
    assert summary.baseline_loss == pytest.approx(5.545, abs=1e-3)
    assert summary.baseline_name == "uniform guess"


def test_the_rows_of_a_data_source_can_be_made_apart(job: Callable[..., list[str]]) -> None:
    data = build_data(atlas.compose(job("data=counting", "trust=[mine_data]")))
    whole, apart = data.batch(1), [data.batch(1, range(row, row + 1)) for row in range(2)]
    for column in fields(Batch):
        assert torch.equal(torch.cat([getattr(row, column.name) for row in apart]), getattr(whole, column.name))
    assert not torch.equal(whole.inputs[0], whole.inputs[1])


def test_an_optimiser(run: Run) -> None:
    _, rows = run("optim=sgd", "trust=[mine_optim]")
    assert [row["lr"] for row in rows] == [0.05, 0.1]


def test_a_logger_beside_others(run: Run) -> None:
    beside = "tensorboard," if find_spec("tensorboard") else ""
    summary, rows = run(f"logger=[{beside}lines]", "trust=[mine_logger]")
    written = (Path(summary.folder) / "losses.txt").read_text()
    assert written == "".join(f"{row['step']} {row['loss']}\n" for row in rows)
    assert (Path(summary.folder) / "tensorboard").is_dir() is bool(beside)


def test_a_learning_rule(run: Run) -> None:
    _, clipped = run("experiment=clipped", "trust=[mine_rule]")
    _, plain = run("device.kernels=torch")
    _, same = run("experiment=clipped", "trust=[mine_rule]", "model.memory.own_rule.most=1e9")
    losses = [[row["loss"] for row in rows] for rows in (clipped, plain, same)]
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)


def test_a_probe_level(run: Run) -> None:
    summary, rows = run("niah.enabled=true", "niah.levels=[mine_level.echo]", "trust=[mine_level]")
    result = summary.niah["mine_level.echo"]
    assert (result["outcome"], result["reason"]) == ("failed", "below the threshold")
    assert rows[-1]["niah/mine_level.echo/accuracy"] == result["accuracy"] < 0.2
    assert result["chance"] == 1 / 256


def test_a_metric(run: Run) -> None:
    summary, rows = run("telemetry.metrics=[mine_metric.norms]", "trust=[mine_metric]")
    model, _ = atlas.load(summary.folder, trust=["mine_metric"])
    assert rows[-1]["own/embedding_norm"] == pytest.approx(model.embedding.weight.norm().item(), rel=1e-6)
    _, without = run()
    assert [row["loss"] for row in rows] == [row["loss"] for row in without]


def test_a_metric_that_gives_no_number_is_named_once_and_the_run_goes_on(run: Run, mine: Path) -> None:
    (mine / "mine_gap.py").write_text("def some(model, step):\n    return {'x': None}\n")
    summary, rows = run("telemetry.metrics=[mine_gap.some]", "trust=[mine_gap]", "telemetry.every=1")
    told = "telemetry.metrics=mine_gap.some: x must be a number, not a NoneType; its column has a gap"
    assert (summary.status, summary.warnings.count(told), [row["own/x"] for row in rows]) == (
        "completed",
        1,
        [None] * 2,
    )
    events = read_jsonl(Path(summary.folder) / "events.jsonl")
    assert [event.get("message") for event in events].count(told) == 1


@pytest.mark.parametrize(
    ("override", "key", "module"),
    [
        ("data=counting", "data._target_=mine_data.Counting", "mine_data"),
        ("optim=sgd", "optim._target_=mine_optim.sgd", "mine_optim"),
        ("logger=lines", "logger.lines._target_=mine_logger.Lines", "mine_logger"),
        ("experiment=clipped", "model.memory.own_rule._target_=mine_rule.Clipped", "mine_rule"),
        ("niah.levels=[mine_level.echo]", "niah.levels=mine_level.echo", "mine_level"),
        ("telemetry.metrics=[mine_metric.norms]", "telemetry.metrics=mine_metric.norms", "mine_metric"),
    ],
)
def test_code_without_trust_is_refused_unread(
    override: str, key: str, module: str, job: Callable[..., list[str]]
) -> None:
    with pytest.raises(ConfigError) as caught:
        atlas.compose(job(override))
    allowed = f"a component of atlas, unless it is code that you trust to be executed: trust=[{module}]"
    assert str(caught.value) == f"{key}: must be {allowed}"
    assert module not in sys.modules


def test_all_code_without_trust_is_named_at_once(job: Callable[..., list[str]]) -> None:
    given = ["data=counting", "logger=lines", "telemetry.metrics=[mine_metric.norms]", "trust=[mine_logger]"]
    with pytest.raises(ConfigError) as caught:
        atlas.compose(job(*given))
    assert str(caught.value) == (
        "data._target_=mine_data.Counting, telemetry.metrics=mine_metric.norms: must be components of atlas, unless"
        " they are code that you trust to be executed: trust=[mine_data,mine_metric]"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["telemetry.metrics=[mine_metric.other]"], "telemetry.metrics=mine_metric.other: must be the name of a class"),
        (
            ["niah.levels=[echo]"],
            "niah.levels=['echo']: must be some of ['accumulator', 'memory', 'recall'], or dotted",
        ),
        (
            ["experiment=clipped", "+model.memory.own_rule.rate=1"],
            "model.memory.own_rule.rate=1: must be a key of model.memory.own_rule: most",
        ),
    ],
)
def test_a_fault_in_the_settings_is_named(overrides: list[str], message: str, job: Callable[..., list[str]]) -> None:
    with pytest.raises(ConfigError) as caught:
        atlas.compose(job(*overrides, "trust=[mine_metric,mine_level,mine_rule]"))
    assert str(caught.value).startswith(message)


def test_an_object_that_is_no_rule_is_refused(mine: Path) -> None:
    (mine / "mine_text.py").write_text("def rule():\n    return ''\n")
    config = atlas.compose(["+model.memory.own_rule._target_=mine_text.rule", "trust=[mine_text]"])
    wanted = "chunk_end, close, controls, initial, keep, own_gradients, reads_end, reads_start, write"
    with pytest.raises(ConfigError, match=f"own_rule._target_=mine_text.rule: must have {wanted}, as `LearningRule`"):
        atlas.build_model(config)


FORGETS = """
from atlas.ops.fast_weights import FastWeights, subtract
from atlas.ops.rules.gd import GradientDescent

class Rule(GradientDescent):
    chunk_end = None

    def close(self, start, update, kept):
        return subtract(FastWeights(*(0.9 * matrix for matrix in start)), update), kept
"""
KEEPS = """
from types import SimpleNamespace

import torch

from atlas.ops.rules.gd import GradientDescent

class Rule(GradientDescent):
    chunk_end = None

    def initial(self, weights):
        return (INITIAL,)

    def keep(self, kept, tokens):
        return (LATER,)
"""
KEEPS_AN_OBJECT = KEEPS.replace("INITIAL", "SimpleNamespace(sums=weights)").replace("LATER", "kept[0]")
KEEPS_NO_ROWS = KEEPS.replace("INITIAL", "torch.zeros(1)").replace("LATER", "kept[0] + 1")
KEEPS_MORE = KEEPS.replace("INITIAL", "weights.down.new_zeros(2, 0)")
KEEPS_MORE = KEEPS_MORE.replace("LATER", "torch.cat((kept[0], tokens.rate), dim=1)")
PARAMETER_OF_NO_MODULE = """
import torch

from atlas.ops.rules.gd import GradientDescent

class Rule(GradientDescent):
    def __init__(self):
        self.scale = torch.nn.Parameter(torch.ones(()))
"""
NEVER_CLOSES = FORGETS.replace("    chunk_end = None\n", "")
NEVER_WRITES = """
from atlas.ops.rules.gd import GradientDescent

class Rule(GradientDescent):
    chunk_end = None

    def write(self, start, kept, tokens):
        return super().write(start, kept, tokens._replace(rate=0.1 * tokens.rate))
"""
NO_RANGE = """
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.rules.rule import Control

class Rule(GradientDescent):
    controls = (Control("mine", 2.0),)
"""


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        (FORGETS, "be a rule whose `close` returns its start where all rates and controls are 0"),
        (NEVER_CLOSES, "set chunk_end=None: it inherits another one, with which its own `close` is not called"),
        (NEVER_WRITES, "set own_gradients=False: it inherits another one, with which its own `write` is not called"),
        (KEEPS_AN_OBJECT, r"be a rule that keeps a NamedTuple of tensors \[rows=2, ...\], not SimpleNamespace"),
        (KEEPS_NO_ROWS, r"be a rule that keeps a NamedTuple of tensors \[rows=2, ...\], not a tensor of shape \[1\]"),
        (
            KEEPS_MORE,
            r"be a rule that keeps tensors of the same shapes, not \[\[2, 0\]\] at first and \[\[2, 9\]\] later",
        ),
        (PARAMETER_OF_NO_MODULE, r"be a rule that is a torch.nn.Module, or its parameters \(scale\) are never trained"),
        (
            NO_RANGE,
            r"be a rule with controls of 0 <= initial <= maximum and 0 < maximum, not Control\(name='mine', ini",
        ),
    ],
)
def test_a_rule_that_would_not_do_what_it_says_is_refused(source: str, allowed: str, mine: Path) -> None:
    (mine / "mine_fault.py").write_text(source)
    config = atlas.compose(["+model.memory.own_rule._target_=mine_fault.Rule", "trust=[mine_fault]"])
    with pytest.raises(ConfigError, match=f"^model.memory.own_rule._target_=mine_fault.Rule: must {allowed}"):
        atlas.build_model(config)


MASKED = """
import torch

from atlas.ops.fast_weights import FastWeights, subtract
from atlas.ops.rules.gd import GradientDescent

class Rule(GradientDescent):
    chunk_end = None

    def close(self, start, update, kept):
        mask = torch.ones(update.down.shape[-1])
        return subtract(start, FastWeights(update.down * mask, update.up)), kept
"""


def test_a_rule_may_make_tensors_itself_where_a_model_is_built_on_meta_to_be_compared(mine: Path) -> None:
    (mine / "mine_mask.py").write_text(MASKED)
    config = atlas.compose(["+model.memory.own_rule._target_=mine_mask.Rule", "trust=[mine_mask]"])
    with torch.device("meta"):
        assert atlas.build_model(config).embedding.weight.is_meta


LEARNT = """
import torch

from atlas.ops.fast_weights import FastWeights, subtract
from atlas.ops.rules.gd import GradientDescent

class Rule(torch.nn.Module):
    controls, reads_start, reads_end, own_gradients, chunk_end = (), False, False, False, None

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Parameter(torch.eye(8))

    def initial(self, weights):
        return ()

    write, keep = GradientDescent.write, GradientDescent.keep

    def close(self, start, update, kept):
        width = update.down.shape[-1]
        return subtract(start, FastWeights(update.down @ self.mix[:width, :width], update.up)), kept
"""


def test_a_rule_with_parameters_is_trained_saved_and_loaded(run: Run, mine: Path) -> None:
    (mine / "mine_learnt.py").write_text(LEARNT)
    own = ["+model.memory.own_rule._target_=mine_learnt.Rule", "trust=[mine_learnt]", "model.memory.hidden=8"]
    summary, _ = run(*own)
    model, _ = atlas.load(summary.folder, trust=["mine_learnt"])
    names = [name for name, _ in model.named_parameters() if name.endswith(".mix") and "rule" in name]
    assert len(names) == 2 * len(model.mag_blocks) == len([name for name in model.state_dict() if name in names])
    assert [name for name in model.state_dict() if "rule" in name] == names
    assert all(not torch.equal(model.get_parameter(name), torch.eye(8)) for name in names)


@pytest.mark.slow
def test_the_command_of_the_document(mine: Path, small: list[str]) -> None:
    found = re.search(r"python -m (atlas\.train --config-dir.*?)\n\n", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    kept = [text for text in small if not text.startswith(("data", "optim", "logger=", "niah="))]
    command = f"{sys.executable} -m {found[1]} {' '.join(map(repr, [*kept, *STEPS]))}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ATLAS_RUN_DIR": str(mine / "run")}
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=environment, cwd=mine)
    assert ended.returncode == 0, ended.stderr
    assert (mine / "run" / "losses.txt").read_text().count("\n") == 2
    last = read_jsonl(mine / "run" / "metrics.jsonl")[-1]
    assert {"own/embedding_norm", "niah/mine_level.echo/accuracy"} <= last.keys()
