"""The probe as training uses it: when it is due, and that it changes nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import atlas
from atlas.config import LEVELS, ChunkSizeConfig, Level, MemoryConfig, ModelConfig, NIAHConfig, Unit
from atlas.data.needles import NeedleFormat
from atlas.models.language_model import AtlasModel
from atlas.niah import LEGEND, table
from atlas.probes.niah import NIAHProbe
from atlas.probes.result import NIAHResult, Outcome, ProbeCell, judge
from atlas.probes.subject import Subject


def small_model() -> AtlasModel:
    torch.manual_seed(0)
    settings = ModelConfig(width=32, layers=2, heads=2, window=8, feedforward=32)
    return AtlasModel(settings, ChunkSizeConfig([4, 8], 32, 32), 256)


def probe(**settings: object) -> NIAHProbe:
    config = NIAHConfig(samples=2, **settings)  # type: ignore[arg-type]
    return NIAHProbe(config, NeedleFormat(2, 1, 16), sequence=64)


def misnamed(subject: Subject) -> NIAHResult:
    """As one that was copied from another level."""
    return judge(step=subject.step, level="mine_level.echo", threshold=0.5, accuracy=1.0, control=0.0)


def test_a_level_of_ones_own_has_the_name_of_the_setting() -> None:
    own = f"{__name__}.misnamed"
    (result,) = probe(levels=[own]).run(small_model(), 1)
    assert (result.level, result.accuracy) == (own, 1.0)


def broken(subject: Subject) -> NIAHResult:
    raise ValueError("no such\nneedle")


def without_a_result(subject: Subject) -> float:
    return 1.0


def test_a_level_of_ones_own_that_fails_is_not_measured_and_says_why() -> None:
    names = [f"{__name__}.broken", f"{__name__}.without_a_result", f"{__name__}.misnamed"]
    failed, empty, whole = probe(levels=names).run(small_model(), 7)
    assert [failed.outcome, empty.outcome, whole.outcome] == [*[Outcome.not_measured] * 2, Outcome.passed]
    assert (failed.step, failed.level, failed.accuracy) == (7, names[0], None)
    assert failed.reason.startswith("ValueError: no such needle (at ")
    assert "test_niah.py:" in failed.reason
    assert empty.reason.startswith("TypeError: must return what `judge` returns, not float")


def test_a_level_of_atlas_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.probes.niah.named_callable", lambda *_: broken)
    with pytest.raises(ValueError, match="no such"):
        probe(levels=["memory"]).run(small_model(), 7)


def test_numbers_of_torch_and_numpy_are_written_as_pythons() -> None:
    found = judge(
        step=1,
        level="mine.level",
        threshold=0.5,
        accuracy=torch.tensor(0.75),  # type: ignore[arg-type]
        control=np.float32(0.25),  # type: ignore[arg-type]
        chance=np.float32(0.125),  # type: ignore[arg-type]
        details={"spread": torch.tensor(2.0)},  # type: ignore[dict-item]
    )
    assert found.outcome is Outcome.passed
    numbers = found.accuracy, found.control, found.chance, found.details["spread"]
    assert [type(number) for number in numbers] == [float] * 4
    assert numbers == (0.75, 0.25, 0.125, 2.0)


def training_step(model: AtlasModel) -> torch.Tensor:
    tokens = torch.randint(0, 256, (2, 65))  # from the global generator: a probe that draws from it would show
    logits = F.dropout(model(tokens[:, :-1]).logits, 0.5)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad if parameter.grad is not None else 0.0
            parameter.grad = None
    return loss.detach()


def test_probing_changes_nothing_bitwise() -> None:
    model = small_model().train()
    model.blocks[1].eval()  # modes that differ must come back as they were
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    results = probe().run(model, 1)
    assert [result.level for result in results] == list(LEVELS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_next_training_steps_are_the_same_with_and_without_probes() -> None:
    losses = []
    for probing in (False, True):
        model = small_model().train()
        torch.manual_seed(5)
        series = []
        for step in range(3):
            series.append(training_step(model))
            if probing:
                probe(every=1).run(model, step)
        losses.append(torch.stack(series))
    assert torch.equal(*losses)


def test_the_same_needles_every_time() -> None:
    model = small_model()
    first, second = probe().run(model, 1), probe().run(model, 2)
    assert [result.cells for result in first] == [result.cells for result in second]
    assert [result.details for result in first] == [result.details for result in second]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("niah.lengths=[1024,62]", "niah.lengths=[1024, 62]: must be > 62 tokens, the reach of attention"),
        ("niah.levels=[]", "niah.levels=[]: must be at least one (niah=off switches the probes off)"),
        ("niah.tasks=[single,luck]", "niah.tasks=['single', 'luck']: must be some of ['single', 'multi_key', "),
        ("niah.length_factors=[0]", "niah.length_factors=[0]: must be at least one, each in [1, 10000]"),
        ("niah.accumulator_degree=3", "niah.accumulator_degree=3: must be 1 or 2"),
        ("niah.depths=[-0.5]", "niah.depths=[-0.5]: must be in [0, 1]"),
        ("niah.depths=[]", "niah.depths=[]: must be at least one"),
        ("niah.samples=0", "niah.samples=0: must be in [1, 10000]"),
        ("niah.samples=100000000000", "niah.samples=100000000000: must be in [1, 10000]"),
        ("niah.haystack=10001", "niah.haystack=10001: must be in [1, 10000]"),
        ("niah.lengths=[1000000000000]", "niah.lengths=[1000000000000]: must be in [1, 16777216]"),
        ("niah.length_factors=[1,10001]", "niah.length_factors=[1, 10001]: must be at least one, each in [1, 10000]"),
        ("niah.every=-5", "niah.every=-5: must be >= 1 (niah=off switches the probes off)"),
    ],
)
def test_a_bad_setting_is_refused(override: str, message: str) -> None:
    with pytest.raises(atlas.ConfigError) as error:
        atlas.compose([override])
    assert str(error.value).startswith(message)


def count_layers(subject: Subject) -> NIAHResult:
    layers = float(len(subject.model.blocks))
    cell = ProbeCell("layers", "none", 1, accuracy=layers, control=0.0, samples=1)
    return judge(step=subject.step, level="layers", threshold=0.8, accuracy=layers, control=0.0, cells=[cell])


def test_a_new_level_is_one_line_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEVELS, "layers", Level("layers", Unit.cosine, f"{__name__}.count_layers"))
    (result,) = probe(levels=["layers"]).run(small_model(), 7)
    assert (
        result.verdict
        == "PASSED: cosine 2.00 with memory, cosine 0.00 without (chance cosine 0.00, wanted >= cosine 0.80)"
    )
    assert result.metrics == {"niah/layers/accuracy": 2.0, "niah/layers/control": 0.0, "niah/layers/chance": 0.0}
    assert table([result])[3].split() == ["layers", "none", "1", "2.000", "0.000", "-", "-", "-", "-", "1"]


def test_a_table_explains_its_levels_and_columns_and_names_the_levels_left_out() -> None:
    measured = "accumulator", "memory"
    lines = table([judge(step=1, level=name, threshold=0.8, accuracy=0.9, control=0.0) for name in measured])
    assert lines[lines.index("recall  NOT MEASURED: left out by niah.levels") + 1] == f"  {LEVELS['recall'].meaning}"
    assert all(f"  {LEVELS[name].meaning}" in lines for name in measured)
    columns = next(line for line in lines if line.startswith("  task")).split()[5:]
    assert columns == ["memory", "off", "frozen", "without", "blind", "algebra", "prob.", "n"]
    assert all(any(f"{column}: " in line for line in LEGEND) for column in (*columns, "chance", "-"))
    assert "off: the control: memory off; of accumulator no pair, of memory another pair" in LEGEND[0]


def test_a_probe_every_1000_steps_costs_less_than_one_percent_of_the_default_run() -> None:
    config = atlas.compose(["logger=none"])
    small = ModelConfig(
        width=8,
        layers=config.model.layers,
        heads=1,
        window=config.model.window,
        feedforward=8,
        memory=MemoryConfig(hidden=4),
    )
    model, read = AtlasModel(small, config.chunk_size, 256), []
    model.register_forward_hook(lambda _model, arguments, _out: read.append(arguments[0].numel()))
    text = np.frombuffer(b"It was the best of times. " * 40, dtype=np.uint8)
    NIAHProbe(config.niah, NeedleFormat(2, 1, 16), sequence=config.train.sequence, text=text).run(
        model, config.train.steps
    )
    judged, causality, seen = 3 * 24 * 512 * 2, 2 * 2 * 256, 2 * 129
    assert sum(read) == judged + causality + seen
    backward_as_forward = 2
    trained = 1000 * config.train.batch_size * config.train.sequence * (1 + backward_as_forward)
    assert sum(read) / trained == pytest.approx(0.0061, abs=0.0001)


def test_a_control_that_reaches_the_threshold_fails_the_level() -> None:
    below, above = (judge(step=1, level="memory", threshold=0.8, accuracy=0.9, control=at) for at in (0.79, 0.8))
    assert (below.outcome, above.outcome) == (Outcome.passed, Outcome.failed)
    assert "the control reaches the threshold too" in above.verdict
