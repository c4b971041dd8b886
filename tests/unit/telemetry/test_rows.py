from pathlib import Path

import pytest

from atlas.telemetry.jsonl import JsonlWriter, read_jsonl
from atlas.telemetry.rows import keep_rows_until, make_row, without_clock


def test_fixed_keys_come_first_and_null() -> None:
    # Readers of old runs depend on these names and this order: change them only if you mean it.
    row = make_row({"memory/norm": 1.5, "loss": 2.0, "step": 3})
    assert list(row.items()) == [
        ("step", 3),
        ("segment", None),
        ("tokens", None),
        ("loss", 2.0),
        ("perplexity", None),
        ("ppl_delta", None),
        ("lr", None),
        ("grad_norm", None),
        ("tokens_per_second", None),
        ("gate/mean", None),
        ("gate/std", None),
        ("gate/polarised", None),
        ("niah/accuracy", None),
        ("memory/norm", 1.5),
    ]


def test_two_runs_compare_apart_from_the_clock() -> None:
    first = {"step": 1, "loss": 2.0, "time": 1.0, "tokens_per_second": 10.0, "step_seconds": 0.1}
    second = {"step": 1, "loss": 2.0, "time": 2.0, "tokens_per_second": 11.0, "step_seconds": 0.2}
    assert without_clock(first) == without_clock(second) == {"step": 1, "loss": 2.0}


@pytest.mark.parametrize(
    ("segment", "step", "kept"),
    [
        (0, 200, [(0, 100), (0, 200)]),
        (1, 200, [(0, 100), (0, 200), (0, 300), (1, 200)]),
        (1, 150, [(0, 100), (0, 200), (0, 300)]),
        (1, 300, [(0, 100), (0, 200), (0, 300), (1, 200), (1, 300)]),
        (0, 0, []),
    ],
)
def test_rows_after_the_resumed_checkpoint_are_dropped(
    tmp_path: Path, segment: int, step: int, kept: list[tuple[int, int]]
) -> None:
    path = tmp_path / "metrics.jsonl"
    written = [(0, 100), (0, 200), (0, 300), (1, 200), (1, 300)]
    with JsonlWriter(path) as writer:
        for row_segment, row_step in written:
            writer.append({"step": row_step, "segment": row_segment})
    assert keep_rows_until(path, segment, step) == len(written) - len(kept)
    assert [(row["segment"], row["step"]) for row in read_jsonl(path)] == kept
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_no_file_no_rows(tmp_path: Path) -> None:
    assert keep_rows_until(tmp_path / "metrics.jsonl", 0, 100) == 0


def test_lines_of_somebody_else_stay(tmp_path: Path) -> None:
    path, foreign = tmp_path / "metrics.jsonl", ['{"note": 5}', "no row", '{"step": "late", "segment": 0}', "[1]"]
    own = ['{"step": 100, "segment": 0}', '{"step": 200, "segment": null}']
    path.write_text("".join(f"{line}\n" for line in [own[0], *foreign, own[1]]))
    assert keep_rows_until(path, 0, 100) == 1
    assert path.read_text().splitlines() == [own[0], *foreign]
