import numpy as np
import pytest

from atlas.data.layout import depth_layout, random_layout

SLOT = 4


def layout(**changes: int) -> tuple[np.ndarray, np.ndarray]:
    settings = {"pairs": 8, "queries": 24, "distance_min": 64, "distance_max": 512} | changes
    return random_layout(np.random.default_rng(0), 200, 512, slot=SLOT, **settings)


@pytest.mark.parametrize(
    "changes",
    [{}, {"distance_max": 120}, {"distance_min": 0}, {"pairs": 16, "queries": 16}, {"queries": 120, "pairs": 8}],
)
def test_every_query_keeps_its_distance(changes: dict[str, int]) -> None:
    nearest, farthest = changes.get("distance_min", 64), changes.get("distance_max", 512)
    for starts, pairs in zip(*layout(**changes), strict=True):
        latest: dict[int, int] = {}
        for start, pair in zip(starts.tolist(), pairs.tolist(), strict=True):
            if pair >= 0 and pair in latest:
                assert nearest < start - latest[pair] <= farthest
            if pair >= 0:
                latest[pair] = start


def test_events_neither_overlap_nor_leave_the_sequence() -> None:
    starts, _ = layout()
    assert np.diff(starts, axis=1).min() >= SLOT
    assert starts.min() == 0
    assert starts.max() == 513 - SLOT


def test_pairs_come_in_order_and_no_more_events_than_asked_for() -> None:
    _, pairs = layout()
    for row in pairs.tolist():
        first_seen = list(dict.fromkeys(pair for pair in row if pair >= 0))
        assert first_seen == list(range(8))
    queries = (pairs >= 0).sum(axis=1) - 8
    assert queries.max() == 24
    assert queries.mean() > 23.5


def test_depths_cover_the_sequence() -> None:
    starts, pairs = layout(pairs=16, queries=16)
    distances = []
    for row, shown in zip(starts, pairs, strict=True):
        for pair in range(16):
            distances += np.diff(row[shown == pair]).tolist()
    inside, several_back = np.mean(np.array(distances) < 128), np.mean(np.array(distances) > 256)
    assert 0.3 < inside < 0.7
    assert several_back > 0.05


def test_a_query_asks_for_each_pair_that_qualifies_equally_often() -> None:
    counts = np.zeros(3, dtype=np.int64)
    for starts, pairs in zip(*layout(), strict=True):
        latest: dict[int, int] = {}
        for start, pair in zip(starts.tolist(), pairs.tolist(), strict=True):
            candidates = sorted(known for known, place in latest.items() if start - place > 64)
            if len(candidates) == 3 and pair in candidates:
                counts[candidates.index(pair)] += 1
            if pair >= 0:
                latest[pair] = start
    assert counts.sum() > 500
    assert counts / counts.sum() == pytest.approx(np.full(3, 1 / 3), abs=0.06)


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.5, 63), (1.0, 126)])
def test_the_needle_stands_at_its_depth_and_the_query_at_the_end(depth: float, place: int) -> None:
    rng = np.random.default_rng(0)
    starts, pairs = depth_layout(rng, 30, 512, slot=SLOT, pairs=4, queries=1, depth=depth)
    assert starts[:, 0].tolist() == [place * SLOT] * 30
    assert starts[:, -1].tolist() == [513 - SLOT] * 30
    assert pairs.tolist() == [[0, 1, 2, 3, 0]] * 30
    assert np.diff(np.sort(starts, axis=1), axis=1).min() >= SLOT
    assert len(np.unique(starts[:, 1])) > 15


@pytest.mark.parametrize("pairs", [2, 3, 4, 6])
def test_the_places_of_needles_do_not_tell_which_is_asked_for(pairs: int) -> None:
    """Beside the needle that is asked for, others stand where other questions ask."""
    depths, cells = (0.0, 0.5, 0.85), 128 - 1
    places = {round(depth * (cells - 1)) for depth in depths}
    for depth in depths:
        rng = np.random.default_rng(0)
        starts, _ = depth_layout(rng, 200, 512, slot=SLOT, pairs=pairs, queries=1, depth=depth, depths=depths)
        needles = starts[:, :pairs] // SLOT
        standing = np.isin(needles, list(places)).sum(1)
        assert standing.tolist() == [min(pairs, len(places))] * 200
        assert all(len(set(row)) == pairs for row in needles.tolist())
        others = {*needles[:, 1].tolist()} if pairs == 2 else {*needles[:, 1:3].flatten().tolist()}
        assert others == places - {round(depth * (cells - 1))}


def test_several_queries_end_the_sequence_in_random_order() -> None:
    starts, pairs = depth_layout(np.random.default_rng(0), 100, 64, slot=SLOT, pairs=5, queries=3, depth=0.0)
    assert starts[:, 5:].tolist() == [[53, 57, 61]] * 100
    assert {tuple(row) for row in pairs[:, 5:].tolist()} == {
        (a, b, c) for a in range(3) for b in range(3) for c in range(3) if len({a, b, c}) == 3
    }


@pytest.mark.parametrize(("pairs", "queries"), [(1, 2), (3, 0), (17, 1)])
def test_depth_layout_refuses_what_does_not_fit(pairs: int, queries: int) -> None:
    with pytest.raises(ValueError, match=f"queries={queries}"):
        depth_layout(np.random.default_rng(0), 1, 64, slot=SLOT, pairs=pairs, queries=queries, depth=0.0)
