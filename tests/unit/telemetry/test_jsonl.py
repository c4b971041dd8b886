import json
import math
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atlas.telemetry import jsonl, room
from atlas.telemetry.jsonl import JsonlError, JsonlWriter, read_jsonl


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The system refuses to let a file grow past `size` bytes: a write is cut short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"step": 1, "loss": 2.5, "name": "a\nb", "list": [1, None, True]}, {"step": 2, "nested": {"x": 0.1}}]
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.append(row)
            assert read_jsonl(path)[-1] == row  # on file at once
    with JsonlWriter(path) as writer:
        writer.append({"step": 3})
    assert read_jsonl(path) == [*rows, {"step": 3}]


def test_non_finite_numbers_become_null_and_paths_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with JsonlWriter(path) as writer:
        writer.append({"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -math.inf}, "e": Path("x/y")})
    assert read_jsonl(path) == [{"a": None, "b": [None, 1.0], "c": {"d": None}, "e": "x/y"}]


def test_a_value_that_is_no_number_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with JsonlWriter(path) as writer:
        with pytest.raises(TypeError, match="complex cannot be written as JSON"):
            writer.append({"a": 1j})
        writer.append({"a": 1})
    assert read_jsonl(path) == [{"a": 1}]


@pytest.mark.parametrize("tail", [b'{"step":3,"lo', b"\0\0\0\0\n", b'{"step":3}', b"[1]\n", b"\n"])
def test_a_torn_last_line_is_skipped_by_readers_and_cut_off_by_the_next_writer(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2}\n' + tail)
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    with JsonlWriter(path) as writer:
        writer.append({"step": 4})
    assert path.read_bytes() == b'{"step":1}\n{"step":2}\n{"step":4}\n'


def test_a_file_cut_at_any_byte_keeps_all_its_complete_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 7}).encode() + b"\n" for step in range(4)]
    whole = b"".join(lines)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        assert [row["step"] for row in read_jsonl(path)] == list(range(complete))


def test_a_damaged_inner_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2,\n{"step":3}\n')
    with pytest.raises(JsonlError, match=r"rows\.jsonl, line 2: not a JSON object"):
        read_jsonl(path)


def test_rows_that_do_not_fit_wait_and_are_written_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with JsonlWriter(path) as writer:
        writer.append({"step": 1})
        with file_size_limit(50):
            writer.append({"step": 2, "text": "x" * 100})
            writer.append({"step": 3})
            assert path.read_bytes() == b'{"step":1}\n'
            assert writer.notices() == [
                "rows.jsonl cannot be written (File too large): its rows wait in memory until there is room"
            ]
            assert writer.notices() == []
        writer.append({"step": 4})
        assert writer.notices() == ["rows.jsonl can be written again: no row is lost"]
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3, 4]


def test_the_memory_for_waiting_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MOST_WAITING_BYTES", 40)
    path = tmp_path / "rows.jsonl"
    writer = JsonlWriter(path)
    with file_size_limit(5):
        for step in (1, 2, 3):
            writer.append({"step": step})
        for step in (4, 5):
            with pytest.raises(OSError, match="File too large; 3 rows wait in memory"):
                writer.append({"step": step})
    writer.close()
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3]


def test_room_that_comes_back_while_the_file_is_closed_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    writer = JsonlWriter(path)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with file_size_limit(5):
        writer.append({"step": 1})
        timer = threading.Timer(0.4, resource.setrlimit, (resource.RLIMIT_FSIZE, (hard, hard)))
        timer.start()
        writer.close()
        timer.join()
    assert read_jsonl(path) == [{"step": 1}]


def test_rows_that_are_lost_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROOM_SECONDS", 0.1)
    writer = JsonlWriter(tmp_path / "rows.jsonl")
    with file_size_limit(5):
        writer.append({"step": 1})
        writer.append({"step": 2})
        with pytest.raises(OSError, match="File too large; 2 rows are lost"):
            writer.close()
    writer.close()


def remove(path: Path) -> None:
    path.unlink()


def remove_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def move(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))


def replace_it(path: Path) -> None:
    path.with_suffix(".new").write_text("something else\n", encoding="utf-8")
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [remove, remove_the_folder, move, replace_it])
def test_a_file_that_is_gone_is_written_anew_with_the_next_row(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "run" / "rows.jsonl"
    path.parent.mkdir()
    with JsonlWriter(path) as writer:
        writer.append({"step": 1})
        writer.append({"step": 2})
        change(path)
        writer.append({"step": 3})
        assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3]
        assert writer.notices() == [f"{path} was removed or replaced by somebody else: it is written anew"]
        change(path)
        writer.retry()  # by a row of another file
        assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3]


def test_a_file_that_is_cut_is_noticed_and_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with JsonlWriter(path) as writer:
        for step in (1, 2, 3):
            writer.append({"step": step})
        os.truncate(path, 15)
        writer.append({"step": 4})
        assert writer.notices() == ["rows.jsonl was cut by somebody else: rows before this one are missing"]
    assert [row["step"] for row in read_jsonl(path)] == [1, 4]


def test_a_pipe_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(OSError, match="not a regular file"):
        JsonlWriter(tmp_path / "rows.jsonl")


def test_writing_after_close_is_refused(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "rows.jsonl")
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="is closed"):
        writer.append({"step": 1})


def test_one_write_call_per_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: sizes.append(len(data)) or real(descriptor, data))
    with JsonlWriter(tmp_path / "rows.jsonl") as writer:
        writer.append({"text": "x" * 100_000})
        writer.append({"step": 2})
    assert sizes == [100_012, 11]
