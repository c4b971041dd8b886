"""The cost model of several devices, on shapes that are counted by hand."""

from __future__ import annotations

import pytest

import atlas
from atlas.config import ConfigError, ParallelKind
from experiments.scaling.__main__ import RESULTS, main
from experiments.scaling.cost import (
    Backend,
    Shape,
    context_efficiency,
    crossing_elements,
    handed_bytes,
    kept_bytes,
    sent_bytes,
    shapes,
    whole_bytes,
)

DDP, FSDP = ParallelKind.ddp, ParallelKind.fsdp
DOCUMENTS = "README.md", "docs/scaling.md"
# 20 elements of a matrix in a block, 6 others; two ranks have 3 + 2 and 2 + 1 rows of them, padded to 6 and 4
TWO = [Shape(5, 4, matrix=True, in_block=True), Shape(3, 2, matrix=False, in_block=False)]


def test_what_a_rank_keeps_and_sends_is_counted() -> None:
    assert kept_bytes(TWO, DDP, 2) == 4 * (3 * 20 + 4 * 6)
    assert kept_bytes(TWO, FSDP, 2) == 4 * (3 * 12 + 4 * 4)
    assert whole_bytes(TWO, layers=1) == 4 * 26
    assert sent_bytes(TWO, DDP, 2, Backend.nccl) == 4 * 26
    assert sent_bytes(TWO, FSDP, 2, Backend.nccl) == 2 * ((2 * 24 + 8) + 24 + 32)
    assert sent_bytes(TWO, FSDP, 2, Backend.gloo, micro_batches=3) == 2 * (3 * (2 * 24 + 8) + 24 + 2 * 32)
    assert sent_bytes(TWO, DDP, 1, Backend.gloo) == 0
    assert context_efficiency(6, 1, 4) == pytest.approx(6 / 9)


def test_the_shapes_are_those_of_the_model_and_of_what_its_layers_hand_on() -> None:
    config = atlas.compose(["model=tiny", "train.batch_size=3"])
    shape, hidden = config.model, config.model.memory.hidden
    head = shape.width // shape.heads
    window, convolution = (shape.window - 1) * (2 * shape.width + 1), 3 * 3 * shape.width  # keys, values, valid or not
    weights = head * hidden + 2 * hidden * head
    memory = shape.heads * (2 * weights + head**2) + 1  # weights, update, curvature; tokens of the chunk
    assert crossing_elements(config) == shape.layers * (window + convolution + memory)
    assert handed_bytes(config, 1) == 0
    assert handed_bytes(config, 2) == 4 * 3 * crossing_elements(config)
    assert handed_bytes(config, 4) == 4 * 3 * 2 * crossing_elements(config)
    model = atlas.build_model(config)
    assert sum(one.elements for one in shapes(config)) == sum(parameter.numel() for parameter in model.parameters())


def test_the_documents_show_the_times_that_were_measured() -> None:
    section = RESULTS.read_text(encoding="utf-8").partition("## Two ranks on this machine")[2].partition("\n## ")[0]
    two, six = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith(("| 2 |", "| 6 |"))]
    root = RESULTS.parents[2]
    readme, scaling = (" ".join((root / name).read_text(encoding="utf-8").split()) for name in DOCUMENTS)
    assert f"at {two[4]} times the tokens/s of one process with one thread;" in readme
    assert f"with `parallel.context=2` at {two[5]} times, with 6 layers at {six[5]} times." in readme
    for layers, _, _, _, _, *measured in (two, six):
        assert f"| {layers} | {' | '.join(measured)} |" in scaling
    assert f"the same two ranks have {two[4]} and {six[4]} times the tokens/s" in scaling


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^processes=1,none: must be numbers in \[1, 64\], such as 1,2,3$"):
        main(["processes=1,none"])
    with pytest.raises(ConfigError, match=r"^rounds=-1: must be in \[0, 1000\] \(0 = no times\)$"):
        main(["rounds=-1"])
    with pytest.raises(ConfigError, match=r"^flops=0\.0: must be in \(0, inf\)$"):
        main(["flops=0"])
