"""Protocol 4.1 where no set reaches 5x: each outcome from recorded evidence, and what is measured of a real model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from torch import Tensor

import atlas
from atlas.config import ConfigError, RunConfig
from atlas.models import hierarchy
from atlas.models.hierarchy import Piece, pieces
from experiments.phase2 import set_measures
from experiments.phase2.check_decisions import judge_decision
from experiments.phase2.chunk_sizes import decide
from experiments.phase2.chunk_tables import tables
from experiments.phase2.investigation import SHARDS, InvestigationMachine, SetInvestigation
from experiments.phase2.quiet import Machine, Quiet, Spread
from experiments.phase2.report import ExitReport
from experiments.phase2.sweeps import read_sweep
from tests.unit.phase2.test_chunk_sizes import runs, table
from tests.unit.phase2.test_evidence import WriteSweep, chunk_jobs, write_sweep

__all__ = ["write_sweep"]

# Set C, the fastest, has 0.6 times the baseline's 100 tokens/s; its products alone would allow 0.8 times.
SOUND = SetInvestigation(
    candidate="Set C",
    flops_per_token=1e6,
    peak_flops=80e6,
    shard_speeds=[100, 140, 170, 190],
    row_speeds=[100, 150, 180, 200],
    products=[900, 900],
    output_difference=0.0,
    gradient_difference=2e-15,
)


NOT_MEASURED = "What the sets learn in equal time is not measured."
DEFAULT = (
    "The default stays chunk_size=c16, chunks of 16 tokens: the rule chooses among the sets, and whether a set learns"
    " more than the default or the baseline is not measured."
)


def evidence(**changes: Any) -> list[Any]:
    """Runs in which no set reaches 5x, and the investigation of all three, that of Set B with `changes`."""
    own = {"Set A": {}, "Set B": changes, "Set C": {}}
    investigated = [replace(SOUND, candidate=name, **its) for name, its in own.items()]
    return [*runs(table(100, 53, 55, 60)), *investigated]


def test_five_times_is_out_of_reach_where_the_ceiling_is_below_it_and_nothing_is_wrong() -> None:
    decision = decide(evidence())
    assert decision.line == "DECIDED, 5x is out of reach on this device (Set C: {8,32,64}, 0.60x of at most 0.80x)"
    assert decision.passed
    assert "Whether the machine was quiet meanwhile was not recorded." in decision.reason
    told = decide([*evidence(), InvestigationMachine(0.1, 2, 0.02)]).reason
    assert "Load before: 0.10 on 2 cores. Used by others meanwhile: 2% (at most 10%)." in told
    assert decision.advice == (
        "Of the sets of chunk sizes use Set C: {8,32,64} (chunk_size=set_c): it is the fastest set that fits, at 0.60x"
        " the speed of one memory in sequence, the median of the rounds. A set gives a model one local memory for each"
        " of its chunk sizes: small chunks update a memory more often, large ones cost less time, and several memories"
        f" cost more time than one. {NOT_MEASURED} {DEFAULT} 5x is out of reach on this device: matrix products alone"
        " would allow 0.80x at most."
    )


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"output_difference": 2e-9}, "Set B's outputs differ by 2.0e-09 between shards folded and in sequence"),
        (
            {"gradient_difference": float("nan")},
            "Set B's gradients differ by nan between shards folded and in sequence",
        ),
        (
            {"products": [900, 7200]},
            "Set B runs its shards one after the other: 8 take 8.0 times as many matrix products as one",
        ),
        (
            {"shard_speeds": [100, 101, 102, 110]},
            "Set B does not gain from more shards: 1.10x from 8 shards at once, 2.00x from as many sequences",
        ),
        ({"peak_flops": 500e6}, "Set B could reach 5.00x"),
        ({"peak_flops": 120e6}, "Set B reaches 46% of its ceiling, less than half"),
    ],
)
def test_a_finding_that_fails_stops_the_decision_and_is_named(changes: dict[str, Any], finding: str) -> None:
    decision = decide(evidence(**changes))
    assert decision.line == f"STOP (best Set C 0.60x < 5x at 512 tokens; {finding})"
    assert not decision.passed
    assert decision.advice == (
        f"No set of chunk sizes is locked: {finding}. {DEFAULT} Of the sets Set C: {{8,32,64}} is the fastest set that"
        f" fits, at 0.60x the speed of one memory in sequence, the median of the rounds. {NOT_MEASURED}"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "DECIDED, 5x is out of reach on this device (Set C: {8,32,64}, 0.60x of at most 0.80x)"),
        (
            {"products": [900, 7200]},
            "STOP (best Set C 0.60x < 5x at 512 tokens; Set B runs its shards one after the other: 8 take 8.0 times as"
            " many matrix products as one)",
        ),
    ],
)
def test_the_exit_gate_passes_or_names_the_finding(changes: dict[str, Any], line: str) -> None:
    quiet = Quiet(Machine(0.1, 2, 0.01), Spread(0.02, "Set A at 512 tokens"))
    finding = judge_decision("chunk_sizes", decide(evidence(**changes)), quiet)
    assert ExitReport({}, {"G2-1": finding}).lines()[2] == f"[G2-1] Chunk sizes... {line}"
    assert finding.passed is (changes == {})


def test_an_investigation_beside_other_work_stops_the_decision() -> None:
    decision = decide([*evidence(), InvestigationMachine(0.1, 2, 0.38)])
    trouble = "the machine was not quiet: other processes used 38% of its cores' time"
    found = f"while the sets were investigated {trouble}"
    assert decision.line == f"STOP (best Set C 0.60x < 5x at 512 tokens; {found})"
    assert not decision.passed


def test_a_kept_investigation_counts_if_it_is_of_the_runs_and_of_a_quiet_machine(write_sweep: WriteSweep) -> None:
    """What is not taken would be measured anew: these runs are of another machine, so there is none."""
    sweep = read_sweep(write_sweep(chunk_jobs(), "chunk_size_lock"))
    origin = {key: sweep.jobs[0].summary[key] for key in ("device", "versions", "git")}
    machine = {"load_before": 0.1, "cores": 2, "others": 0.02}
    sound = origin | {"machine": machine, "sets": [asdict(SOUND)]}

    def taken(content: Any) -> list[Any]:
        (sweep.folder / "investigation.json").write_text(json.dumps(content), encoding="utf-8")
        return set_measures.investigate(sweep)

    assert taken(sound) == [SOUND, InvestigationMachine(**machine)]
    for key, value in (("device", "cuda"), ("versions", {"torch": "2.6"}), ("git", "deadbee")):
        assert taken(sound | {key: value}) == []
    assert taken(sound | {"machine": machine | {"others": 0.4}}) == []
    assert taken([asdict(SOUND)]) == []  # of an older decide
    with pytest.raises(ConfigError, match=r"investigation.json sets\[0\].peak_flops=0: must be > 0$"):
        taken(sound | {"sets": [asdict(replace(SOUND, peak_flops=0))]})


def test_every_finding_is_told() -> None:
    reason = decide(evidence(output_difference=1.0, products=[1, 8])).reason
    assert reason.endswith(
        "Found: Set B's outputs differ by 1.0e+00 between shards folded and in sequence; Set B runs its shards one"
        " after the other: 8 take 8.0 times as many matrix products as one."
    )


def test_on_a_device_that_one_shard_fills_nothing_gains_and_nothing_is_wrong() -> None:
    assert decide(evidence(shard_speeds=[100, 99, 99, 98], row_speeds=[100, 110, 120, 124])).passed


def test_a_set_that_does_not_fit_need_not_be_investigated() -> None:
    found = [*runs(table(100, 0, 55, 60)), *(replace(SOUND, candidate=name) for name in ("Set B", "Set C"))]
    assert decide(found).headline == "Set C: {8,32,64}, 0.60x of at most 0.80x"


def test_the_investigation_is_a_table() -> None:
    found = tables(evidence())[1]
    assert found.title == "Investigation"
    assert found.rows[2] == [
        *(
            "Set C: {8,32,64}",
            "0.80x",
            "75%",
            "100",
            "140",
            "170",
            "190",
            "1.90x",
            "2.00x",
            "1.00",
            "0.0e+00",
            "2.0e-15",
        )
    ]


@pytest.fixture
def config() -> RunConfig:
    small = ["model.width=32", "model.layers=1", "model.feedforward=32", "model.memory.hidden=8", "model.window=8"]
    shape = ["chunk_size.local=[8,16]", "chunk_size.shard=16", "chunk_size.global_size=16", "data=recall"]
    lengths = [
        "train.sequence=128",
        "train.batch_size=1",
        "data.recall.pairs=4",
        "data.recall.queries=4",
        "data.recall.sparse_queries=4",
    ]
    return atlas.compose([*small, *shape, *lengths, "niah=off", "logger=none", "device=cpu", "device.threads=1"])


def one_after_the_other(tokens: tuple[Tensor, ...], offset: int, period: int) -> Iterator[Piece]:
    """`pieces` with a parallelisation bug: the same numbers, shard by shard."""
    for first in range(0, tokens[0].shape[1], period):
        yield from pieces(tuple(field[:, first : first + period] for field in tokens), offset, period)


class Inexact(Piece):
    """A bug that shows where shards are folded."""

    def unfold(self, out: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super().unfold(out if self.periods == 1 else 1.01 * out, state)


def inexact(*stretch: Any) -> Iterator[Piece]:
    return (Inexact(*piece) for piece in pieces(*stretch))


@pytest.mark.parametrize(
    ("planted", "finding"),
    [
        (None, ""),
        (one_after_the_other, "Set B runs its shards one after the other: 8 take "),
        (inexact, "Set B's outputs differ by "),
    ],
)
def test_a_planted_bug_is_found_in_a_real_model(
    planted: Callable[..., Any] | None, finding: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_measures, "ROUNDS", 1)
    if planted is not None:
        monkeypatch.setattr(hierarchy, "pieces", planted)
    one = set_measures.measure("Set B", config, 1e9)
    counted = ("products", "output_difference", "gradient_difference")  # what no busy machine changes
    decision = decide(evidence(**{name: getattr(one, name) for name in counted}))
    assert decision.passed is (planted is None)
    assert planted is None or decision.headline.startswith(f"best Set C 0.60x < 5x at 512 tokens; {finding}")
    assert len(one.shard_speeds) == len(one.row_speeds) == len(SHARDS)
    assert min(*one.shard_speeds, *one.row_speeds) > 0
    assert one.flops_per_token > 3 * 2 * 32 * 3 * 32  # forward and backward of the projections to q, k, v alone
