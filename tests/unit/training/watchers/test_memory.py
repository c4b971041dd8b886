"""Watchers of the memories, on made-up measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas.training.watchers import JUDGES
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.observations import BatchFacts, Measured, MemoryUse, Probed
from atlas.training.watchers.record import Record

FACTS = {
    "steps": 1000,
    "baseline": 2.3,
    "memory": True,
    "has_global": True,
    "gated": True,
    "sequence": 512,
    "shard": 128,
    "global_size": 128,
    "largest_local": 16,
    "head_width": 16,
}
CALM = {
    "layer0/global/rate_max": 0.4,
    "layer0/local0/rate_max": 0.4,
    "layer0/local0/crowded": 0.05,
    "layer0/global/at_bound": 0.0,
    "layer0/local0/at_bound": 0.0,
    "layer0/global/update_norm": 5.0,
    "layer0/gate_mean": 0.46,
    "layer0/gate_varies": 0.2,
    "layer0/query_directions": 9.0,
    "layer0/read_directions": 2.0,
    "layer0/key_directions": 7.0,
    "layer0/value_directions": 4.0,
}


def made(first: dict[str, float], second: dict[str, float], **facts: object) -> Record:
    record = Record(Facts(**FACTS | facts))  # type: ignore[arg-type]
    for step, values in ((100, first), (200, second)):
        record.step = step
        record.add_measured(Measured(step, CALM | values))
    return record


OUT = {
    "rates_low": (
        {"layer0/global/rate_max": 0.002},
        "the highest inner rate of layer0/global in a batch is 0.002",
    ),
    "rates_high": (
        {"layer0/local0/crowded": 0.4},
        "in 40% of the chunks of layer0/local0 the rates of equal keys add up to more than 4",
    ),
    "gates": ({"layer0/gate_mean": 0.001}, "the gates of layer0 have a mean of 0.001"),
    "norm_bound": (
        {"layer0/local0/at_bound": 1.0},
        "100% of the rows of layer0/local0 end at the bound of their weights",
    ),
    "queries": ({"layer0/query_directions": 2.9}, "the queries of layer0 have only 2.9 directions"),
    "pairs": ({"layer0/value_directions": 1.1}, "the values of layer0 have only 1.1 directions"),
    "global_memory": ({"layer0/global/update_norm": 0.0}, "nothing was written into the global memory of layer0"),
}


def test_steps_that_are_long_in_all_are_told() -> None:
    judge = JUDGES["rates_high"]
    assert judge(made({"layer0/global/path": 24.0}, {"layer0/global/path": 24.0})) is None
    found = judge(made({"layer0/global/path": 64.0}, {"layer0/global/path": 64.0}))
    assert found is not None
    assert found.seen == "from reset to reset the steps of layer0/global have a length of 64 in all"


@pytest.mark.parametrize("name", OUT)
def test_what_two_measurements_show_is_told(name: str) -> None:
    values, seen = OUT[name]
    found = JUDGES[name](made(values, values))
    assert found is not None
    assert (found.watch, found.step, found.seen, found.since) == (name, 200, seen, 99)
    for first, second in ((values, {}), ({}, values), ({}, {})):
        assert JUDGES[name](made(first, second)) is None


def test_gates_that_are_open_or_constant_are_told() -> None:
    for values, seen in (
        ({"layer0/gate_mean": 0.995}, "the gates of layer0 have a mean of 0.995"),
        ({"layer0/gate_varies": 0.001}, "the gates of layer0 are the same for every token (deviation 0.001)"),
    ):
        found = JUDGES["gates"](made(values, values))
        assert found is not None
        assert found.seen == seen
        assert JUDGES["gates"](made(values, values, gated=False)) is None


@pytest.mark.parametrize(("head_width", "calm", "collapsed"), [(4, 3.3, 1.5), (8, 5.0, 2.6), (64, 14.0, 2.9)])
def test_directions_are_judged_by_the_width_of_a_head(head_width: int, calm: float, collapsed: float) -> None:
    for watch, quantity in (("queries", "query_directions"), ("pairs", "key_directions")):
        for value, told in ((calm, False), (collapsed, True)):
            values = {f"layer0/{quantity}": value}
            assert (JUDGES[watch](made(values, values, head_width=head_width)) is not None) is told


def test_directions_that_grow_or_are_young_are_not_told() -> None:
    few = {"layer0/key_directions": 2.0}
    assert JUDGES["pairs"](made(few, few)) is not None
    assert JUDGES["pairs"](made(few, {"layer0/key_directions": 2.3})) is None
    early = made(few, few)
    early.measured = [replace(one, step=one.step // 2) for one in early.measured]
    assert JUDGES["pairs"](early) is None


def test_projected_queries_on_one_line_are_told() -> None:
    values = {"layer0/read_directions": 1.2}
    found = JUDGES["queries"](made(values, values))
    assert found is not None
    assert found.seen == "the projected queries of layer0 have only 1.2 directions"


def test_several_memories_are_one_finding() -> None:
    values = {"layer0/global/rate_max": 0.002, "layer0/local0/rate_max": 0.001}
    found = JUDGES["rates_low"](made(values, values))
    assert found is not None
    assert found.seen == "the highest inner rate of layer0/global and 1 more in a batch is 0.002"
    assert found.numbers == {"layer0/global": 0.002, "layer0/local0": 0.001}


@pytest.mark.parametrize(
    ("name", "facts", "seen"),
    [
        ("resets", {"shard": 16}, "the local memories are reset after every chunk (chunk_size.shard=16)"),
        ("resets", {"shard": 512}, "no sequence of 512 tokens reaches a reset (chunk_size.shard=512)"),
        ("resets", {"shard": 512, "has_global": False}, None),  # chunk_size=baseline
        ("resets", {"shard": 512, "carries": True}, None),
        ("resets", {"memory": False, "has_global": False, "shard": 16}, None),
        (
            "global_memory",
            {"global_size": 512},
            "its chunk of 512 tokens is not shorter than the 512 tokens that a row has",
        ),
        ("global_memory", {"global_size": 512, "carries": True}, None),
        (
            "global_memory",
            {"global_size": 2048, "carries": True, "steps": 4},
            "its chunk of 2048 tokens is not shorter than the 2048 tokens that a row has",
        ),
        ("global_memory", {"global_size": 512, "has_global": False}, None),
    ],
)
def test_lengths_that_do_not_fit_are_told_before_step_1(name: str, facts: dict[str, object], seen: str | None) -> None:
    found = JUDGES[name](Record(Facts(**FACTS | facts)))  # type: ignore[arg-type]
    assert (found and found.seen) == seen


def test_a_memory_without_use_is_told() -> None:
    record = Record(Facts(**FACTS))  # type: ignore[arg-type]
    assert JUDGES["memory_unused"](record) is None
    record.memory_use = [MemoryUse(1000, on=1.5, off=1.5005, frozen=1.6)]
    found = JUDGES["memory_unused"](record)
    assert found is not None
    assert found.seen == "the loss of the watched rows is 1.5000 nats, and 1.5005 with the memory off"
    record.memory_use = [MemoryUse(1000, on=1.5, off=3.0, frozen=1.501)]
    found = JUDGES["memory_unused"](record)
    assert found is not None
    assert found.seen == "the loss of the watched rows is 1.5000 nats, and 1.5010 with a memory that writes nothing"
    for calm in (MemoryUse(1000, 1.5, 3.0, 1.56), MemoryUse(5, 5.0, 5.0, 5.0)):  # learns; too early to tell
        record.memory_use = [calm]
        assert JUDGES["memory_unused"](record) is None


def test_writes_that_move_a_memory_away_from_its_pairs_are_told() -> None:
    away = {"layer0/local0/learned": -0.4, "layer0/global/learned": 0.3}
    found = JUDGES["writes"](made(away, away))
    assert found is not None
    assert (found.numbers, found.seen) == (
        {"layer0/local0": -0.4},
        "writes change what layer0/local0 recalls of the keys just written away from their values (cosine -0.40)",
    )
    assert JUDGES["writes"](made({"layer0/local0/learned": 0.1}, away)) is None
    nothing_written = {"layer0/local0/learned": 0.0}
    assert JUDGES["writes"](made(nothing_written, nothing_written)) is None


def test_writes_that_make_the_loss_worse_than_none_are_told() -> None:
    record = Record(Facts(**FACTS))  # type: ignore[arg-type]
    record.memory_use = [MemoryUse(150, on=2.67, off=3.0, frozen=2.65, error=0.004)]
    found = JUDGES["writes"](record)
    assert found is not None
    assert found.seen == "the loss of the watched rows is 2.6700 nats, and 2.6500 with a memory that writes nothing"
    for calm in (
        MemoryUse(150, on=2.67, off=3.0, frozen=2.65, error=0.006),  # may be chance
        MemoryUse(150, on=2.67, off=3.0, frozen=2.66, error=0.001),  # hardly worse
        MemoryUse(150, on=2.65, off=3.0, frozen=2.67, error=0.001),
        MemoryUse(90, on=2.67, off=3.0, frozen=2.65, error=0.001),  # may be learned yet
        MemoryUse(150, on=2.67, off=3.0, frozen=2.65),  # of an older checkpoint
    ):
        record.memory_use = [calm]
        assert JUDGES["writes"](record) is None


def test_a_memory_that_only_recalls_is_used() -> None:
    record = Record(Facts(**FACTS))  # type: ignore[arg-type]
    record.memory_use = [MemoryUse(1000, on=1.5, off=1.5, frozen=1.5)]
    record.probed = [Probed(1000, "recall", True, 0.98, 0.32, 0.06)]
    assert JUDGES["memory_unused"](record) is None
    record.probed = [Probed(600, "recall", False, 0.46, 0.42, 0.06, 0.04)]  # on the way to it
    assert JUDGES["memory_unused"](record) is None
    record.probed = [Probed(600, "recall", False, 0.46, 0.42, 0.06, 0.4)]  # attention finds them
    assert JUDGES["memory_unused"](record) is not None


def test_recall_that_ignores_the_key_is_told() -> None:
    record = Record(Facts(**FACTS))  # type: ignore[arg-type]
    blind = Probed(1000, "recall", False, 0.3, 0.32, 0.06)
    record.probed = [blind]
    found = JUDGES["key_blind"](record)
    assert found is not None
    assert found.seen == "recall finds 30.0% of the needles, the best reader that ignores the key 32.0%"
    for calm in (
        Probed(2000, "recall", True, 0.98, 0.32, 0.06),
        Probed(2000, "recall", False, 0.08, 0.32, 0.06),  # finds nothing at all
        Probed(2000, "recall", False, 0.6, 0.32, 0.06),  # finds some by the key
        replace(blind, step=300),  # may learn it yet
        Probed(2000, "recall", None, None, None, 0.06),
    ):
        record.probed = [blind, calm]
        assert JUDGES["key_blind"](record) is None


def test_directions_are_not_judged_where_the_last_tokens_are_padding() -> None:
    few = {"layer0/key_directions": 2.0}
    padded = made(few, few)
    padded.batches.append(BatchFacts(commonest=0.1, padding=0.4, next_tokens=1.0, copies=0.0))
    assert JUDGES["pairs"](padded) is None


def test_a_memory_that_forgets() -> None:
    for kept, wanted in ((0.001, True), (0.4, False), (0.9, False)):
        record = made({"layer0/global/kept": kept}, {"layer0/global/kept": kept})
        found = JUDGES["forgets"](replace(record, facts=replace(record.facts, sequence=64)))
        assert (found is not None) == wanted
        if found is not None:
            assert found.seen == "the weights of layer0/global have 0.1% of their norm left at the end of a sequence"
