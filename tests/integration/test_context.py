"""Context parallelism by shards (`parallel.context`): a sequence on several ranks, exactly, on gloo."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.config import Fusion, Rule
from tests.integration import rank_group
from tests.integration.test_data_of_a_resumed_run import NEEDLES
from tests.integration.test_ranks import PROBES, Ranks, troubled

pytestmark = pytest.mark.slow
# Parts of two shards; the global chunk is open at their border, and two layers hand on.
CUT = ["parallel.context=2", "train.sequence=128", "chunk_size.global_size=48", "chunk_size.local=[8,16]"]
LONG = "model.window=80"  # tokens: longer than a part
OTHERS = [[LONG], ["model.memory.recompute=true"], *([f"model.fusion={fusion}"] for fusion in Fusion)]
MODELS = {
    **{f"rule {rule}": [f"model.memory.rule={rule}", *other] for rule, other in zip(Rule, cycle(OTHERS))},
    "a window longer than chunks": ["model.memory.rule=omega", "model.memory.omega.window=50"],
    "sums by chunk": ["model.memory.qk_projection.range=chunk"],
    "no global memory": ["ablation=no_global"],
    "no memory": ["ablation=no_memory"],
}


def test_sequences_on_two_ranks_are_read_and_propagated_back_exactly(overrides: list[str], tmp_path: Path) -> None:
    """In float64, the gradients of all parameters, for every rule, fusion and kind of memory."""
    ranks = Ranks(2, [*overrides, "model.layers=2", *CUT], tmp_path)
    for name, settings in MODELS.items():
        ranks.add(name, *settings, do="parts_of_sequences")
    assert ranks.run() == {job["name"]: ["done"] * 2 for job in ranks.jobs}
    for job in ranks.jobs:
        found = torch.load(job["folder"])
        alone_on = [*job["overrides"], "parallel.context=1"]
        rank_group.parts_of_sequences({**job, "folder": str(tmp_path / "alone")}, alone_on)
        alone = torch.load(tmp_path / "alone")
        torch.testing.assert_close(found["hidden"], alone["hidden"], rtol=0, atol=1e-12)
        assert found["loss"].item() == pytest.approx(alone["loss"].item(), rel=1e-12), job["name"]
        for name, gradient in alone["gradients"].items():
            error = (found["gradients"][name] - gradient).abs().max()
            assert error <= 1e-11 * gradient.abs().max(), (job["name"], name)


def test_ranks_share_rows_and_sequences_of_a_step(overrides: list[str], tmp_path: Path) -> None:
    """Four ranks: two halves of the rows by two of a sequence, in micro-batches, and four parts of a sequence."""
    mixed = ["data=mixed", *(f"data.recall.{setting}" for setting in NEEDLES), "train.sequence=128"]
    ranks = Ranks(4, [*overrides, *mixed, "train.steps=2", "optim.lr=1e-30"], tmp_path)
    ranks.add("2 x 2, two micro-batches", "parallel.context=2", "train.accumulate=4", do="gradients")
    ranks.add("1 x 4", "parallel.context=4", do="gradients")
    ranks.add("1 x 3", "parallel.context=3", "train.sequence=96")
    ended = ranks.run()
    divisor = (
        "a divisor of the number of processes, and 4 is no multiple of 3 (device.processes or the launcher sets it)"
    )
    assert ended.pop("1 x 3") == [f"refused: parallel.context=3: must be {divisor}"] * 4
    assert ended == {name: ["done"] * 4 for name in ended}
    for job in ranks.jobs[:2]:
        found = torch.load(job["folder"])
        alone_on = [*job["overrides"], "parallel.context=1"]
        rank_group.gradients({**job, "folder": str(tmp_path / "alone")}, alone_on)
        alone = torch.load(tmp_path / "alone")
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-6), job["name"]
        assert found["norm"] == pytest.approx(alone["norm"], rel=1e-5), job["name"]
        for name, gradient in alone["gradients"].items():
            error = (found["gradients"][name] - gradient).abs().max()
            assert error <= 5e-6 * gradient.abs().max(), (job["name"], name)


def test_a_run_whose_sequences_are_cut_is_watched_stopped_and_continued_as_any_other(
    overrides: list[str], tiny: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    """With a rollback and probes; its losses are those of one process, and a rank that dies is named."""
    settings = [*CUT, *PROBES, "train.steps=16", "debug.inject=nan_loss@13"]
    ranks = Ranks(2, [*overrides, *settings], tmp_path)
    whole = ranks.add("whole")
    stopped = ranks.add("stopped", *troubled("SIGTERM@6"))
    ranks.add("continued", *troubled("SIGTERM@6"), "resume=auto", folder=stopped)
    ranks.add("gone", *troubled("SIGKILL@8", on=0))
    ended = ranks.run()
    assert ended.pop("stopped") == ["interrupted: stopped by SIGTERM"] * 2
    assert ended.pop("gone") == ["killed", "RankError: rank 0 is gone at step 8 (its log: train.log)"]
    assert ended == {name: ["completed"] * 2 for name in ("whole", "continued")}
    assert same_state(left(stopped).state, left(whole).state)
    assert left(whole).events("rollback")[0]["from_step"] == 12
    alone = left(Path(atlas.train(tiny(*settings, "parallel.context=1"), tmp_path / "alone").folder))
    keys = ("step", "tokens", "loss", "loss/polarisation", "grad_norm", "gate/mean", "validation/loss")
    for one, other in zip(left(whole).rows, alone.rows, strict=True):
        assert one.keys() == other.keys()
        compared = [key for key in keys if other.get(key) is not None]
        assert {key: one[key] for key in compared} == pytest.approx({key: other[key] for key in compared}, rel=1e-3)
